"""ONNX teachers: the right output on the right grid, feature maps where they can be known, one line for the rest."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import networks.onnx_session as onnx_session  # noqa: E402
import networks.onnx_teacher as onnx_teacher  # noqa: E402
import test_teacher  # noqa: E402
import zoo  # noqa: E402
from basics.batch import MEAN, STD, normalize  # noqa: E402
from basics.errors import UserError  # noqa: E402
from dataset import build_dataset  # noqa: E402
from deploy.scored import score_teacher  # noqa: E402
from deploy.teachers import TeacherChoice  # noqa: E402
from kd.distiller import DistilledStudent, Distiller, LiveTeacher, Recipe  # noqa: E402
from kd.teacher_cache import open_teacher_cache  # noqa: E402
from networks.cost import count_parameters  # noqa: E402
from networks.onnx_teacher import load_onnx_teacher, sample_corner_grid  # noqa: E402
from networks.taps import choose_taps  # noqa: E402
from scoring.protocol import evaluate_model  # noqa: E402
from segdata.transforms import TrainTransform  # noqa: E402
from student_model import StudentNet  # noqa: E402
from tests.tiny import tiny_batch  # noqa: E402

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
REAL = SHARED / "weights" / "teacher_deeplabv3_mobilenetv2_voc.onnx"
ANIMALS = SHARED / "data" / "voc_animals"
needs_real = pytest.mark.skipif(not REAL.exists(), reason=f"no {REAL}")
CLASSES = 5


class TorchTwin(nn.Module):
    """Conv encoder to stride 16 and a classifier, in PyTorch: what the file below must compute."""

    def __init__(self, seed=0, classes=CLASSES):
        super().__init__()
        rng = np.random.default_rng(seed)
        widths = [3, 8, 12, 16, 24]
        self.weights = [rng.standard_normal((o, i, 3, 3), np.float32) / (2 * i) for i, o in itertools.pairwise(widths)]
        self.head = rng.standard_normal((10, 24, 1, 1), np.float32) / 4
        self.classifier = rng.standard_normal((classes, 10, 1, 1), np.float32)

    def maps(self, images):
        maps = []
        for weight in self.weights:
            images = F.relu(F.conv2d(images, torch.from_numpy(weight), stride=2, padding=1))
            maps.append(images)
        decoder = F.conv2d(images, torch.from_numpy(self.head))
        return maps, decoder, F.conv2d(F.relu(decoder), torch.from_numpy(self.classifier))


def write_model(path, twin=None, outputs=("cells", "whole"), resize="align_corners", prefix="backbone.", **changes):
    """An ONNX file of ``twin``; ``changes``: batch, size, metadata, taps."""
    twin = twin or TorchTwin()
    nodes, weights, name = [], [], "image"
    for number, weight in enumerate(twin.weights):
        key = f"{prefix}{number}.conv.weight"
        weights.append(numpy_helper.from_array(weight, key))
        nodes += [
            helper.make_node("Conv", [name, key], [f"conv{number}"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"conv{number}"], [f"relu{number}"]),
        ]
        name = f"relu{number}"
    weights += [numpy_helper.from_array(twin.head, "head"), numpy_helper.from_array(twin.classifier, "classifier")]
    nodes += [
        helper.make_node("Conv", [name, "head"], ["decoded"]),
        helper.make_node("Relu", ["decoded"], ["active"]),
        helper.make_node("Conv", ["active", "classifier"], ["cells"]),
        helper.make_node("Shape", ["cells"], ["two"], end=2),
        helper.make_node("Shape", ["image"], ["size"], start=2),
        helper.make_node("Concat", ["two", "size"], ["sizes"], axis=0),
        helper.make_node(
            "Resize", ["cells", "", "", "sizes"], ["whole"], mode="linear", coordinate_transformation_mode=resize
        ),
    ]
    size = changes.get("size", ("H", "W"))
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [changes.get("batch", "N"), 3, *size])
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * 4) for n in outputs]
    for old, new in changes.get("taps", {}).items():
        nodes.append(helper.make_node("Identity", [old], [new]))
        infos.append(helper.make_tensor_value_info(new, TensorProto.FLOAT, [None] * 4))
    model = helper.make_model(
        helper.make_graph(nodes, "twin", [image], infos, weights), opset_imports=[helper.make_opsetid("", 18)]
    )
    model.ir_version = 9
    helper.set_model_props(model, changes.get("metadata", {}))
    onnx.save(model, path)
    return path


def at_pixel(cells, y, x, cell):
    """Bilinear value of ``cells`` (C, h, w), cell i at pixel ``cell`` * i, at one pixel, clamped; float64."""
    _, height, width = cells.shape
    y, x = min(max(y / cell, 0), height - 1), min(max(x / cell, 0), width - 1)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    upper = (1 - fx) * cells[:, top, left] + fx * cells[:, top, right]
    return (1 - fy) * upper + fy * ((1 - fx) * cells[:, bottom, left] + fx * cells[:, bottom, right])


def test_corner_grid_is_found_and_sampled_at_half_pixel_centres(tmp_path):
    """Cells at pixels 16 i, any size, no padding; ours are cells of 8 pixels, their centres at 8 j + 3.5."""
    model = load_onnx_teacher(write_model(tmp_path / "m.onnx"), CLASSES)
    assert (model.grid, model.logit_stride, model.stride) == ("corner", 8, 16)
    images = torch.randn(2, 3, 75, 100)
    logits, taps = model.forward_taps(images)
    cells = TorchTwin().maps(images)[2].double().numpy()
    assert logits.shape == (2, CLASSES, 10, 14)
    for i, j in ((0, 0), (3, 7), (9, 13), (8, 2)):
        expected = at_pixel(cells[1], 8 * i + 3.5, 8 * j + 3.5, 16)
        np.testing.assert_allclose(logits[1, :, i, j].numpy(), expected, rtol=1e-3, atol=1e-4)
    assert model(images).shape == (2, CLASSES, 75, 100)
    assert taps["low"].shape[-2:] == (20, 28) and taps["high"].shape[-2:] == (5, 7)


def test_half_pixel_grid_is_found_and_taken_as_it_is(tmp_path):
    model = load_onnx_teacher(write_model(tmp_path / "m.onnx", resize="half_pixel"), CLASSES)
    assert (model.grid, model.logit_stride, model.stride) == ("half_pixel", 16, 32)
    images = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(model.forward_taps(images)[0], TorchTwin().maps(images)[2], rtol=1e-4, atol=1e-5)


def test_full_size_logits_alone_are_averaged(tmp_path):
    model = load_onnx_teacher(write_model(tmp_path / "m.onnx", outputs=("whole",), resize="half_pixel"), CLASSES)
    images = torch.randn(1, 3, 64, 64)
    cells = TorchTwin().maps(images)[2]
    whole = F.interpolate(cells, size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(model.forward_taps(images)[0], F.avg_pool2d(whole, 8), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model(images), whole, rtol=1e-3, atol=1e-4)  # but not for scores and pictures
    assert model(images[..., :50, :41]).shape == (1, CLASSES, 50, 41)


def test_decisions_beside_the_logits_do_not_count_as_classes(tmp_path):
    """An output of one channel, as exporters add it, whatever number of classes the data set has."""
    path = write_model(tmp_path / "m.onnx", outputs=("whole",), resize="half_pixel")
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("ArgMax", ["whole"], ["decided"], axis=1, keepdims=1))
    model.graph.output.append(helper.make_tensor_value_info("decided", TensorProto.INT64, [None] * 4))
    onnx.save(model, path)
    assert load_onnx_teacher(path, CLASSES + 2).num_classes == CLASSES


def test_a_file_of_one_size_is_scored_as_such(tmp_path, demo_data):
    path = write_model(tmp_path / "m.onnx", TorchTwin(classes=7), size=(64, 96))
    words = ["--dataset", "demo", "--data-dir", str(demo_data), "--workers", "0", "--device", "cpu"]
    args, data = test_teacher.get_args_parser().parse_args(words), build_dataset("demo", demo_data, "val")
    (scored,) = score_teacher(TeacherChoice(str(path)), data, args)
    assert "pictures fitted into 64x96, masks at native resolution" in scored.row["protocol"]
    with pytest.raises(UserError, match="a file for pictures of 64x96 has no other size"):
        list(score_teacher(TeacherChoice(str(path)), data, args, [192]))


def test_strided_logits_alone_follow_the_metadata(tmp_path):
    plain = load_onnx_teacher(write_model(tmp_path / "m.onnx", outputs=("cells",)), CLASSES)
    told = write_model(tmp_path / "c.onnx", outputs=("cells",), metadata={"grid": "corner"})
    assert plain.grid == "half_pixel" and load_onnx_teacher(told, CLASSES).grid == "corner"


def test_other_normalisation_is_applied(tmp_path):
    """The same picture through two files: one takes ImageNet's normalisation, the other numbers in -1..1."""
    path = write_model(tmp_path / "m.onnx", metadata={"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"})
    rgb = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    logits = load_onnx_teacher(path, CLASSES).forward_taps((rgb - mean) / std)[0]
    expected = sample_corner_grid(TorchTwin().maps(2 * rgb - 1)[2], 16, 8, (64, 64))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


