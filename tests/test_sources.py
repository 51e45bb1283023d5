"""Names that say where a network comes from: what is meant, what it brings, and the error for what cannot be had."""

from __future__ import annotations

import copy
import json
import os
import socket
import sys
import textwrap
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import zoo
from basics.batch import MEAN, STD
from basics.checkpoint import save_atomic
from basics.errors import UserError
from deploy.teachers import TeacherChoice, load_teacher_for
from kd.distiller import DistilledStudent, Distiller, LiveTeacher, Recipe
from kd.losses import LOSSES
from networks import hub, huggingface, sources, user_file
from networks import smp as smp_models
from networks.class_lists import CITYSCAPES, ade20k, published_classes, same_names
from networks.weights import WeightsFile
from tests.families import NAMES, save_family
from tests.tiny import TinyModel, tiny_batch
from zoo import check_name, create_model, load_any_teacher, load_checkpoint_model, model_file_dict


class Labels:
    class_names = tuple(NAMES)
    palette = tuple((index, 0, 0) for index in range(len(NAMES)))


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("standard", "standard"),
        ("hf:nvidia/segformer-b0-finetuned-ade-512-512", "segformer-b0-finetuned-ade-512-512"),
        ("hf:org/name@1234abcd", "name"),
        ("hf:some/folder/my net/", "my-net"),
        ("hf:C:\\nets\\mine", "mine"),
        ("smp:smp-hub/upernet-swin-tiny", "upernet-swin-tiny"),
        ("my_net.py:build", "my_net-build"),
        ("some where/my_net.py:Build2", "my_net-Build2"),
        ("C:\\nets\\my_net.py:build", "my_net-build"),
    ],
)
def test_short_names_are_fit_for_folders(name, short):
    assert sources.short_name(name).rpartition("\\")[2] == short
    assert sources.is_source(name) == (name != "standard")
    check_name(name)


def test_an_architecture_and_its_encoder_are_one_short_name():
    pytest.importorskip("segmentation_models_pytorch")
    assert sources.short_name("smp:DeepLabV3Plus/tu-mobilenetv4_conv_small_050") == (
        "DeepLabV3Plus-tu-mobilenetv4_conv_small_050"
    )


@pytest.mark.parametrize("name", ["nothing", "my_net.py", "my_net.py:", "hg:org/name", "build"])
def test_other_names_are_unknown(name):
    with pytest.raises(UserError, match="unknown model"):
        check_name(name)


def test_class_lists():
    assert len(ade20k()) == 150 and ade20k()[89] == "television receiver"
    assert published_classes("smp-hub/dpt-large-ade20k", 150) == list(ade20k())
    assert published_classes("some/where/segformer-b0-1024x1024-city-160k", 19) == [name for name, _, _ in CITYSCAPES]
    assert published_classes("C:\\nets\\segformer-ade", 150) == list(ade20k())
    assert published_classes("someone/segformer-ade", 149) is None and published_classes("someone/net", 150) is None
    assert same_names(["Traffic_Light", "bed "], ["traffic light", "Bed"]) and same_names(None, ["a"])
    assert not same_names(["a", "b"], ["b", "a"]) and not same_names(["a"], ["a", "b"])


def test_the_ade20k_pair(tmp_path, capsys):
    """SegFormers with ADE20K's names as nvidia writes them: teacher and student of the data set without any map."""
    pytest.importorskip("transformers")
    theirs = ["bed " if name == "bed" else name for name in ade20k()]
    name = f"hf:{save_family('segformer', tmp_path / 'segformer-b4', names=theirs)}"
    fitted = load_teacher_for(TeacherChoice(name), SimpleNamespace(name="ade20k", class_names=list(ade20k())))
    assert fitted.class_map is None and fitted.model.class_names == list(ade20k())
    create_model(name, 150, "default", list(ade20k()))
    assert "all weights, for the same 150 classes" in capsys.readouterr().out


def test_the_zoo_says_how_else_networks_are_named(monkeypatch, capsys):
    monkeypatch.setattr(zoo, "MODELS", {"compact": zoo.MODELS["compact"]})
    zoo.main(zoo.get_args_parser().parse_args([]))
    said = capsys.readouterr().out
    assert all(form in said for form in sources.FORMS)


