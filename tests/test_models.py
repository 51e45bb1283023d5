"""One class of tests for every model of the zoo, and agreement with the libraries the models come from."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F
from torchvision.models import segmentation

from basics.checkpoint import save_atomic
from basics.errors import UserError
from kd.distiller import DistilledStudent, Distiller, LiveTeacher, Recipe
from kd.losses import LOSSES
from networks.base import TAPS
from networks.weights import load_whole
from tests.tiny import TinyModel, tiny_batch
from zoo import MODELS, build_model, load_checkpoint_model, model_file_dict

CLASSES = 5
BIG = {
    "fcn_resnet101", "deeplabv3_resnet101", "unet_vgg16", "deeplabv3plus_resnet101",
    "segformer_b2", "segformer_b3", "segformer_b4", "segformer_b5",
}  # fmt: skip
SMP = ("unet_", "deeplabv3plus_", "segformer_")


class Labels:
    class_names = tuple("abcde")
    palette = ((0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0))


def build(name: str, num_classes: int = CLASSES):
    if name.startswith(SMP):
        pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(0)
    return build_model(name, num_classes).eval()


@pytest.fixture(
    scope="class",
    params=[pytest.param(name, marks=pytest.mark.slow) if name in BIG else name for name in MODELS],
)
def named_model(request):
    return request.param, build(request.param)


class TestEveryModel:
    """The promises of `networks.base.SegmentationModel`, model by model."""

    @pytest.fixture
    def model(self, named_model):
        return named_model[1].eval()

    @torch.no_grad()
    def test_taps_are_as_announced(self, model):
        """Strides and channels at a size that is a multiple of every stride; `low` and `mid` as promised."""
        logits, taps = model.forward_taps(torch.randn(2, 3, 64, 96))
        assert tuple(taps) == tuple(model.tap_channels) == tuple(model.tap_strides) == TAPS
        assert model.tap_strides["low"] == 4 and model.tap_strides["mid"] == 8
        for name, tap in taps.items():
            stride = model.tap_strides[name]
            assert tap.shape == (2, model.tap_channels[name], 64 // stride, 96 // stride), name
            assert model.stride % stride == 0
        assert logits.shape == (2, CLASSES, 64 // model.logit_stride, 96 // model.logit_stride)
        assert model.num_classes == CLASSES

    @torch.no_grad()
    def test_odd_size_is_padded_right_and_below(self, model):
        images = torch.randn(1, 3, 97, 131)
        logits = model(images)
        assert logits.shape == (1, CLASSES, 97, 131) and logits.isfinite().all()
        padded = torch.zeros(1, 3, -(-97 // model.stride) * model.stride, -(-131 // model.stride) * model.stride)
        padded[..., :97, :131] = images
        torch.testing.assert_close(logits, model(padded)[..., :97, :131], rtol=0, atol=0)

    @torch.no_grad()
    def test_smallest_size(self, model):
        assert model(torch.randn(1, 3, 32, 32)).shape == (1, CLASSES, 32, 32)

    @torch.no_grad()
    def test_taps_are_not_overwritten(self, model):
        """Encoder taps hold what a layer put out: no later operation in place has changed them."""
        outputs = []
        hooks = [
            module.register_forward_hook(
                lambda module, inputs, output: outputs.append(output.clone()) if torch.is_tensor(output) else None
            )
            for module in model.backbone.modules()
        ]
        _, taps = model.forward_taps(torch.randn(1, 3, 64, 64))
        for hook in hooks:
            hook.remove()
        for name in ("low", "mid", "high"):
            assert any(torch.equal(taps[name], output) for output in outputs), name

    @torch.no_grad()
    def test_decoder_tap_comes_before_its_relu(self, model):
        _, taps = model.forward_taps(torch.randn(1, 3, 64, 64))
        assert (taps["decoder"] < 0).any() and (taps["decoder"] > 0).any()

    def test_backward_reaches_every_parameter(self, model):
        model.train()
        model.zero_grad()
        loss = F.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.randint(0, CLASSES, (2, 64, 64)))
        loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        model.zero_grad()

    def test_batch_of_one_trains_or_says_why_not(self, model):
        model.train()
        images = torch.randn(1, 3, 64, 64)
        if model.min_train_batch == 1:
            assert model(images).isfinite().all()
        else:
            with pytest.raises(UserError, match="batch"):
                model(images)

    def test_logits_depend_on_the_backbone(self, model):
        """`backbone` is what --freeze-epochs freezes: it has the parameters that feed `high`."""
        parameter = next(model.backbone.parameters())
        _, taps = model.forward_taps(torch.randn(1, 3, 64, 64))
        assert all(taps[name].grad_fn is not None for name in TAPS)
        (gradient,) = torch.autograd.grad(taps["high"].square().sum(), parameter)
        assert gradient.abs().sum() > 0

    @pytest.mark.parametrize("role", ["student", "teacher"])
    def test_distillation_step_with_every_feature_loss(self, model, role):
        """One optimizer step under all feature losses at once: finite, and none leaves the student where it was."""
        torch.manual_seed(0)
        model = copy.deepcopy(model)  # the others shall find it as it was
        student, teacher = (model, TinyModel(CLASSES)) if role == "student" else (TinyModel(CLASSES), model)
        kept = {name: value.clone() for name, value in teacher.state_dict().items()}
        features = [name for name, spec in LOSSES.items() if spec.kind == "features"]
        recipe, live = Recipe({"ce": 1.0} | dict.fromkeys(features, 1.0)), LiveTeacher(teacher)
        distilled = DistilledStudent(student, recipe, live).train()
        distiller = Distiller(distilled, student, recipe, live)
        losses = distiller.losses(tiny_batch(classes=CLASSES))
        assert losses.keys() == {"ce", *features}
        parameters = [parameter for parameter in student.backbone.parameters() if parameter.requires_grad]
        for name in features:
            assert losses[name].isfinite() and losses[name] > 0, name
            gradients = torch.autograd.grad(losses[name], parameters, retain_graph=True, allow_unused=True)
            assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients), name
        optimizer = torch.optim.SGD(distilled.parameters(), lr=1e-3)
        distiller.total(losses).backward()
        optimizer.step()
        assert all(parameter.isfinite().all() for parameter in distilled.parameters())
        assert all(torch.equal(value, kept[name]) for name, value in teacher.state_dict().items())

    def test_save_and_load(self, named_model, tmp_path):
        name, model = named_model[0], named_model[1].eval()
        save_atomic(model_file_dict(name, model, Labels), tmp_path / "model.pth")
        state = torch.random.get_rng_state()
        again, checkpoint = load_checkpoint_model(tmp_path / "model.pth")
        assert torch.equal(torch.random.get_rng_state(), state)
        assert not again.training and checkpoint["model"] == name
        images = torch.randn(1, 3, 33, 40)
        with torch.no_grad():
            assert torch.equal(again(images), model(images))


@pytest.mark.parametrize(
    "name",
    [
        "fcn_resnet50",
        "deeplabv3_resnet50",
        "deeplabv3_mobilenet_v3_large",
        "lraspp_mobilenet_v3_large",
        pytest.param("fcn_resnet101", marks=pytest.mark.slow),
        pytest.param("deeplabv3_resnet101", marks=pytest.mark.slow),
    ],
)
def test_output_is_torchvisions(name):
    """With torchvision's own state_dict, auxiliary head and all, the output is torchvision's, bit for bit."""
    torch.manual_seed(1)
    options = {} if name.startswith("lraspp") else {"aux_loss": True}
    reference = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=CLASSES, **options).eval()
    model = build(name)
    load_whole(model, reference.state_dict(), "torchvision")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(model(images), reference(images)["out"])


@pytest.mark.parametrize(
    ("name", "builder", "encoder", "options"),
    [
        ("unet_resnet50", "Unet", "resnet50", {}),
        ("deeplabv3plus_resnet18", "DeepLabV3Plus", "resnet18", {"decoder_atrous_rates": (6, 12, 18), "upsampling": 1}),
        ("segformer_b0", "Segformer", "mit_b0", {"upsampling": 1}),
    ],
)
def test_logits_are_smps(name, builder, encoder, options):
    """smp's state_dict (`encoder.*`) loads, and the taken-out ReLU changes nothing."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(1)
    reference = getattr(smp, builder)(encoder, encoder_weights=None, classes=CLASSES, **options).eval()
    model = build(name)
    load_whole(model, reference.state_dict(), "smp")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_taps(images)[0], reference(images), rtol=0, atol=1e-6)


