"""The student: size, parts, and the ImageNet weights in the encoder."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v3_small

from basics.checkpoint import load_file, save_atomic
from basics.errors import UserError
from student_model import ASPP, SIZES, VARIANTS, DepthwiseConv, ImagePooling, StudentNet, aspp_rates
from zoo import create_model, load_checkpoint_model, model_file_dict

WEIGHTS = Path(__file__).parents[2] / "shared/weights/mobilenet_v3_small_imagenet_features.pth"
needs_weights = pytest.mark.skipif(not WEIGHTS.exists(), reason=f"{WEIGHTS.name} is not on this machine")


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes():
    assert 1.5e6 <= parameters(StudentNet(21)) <= 1.8e6
    assert parameters(StudentNet(21, "compact")) < 0.5e6


def test_aspp_parameters_by_hand():
    """1x1, three separable 3x3 branches behind it, pooling with a bias, projection; BatchNorm has 2 a channel."""
    width, inner = 8, 12
    narrow = width * inner + 2 * inner
    separable = 9 * inner + 2 * inner + inner * inner + 2 * inner
    pooling = width * inner + inner
    project = 5 * inner * inner + 2 * inner
    assert parameters(ASPP(width, inner)) == narrow + 3 * separable + pooling + project


def test_aspp_on_the_encoders_map_by_hand():
    """Of each branch the 3x3 and its BatchNorm, and the 1x1 behind them, see the encoder's channels."""
    width, inner = 8, 12
    more = 3 * (9 + 2 + inner) * (width - inner)
    assert parameters(ASPP(width, inner, on_encoder=True)) == parameters(ASPP(width, inner)) + more


@pytest.mark.parametrize(
    ("crop_size", "rates"), [(256, (3, 6, 9)), (513, (6, 12, 18)), (192, (2, 5, 7)), (384, (5, 9, 14)), (32, (1, 1, 1))]
)
def test_atrous_rates_cover_the_same_share_of_every_crop(crop_size, rates):
    """At 513 pixels they are the paper's; halves are rounded up."""
    assert aspp_rates(crop_size) == rates
    student = StudentNet(3, "compact", crop_size)
    assert [branch[0].dilation[0] for branch in student.aspp.dilated] == list(rates)


@pytest.mark.parametrize("name", SIZES)
def test_a_changed_head_has_all_the_plain_one_has(name):
    """What a change adds has names of its own, and the second skip reaches the output."""
    plain = StudentNet(5, name).eval()
    skip8 = StudentNet(5, f"{name}_skip8")
    added = skip8.state_dict().keys() - plain.state_dict().keys()
    assert {key.rsplit(".", 2)[0] for key in added} == {"decoder.mid_skip", "decoder.mid_mix"}
    assert plain.state_dict().keys() == StudentNet(5, f"{name}_aspp").state_dict().keys()
    mid = skip8.eval().backbone(torch.rand(1, 3, 64, 64))["mid"].detach().requires_grad_()
    high = torch.rand(1, skip8.tap_channels["high"], 4, 4)
    skip8.decoder(skip8.aspp(high), torch.rand(1, 16, 16, 16), mid).sum().backward()
    assert mid.grad.abs().sum() > 0


def test_the_rates_of_a_training_stay_in_its_file(tmp_path):
    model = create_model("compact_rates", 3, crop_size=512)
    assert model.model_args == {"crop_size": 512} and create_model("compact", 3, crop_size=512).model_args == {}
    dataset = types.SimpleNamespace(class_names=["a", "b", "c"], palette=[[0, 0, 0], [1, 0, 0], [2, 0, 0]])
    save_atomic(model_file_dict("compact_rates", model, dataset), tmp_path / "best.pth")
    loaded, _ = load_checkpoint_model(tmp_path / "best.pth")
    again = create_model("compact_rates", 3, str(tmp_path / "best.pth"), crop_size=64)  # its own go before
    for network in (loaded, again):
        assert [branch[0].dilation[0] for branch in network.aspp.dilated] == [6, 12, 18]


@pytest.mark.parametrize(("kernel", "dilation"), [(5, 2), (3, 3), (3, 9)])
@pytest.mark.parametrize("size", [(16, 16), (21, 13), (33, 40), (5, 4)])
def test_depthwise_convolution_in_training_is_the_ordinary_one(kernel, dilation, size):
    torch.manual_seed(0)
    layer = DepthwiseConv(6, kernel, dilation).double().train()
    ordinary = nn.Conv2d(6, 6, kernel, padding="same", dilation=dilation, groups=6, bias=False).double()
    ordinary.load_state_dict(layer.state_dict())
    features = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn_like(features)
    for module in (layer, layer.eval()):
        outputs = module(features), ordinary(features)
        torch.testing.assert_close(*outputs)
        gradients = (
            torch.autograd.grad(output, (features, weight), gradient)
            for output, weight in zip(outputs, (module.weight, ordinary.weight), strict=True)
        )
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_of_one_in_training(variant):
    student = StudentNet(4, variant).train()
    student(torch.randn(1, 3, 64, 64)).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in student.parameters())


def test_image_pooling_is_the_mean_everywhere():
    pooling = ImagePooling(3, 2)
    features = torch.randn(2, 3, 5, 7)
    pooled = pooling(features)
    assert pooled.shape == (2, 2, 5, 7)
    weight, bias = pooling.conv.weight[:, :, 0, 0].double(), pooling.conv.bias.double()
    expected = (features.double().mean(dim=(2, 3)) @ weight.T + bias).clamp(min=0)
    torch.testing.assert_close(pooled[:, :, 4, 3].double(), expected, rtol=1e-5, atol=1e-6)
    assert (pooled == pooled[:, :, :1, :1]).all()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in pooling.modules())


@pytest.mark.parametrize(("variant", "blocks"), [("standard", 13), ("compact", 10)])
def test_encoder_is_torchvisions(variant, blocks):
    """Same key names, and with the same tensors the same feature maps as torchvision's own blocks."""
    torch.manual_seed(0)
    reference = mobilenet_v3_small(weights=None, dilated=True).features[:blocks].eval()
    student = StudentNet(21, variant).eval()
    student.backbone.load_state_dict({f"features.{key}": value for key, value in reference.state_dict().items()})
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        _, taps = student.forward_taps(images)
        assert torch.equal(taps["low"], reference[:2](images))
        assert torch.equal(taps["mid"], reference[:4](images))
        assert torch.equal(taps["high"], reference(images))


def test_logits_follow_the_decoder_tap():
    student = StudentNet(3, "compact").eval()
    with torch.no_grad():
        logits, taps = student.forward_taps(torch.randn(1, 3, 32, 48))
        assert torch.equal(logits, student.classifier(taps["decoder"].clamp(min=0)))


def test_unknown_variant_lists_the_known():
    with pytest.raises(UserError, match=r"compact, compact_aspp, .*standard"):
        StudentNet(21, "tiny")


@needs_weights
@pytest.mark.parametrize("variant", VARIANTS)
def test_imagenet_weights_fill_the_whole_encoder(variant, capsys):
    student = create_model(variant, 21, str(WEIGHTS))
    file = load_file(WEIGHTS)
    for name, value in student.backbone.state_dict().items():
        assert torch.equal(value, file[name]), name
    assert "random" not in capsys.readouterr().out