def test_feature_maps_are_found_by_the_names_of_the_weights(tmp_path):
    model = load_onnx_teacher(write_model(tmp_path / "m.onnx"), CLASSES)
    images = torch.randn(1, 3, 64, 64)
    maps, decoder, _ = TorchTwin().maps(images)
    taps = model.forward_taps(images)[1]
    assert model.tap_channels == {"low": 12, "mid": 16, "high": 24, "decoder": 10}
    assert model.tap_strides == {"low": 4, "mid": 8, "high": 16, "decoder": 16}
    for tap, expected in (("low", maps[1]), ("mid", maps[2]), ("high", maps[3]), ("decoder", decoder)):
        torch.testing.assert_close(taps[tap], expected, rtol=1e-4, atol=1e-5, msg=tap)
    assert taps["decoder"].min() < 0  # before the ReLU


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        ([2, 4, 4, 8, 8, 16, 16], {"low": 2, "mid": 4, "high": 6}),
        ([2, 4, 8, 8, 8], {"low": 1, "mid": 2, "high": 4}),  # dilated: layer1 to layer4 behind the stem
        ([4, 8, 16, 32], {"low": 0, "mid": 1, "high": 3}),
    ],
)
def test_which_blocks_are_taps(strides, expected):
    blocks = {f"b{n}": (1, 8, 128 // stride, 160 // stride) for n, stride in enumerate(strides)}
    assert choose_taps(blocks, (128, 160)) == {tap: f"b{n}" for tap, n in expected.items()}
    assert choose_taps(blocks | {"tokens": (1, 320, 8)}, (128, 160)) == {}


def test_outputs_with_a_taps_name_are_taps(tmp_path):
    path = write_model(tmp_path / "m.onnx", prefix="net.", taps={"relu1": "low", "relu3": "high"})
    assert load_onnx_teacher(path, CLASSES).tap_channels == {"low": 12, "high": 24}


def test_without_names_there_are_no_feature_maps_and_feature_losses_say_so(tmp_path):
    model = load_onnx_teacher(write_model(tmp_path / "m.onnx", prefix="onnx::Conv_"), CLASSES)
    assert model.tap_channels == {}
    with pytest.raises(UserError, match="low"):
        DistilledStudent(StudentNet(CLASSES, "compact"), Recipe({"ce": 1.0, "cosine": 1.0}), LiveTeacher(model))


def test_a_file_for_single_images_takes_batches(tmp_path):
    one = load_onnx_teacher(write_model(tmp_path / "one.onnx", batch=1), CLASSES)
    many = load_onnx_teacher(write_model(tmp_path / "many.onnx"), CLASSES)
    images = torch.randn(3, 3, 64, 64)
    torch.testing.assert_close(one.forward_taps(images)[0], many.forward_taps(images)[0])


def test_it_teaches_live(tmp_path):
    torch.manual_seed(0)
    teacher = LiveTeacher(load_onnx_teacher(write_model(tmp_path / "m.onnx"), CLASSES))
    recipe = Recipe({"ce": 1.0, "kl": 1.0, "cosine": 1.0, "pairwise": 1.0}, temperature=4.0)
    student = StudentNet(CLASSES, "compact")
    distiller = Distiller(DistilledStudent(student, recipe, teacher), student, recipe, teacher)
    losses = distiller.losses(tiny_batch(size=75, classes=CLASSES))
    distiller.total(losses).backward()
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())


def test_it_teaches_from_a_cache(tmp_path, demo_data):
    """Images of any size: their logits are cut and scaled like any other teacher's."""
    data = build_dataset("demo", demo_data, "train", TrainTransform(64))
    path = write_model(tmp_path / "m.onnx", TorchTwin(classes=7))
    recipe = Recipe({"ce": 1.0, "kl": 1.0, "cosine": 1.0})
    cached = open_teacher_cache(tmp_path / "cache", load_onnx_teacher(path, 7), "m", data, recipe=recipe)
    assert cached.manifest["made_from"]["weights_sha256"] == load_onnx_teacher(path, 7).weights_sha256
    data.transform = None
    image = data[3]["image"]
    height, width = image.shape[1:]
    images = torch.zeros(1, 3, height + -height % 16, width + -width % 16)
    told = cached(
        {
            "image": images,
            "index": torch.tensor([3]),
            "box": torch.tensor([[0.0, 0.0, images.shape[3], images.shape[2]]]),
            "flip": torch.tensor([False]),
        }
    )
    live = load_onnx_teacher(path, 7).forward_taps(normalize(image[None]))[0]
    assert torch.equal(told.logits, live.half().float())
    other = write_model(tmp_path / "m.onnx", TorchTwin(seed=1, classes=7))
    with pytest.raises(UserError, match="sha256"):
        open_teacher_cache(tmp_path / "cache", load_onnx_teacher(other, 7), "m", data, recipe=recipe)


@pytest.mark.parametrize(
    ("changes", "classes", "words"),
    [
        ({"size": (64, "W")}, CLASSES, "one side is fixed"),
        ({"metadata": {"mean": "grey"}}, CLASSES, "entry mean must be"),
        ({"metadata": {"std": "[1, 0, 1]"}}, CLASSES, "entry std .* larger than 0"),
        ({"metadata": {"grid": "hexagonal"}}, CLASSES, "'grid'"),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, changes, classes, words):
    path = write_model(tmp_path / "m.onnx", **changes)
    with pytest.raises(UserError, match=words) as error:
        zoo.load_any_teacher("fcn_resnet50", str(path), classes)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_no_file_and_no_onnx_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        zoo.load_any_teacher("fcn_resnet50", str(tmp_path / "none.onnx"))
    (tmp_path / "noise.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="not an ONNX file"):
        zoo.load_any_teacher("fcn_resnet50", str(tmp_path / "noise.onnx"))


def test_a_suffix_in_capitals_is_the_same_suffix(tmp_path):
    """As cameras and Windows write them."""
    path = write_model(tmp_path / "M.ONNX")
    for name, weights in ((str(path), "default"), ("fcn_resnet50", str(path))):
        assert count_parameters(zoo.load_any_teacher(name, weights, CLASSES)) is not None
        assert zoo.teacher_name(name, weights) == "M" and TeacherChoice(name, weights).files == {"teacher": path}
    with pytest.raises(UserError, match="a file of weights goes to --student-weights"):
        zoo.create_model(str(path), CLASSES)


def test_its_weights_are_counted(tmp_path):
    """3-8-12-16-24 channels of 3x3, a head of 10, a classifier."""
    model = load_onnx_teacher(write_model(tmp_path / "m.onnx"), CLASSES)
    expected = 9 * (3 * 8 + 8 * 12 + 12 * 16 + 16 * 24) + 24 * 10 + 10 * CLASSES
    assert count_parameters(model) == expected


def test_its_row_has_its_name_and_size_and_no_score_where_nobody_can_count(tmp_path, demo_data, monkeypatch, capsys):
    path = write_model(tmp_path / "a_long_name_of_mine.onnx", TorchTwin(classes=7))
    words = ["--dataset", "demo", "--data-dir", str(demo_data), "--teacher-weights", str(path), "--device", "cpu"]
    args = test_teacher.get_args_parser().parse_args([*words, "--json", str(tmp_path / "row.json")])
    test_teacher.main(args)
    (row,) = json.loads((tmp_path / "row.json").read_text())
    parameters = 9 * (3 * 8 + 8 * 12 + 12 * 16 + 16 * 24) + 24 * 10 + 10 * 7
    assert (row["model"], row["parameters"]) == ("a_long_name_of_mine", parameters)
    assert row["score"] == pytest.approx(4 * row["miou"] / (1 + parameters / 1e6))
    heading, line = capsys.readouterr().out.splitlines()[-2:]
    assert line.split()[4] == "0.007"
    assert len(line) == len(heading)

    monkeypatch.setitem(sys.modules, "onnx", None)  # not installed
    test_teacher.main(args)
    (row,) = json.loads((tmp_path / "row.json").read_text())
    assert (row["parameters"], row["score"]) == (None, None)
    cells = capsys.readouterr().out.splitlines()[-1].split()
    assert (cells[4], cells[6]) == ("-", "-")


def test_without_onnx_runtime_the_error_says_what_to_install(tmp_path, monkeypatch):
    path = write_model(tmp_path / "m.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        load_onnx_teacher(path, CLASSES)


@needs_real
def test_the_real_teacher_is_understood():
    model = zoo.load_any_teacher("fcn_resnet50", str(REAL))
    assert (model.grid, model.stride, model.logit_stride) == ("corner", 16, 8)
    assert model.tap_channels == {"low": 24, "mid": 32, "high": 320, "decoder": 256}
    assert model.num_classes == 21


@needs_real
@pytest.mark.slow
@pytest.mark.skipif(not ANIMALS.exists(), reason=f"no {ANIMALS}")
def test_the_real_teacher_scores_at_native_size():
    """On every twentieth validation picture: no worse than the file's own resized logits, straight from the file."""
    dataset = build_dataset("voc", ANIMALS, "val")
    dataset.files.ids, dataset.files.images, dataset.files.masks = (
        part[::20] for part in (dataset.files.ids, dataset.files.images, dataset.files.masks)
    )
    model = zoo.load_any_teacher("fcn_resnet50", str(REAL))
    scores = evaluate_model(model, dataset, torch.device("cpu"), progress=False).scores
    session, right, labelled = onnx_teacher.open_session(REAL), 0, 0
    for sample in dataset:
        image, mask = normalize(sample["image"][None]).numpy(), sample["mask"].numpy()
        prediction = session.run(["logits"], {"image": image})[0][0].argmax(0)
        right += ((prediction == mask) & (mask != 255)).sum()
        labelled += (mask != 255).sum()
    assert scores.pixels == labelled
    assert scores.pixel_accuracy > right / labelled > 0.9


# -- one batch or one size alone ---------------------------------------------------------------------


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("images", [1, 2, 3, 5])
def test_a_batch_that_is_fixed_or_baked_in_is_filled_up(tmp_path, declared, batch, images):
    """Declared in the input's shape, or claimed to be free while a Reshape has the example's batch."""
    path = write_model(tmp_path / "m.onnx", **({"batch": batch} if declared else {}))
    if not declared:
        model = onnx.load(path)
        for node in model.graph.node:
            if node.op_type == "Conv" and node.input[0] == "image":
                node.input[0] = "baked"
        size = [helper.make_node("Shape", ["image"], ["hw"], start=2)]
        size += [helper.make_node("Concat", ["batch", "hw"], ["shape"], axis=0)]
        size += [helper.make_node("Reshape", ["image", "shape"], ["baked"])]
        nodes = [*size, *model.graph.node]
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        model.graph.initializer.append(numpy_helper.from_array(np.array([batch, 3], np.int64), "batch"))
        onnx.save(model, path)
    free = load_onnx_teacher(write_model(tmp_path / "free.onnx"), CLASSES)
    fixed = load_onnx_teacher(path, CLASSES)
    pictures = torch.randn(images, 3, 75, 100)
    (logits, taps), (expected, expected_taps) = fixed.forward_taps(pictures), free.forward_taps(pictures)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert taps.keys() == expected_taps.keys()
    for tap in taps:
        torch.testing.assert_close(taps[tap], expected_taps[tap], rtol=1e-4, atol=1e-5)
    assert fixed.limits and not free.limits


def test_a_batch_whose_images_see_each_other_is_run_one_by_one(tmp_path):
    """A mean over the batch, as of BatchNorm left in training mode: a batch would depend on its company."""
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] == "image":
            node.input[0] = "centred"
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"]),
        helper.make_node("Sub", ["image", "mean"], ["centred"]),
        *model.graph.node,
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3], np.int64), "axes"))
    onnx.save(model, path)
    teacher = load_onnx_teacher(path, CLASSES)
    assert teacher.limits == ["run one image at a time"]
    images = torch.randn(2, 3, 64, 64) + torch.tensor([0.0, 5.0]).view(2, 1, 1, 1)
    alone = torch.cat([teacher.forward_taps(image[None])[0] for image in images])
    torch.testing.assert_close(teacher.forward_taps(images)[0], alone)