def test_lraspp_decoder_tap_is_the_gated_map():
    """ReLU of the tap is what torchvision's head hands to its high-level classifier."""
    model = build("lraspp_mobilenet_v3_large")
    head = model.classifier
    with torch.no_grad():
        _, taps = model.forward_taps(torch.randn(1, 3, 64, 64))
        torch.testing.assert_close(taps["decoder"].relu(), head.cbr(taps["high"]) * head.scale(taps["high"]))


class TestFastLiteSSNet:
    def test_widths_follow_the_factor(self):
        full, half = build_model("fastlitessnet", 3, width=1.0), build_model("fastlitessnet", 3)
        assert full.tap_channels == {"low": 64, "mid": 128, "high": 256, "decoder": 32}
        assert half.tap_channels == {"low": 32, "mid": 64, "high": 128, "decoder": 16}
        assert half.model_args == {} and full.model_args == {"width": 1.0}

    def test_scale_weights_are_a_softmax(self):
        """One scale's weight at 1 and the others at 0: the fused map depends on that scale alone."""
        fusion = build("fastlitessnet").fusion
        maps = [torch.randn(1, 16 * 2**stage, 8 // 2**stage, 8 // 2**stage) for stage in range(4)]
        with torch.no_grad():
            fusion.scale_logits.copy_(torch.tensor([-1e9, 0.0, -1e9, -1e9]))
            before = fusion(maps)
            assert torch.equal(fusion([maps[0] + 1, maps[1], maps[2] * 2, maps[3] - 1]), before)
            assert not torch.equal(fusion([maps[0], maps[1] + 1, maps[2], maps[3]]), before)

    def test_guidance_without_attention_is_its_convolution(self):
        """a = 0 everywhere (a very negative bias before the sigmoid): x * (1 + a) is x."""
        guidance = build("fastlitessnet").decoder[0].guidance
        features = torch.randn(1, 64, 6, 6)
        with torch.no_grad():
            guidance.attention[3].bias.fill_(-1e9)
            expected = guidance.norm(guidance.conv(features))
            assert torch.equal(guidance(features), expected)
            guidance.attention[3].bias.fill_(1e9)  # a = 1
            torch.testing.assert_close(guidance(features), guidance.norm(guidance.conv(2 * features)))

    @pytest.mark.parametrize("width", [0.001, -1, "wide"])
    def test_senseless_width_is_one_error(self, width):
        with pytest.raises(UserError, match="width"):
            build_model("fastlitessnet", 3, width=width)
