"""Weights: what may be loaded into what, and the one error for what may not."""

from __future__ import annotations

import dataclasses
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from torchvision.models import mobilenet_v3_large, segmentation

import zoo
from basics.checkpoint import load_file, save_atomic
from basics.errors import UserError
from networks import smp as smp_models
from networks import weights
from zoo import MODELS, build_model, create_model, load_any_teacher, load_checkpoint_model, model_file_dict

RESNET50 = Path(__file__).parents[2] / "shared/weights/resnet50_imagenet_partial_fp16.pth"
NAMES = ["background", "cat", "dog"]


@dataclasses.dataclass
class Labels:
    class_names: list[str] = dataclasses.field(default_factory=lambda: list(NAMES))

    @property
    def palette(self) -> list[list[int]]:
        return [[index, 0, 0] for index in range(len(self.class_names))]


@pytest.fixture
def donor():
    """A compact student for three classes whose every tensor differs from a new model's."""
    torch.manual_seed(7)
    model = build_model("compact", 3)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    return model


@pytest.fixture
def checkpoint(donor):
    return model_file_dict("compact", donor, Labels())


@pytest.fixture
def saved(tmp_path):
    """``saved(content)`` -> path of a file that holds it."""

    def save(content, name="weights.pth") -> str:
        save_atomic(content, tmp_path / name)
        return str(tmp_path / name)

    return save


def backbone_state(model):
    return {name: value.clone() for name, value in model.backbone.state_dict().items()}


def assert_same(state, other):
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)


# -- students --------------------------------------------------------------------------------------


def test_none_is_random_and_seeded():
    torch.manual_seed(3)
    first = create_model("compact", 3, "none")
    torch.manual_seed(3)
    assert_same(first.state_dict(), create_model("compact", 3, "none").state_dict())


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "_orig_mod.backbone.", "encoder."])
def test_backbone_file(saved, donor, prefix, capsys):
    path = saved({prefix + name: value for name, value in backbone_state(donor).items()})
    model = create_model("compact", 21, path)
    assert_same(model.backbone.state_dict(), donor.backbone.state_dict())
    assert f"163 of 163 tensors from {path}" in capsys.readouterr().out


def test_backbone_under_state_dict_key_in_half_precision(saved, donor):
    state = {name: value.half() for name, value in backbone_state(donor).items()}
    model = create_model("compact", 21, saved({"state_dict": state, "epoch": 4}))
    weight = model.backbone.features[0][0].weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, donor.backbone.features[0][0].weight.half().float())


def test_torchvision_classification_file_fills_a_torchvision_backbone(saved):
    torch.manual_seed(5)
    classifier = mobilenet_v3_large(weights=None)
    model = create_model("lraspp_mobilenet_v3_large", 3, saved(classifier.state_dict()))
    features = {name.removeprefix("features."): v for name, v in classifier.state_dict().items() if "features." in name}
    assert_same(model.backbone.state_dict(), features)


def test_partial_backbone_says_what_stays_random(saved, donor, capsys):
    state = {name: value for name, value in backbone_state(donor).items() if "features.9." not in name}
    model = create_model("compact", 3, saved(state))
    said = capsys.readouterr().out
    absent = {
        name.rpartition(".")[0] for name in backbone_state(donor) if "features.9." in name and "num_b" not in name
    }
    assert all(layer in said for layer in absent) and "features.8." not in said
    assert torch.equal(model.backbone.features[0][0].weight, donor.backbone.features[0][0].weight)
    assert not torch.equal(model.backbone.features[9].block[0][0].weight, donor.backbone.features[9].block[0][0].weight)


def test_small_share_of_a_backbone_is_refused(saved, donor):
    state = dict(list(backbone_state(donor).items())[:60])
    with pytest.raises(UserError, match=r"weights\.pth: holds \d+ of the 163 tensors"):
        create_model("compact", 3, saved(state))


def test_backbone_of_another_shape_is_refused(saved, donor):
    state = backbone_state(donor)
    state["features.4.block.1.0.weight"] = torch.zeros(3, 3)
    with pytest.raises(UserError, match=r"another shape \(features\.4\.block\.1\.0\.weight\)"):
        create_model("compact", 3, saved(state))