def baked_size(path, size):
    """Rewrite a file of any size: it still claims to be one, but a Reshape has the example's size."""
    model = onnx.load(path)
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] == "image":
            node.input[0] = "baked"
    model.graph.node.insert(0, helper.make_node("Reshape", ["image", "shape"], ["baked"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 3, *size], np.int64), "shape"))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("outputs", [("whole",), ("cells",), ("cells", "whole")])
def test_a_fixed_size_is_brought_to_and_back(tmp_path, declared, outputs):
    """At its own size it says what the file of any size says; at others the same of the resized picture, resized."""
    size = (256, 256)
    free = load_onnx_teacher(write_model(tmp_path / "free.onnx", outputs=outputs, resize="half_pixel"), CLASSES)
    path = write_model(
        tmp_path / "m.onnx", outputs=outputs, resize="half_pixel", **({"size": size} if declared else {})
    )
    fixed = load_onnx_teacher(path if declared else baked_size(path, size), CLASSES)
    assert "256x256" in " ".join(fixed.limits)
    images = torch.randn(2, 3, *size)
    logits, taps = fixed.forward_taps(images)
    expected, expected_taps = free.forward_taps(images)
    if "whole" in outputs:  # then the logits are those of full size, averaged to stride 8
        whole = F.interpolate(TorchTwin().maps(images)[2], size=size, mode="bilinear", align_corners=False)
        expected = F.avg_pool2d(whole, 8)
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)
    assert taps.keys() == expected_taps.keys() == {"low", "mid", "high", "decoder"}
    for tap in taps:
        torch.testing.assert_close(taps[tap], expected_taps[tap], rtol=1e-3, atol=1e-4)

    ramps = torch.linspace(-1, 1, 384).expand(1, 3, 200, 384)  # smooth, so that resizing is nearly exact
    logits, taps = fixed.forward_taps(ramps)
    padded = F.pad(ramps, (0, 0, 0, 24))
    brought = F.interpolate(padded, size=size, mode="bilinear", align_corners=False, antialias=True)
    said = fixed.forward_taps(brought)[0]
    stride = fixed.logit_stride
    assert logits.shape == (1, CLASSES, 224 // stride, 384 // stride)
    torch.testing.assert_close(
        logits, F.interpolate(said, size=logits.shape[-2:], mode="bilinear", antialias=True), rtol=1e-3, atol=1e-4
    )
    assert fixed(ramps).shape == (1, CLASSES, 200, 384)
    assert {tap: value.shape[-2:] for tap, value in taps.items()} == {
        tap: (224 // own, 384 // own) for tap, own in fixed.tap_strides.items()
    }


def test_a_fixed_size_puts_things_where_they_are(tmp_path):
    """A bright left half of a wide picture: the logits change in its middle, whatever the size in between."""
    fixed = load_onnx_teacher(write_model(tmp_path / "m.onnx", size=(96, 96), outputs=("whole",)), CLASSES)
    picture = torch.zeros(1, 3, 192, 640)
    picture[..., :320] = 2
    logits = fixed(picture)[0]  # (C, 192, 640)
    steps = (logits[:, 96, 1:] - logits[:, 96, :-1]).abs().sum(0)
    steps[:100] = steps[-100:] = 0  # there the padding of the convolutions ends
    centre = (steps * torch.arange(len(steps))).sum() / steps.sum()
    assert abs(centre - 320) < 60
    assert (logits[:, 96, 20] - logits[:, 96, 620]).abs().max() > 0.05


def test_a_fixed_size_teaches(tmp_path, demo_data):
    path = write_model(tmp_path / "m.onnx", TorchTwin(classes=7), size=(96, 128), batch=2)
    teacher = LiveTeacher(load_onnx_teacher(path, 7))
    recipe = Recipe({"ce": 1.0, "kl": 1.0, "cosine": 1.0}, temperature=4.0)
    student = StudentNet(7, "compact")
    distiller = Distiller(DistilledStudent(student, recipe, teacher), student, recipe, teacher)
    losses = distiller.losses(tiny_batch(size=75, images=3, classes=7))
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    words = ["--dataset", "demo", "--data-dir", str(demo_data), "--teacher-weights", str(path), "--device", "cpu"]
    test_teacher.main(test_teacher.get_args_parser().parse_args([*words, "--workers", "0"]))


def test_a_size_baked_into_the_end_is_named(tmp_path):
    """The whole network takes any size, but its last Resize has the example's."""
    path = write_model(tmp_path / "m.onnx", outputs=("whole",))
    model = onnx.load(path)
    (resize,) = (node for node in model.graph.node if node.op_type == "Resize")
    resize.input[3] = "baked"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, CLASSES, 500, 300], np.int64), "baked"))
    onnx.save(model, path)
    with pytest.raises(UserError, match=r"whole \[1, 5, 500, 300\].*the size of another image is baked in"):
        load_onnx_teacher(path, CLASSES)