# -- the hub ---------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No route to anywhere, and nothing in the cache; a request of the library itself fails the test."""
    import huggingface_hub

    def refuse(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", lambda *args: pytest.fail("the hub was asked"))
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("name", ["hf:nvidia/segformer-b0", "smp:smp-hub/segformer-b0-512x512-ade-160k"])
@pytest.mark.parametrize("load", [load_any_teacher, lambda name: create_model(name, 3, "default")])
def test_a_hub_out_of_reach_is_one_line_at_once(name, load, no_network):
    pytest.importorskip("transformers")
    place = name.partition(":")[2]
    with pytest.raises(
        UserError, match=rf"cannot download {name} \(huggingface.co cannot be reached: no route\).*{place}.*FOLDER"
    ) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_a_hub_that_is_switched_off_says_so(no_network, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE is set.*local-dir"):
        load_any_teacher("hf:org/name")


@pytest.fixture
def half_cached(no_network, tmp_path) -> Path:
    """The folder of a repository in the hub's cache, of which its configuration alone was fetched."""
    folder = tmp_path / "models--org--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (folder / "snapshots" / ("0" * 40) / "config.json").write_text("{}")
    return folder


def test_what_cannot_be_asked_for_is_not_missing(half_cached):
    """Without a network nobody knows whether there is an image processor: ImageNet's values might be wrong."""
    repository = hub.find_repository("hf:org/name")
    assert repository.file("config.json").is_file()
    for ask in (repository.file, lambda name: repository.first_file([name])):
        with pytest.raises(UserError, match=r"cannot download hf:org/name \(preprocessor_config.json.*local-dir"):
            ask("preprocessor_config.json")
    assert repository.first_file(["preprocessor_config.json", "config.json"]).name == "config.json"
    (half_cached / ".no_exist" / ("0" * 40)).mkdir(parents=True)
    (half_cached / ".no_exist" / ("0" * 40) / "preprocessor_config.json").touch()  # the hub once said so
    assert repository.first_file(["preprocessor_config.json"]) is None
    with pytest.raises(FileNotFoundError):
        repository.file("preprocessor_config.json")


def test_segformer_rows_out_of_reach(no_network):
    pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(UserError, match=r"cannot download smp:smp-hub/segformer-b4-512x512-ade-160k .*no route"):
        load_any_teacher("segformer_b4")


@pytest.mark.parametrize("place", ["./nothing/here", "nothing", "a/b/c", "/no/such/folder", "org/na me", ""])
def test_a_place_that_is_neither_folder_nor_repository(place):
    with pytest.raises(UserError, match="no such folder, and no repository"):
        hub.find_repository(f"hf:{place}")


def test_what_a_place_means(tmp_path, monkeypatch):
    repository = hub.find_repository("hf:org/name@v1")
    assert (repository.source, repository.revision, repository.is_folder) == ("org/name", "v1", False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub.find_repository("hf:org/name").is_folder  # what lies here comes first
    (tmp_path / "file.bin").touch()
    with pytest.raises(UserError, match="a file; give the folder"):
        hub.find_repository("hf:file.bin")


def test_code_of_a_repository_is_refused_by_name(tmp_path):
    pytest.importorskip("transformers")
    config = {"model_type": "newest", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "code.py").write_text("raise SystemExit('code of a repository was run')", encoding="utf-8")
    with pytest.raises(UserError, match="holds code of its own"):
        load_any_teacher(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "config.json"), ("{", "cannot be loaded"), ('{"model_type": "bert"}', "a bert is no segmentation network")],
)
def test_a_folder_that_holds_something_else(content, message, tmp_path):
    pytest.importorskip("transformers")
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load_any_teacher(f"hf:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_damaged_or_missing_weights(tmp_path):
    pytest.importorskip("transformers")
    folder = save_family("segformer", tmp_path / "net")
    (folder / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_any_teacher(f"hf:{folder}")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors"):
        load_any_teacher(f"hf:{folder}")


def test_pickled_weights_that_could_run_code_are_refused(tmp_path):
    """`torch.load` with weights_only alone; what the pickle would do is not done."""
    pytest.importorskip("transformers")
    folder = save_family("segformer", tmp_path / "net")
    (folder / "model.safetensors").unlink()

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was run"),)

    torch.save({"weight": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_any_teacher(f"hf:{folder}")
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize(
    ("module", "name", "command"),
    [
        ("transformers", "hf:org/name", "pip install transformers"),
        ("segmentation_models_pytorch", "smp:Unet/resnet18", "pip install segmentation-models-pytorch"),
    ],
)
def test_a_missing_library_is_one_line(module, name, command, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    huggingface.import_transformers.cache_clear()
    with pytest.raises(UserError, match=command):
        create_model(name, 3, "default")
    huggingface.import_transformers.cache_clear()


# -- normalisation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("bgr", [False, True])
def test_own_normalisation(bgr):
    """ImageNet-normalised values come out as (image - mean) / std of the network, in its channel order."""
    from networks.foreign import ForeignModel, Normalisation

    class Plain(ForeignModel):
        def _forward_padded(self, images):
            raise NotImplementedError

    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)
    model = Plain(Normalisation(mean, std, bgr))
    image = np.random.default_rng(0).random((1, 3, 4, 5))
    given = (image - np.array(MEAN).reshape(3, 1, 1)) / np.array(STD).reshape(3, 1, 1)
    order = [2, 1, 0] if bgr else [0, 1, 2]
    expected = (image[:, order] - np.array(mean).reshape(3, 1, 1)) / np.array(std).reshape(3, 1, 1)
    np.testing.assert_allclose(model.own_input(torch.tensor(given).float()).numpy(), expected, atol=1e-5)


# -- smp -------------------------------------------------------------------------------------------

ARCHITECTURES = (
    "Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "DeepLabV3", "DeepLabV3Plus", "PAN", "UPerNet",
    "Segformer",
)  # fmt: skip


class TestSmp:
    @pytest.fixture(autouse=True)
    def smp(self):
        return pytest.importorskip("segmentation_models_pytorch")

    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_every_architecture(self, architecture, smp):
        """Logits before the head's upsampling are smp's own; the decoder's map comes before its ReLU."""
        model = create_model(f"smp:{architecture}/resnet18", 3, "none").eval()
        reference = getattr(smp, architecture)("resnet18", encoder_weights=None, classes=3).eval()
        state = {smp_models._own_name(name): value for name, value in reference.state_dict().items()}
        model.load_state_dict(state)
        height, width = size = (128, 256) if architecture == "PAN" else (64, 96)
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            logits, taps = model.forward_taps(images)
            expected = reference(images)
        if logits.shape != expected.shape:
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=True)
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
        assert {"high", "decoder"} <= set(taps) == set(model.tap_channels)
        for tap, values in taps.items():
            stride = model.tap_strides[tap]
            assert values.shape == (1, model.tap_channels[tap], height // stride, width // stride)
        assert model(torch.randn(1, 3, 50, 75)).shape == (1, 3, 50, 75)

    @pytest.mark.parametrize(
        "name",
        [
            "smp:DeepLabV3Plus/tu-mobilenetv4_conv_small_050",
            "smp:unet/tu-resnet10t",
            pytest.param("smp:DPT/tu-vit_tiny_patch16_224", marks=pytest.mark.slow),
        ],
    )
    def test_encoders_of_timm(self, name, tmp_path):
        pytest.importorskip("timm")
        model = create_model(name, len(NAMES), "none").eval()
        assert {"low", "mid", "high", "decoder"} == set(model.tap_channels)
        save_atomic(model_file_dict(name, model, Labels), tmp_path / "model.pth")
        again, _ = load_checkpoint_model(tmp_path / "model.pth")
        images = torch.randn(1, 3, 64, 96)
        with torch.no_grad():
            torch.testing.assert_close(again(images), model(images), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("name", ["smp:Unet/resnet18", "smp:FPN/tu-mobilenetv4_conv_small_050"])
    def test_distillation_step_with_every_feature_loss(self, name):
        torch.manual_seed(0)
        student, teacher = create_model(name, len(NAMES), "none"), TinyModel(len(NAMES))
        features = [loss for loss, spec in LOSSES.items() if spec.kind == "features"]
        live = LiveTeacher(teacher)
        recipe = Recipe({"ce": 1.0, "kl": 1.0} | dict.fromkeys(features, 1.0))
        distilled = DistilledStudent(student, recipe, live).train()
        losses = Distiller(distilled, student, recipe, live).losses(tiny_batch(classes=len(NAMES)))
        assert losses.keys() == {"ce", "kl", *features} and all(loss.isfinite() for loss in losses.values())
        sum(losses.values()).backward()
        assert any(value.grad is not None and value.grad.abs().sum() > 0 for value in student.backbone.parameters())

    def test_the_pretrained_encoder_brings_its_normalisation(self, smp, monkeypatch, capsys):
        """A stand-in for the download: smp itself would put the weights in while it builds the network."""
        build, asked = smp.Unet.__init__, []

        def pretrained(self, *args, encoder_weights=None, **options):
            asked.append(encoder_weights)
            build(self, *args, encoder_weights=None, **options)

        monkeypatch.setattr(smp.Unet, "__init__", pretrained)
        monkeypatch.setattr(smp_models, "_require_hub", lambda settings: None)
        told = {"input_space": "BGR", "input_range": [0, 255], "mean": [100, 110, 120], "std": [1, 1, 1]}
        monkeypatch.setattr(smp.encoders, "get_preprocessing_params", lambda encoder, weights: told)
        model = create_model("smp:unet/resnet18", 3, "default")
        assert "imagenet" in asked and "encoder pretrained (imagenet), decoder random" in capsys.readouterr().out
        assert model.normalisation.bgr
        np.testing.assert_allclose(model.normalisation.mean, np.array([100, 110, 120]) / 255)
        np.testing.assert_allclose(model.normalisation.std, np.array([1, 1, 1]) / 255)
        assert model.model_args["normalisation"] == model.normalisation.as_plain()

    def test_no_network_for_the_encoder(self, no_network):
        with pytest.raises(UserError, match=r"cannot download the pretrained encoder of smp:Unet/resnet18 .*no route"):
            create_model("smp:Unet/resnet18", 3, "default")
        with pytest.raises(UserError, match=r"cannot download .*tu-resnet18.*no route"):
            create_model("smp:Unet/tu-resnet18", 3, "default")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("smp:Unet/resnet19", "no encoder 'resnet19'"),
            ("smp:Unet/tu-nonsense", "cannot be built"),
            ("smp:DPT/resnet18", "cannot be built: Only Timm encoders"),
            ("smp:DPT/tu-vit_tiny_patch14_dinov2", "cannot be built"),
            ("smp:Unet/", "no encoder ''"),
            ("smp:Unt/resnet18", "cannot download smp:Unt/resnet18"),
        ],
    )
    def test_what_there_is_not(self, name, message, no_network):
        with pytest.raises(UserError, match=message):
            create_model(name, 3, "default")

    def test_an_encoder_alone_is_no_teacher(self):
        with pytest.raises(UserError, match="only the encoder is published"):
            load_any_teacher("smp:Unet/resnet18")

    @pytest.fixture
    def published(self, smp, tmp_path):
        """As smp's hub has them: weights, arguments and how images are prepared."""
        torch.manual_seed(3)
        folder = tmp_path / "tiny-ade"
        smp.Segformer("mit_b0", encoder_weights=None, classes=3, decoder_segmentation_channels=16).save_pretrained(
            folder
        )
        resize = {"__class_fullname__": "Resize", "height": 64, "width": 64}
        normalize = {"__class_fullname__": "albumentations.Normalize", "mean": [127.5] * 3, "std": [51.0] * 3}
        steps = [resize, normalize | {"max_pixel_value": 1.0}]
        config = {"transform": {"__class_fullname__": "Compose", "transforms": steps}}
        (folder / smp_models.EVAL_CONFIG).write_text(json.dumps(config), encoding="utf-8")
        return folder

    def test_a_published_network_is_smps_own(self, published, smp):
        (published / "classes.txt").write_text("sea\nland\nair\n", encoding="utf-8")
        teacher = load_any_teacher(f"smp:{published}")
        assert teacher.class_names == ["sea", "land", "air"] and not teacher.training
        reference = smp.from_pretrained(str(published)).eval()
        image = torch.rand(1, 3, 64, 64)
        given = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        with torch.no_grad():
            logits, _ = teacher.forward_taps(given)
            expected = reference((image * 255 - 127.5) / 51)
        full = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=True)
        torch.testing.assert_close(full, expected, rtol=1e-3, atol=1e-4)

    def test_a_published_network_as_a_student(self, published, tmp_path, capsys):
        name = f"smp:{published}"
        whole = create_model(name, 3, "default", ["a", "b", "c"])
        assert "all weights" in capsys.readouterr().out
        other = create_model(name, len(NAMES), "default", NAMES)
        assert f"new classifier for {len(NAMES)} classes" in capsys.readouterr().out
        state, own = other.state_dict(), whole.state_dict()
        assert all(torch.equal(state[key], own[key]) for key in own if key not in other.head_names())
        save_atomic(model_file_dict("smp:org/gone", other.eval(), Labels), tmp_path / "model.pth")
        again, _ = load_checkpoint_model(tmp_path / "model.pth")
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(again(images), other(images), rtol=1e-4, atol=1e-5)

    def test_without_its_own_preparation_that_is_said(self, published, capsys):
        (published / smp_models.EVAL_CONFIG).unlink()
        teacher = load_any_teacher(f"smp:{published}")
        assert teacher.normalisation.mean == MEAN and "as for ImageNet" in capsys.readouterr().out

    @pytest.mark.parametrize("config", ["{}", '{"_model_class": "Unet", "classes": 1, "encoder_name": "resnet18"}'])
    def test_what_is_no_network_of_smp(self, config, tmp_path):
        (tmp_path / "config.json").write_text(config, encoding="utf-8")
        with pytest.raises(UserError, match=r"save_pretrained|a single class"):
            load_any_teacher(f"smp:{tmp_path}")

    def test_segformer_rows_take_the_published_weights_for_their_classes_alone(self, smp, monkeypatch, capsys):
        torch.manual_seed(5)
        published = smp.Segformer("mit_b0", encoder_weights=None, classes=150, decoder_segmentation_channels=256)
        encoder = smp.encoders.get_encoder("mit_b0", weights=None).state_dict()
        row = zoo.MODELS["segformer_b0"]
        stand_in = type(row)(row.build, lambda: encoder, row.source, lambda: published.state_dict(), row.whole_classes,
                             row.whole_starts_students)  # fmt: skip
        monkeypatch.setitem(zoo.MODELS, "segformer_b0", stand_in)
        names = list(ade20k())
        for model in (
            load_any_teacher("segformer_b0"),
            create_model("segformer_b0", 150, "default", names),
        ):
            state = model.state_dict()
            assert torch.equal(state["segmentation_head.0.weight"], published.segmentation_head[0].weight)
        assert load_any_teacher("segformer_b0").class_names == names
        capsys.readouterr()
        student = create_model("segformer_b0", 150, "default", [f"class {index}" for index in range(150)])
        assert "backbone:" in capsys.readouterr().out
        assert not torch.equal(
            student.state_dict()["segmentation_head.0.weight"], published.segmentation_head[0].weight
        )


# -- a user's own file -----------------------------------------------------------------------------

NET = """
    import torch
    from torch import nn
    from models.net import Net
    from utils import helper

    def build(num_classes=5):
        return Net(num_classes, helper())

    def fixed():
        return Net(4, 1)
"""
MODELS_NET = """
    import torch
    import utils
    from torch import nn
    from torch.nn import functional as F

    FACTOR = torch.tensor(1.5)

    class Net(nn.Module):
        def __init__(self, classes, scale):
            super().__init__()
            torch.manual_seed(0)  # weights that are always the same, as those of a trained network are
            self.encoder = nn.Conv2d(3, 8, 3, 2, 1)
            self.head = nn.Conv2d(8, classes, 1)
            self.scale = scale

        def forward(self, images):
            return {"out": self.head(activate(self.encoder(images))) * self.scale}

    def activate(features):
        return F.relu(features) * FACTOR
"""


@pytest.fixture
def user(tmp_path):
    """``user("a", NET)`` -> path of a file in a folder of its own, with ``models/`` and ``utils.py`` beside it."""

    def write(folder: str, content: str = NET, scale: int = 2) -> Path:
        place = tmp_path / folder
        (place / "models").mkdir(parents=True, exist_ok=True)
        (place / "models" / "__init__.py").touch()
        (place / "models" / "net.py").write_text(textwrap.dedent(MODELS_NET), encoding="utf-8")
        (place / "utils.py").write_text(f"def helper():\n    return {scale}\n", encoding="utf-8")
        (place / "my_net.py").write_text(textwrap.dedent(content), encoding="utf-8")
        return place / "my_net.py"

    return write


class TestUserFile:
    def test_its_own_imports_and_nobody_elses(self, user):
        """Two files, each with its models/ and utils.py; nothing stays behind."""
        before, path = dict(sys.modules), list(sys.path)
        one = create_model(f"{user('one', scale=2)}:build", 3, "default")
        two = create_model(f"{user('two', scale=7)}:build", 3, "default")
        assert (one.network.scale, two.network.scale) == (2, 7)
        assert sys.path == path
        assert not {"models", "models.net", "utils"} & (sys.modules.keys() - before.keys())
        assert all(sys.modules[name] is module for name, module in before.items())

    def test_rooms_of_ours_are_not_shadowed(self, user):
        """Beside the file lies what is called as our rooms are: the file finds its own, and we ours."""
        import kd
        import networks.base

        file = user("rooms", NET.replace("from utils import helper", "from kd import helper\n    import networks"))
        for room in ("kd.py", "networks.py", "zoo.py"):
            (file.parent / room).write_text("def helper():\n    return 11\n", encoding="utf-8")
        model = create_model(f"{file}:build", 3, "default")
        assert model.network.scale == 11
        assert sys.modules["kd"] is kd and sys.modules["networks.base"] is networks.base and sys.modules["zoo"] is zoo

    def test_in_the_folder_of_this_project(self, monkeypatch, tmp_path):
        """A file that lies among our own modules imports these very modules."""
        root = Path(zoo.__file__).parent
        with user_file.own_imports(root):
            import networks.base as again
        assert again is sys.modules["networks.base"]

    def test_what_it_is_as_a_model(self, user, capsys):
        model = create_model(f"{user('net')}:build", 3, "default")
        assert "3 classes, logits at stride 2, feature maps: none" in capsys.readouterr().out
        assert (model.num_classes, model.logit_stride, model.stride) == (3, 2, 32)
        assert model.backbone is model.network.encoder
        assert model(torch.randn(2, 3, 50, 75)).shape == (2, 3, 50, 75)

    def test_a_student_needs_the_classes_of_the_data_set(self, user):
        with pytest.raises(UserError, match=r"logits of 4 classes, the data set has 3.*num_classes"):
            create_model(f"{user('net')}:fixed", 3, "default")
        assert load_any_teacher(f"{user('net')}:fixed").num_classes == 4

    def test_a_checkpoint_names_the_file(self, user, tmp_path, monkeypatch, capsys):
        file = user("net")
        name = f"{file}:build"
        model = create_model(name, len(NAMES), "default").eval()
        save_atomic(model_file_dict(name, model, Labels, input_size=64), tmp_path / "model.pth")
        teacher = load_any_teacher(name, str(tmp_path / "model.pth"))
        assert teacher.class_names == NAMES and teacher.input_size == 64
        assert create_model(name, len(NAMES), str(tmp_path / "model.pth"), NAMES).input_size == 64
        monkeypatch.chdir(tmp_path)
        again, _ = load_checkpoint_model(tmp_path / "model.pth")
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(again(images), model(images))
        assert "has changed" not in capsys.readouterr().out
        file.write_text(file.read_text(encoding="utf-8") + "\n# another line\n", encoding="utf-8")
        load_checkpoint_model(tmp_path / "model.pth")
        assert "the file has changed since the checkpoint was written" in capsys.readouterr().out

    def test_a_checkpoint_cannot_have_any_file_run(self, user, tmp_path, monkeypatch):
        """What it names must lie below the current folder; the file is not even imported."""
        file = user("net", f"open({str(tmp_path / 'was run')!r}, 'w').close()\n" + textwrap.dedent(NET))
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        for model_args in ({"sha256": "0"}, {}):
            model = TinyModel(len(NAMES))
            model.model_args = model_args
            save_atomic(model_file_dict(f"{file}:build", model, Labels), tmp_path / "model.pth")
            for load in (load_checkpoint_model, lambda path: load_any_teacher(str(path))):
                with pytest.raises(UserError, match="only if it lies below the current folder"):
                    load(tmp_path / "model.pth")
        assert not (tmp_path / "was run").exists()

    def test_it_can_be_compiled(self, user):
        """torch.compile looks up the globals of the functions that it captures."""
        torch.compiler.reset()
        model = create_model(f"{user('net')}:build", 3, "default").eval()
        images = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(images), model(images))
        torch.compiler.reset()

    def test_its_own_state_dict_is_understood(self, user, tmp_path):
        name = f"{user('net')}:build"
        model = create_model(name, 3, "default")
        save_atomic(model.network.state_dict(), tmp_path / "own.pth")
        again = create_model(name, 3, str(tmp_path / "own.pth"))
        assert torch.equal(again.network.head.weight, model.network.head.weight)

    @pytest.mark.parametrize(
        "forward",
        ["logits", "(logits, None)", "[logits]", "{'logits': logits}", "{'x': logits}", "Output(logits)"],
    )
    def test_logits_in_whatever_it_gives(self, forward, user):
        content = f"""
            from dataclasses import dataclass
            import torch
            from torch import nn

            @dataclass
            class Output:
                logits: object

            class Net(nn.Conv2d):
                def forward(self, images):
                    logits = super().forward(images)
                    return {forward}

            def build():
                torch.manual_seed(0)
                return Net(3, 6, 4, 4)
        """
        model = load_any_teacher(f"{user('net', content)}:build")
        assert model.num_classes == 6 and model.logit_stride == 4

    def test_attributes(self, user):
        content = """
            import torch
            from torch import nn

            class Net(nn.Module):
                class_names, mean, std, bgr, stride = ["sea", "land"], [0.5] * 3, [0.25] * 3, True, 16

                def __init__(self):
                    super().__init__()
                    torch.manual_seed(0)
                    self.low, self.head = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 2, 1)

                def forward_taps(self, images):
                    low = self.low(images)
                    return self.head(low), {"low": low, "decoder": low}
        """
        model = load_any_teacher(f"{user('net', content)}:Net")
        assert model.class_names == ["sea", "land"] and model.stride == 16
        assert model.tap_channels == {"low": 4, "decoder": 4} and model.tap_strides == {"low": 4, "decoder": 4}
        assert model.normalisation.bgr and model.normalisation.mean == (0.5, 0.5, 0.5)
        live = LiveTeacher(copy.deepcopy(model))
        recipe = Recipe({"ce": 1.0, "pixelwise": 1.0, "kl": 1.0})
        student = TinyModel(2)
        losses = Distiller(DistilledStudent(student, recipe, live), student, recipe, live).losses(tiny_batch(classes=2))
        assert all(loss.isfinite() for loss in losses.values())

    @pytest.mark.parametrize(
        ("content", "function", "message"),
        [
            ("import nothing_of_the_kind\n", "build", r"cannot be imported: ModuleNotFoundError: .*my_net.py, line 2"),
            ("def build(:\n", "build", "cannot be imported: SyntaxError"),
            ("def other(): pass\n", "build", "no function 'build' there; there are: other"),
            ("build = 3\n", "build", "no function 'build'"),
            ("def build(): return 3\n", "build", "gave a int, not an nn.Module"),
            ("def build(): raise KeyError('depth')\n", "build", r"fails: KeyError: 'depth' \(my_net.py, line 2\)"),
            ("def build(num_classes): pass\n", "build", "wants to be told num_classes"),
            ("import torch\ndef build(): return torch.nn.Conv2d(4, 3, 1)\n", "build", "fails on 64x96 pixels"),
            (
                "import torch\ndef build(): return torch.nn.Flatten()\n",
                "build",
                r"gives a Tensor of shape \(1, 18432\)",
            ),
            (
                "import torch\ndef build(): return torch.nn.Conv2d(3, 3, 5)\n",
                "build",
                r"gives logits of the shape .*60, 92.* for images of 64x96 pixels: no whole",
            ),
        ],
    )
    def test_what_is_wrong_with_it_is_one_line(self, content, function, message, user):
        with pytest.raises(UserError, match=message) as caught:
            load_any_teacher(f"{user('net', chr(10) + content)}:{function}")
        assert "\n" not in str(caught.value)

    def test_a_teacher_must_be_trained(self, user):
        """Random weights are refused as a teacher, those of a part that says nothing apart."""
        content = """
            import torch
            from torch import nn

            class Net(nn.Module):
                def __init__(self):
                    super().__init__()
                    with torch.random.fork_rng():
                        torch.manual_seed(0)
                        self.head = nn.Conv2d(3, 5, 4, 4)
                    self.aux = nn.Conv2d(3, 5, 1)

                def forward(self, images):
                    return self.head(images)

            def random():
                net = Net()
                net.head.reset_parameters()
                return net
        """
        spec = user("net", content)
        assert load_any_teacher(f"{spec}:Net").num_classes == 5
        with pytest.raises(UserError, match=r"net.py:random: is not trained: .* its head.weight is another"):
            load_any_teacher(f"{spec}:random")
        assert create_model(f"{spec}:random", 5, "default").num_classes == 5  # a student may be

    def test_no_such_file(self):
        with pytest.raises(UserError, match=r"no file nothing.py; paths are looked up from"):
            create_model("nothing.py:build", 3, "default")


# -- files as teachers -----------------------------------------------------------------------------


def test_a_checkpoint_is_a_teacher_by_itself(demo_checkpoint, tmp_path):
    path = str(demo_checkpoint("compact"))
    teacher = load_any_teacher(path)
    content = torch.load(path, weights_only=True)
    assert teacher.class_names == content["class_names"] and teacher.num_classes == len(content["class_names"])
    assert zoo.teacher_name(path, "default") == Path(path).parent.name  # its run, for all are called best
    save_atomic(content["state_dict"], tmp_path / "bare.pth")
    with pytest.raises(UserError, match="bare weights: name their network"):
        load_any_teacher(str(tmp_path / "bare.pth"))
    with pytest.raises(UserError, match="does not name its classes"):
        load_any_teacher("compact", str(tmp_path / "bare.pth"))
    assert load_any_teacher("compact", str(tmp_path / "bare.pth"), teacher.num_classes).class_names is None


def test_an_onnx_teacher_knows_its_own_classes(tmp_path):
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    torch.onnx.export(
        torch.nn.Conv2d(3, 7, 4, 4).eval(), (torch.zeros(1, 3, 64, 64),), str(tmp_path / "net.onnx"), dynamo=False,
        input_names=["images"], output_names=["logits"],
        dynamic_axes={"images": {0: "n", 2: "h", 3: "w"}, "logits": {0: "n", 2: "h", 3: "w"}},
    )  # fmt: skip
    teacher = load_any_teacher(str(tmp_path / "net.onnx"), num_classes=3)
    assert teacher.num_classes == 7 and teacher.class_names is None
    model = onnx.load(tmp_path / "net.onnx")
    onnx.helper.set_model_props(model, {"class_names": json.dumps([f"class {index}" for index in range(7)])})
    onnx.save(model, tmp_path / "named.onnx")
    assert load_any_teacher("fcn_resnet50", str(tmp_path / "named.onnx")).class_names[6] == "class 6"


def test_weights_that_tell_no_class_count():
    with pytest.raises(UserError, match="of how many classes is not known"):
        sources.load("hf:org/name", None, WeightsFile("file.pth", {}))