def test_deeper_backbone_is_refused(saved):
    """All of ResNet-50's names and shapes are in ResNet-101, but it is not ResNet-50."""
    from torchvision.models import resnet101

    with torch.device("meta"):
        state = resnet101(weights=None).state_dict()
    state = {name: torch.zeros(value.shape, dtype=torch.float16) for name, value in state.items()}
    with pytest.raises(UserError, match=r"another architecture.*layer3\.6"):
        weights.load_backbone(build_model("fcn_resnet50", 3), state, "file")


@pytest.mark.parametrize("content", [{}, {"a": 1}, {"state_dict": {}}, {"x": torch.zeros(2)}])
def test_file_without_weights_of_this_model(saved, content):
    with pytest.raises(UserError, match=r"weights\.pth"):
        create_model("compact", 3, saved(content))


def test_whole_checkpoint_is_taken_whole(saved, donor, checkpoint):
    model = create_model("compact", 3, saved(checkpoint))
    assert_same(model.state_dict(), donor.state_dict())


def test_whole_checkpoint_of_other_classes_gives_its_backbone(saved, donor, checkpoint, capsys):
    model = create_model("compact", 5, saved(checkpoint))
    assert_same(model.backbone.state_dict(), donor.backbone.state_dict())
    assert not torch.equal(model.aspp.project[0].weight, donor.aspp.project[0].weight)
    assert "made for 3 classes, needed are 5: only the backbone" in capsys.readouterr().out


def test_checkpoint_of_another_model_is_refused(saved, checkpoint):
    with pytest.raises(UserError, match="holds a compact, asked for is a standard"):
        create_model("standard", 3, saved(checkpoint))


def test_incomplete_whole_file_is_refused(saved, donor):
    state = donor.state_dict()
    del state["classifier.bias"]
    with pytest.raises(UserError, match=r"1 tensors missing \(classifier\.bias\)"):
        create_model("compact", 3, saved(state))
    with pytest.raises(UserError, match=r"1 unknown \(extra\)"):
        create_model("compact", 3, saved(donor.state_dict() | {"extra": torch.zeros(1)}))


def test_old_files_without_batch_counters_load(saved, donor):
    state = {name: value for name, value in donor.state_dict().items() if "num_batches" not in name}
    model = create_model("compact", 3, saved(state))
    assert torch.equal(model.classifier.weight, donor.classifier.weight)


def test_unknown_names_list_the_known(saved):
    for call in (lambda name: create_model(name, 21, "none"), load_any_teacher):
        with pytest.raises(UserError, match=r"fcn_resnet5'.*did you mean 'fcn_resnet50'"):
            call("fcn_resnet5")


# -- teachers --------------------------------------------------------------------------------------


def test_teacher_is_frozen_and_leaves_the_random_state(saved, donor, checkpoint):
    path = saved(checkpoint)
    before = torch.random.get_rng_state()
    teacher = load_any_teacher("compact", path, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not teacher.training and not any(parameter.requires_grad for parameter in teacher.parameters())
    assert_same(teacher.state_dict(), donor.state_dict())


def test_teacher_from_a_bare_state_dict(saved, donor):
    assert_same(load_any_teacher("compact", saved(donor.state_dict()), 3).state_dict(), donor.state_dict())


def test_teacher_is_never_random(saved, donor):
    with pytest.raises(UserError, match="teaches noise"):
        load_any_teacher("compact", "none", 3)
    with pytest.raises(UserError, match="at most of its backbone"):
        load_any_teacher("compact", saved(backbone_state(donor)), 3)
    with pytest.raises(UserError, match="no such file"):
        load_any_teacher("compact", "missing.pth", 3)
    with pytest.raises(UserError, match=r"nobody publishes.*--teacher-weights PATH"):
        load_any_teacher("standard")


def test_teacher_of_another_network_is_refused(saved, checkpoint):
    with pytest.raises(UserError, match="holds a compact, asked for is a standard"):
        load_any_teacher("standard", saved(checkpoint))


def test_default_teacher_takes_the_published_weights(monkeypatch):
    torch.manual_seed(11)
    published = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21).state_dict()
    name = "lraspp_mobilenet_v3_large"
    monkeypatch.setitem(MODELS, name, dataclasses.replace(MODELS[name], whole_weights=lambda: published))
    teacher = load_any_teacher(name)
    assert_same(teacher.state_dict(), published)
    assert teacher.class_names[:2] == ["background", "aeroplane"]