def test_what_runs_at_nothing_that_is_tried_names_batch_size_and_claim(tmp_path):
    path = baked_size(write_model(tmp_path / "m.onnx"), (100, 100))
    with pytest.raises(UserError, match=r"fails on a batch of 1 image of 128x160 pixels: .*claims to be .*'H', 'W'"):
        load_onnx_teacher(path, CLASSES)


# -- what are no logits ------------------------------------------------------------------------------


def end_in(path, *nodes, output="said", keep=()):
    """Let the file at ``path`` end in these nodes behind its output ``cells``."""
    model = onnx.load(path)
    model.graph.node.extend(nodes)
    del model.graph.output[:]
    model.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in (output, *keep)
    )
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([helper.make_node("Softmax", ["cells"], ["said"], axis=1)], "probabilities already, which sum to 1"),
        ([helper.make_node("Sigmoid", ["cells"], ["said"])], "probabilities already, all of them between 0 and 1"),
        ([helper.make_node("Hardmax", ["cells"], ["said"], axis=1)], "probabilities already, which sum to 1"),
        (
            [helper.make_node("Sub", ["cells", "cells"], ["zero"]), helper.make_node("Log", ["zero"], ["said"])],
            "not finite",
        ),
    ],
    ids=["softmax", "sigmoid", "one-hot", "infinite"],
)
def test_outputs_that_are_no_logits_are_refused(tmp_path, nodes, words):
    path = end_in(write_model(tmp_path / "m.onnx"), *nodes)
    with pytest.raises(UserError, match=f"its output said is {words}"):
        load_onnx_teacher(path, CLASSES)


def test_log_probabilities_are_logits(tmp_path):
    plain = load_onnx_teacher(write_model(tmp_path / "p.onnx", outputs=("cells",)), CLASSES)
    log_softmax = helper.make_node("LogSoftmax", ["cells"], ["said"], axis=1)
    logs = load_onnx_teacher(end_in(write_model(tmp_path / "m.onnx"), log_softmax), CLASSES)
    images = torch.randn(1, 3, 64, 64)
    ours, theirs = (model.forward_taps(images)[0].div(4).softmax(1) for model in (plain, logs))
    torch.testing.assert_close(ours, theirs)


def test_logits_beside_probabilities_are_found(tmp_path):
    softmax = helper.make_node("Softmax", ["cells"], ["said"], axis=1)
    model = load_onnx_teacher(end_in(write_model(tmp_path / "m.onnx"), softmax, keep=("cells",)), CLASSES)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.forward_taps(images)[0], TorchTwin().maps(images)[2], rtol=1e-4, atol=1e-5)


def test_a_fixed_size_that_is_the_one_tried_is_fixed_all_the_same(tmp_path):
    model = load_onnx_teacher(write_model(tmp_path / "m.onnx", size=onnx_teacher.PROBE), CLASSES)
    assert model(torch.randn(1, 3, 75, 100)).shape == (1, CLASSES, 75, 100)