# -- downloads -------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(urllib.request, "getproxies", dict)


def test_no_network_says_how_to_go_on(no_network):
    with pytest.raises(UserError, match=r"backbone of compact .*no route.*--student-weights PATH.*none"):
        create_model("compact", 21, "default")
    with pytest.raises(UserError, match=r"weights of fcn_resnet50 .*no route.*--teacher-weights PATH"):
        load_any_teacher("fcn_resnet50")


def test_no_network_ends_smp_downloads_at_once(no_network, monkeypatch, tmp_path):
    """The library is not even asked: it would try again for half a minute and more."""
    smp = pytest.importorskip("segmentation_models_pytorch")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    build = smp.encoders.get_encoder

    def offline(*args, weights=None, **options):
        assert weights is None, "the hub was asked"
        return build(*args, weights=weights, **options)

    monkeypatch.setattr(smp.encoders, "get_encoder", offline)
    with pytest.raises(UserError, match=r"backbone of segformer_b0 .*no route.*--student-weights"):
        create_model("segformer_b0", 21, "default")


def test_smp_weights_reach_the_backbone(monkeypatch):
    smp = pytest.importorskip("segmentation_models_pytorch")
    torch.manual_seed(13)
    published = smp.encoders.get_encoder("mit_b0", weights=None)
    monkeypatch.setattr(smp_models, "_require_hub", lambda settings: None)
    monkeypatch.setattr(smp.encoders, "get_encoder", lambda name, weights: published)
    assert_same(create_model("segformer_b0", 3, "default").backbone.state_dict(), published.state_dict())