# -- what it says of itself --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"mean": "[123.675, 116.28, 103.53]"}, r"metadata entry mean \[123.675.* divide mean and std by 255"),
        ({"std": "[58.4, 57.1, 57.4]"}, "divide mean and std by 255"),
        ({"mean": "0.5"}, "metadata entry mean must be three numbers, one a channel, not 0.5"),
        ({"std": "half"}, "metadata entry std must be three numbers"),
        ({"class_names": "dog,cat"}, r"must be a JSON list such as \[.*, not 'dog,cat'"),
        ({"class_names": '"dog,cat"'}, "must be a JSON list such as"),
        ({"class_names": '{"0": "dog", "2": "cat"}'}, "must be a JSON list such as"),
        ({"class_names": '["a", "b"]'}, "its metadata name 2 classes, its outputs"),
    ],
)
def test_metadata_that_say_nothing_are_refused(tmp_path, metadata, message):
    with pytest.raises(UserError, match=message) as caught:
        load_onnx_teacher(write_model(tmp_path / "m.onnx", metadata=metadata), CLASSES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["class_names", "names"])
def test_names_by_number(tmp_path, key):
    names = [f"class {number}" for number in range(CLASSES)]
    by_number = {number: names[number] for number in reversed(range(CLASSES))}
    said = json.dumps(by_number) if key == "class_names" else repr(by_number)
    path = write_model(tmp_path / "m.onnx", metadata={key: said})
    assert load_onnx_teacher(path, None).class_names == names


def test_a_list_beside_it_names_its_classes(tmp_path, capsys):
    path, names = write_model(tmp_path / "m.onnx"), [f"class {number}" for number in range(CLASSES)]
    (tmp_path / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    assert load_onnx_teacher(path, None).class_names == names
    assert "its classes are named by classes.txt beside it" in capsys.readouterr().out
    (tmp_path / "classes.txt").write_text("one\ntwo", encoding="utf-8")  # of a data set, perhaps
    assert load_onnx_teacher(path, None).class_names is None
    assert "not taken for its own" in capsys.readouterr().out
    (tmp_path / "classes.txt").write_text("".join(f"{name} {9 * number} 0 0\n" for number, name in enumerate(names)))
    assert load_onnx_teacher(path, None).class_names == names  # a table of colours
    (tmp_path / "classes.txt").write_text("same\nsame\n")
    assert load_onnx_teacher(path, None).class_names is None
    assert "is not taken for its own: " in capsys.readouterr().out
    (tmp_path / "classes.txt").write_text("\n".join(names), encoding="utf-8")
    told = write_model(tmp_path / "m.onnx", metadata={"class_names": json.dumps(names[::-1])})
    assert load_onnx_teacher(told, None).class_names == names[::-1]


# -- which output ------------------------------------------------------------------------------------


def two_heads(path, one, other, first="Neg", ends=()):
    """A file with the outputs ``one`` and ``other``: the negative of the logits, and the logits."""
    nodes = [helper.make_node(first, ["cells"], [one]), helper.make_node("Identity", ["cells"], [other]), *ends]
    return end_in(write_model(path), *nodes, output=one, keep=(other,))


@pytest.mark.parametrize("names", [("aux", "seg"), ("aux_head", "out"), ("deep", "logits"), ("head.aux", "any")])
def test_an_auxiliary_head_is_not_the_logits(tmp_path, names, capsys):
    model = load_onnx_teacher(two_heads(tmp_path / "m.onnx", *names), CLASSES)
    assert f"the logits are its output {names[1]}, not {names[0]}" in capsys.readouterr().out
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.forward_taps(images)[0], TorchTwin().maps(images)[2], rtol=1e-4, atol=1e-5)