def test_silent_server_is_not_waited_for(monkeypatch):
    """A server that takes the connection and never answers."""
    monkeypatch.setattr(weights, "NETWORK_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/weights.pth"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with pytest.raises(UserError, match=r"cannot download the weights .*timed out.*; do this"):
            weights.fetch("the weights", lambda: opener.open(address), "do this")
    assert socket.getdefaulttimeout() is None


def test_missing_smp_is_one_error(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(UserError, match="pip install segmentation-models-pytorch"):
        create_model("unet_resnet50", 3)
    zoo.main(zoo.get_args_parser().parse_args(["unet_resnet50", "compact"]))
    said = capsys.readouterr().out
    assert "pip install" in said and "0.39" in said


def test_models_without_published_weights_say_so(capsys):
    create_model("fastlitessnet", 3, "default")
    assert "nobody publishes" in capsys.readouterr().out


# -- model files -----------------------------------------------------------------------------------


def test_model_file_is_a_copy(donor):
    content = model_file_dict("compact", donor, Labels(), info={"epoch": 3})
    kept = content["state_dict"]["classifier.bias"].clone()
    with torch.no_grad():
        donor.classifier.bias.add_(1)
    assert torch.equal(content["state_dict"]["classifier.bias"], kept) and content["info"] == {"epoch": 3}


def test_model_arguments_travel_with_the_file(saved):
    model = build_model("fastlitessnet", 3, width=0.25).eval()
    path = saved(model_file_dict("fastlitessnet", model, Labels()))
    again, checkpoint = load_checkpoint_model(path)
    assert checkpoint["model_args"] == {"width": 0.25} and again.model_args == {"width": 0.25}
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
    assert load_any_teacher("fastlitessnet", path, 3).model_args == {"width": 0.25}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_names": "background"}, "class_names missing or of another kind"),
        ({"class_names": []}, "damaged: 0 class names"),
        ({"palette": [[0, 0, 0]]}, "damaged: 3 class names, 1 colours"),
        ({"format": 99}, "newer version"),
        ({"model": "no_such_model"}, "unknown model 'no_such_model'"),
        ({"model_args": {"depth": 3}}, "cannot be built with"),
        ({"model_args": {3: 3}}, "damaged"),
        ({"mean": None}, "mean missing"),
        ({"state_dict": {}}, "neither a checkpoint"),
        ({"class_names": [*NAMES, "cow"], "palette": [[0, 0, 0]] * 4}, "made for 3 classes, needed are 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_faulty_checkpoint_is_one_error_naming_it(saved, checkpoint, change, message):
    path = saved(checkpoint | change, "faulty.pth")
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint_model(path)
    assert "faulty.pth" in str(caught.value) or "no_such_model" in str(caught.value) or "built" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bare_weights_are_no_checkpoint(saved, donor):
    with pytest.raises(UserError, match="bare weights, not a checkpoint"):
        load_checkpoint_model(saved(donor.state_dict()))


def test_resumed_state_must_fit(checkpoint):
    with pytest.raises(UserError, match=r"last\.pth.*not this model's weights"):
        zoo.load_model_state(build_model("standard", 3), checkpoint, "last.pth")


# -- real weights and the table --------------------------------------------------------------------


@pytest.mark.skipif(not RESNET50.exists(), reason=f"{RESNET50.name} is not on this machine")
def test_partial_resnet50_starts_a_teacher(capsys):
    model = create_model("fcn_resnet50", 5, str(RESNET50))
    said = capsys.readouterr().out
    assert "220 of 265 tensors" in said and "layer4.0.conv2" in said
    assert "layer4.0.conv1" not in said and "layer3" not in said
    file = load_file(RESNET50)
    assert torch.equal(model.backbone.layer3[0].conv2.weight, file["layer3.0.conv2.weight"].float())


def test_table(capsys):
    zoo.main(zoo.get_args_parser().parse_args(["standard", "lraspp_mobilenet_v3_large", "--size", "64"]))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "16@4, 24@8, 576@16, 96@4" in lines[1]
    # torchvision's documentation gives 3,221,538 parameters.
    assert "3.22" in lines[2] and "COCO_WITH_VOC_LABELS_V1" in lines[2]


@pytest.mark.parametrize(
    "name", ["fcn_resnet50", "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"]
)
def test_parameters_are_torchvisions_less_the_auxiliary_head(name):
    """Published counts include the auxiliary FCN head: a 3x3 to a quarter of the width, BatchNorm, a 1x1 to 21."""
    from networks.cost import count_parameters

    published = getattr(segmentation, {
        "fcn_resnet50": "FCN_ResNet50_Weights",
        "deeplabv3_resnet50": "DeepLabV3_ResNet50_Weights",
        "deeplabv3_mobilenet_v3_large": "DeepLabV3_MobileNet_V3_Large_Weights",
        "lraspp_mobilenet_v3_large": "LRASPP_MobileNet_V3_Large_Weights",
    }[name]).DEFAULT.meta["num_params"]  # fmt: skip
    auxiliary = {"fcn_resnet50": 1024, "deeplabv3_resnet50": 1024, "deeplabv3_mobilenet_v3_large": 40}.get(name)
    if auxiliary is not None:
        inner = auxiliary // 4
        published -= 9 * auxiliary * inner + 2 * inner + 21 * inner + 21
    assert count_parameters(build_model(name, 21)) == published


@pytest.mark.parametrize("load", [load_any_teacher, lambda name: create_model(name, 3, "default")])
def test_a_hub_without_its_prefix_is_told(load, tmp_path):
    for name in ("nvidia/segformer-b4-finetuned-ade-512-512", str(tmp_path)):
        with pytest.raises(UserError, match=rf"unknown .*is hf:{name}, one of smp smp:{name}"):
            load(name)


def test_a_file_in_the_place_of_a_name_is_told(tmp_path):
    with pytest.raises(UserError, match="a file of weights goes to --student-weights"):
        create_model("checkpoints/best.pth", 3, "default")