def test_an_output_called_out_goes_before_one_at_full_size(tmp_path):
    path = end_in(
        write_model(tmp_path / "m.onnx"),
        helper.make_node("Neg", ["whole"], ["boundary"]),
        helper.make_node("Identity", ["cells"], ["out"]),
        output="boundary",
        keep=("out",),
    )
    model = load_onnx_teacher(path, CLASSES)
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(model.forward_taps(images)[0], TorchTwin().maps(images)[2], rtol=1e-4, atol=1e-5)


def test_the_same_logits_at_two_sizes_are_not_talked_about(tmp_path, capsys):
    load_onnx_teacher(write_model(tmp_path / "m.onnx"), CLASSES)
    assert "the logits are" not in capsys.readouterr().out


@pytest.mark.parametrize("keepdims", [0, 1])
def test_class_numbers_are_named(tmp_path, keepdims):
    numbers = helper.make_node("ArgMax", ["cells"], ["numbers"], axis=1, keepdims=keepdims)
    cast = helper.make_node("Cast", ["numbers"], ["said"], to=TensorProto.FLOAT)
    with pytest.raises(UserError, match="its output said is class numbers already"):
        load_onnx_teacher(end_in(write_model(tmp_path / "m.onnx"), numbers, cast), None)


def test_a_single_score_is_refused(tmp_path):
    one = helper.make_node("ReduceMean", ["cells"], ["said"], axes=[1], keepdims=1)
    path = end_in(write_model(tmp_path / "m.onnx"), one)
    model = onnx.load(path)
    model.opset_import[0].version = 17
    nodes = [node for node in model.graph.node if node.op_type != "Resize"]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)
    with pytest.raises(UserError, match="its output said is of one channel, the score of a single class"):
        load_onnx_teacher(path, 1)


def test_channels_last_are_named(tmp_path):
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    model.graph.node.insert(0, helper.make_node("Transpose", ["last"], ["image"], perm=[0, 3, 1, 2]))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("last", TensorProto.FLOAT, ["N", "H", "W", 3]))
    onnx.save(model, path)
    with pytest.raises(UserError, match="channels last; export it with channels first"):
        load_onnx_teacher(path, CLASSES)


def test_the_runtime_goes_where_the_teacher_goes(tmp_path, monkeypatch):
    """--device cpu leaves a GPU alone; what is moved to one is run there, inner feature maps included."""
    teacher = load_onnx_teacher(write_model(tmp_path / "m.onnx"), CLASSES)
    asked, images = [], torch.randn(1, 3, 64, 64)
    before, opened = teacher.forward_taps(images), teacher._open

    def open_on(device):
        asked.append(device)
        return opened()

    monkeypatch.setattr(teacher, "_open", open_on)
    assert teacher._session.get_providers() == ["CPUExecutionProvider"]
    teacher.to("cpu").float()
    assert asked == []
    teacher.to("meta")  # the only other device that is always there
    assert asked == ["meta"]
    torch.testing.assert_close(teacher.forward_taps(images), before)


@pytest.mark.parametrize(("device", "first"), [("cpu", "CPU"), ("mps", "CPU"), ("cuda", "CUDA")])
def test_cuda_kernels_are_for_cuda_alone(tmp_path, monkeypatch, device, first):
    import onnxruntime

    path, asked = write_model(tmp_path / "m.onnx"), []
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [onnx_session.CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, providers: asked.append(providers))
    onnx_session.open_session(path, device=device)
    name = asked[0][0] if isinstance(asked[0][0], str) else asked[0][0][0]
    assert name == f"{first}ExecutionProvider" and asked[0][-1] == "CPUExecutionProvider"
