"""A working size from the picture to the file: geometry by hand, scores by torch's and torchmetrics' own."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import default_collate
from torchmetrics.classification import MulticlassJaccardIndex

import quantize
import zoo
from basics.batch import prepare_batch
from basics.checkpoint import load_file, save_atomic
from basics.errors import UserError
from basics.grids import working_shape
from comparison.plan import load_plan
from comparison.scoring import score_run, score_teacher
from dataset import SegmentationDataset, build_dataset
from deploy.formats import FORMATS, load_exported
from deploy.segmenter import load_segmenter
from kd.distiller import LiveTeacher
from kd.teacher_cache import open_teacher_cache
from networks import working_size
from networks.base import SegmentationModel
from networks.model_file import FORMAT, model_file_dict
from networks.working_size import WorkingSize, at_working_size, resize_rows, working_size_of
from scoring.memory import scoring_bytes
from scoring.protocol import evaluate_model, protocol_text
from segdata.transforms import TrainTransform
from tests import forks
from tests.conftest import assert_one_line_error
from tests.tiny import TinyModel
from train_kd import get_args_parser, main
from training import doctor
from training.agreement import label_split
from zoo import ModelSpec

CPU = torch.device("cpu")
SIZES = ((60, 90), (51, 33), (20, 26), (200, 8))  # (H, W): wide, tall, smaller than the working size, a strip
CLASSES = ("ground", "thing", "other")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder data set of pictures of four sizes in train and in val."""
    root = tmp_path_factory.mktemp("sizes")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for number, (height, width) in enumerate(SIZES):
            mask = np.zeros((height, width), np.uint8)
            mask[height // 4 :, width // 3 :] = 1
            mask[: height // 5, : width // 2] = 2
            mask[0] = 255
            noise = rng.integers(0, 50, (height, width, 3))
            image = noise + np.array([[20, 90, 160], [180, 60, 20], [90, 190, 60]])[mask % 255]
            Image.fromarray(image.astype(np.uint8)).save(root / "images" / split / f"{number}.png")
            Image.fromarray(mask).save(root / "masks" / split / f"{number}.png")
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    return root


@pytest.fixture(autouse=True)
def tiny_in_zoo(monkeypatch):
    monkeypatch.setitem(zoo.MODELS, "tiny", ModelSpec(TinyModel, None, "tests"))


def sized(dataset: SegmentationDataset, input_size: int, transform=None) -> SegmentationDataset:
    same = dataset.whole(input_size)
    same.transform = transform
    return same


def lively_tiny() -> SegmentationModel:
    """A random network that says every class somewhere, in eval mode."""
    torch.manual_seed(0)
    model = TinyModel(len(CLASSES)).eval()
    with torch.no_grad():
        model.classifier.weight.mul_(8)
        logits = model(torch.randn(4, 3, 64, 64))
        model.classifier.bias.sub_(logits.mean((0, 2, 3)))
    return model


def by_hand(model, image: torch.Tensor, input_size: int) -> torch.Tensor:
    """Logits (1, C, H, W) of a uint8 image, with torch alone."""
    height, width = image.shape[1:]
    longer = max(height, width)
    small = [max(1, int(side * input_size / longer + 0.5)) for side in (height, width)]
    images = ((image / 255 - MEAN) / STD)[None]
    images = F.interpolate(images, size=small, mode="bilinear", antialias=True)
    images = F.pad(images, (0, max(0, 32 - small[1]), 0, max(0, 32 - small[0])))
    with torch.no_grad():
        logits = model(images)[..., : small[0], : small[1]]
    return F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)


# -- sizes and geometry ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "input_size", "expected"),
    [
        ((375, 500), 256, (192, 256)), ((500, 375), 256, (256, 192)), ((60, 90), 48, (32, 48)),
        ((20, 26), 48, (37, 48)),  # 36.92: a smaller picture is enlarged
        ((4, 1000), 48, (1, 48)),  # 0.19: a row stays
        ((3, 8), 4, (2, 4)),  # 1.5: halves go up
        ((61, 90), 0, (61, 90)),
    ],
)  # fmt: skip
def test_the_longer_side_is_the_working_size(size, input_size, expected):
    assert working_shape(*size, input_size) == expected


def test_a_crops_box_is_in_pixels_of_the_original(root):
    """60 x 90 brought to 30 on the longer side is 20 x 30; at factor 2 a crop of 16 is a window of 8 x 8 of these."""
    data = sized(build_dataset("folder", root, "train"), 30, TrainTransform(16, (2.0, 2.0), flip=0, jitter=None))
    sample = data[0, 5]
    torch.manual_seed(5)
    torch.rand(())  # the factor
    top, left = int(torch.randint(0, 20 - 8 + 1, ())), int(torch.randint(0, 30 - 8 + 1, ()))
    assert sample["box"].tolist() == pytest.approx([3 * left, 3 * top, 3 * (left + 8), 3 * (top + 8)])
    assert sample["size"].tolist() == [60, 90]
    original = Image.open(root / "images" / "train" / "0.png")
    small = np.asarray(original.resize((30, 20), Image.Resampling.BILINEAR))
    cut = Image.fromarray(small[top : top + 8, left : left + 8])
    expected = np.asarray(cut.resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(sample["image"].permute(1, 2, 0).numpy() - expected).max() <= 1
    mask = np.asarray(Image.open(root / "masks" / "train" / "0.png"))
    rows = [3 * (top + i // 2) + 1 for i in range(16)]  # the original's pixel under the centre of a small one, doubled
    columns = [3 * (left + i // 2) + 1 for i in range(16)]
    assert np.array_equal(sample["mask"].numpy(), mask[rows][:, columns])


def test_a_box_of_another_proportion_reaches_the_edges_of_the_original(root):
    """The shorter side is rounded: 33 of 51 at 32 is 20.7, so its pixels are another size than those of the longer."""
    data = sized(build_dataset("folder", root, "train"), 32)
    for index, (height, width) in enumerate(SIZES):
        sample = data[index]
        assert sample["image"].shape[1:] == working_shape(height, width, 32) == sample["mask"].shape
        assert sample["box"].tolist() == pytest.approx([0, 0, width, height])
        assert sample["size"].tolist() == [height, width]


def test_decoded_at_working_size_is_the_same_and_smaller(root, tmp_path):
    """Every size has a cache of its own, and the crops of a cache are those of the files, bit for bit."""
    transform = TrainTransform(32, (0.5, 2.0))
    direct = sized(build_dataset("folder", root, "train"), 30, transform)
    caches = {
        size: SegmentationDataset(direct.layout, "train", transform, tmp_path, input_size=size) for size in (0, 30, 24)
    }
    for index in range(len(direct)):
        for seed in range(4):
            one, other = direct[index, seed], caches[30][index, seed]
            assert all(
                torch.equal(torch.as_tensor(one[key]), torch.as_tensor(other[key])) for key in one if key != "id"
            )
    files = {path.stat().st_size for path in tmp_path.glob("*.bin")}
    assert files == {4 * sum(h * w for h, w in (working_shape(*size, n) for size in SIZES)) for n in (0, 30, 24)}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.bin")}
    again = SegmentationDataset(direct.layout, "train", None, tmp_path, input_size=30)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.bin")} == before
    assert torch.equal(again[1]["image"], sized(direct, 30)[1]["image"]) and again[1]["size"].tolist() == [51, 33]
    assert torch.equal(again.whole()[1]["image"], caches[0].whole()[1]["image"])  # native, not what the cache holds


# -- the network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("input_size", [32, 48, 128])
def test_scores_are_those_of_torch_and_torchmetrics_at_native_size(root, input_size):
    model, data = lively_tiny(), build_dataset("folder", root, "val")
    evaluation = evaluate_model(at_working_size(model, input_size), data, CPU, progress=False)
    iou = MulticlassJaccardIndex(len(CLASSES), average=None, ignore_index=255)
    losses, pixels = 0.0, 0
    for index in range(len(data)):
        image = torch.from_numpy(np.array(Image.open(data.image_path(index)))).permute(2, 0, 1)
        mask = torch.from_numpy(np.asarray(Image.open(data.mask_path(index))).astype(np.int64))[None]
        logits = by_hand(model, image, input_size)
        iou.update(logits.argmax(1), mask)
        losses += F.cross_entropy(logits, mask, ignore_index=255, reduction="sum").item()
        pixels += int((mask != 255).sum())
    assert pixels == evaluation.scores.pixels == sum((h - 1) * w for h, w in SIZES)
    assert evaluation.scores.iou.tolist() == pytest.approx(iou.compute().tolist(), abs=1e-6)
    assert evaluation.loss == pytest.approx(losses / pixels, rel=1e-5)
    assert f"working size {input_size}, masks at native resolution" in evaluation.protocol
    native = evaluate_model(model, data, CPU, progress=False)
    assert native.scores.iou.tolist() != evaluation.scores.iou.tolist() and "working" not in native.protocol


def test_the_mode_of_the_network_is_that_of_its_wrapper():
    model = TinyModel()
    for mode in (True, False):
        wrapper = at_working_size(model.train(mode), 64)
        assert wrapper.training is mode
        wrapper.eval()
        assert not model.training
    assert at_working_size(model, 0) is model and working_size_of(model) == 0
    assert working_size_of(torch.nn.Sequential(WorkingSize(model, 64))) == 64


@pytest.mark.parametrize("size", [(97, 61), (20, 30), (300, 7)])
def test_bands_are_the_whole(size, monkeypatch):
    """What is read and written a few rows at a time, for pictures that do not fit memory."""
    network = WorkingSize(lively_tiny(), 48)
    images = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole = network(images)
        monkeypatch.setattr(working_size, "BAND_PIXELS", 9 * size[1])
        monkeypatch.setattr(working_size, "BAND_LOGITS", 11 * 3 * size[1])
        asked = []

        def read_rows(top, bottom):
            asked.append((top, bottom))
            return images[..., top:bottom, :]

        bands = list(network.bands(read_rows, size))
    assert [top for top, _ in bands] == list(range(0, size[0], 11))
    assert asked == [(top, min(top + 9, size[0])) for top in range(0, size[0], 9)]
    torch.testing.assert_close(torch.cat([logits for _, logits in bands], dim=2), whole, rtol=1e-5, atol=1e-5)


def test_rows_of_logits_are_those_of_interpolate():
    logits = torch.randn(2, 3, 13, 9, generator=torch.Generator().manual_seed(0))
    for size in ((40, 31), (13, 30), (7, 5), (13, 9)):
        whole = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        torch.testing.assert_close(resize_rows(logits, size, 2, 6), whole[..., 2:6, :], rtol=1e-5, atol=1e-6)


# -- files -------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(root, tmp_path) -> Path:
    data = build_dataset("folder", root, "train")
    save_atomic(model_file_dict("tiny", lively_tiny(), data, input_size=48), tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


def test_checkpoint_prediction_and_exported_files_decide_alike(root, checkpoint, run_script, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    files = [checkpoint, tmp_path / "tiny.onnx", tmp_path / "raw.onnx", tmp_path / "tiny.pt2"]
    for path in files[1:]:
        more = ["--uint8"] if path.stem == "raw" else []
        run_script("export.py", checkpoint, "--output", path, "--rounds", 0, *more)
    model, _ = zoo.load_checkpoint_model(checkpoint)
    data = build_dataset("folder", root, "val")
    expected = [by_hand(model, data[index]["image"], 48).argmax(1)[0] for index in range(len(data))]
    assert {int(value) for mask in expected for value in mask.unique()} == {0, 1, 2}
    for path in files:
        segmenter = load_segmenter(path, "cpu")
        assert segmenter.input_size == 48 and segmenter.name == "tiny at 48"
        for index, mask in enumerate(expected):
            # Where raw RGB goes in, the small picture is rounded to whole levels.
            least = 0.97 if path.stem == "raw" else 1.0
            assert (segmenter.mask(data[index]["image"]) == mask).float().mean() >= least, path
    output = run_script("predict.py", root / "images" / "val", "--checkpoint", checkpoint, "--save", "mask",
                        "--output-dir", tmp_path / "out", "--device", "cpu").stdout  # fmt: skip
    assert "4 pictures" in output
    written = {path.stem: np.asarray(Image.open(path)) for path in (tmp_path / "out" / "mask").rglob("*.png")}
    assert all(np.array_equal(written[data.ids[index]], mask) for index, mask in enumerate(expected))
    table = run_script("evaluate.py", *files, "--dataset", "folder", "--data-dir", root, "--device", "cpu",
                       "--workers", 0, "--agreement").stdout  # fmt: skip
    assert table.count("working size 48, masks at native resolution") == 4 and "tiny at 48" in table


def test_a_format_of_one_size_takes_a_square_of_the_working_size(root, checkpoint, run_script, monkeypatch, tmp_path):
    """And --size of another scale is remarked upon."""
    monkeypatch.setitem(FORMATS, "new", dataclasses.replace(FORMATS["pt2"], suffix=".new", one_size=True))
    output = run_script("export.py", checkpoint, "--output", tmp_path / "a.new", "--rounds", 1).stdout
    assert load_exported(tmp_path / "a.new").fitted_size == (48, 48)
    assert "ms at 48" in output and "warning" not in output
    model, data = load_segmenter(checkpoint, "cpu"), build_dataset("folder", root, "val")
    file = load_segmenter(tmp_path / "a.new", "cpu")
    for index in range(len(data)):  # what is left of the square is grey, and edges see some of it
        image = data[index]["image"]
        assert (file.mask(image) == model.mask(image)).float().mean() > 0.95
    for size, remark in (("32x48", False), ("64x64", True)):
        command = ["export.py", checkpoint, "--output", tmp_path / "b.pt2", "--size", size, "--rounds", 0]
        assert ("warning: the student sees pictures at 48 pixels" in run_script(*command).stdout) == remark


def test_the_table_of_formats_scores_at_the_working_size(root, checkpoint, run_script, monkeypatch, tmp_path):
    monkeypatch.setattr("deploy.export_run.FORMATS", {"pt2": FORMATS["pt2"]})
    data = ["--dataset", "folder", "--data-dir", root]
    table = run_script("export.py", checkpoint, "--format", "all", "--output", tmp_path, "--rounds", 1, *data).stdout
    model = load_segmenter(checkpoint, "cpu").model
    score = 100 * evaluate_model(model, build_dataset("folder", root, "val"), CPU).scores.miou
    rows = {line.split("  ")[0]: line.split() for line in table.splitlines()}
    assert rows["PyTorch fp32"][-1] == rows["torch.export fp32"][-2] == f"{score:.2f}"
    assert "one picture of 48x48" in table


def test_tiles_mean_nothing_at_a_working_size(root, checkpoint, run_script, tmp_path):
    data = ["--dataset", "folder", "--data-dir", root]
    done = run_script("evaluate.py", checkpoint, *data, "--eval-tile", 64, check=False)
    assert_one_line_error(done, f"{checkpoint}: sees every picture at its working size, 48 pixels", "tile")
    inputs = [root / "images" / "val", "--checkpoint", checkpoint]
    done = run_script("predict.py", *inputs, "--tile", 64, "--output-dir", tmp_path / "tiled")
    assert "sees every picture at its working size, 48 pixels" in done.stderr
    run_script("predict.py", *inputs, "--output-dir", tmp_path / "whole")
    masks = sorted((tmp_path / "whole").rglob("*.png"))
    assert masks
    for mask in masks:
        assert (tmp_path / "tiled" / mask.relative_to(tmp_path / "whole")).read_bytes() == mask.read_bytes()


def test_pictures_of_any_size_are_predicted(root, checkpoint, run_script, monkeypatch, tmp_path):
    """Beyond Pillow's limit, of which --tile would be the way out."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    command = [root / "images" / "val" / "0.png", "--save", "mask", "--output-dir", tmp_path, "--device", "cpu"]
    run_script("predict.py", *command, "--checkpoint", checkpoint)
    (mask,) = (tmp_path / "mask").glob("*.png")
    monkeypatch.undo()
    assert Image.open(mask).size == (90, 60)


def test_an_older_program_refuses_a_file_with_a_working_size(root, checkpoint):
    """And takes one without; a damaged size is refused by this one."""
    data = build_dataset("folder", root, "train")
    assert load_file(checkpoint)["format"] == FORMAT == 2
    assert model_file_dict("tiny", TinyModel(), data)["format"] == 1
    save_atomic({**load_file(checkpoint), "input_size": -5}, checkpoint)
    with pytest.raises(UserError, match="working size of -5"):
        zoo.load_checkpoint_model(checkpoint)


def test_a_file_from_before_is_native(root, tmp_path):
    content = {**model_file_dict("tiny", lively_tiny(), build_dataset("folder", root, "train"))}
    del content["input_size"]
    save_atomic(content, tmp_path / "old.pth")
    segmenter = load_segmenter(tmp_path / "old.pth", "cpu")
    assert segmenter.input_size == 0 and isinstance(segmenter.model, TinyModel) and segmenter.name == "tiny"


# -- runs --------------------------------------------------------------------------------------------


def train(root, output, *more) -> int:
    words = ["--dataset", "folder", "--data-dir", root, "--student", "tiny", "--student-weights", "none",
             "--crop-size", 32, "--batch-size", 2, "--epochs", 1, "--workers", 0, "--device", "cpu",
             "--output-dir", output, "--name", "run", "--input-size", 40]  # fmt: skip
    return main(get_args_parser().parse_args([str(word) for word in [*words, *more]]))


def test_a_run_trains_scores_and_saves_at_its_working_size(root, tmp_path, run_script):
    assert train(root, tmp_path / "files") == 0
    assert train(root, tmp_path / "decoded", "--decode-cache", tmp_path / "cache") == 0
    one, other = (load_file(tmp_path / name / "run" / "last.pth") for name in ("files", "decoded"))
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    best = tmp_path / "files" / "run" / "best.pth"
    content = load_file(best)
    assert content["input_size"] == 40 and "working size 40" in content["info"]["protocol"]
    assert "working size 40" in (best.parent / "report.txt").read_text()
    scores = tmp_path / "scores.json"
    run_script("evaluate.py", best, "--dataset", "folder", "--data-dir", root, "--device", "cpu", "--workers", 0,
               "--json", scores)  # fmt: skip
    (row,) = json.loads(scores.read_text())
    assert row["miou"] == pytest.approx(content["info"]["miou"], abs=1e-9)
    shown = run_script("test_teacher.py", "--teacher", best, "--dataset", "folder", "--data-dir", root, "--device",
                       "cpu", "--workers", 0, "--json", scores).stdout  # fmt: skip
    assert "working size 40" in shown and json.loads(scores.read_text())[0]["miou"] == row["miou"]
    with pytest.raises(UserError, match="--input-size was 40, is 48"):
        train(root, tmp_path / "files", "--resume", "auto", "--epochs", 2, "--input-size", 48)


def test_weights_of_another_working_size_are_remarked(root, checkpoint, tmp_path, capsys):
    more = ["--student-weights", checkpoint, "--max-steps", 1]
    assert train(root, tmp_path / "other", *more) == 0
    assert "was trained at working size 48, and this run's is 40: --input-size 48" in capsys.readouterr().out
    assert train(root, tmp_path / "same", *more, "--input-size", 48) == 0
    assert "remark" not in capsys.readouterr().out


def test_calibration_sees_pictures_at_the_working_size(root, checkpoint):
    """The sizes that the network will see in use, and the pixels of the data set at that size."""
    words = [str(checkpoint), "--dataset", "folder", "--data-dir", str(root), "--calibration-images", "4"]
    args = quantize.get_args_parser().parse_args(words)
    images = list(quantize.calibration_images(args, list(CLASSES), 48))
    data = build_dataset("folder", root, "train")
    assert [image.shape[-2:] for image in images] == [working_shape(*size, 48) for size in SIZES]
    expected = (sized(data, 48)[1]["image"] / 255 - MEAN) / STD
    torch.testing.assert_close(images[1][0], expected)


def test_a_comparison_knows_the_working_size_of_its_students(root, tmp_path, monkeypatch):
    """What was scored at another size is not taken for this one; the teacher is scored at its own."""
    monkeypatch.chdir(tmp_path)
    data = build_dataset("folder", root, "val")
    path = tmp_path / "plan.toml"
    path.write_text(
        f"""students = ["tiny"]
[common]
dataset = "folder"
data_dir = "{root.as_posix()}"
device = "cpu"
workers = 0
input_size = 48
[methods.baseline]
[teacher]
teacher = "tiny"
teacher_weights = "teacher.pth"
"""
    )
    save_atomic(model_file_dict("tiny", lively_tiny(), data), Path("teacher.pth"))
    plan = load_plan(path, tmp_path)
    (run,) = plan.runs
    run.folder.mkdir(parents=True)
    save_atomic(model_file_dict("tiny", lively_tiny(), data, input_size=48), run.folder / "best.pth")
    (run.folder / "config.json").write_text('{"starts": [{}]}')
    (run.folder / "metrics.csv").write_text("epoch,epoch_s\n1,1\n")
    student, teacher = score_run(run, plan, data), score_teacher(plan, data)
    assert teacher is not None
    assert "working size 48" in student.row["protocol"] and "working" not in teacher.row["protocol"]
    alone = evaluate_model(WorkingSize(lively_tiny(), 48), data, CPU, progress=False)
    assert student.miou == pytest.approx(alone.scores.miou) and student.miou != teacher.miou
    kept = json.loads((run.folder / "scores_best.json").read_text())
    assert kept["made_from"]["protocol"] == protocol_text(0, 48) != protocol_text()


def test_what_makes_no_sense_is_refused(root, tmp_path):
    for more, message in ((["--input-size", 20], "at least 32"), (["--eval-tile", 64], "nothing to cut")):
        with pytest.raises(UserError, match=message):
            train(root, tmp_path, *more)


def test_a_dry_run_counts_the_memory_and_the_disk_of_the_working_size(root, tmp_path, capsys, monkeypatch):
    asked = []
    bytes_of, room_of = doctor.scoring_bytes, doctor.room_needed
    monkeypatch.setattr(doctor, "scoring_bytes", lambda *a: asked.append(working_size_of(a[0])) or bytes_of(*a))
    monkeypatch.setattr(doctor, "room_needed", lambda *a: asked.append(a[4]) or room_of(*a))
    assert train(root, tmp_path, "--dry-run", "--decode-cache", tmp_path / "cache") == 0
    said = capsys.readouterr().out
    assert re.search(r"about \S+ GB to score 1 picture of \d+x\d+ at working size 40", said)
    assert asked == [40, 40]
    data = build_dataset("folder", root, "train")
    for input_size in (0, 40):
        expected = 4 * sum(h * w for h, w in (working_shape(*size, input_size) for size in SIZES))
        assert room_of(data.layout, "train", data.files, tmp_path / "cache", input_size) == expected


def test_pictures_without_masks_are_labelled_at_their_own_size(root, checkpoint, tmp_path):
    """By a teacher that looks at them at its working size."""
    layout = build_dataset("folder", root, "val").layout
    files = dataclasses.replace(layout.files("val"), masks=None)
    data = SegmentationDataset(layout, "val", files=files)
    teacher = zoo.load_any_teacher("tiny", str(checkpoint))
    said = label_split(data, LiveTeacher(teacher), ["tiny"], tmp_path, CPU, teacher.input_size)
    for index in range(len(data)):
        image = data[index]["image"]
        small = sized(data, 48)[index]["image"]
        logits = teacher(((small / 255 - MEAN) / STD)[None])
        expected = F.interpolate(logits, size=image.shape[1:], mode="bilinear").argmax(1)[0]
        assert said[index]["mask"].shape == image.shape[1:]
        assert (said[index]["mask"] == expected).float().mean() > 0.98
    parallel = label_split(data, LiveTeacher(teacher), ["tiny"], tmp_path / "two", CPU, teacher.input_size, workers=2)
    assert [mask.read_bytes() for mask in parallel.files.masks] == [mask.read_bytes() for mask in said.files.masks]
    other = label_split(data, LiveTeacher(teacher), ["tiny"], tmp_path, CPU, 32)
    assert other.files.masks[0].parent != said.files.masks[0].parent, "what it says of smaller pictures is another word"


@forks.needs_fork
def test_two_runs_that_begin_together_label_once(root, checkpoint, tmp_path):
    """The second waits for the first, and finds all there."""
    layout = build_dataset("folder", root, "val").layout
    data = SegmentationDataset(layout, "val", files=dataclasses.replace(layout.files("val"), masks=None))

    class Slow(LiveTeacher):
        def __call__(self, batch):
            (tmp_path / "began").touch()
            time.sleep(0.2)
            return super().__call__(batch)

    def work():
        label_split(data, Slow(zoo.load_any_teacher("tiny", str(checkpoint))), ["tiny"], tmp_path / "said", CPU)

    first = forks.fork(work, tmp_path / "first.txt")
    forks.wait_for(tmp_path / "began")
    second = forks.fork(work, tmp_path / "second.txt")
    assert (forks.wait(first, 60), forks.wait(second, 60)) == (0, 0), (tmp_path / "second.txt").read_text()
    assert "another run is building" in (tmp_path / "second.txt").read_text()
    (place,) = (tmp_path / "said").iterdir()
    assert len(list(place.glob("*.png"))) == len(data)


# -- teachers ----------------------------------------------------------------------------------------


def test_a_cached_teacher_is_cut_to_crops_at_any_working_size(root, tmp_path):
    """Its word on the native picture: at working size W / 2 a crop's cells are means of two by two native cells."""
    teacher = lively_tiny()
    native = build_dataset("folder", root, "train")
    data = sized(native, 45, TrainTransform(32, (1.0, 1.0), flip=0.0, jitter=None))  # 60 x 90 -> 30 x 45
    cached = open_teacher_cache(tmp_path, teacher, "tiny", data)
    again = open_teacher_cache(tmp_path, teacher, "tiny", sized(native, 30, data.transform), build=False)
    assert again is not None and again.folder == cached.folder  # one cache serves every size
    batch = prepare_batch(default_collate([data[0, 3]]), CPU)
    x0, y0 = (int(value) for value in batch["box"][0, :2])
    whole = prepare_batch(default_collate([native[0]]), CPU)
    live = LiveTeacher(teacher)({**whole, "image": F.pad(whole["image"], (0, 6, 0, 4))}).logits.half().float()
    told = cached(batch).logits[0]
    # By hand: bilinear samples of the stored map at two points a cell and side, as roi_align takes them.
    step, looked_at = 2, 0  # native cells to a cell of the crop
    for row in range(2, 6):
        for column in range(2, 6):
            points = [(y0 / 4 + (row + (i + 0.5) / 2) * step, x0 / 4 + (column + (j + 0.5) / 2) * step)
                      for i in range(2) for j in range(2)]  # fmt: skip
            inside = [(y, x) for y, x in points if 1 <= y < 14 and 1 <= x < 22]
            if len(inside) == 4:
                expected = torch.stack([bilinear(live[0], y - 0.5, x - 0.5) for y, x in points]).mean(0)
                torch.testing.assert_close(told[:, row, column], expected, rtol=1e-3, atol=1e-3)
                looked_at += 1
    assert looked_at > 4


def bilinear(maps: torch.Tensor, y: float, x: float) -> torch.Tensor:
    top, left = int(y), int(x)
    down, right = y - top, x - left
    corners = maps[:, top : top + 2, left : left + 2]
    weights = torch.tensor([[(1 - down) * (1 - right), (1 - down) * right], [down * (1 - right), down * right]])
    return (corners * weights).sum((1, 2))


def test_a_teacher_with_the_students_working_size_is_cached_as_it_is_live(root, checkpoint, tmp_path):
    """Shown the whole picture at its own size it says what it says live of the same crop, to the storage precision."""
    teacher = zoo.load_any_teacher("tiny", str(checkpoint))
    assert teacher.input_size == 48
    data = sized(build_dataset("folder", root, "train"), 48)
    cached = open_teacher_cache(tmp_path, teacher, "tiny", data)
    for index in range(3):
        batch = prepare_batch(default_collate([data[index]]), CPU)
        height, width = batch["image"].shape[-2:]
        pad = (0, -width % 16, 0, -height % 16)
        told = cached({**batch, "image": F.pad(batch["image"], pad), "box": grown(batch, pad)})
        live = LiveTeacher(teacher)({**batch, "image": F.pad(batch["image"], pad)})
        inside = (..., slice(0, height // 4), slice(0, width // 4))
        torch.testing.assert_close(told.logits[inside], live.logits.half().float()[inside], rtol=1e-3, atol=1e-3)


def grown(batch: dict, pad: tuple[int, int, int, int]) -> torch.Tensor:
    """The box with what the padding stands for, in pixels of the original."""
    height, width = batch["image"].shape[-2:]
    x1, y1 = batch["box"][0, 2:].tolist()
    return torch.tensor([[0, 0, x1 * (width + pad[1]) / width, y1 * (height + pad[3]) / height]])


def test_large_pictures_are_scored_in_bands(root, monkeypatch):
    """As whole ones are, to the last pixel that is not a tie; what that takes does not grow with the classes."""
    dataset, network = build_dataset("folder", root, "val"), at_working_size(lively_tiny(), 48)
    whole = evaluate_model(network, dataset, torch.device("cpu"))
    monkeypatch.setattr(working_size, "BAND_LOGITS", 3 * 90 * 11)
    monkeypatch.setattr(working_size, "BAND_PIXELS", 90 * 13)
    rows, bands_of = [], network.bands_of
    monkeypatch.setattr(
        network, "bands_of", lambda images: (rows.append(top) or (top, band) for top, band in bands_of(images))
    )
    bands = evaluate_model(network, dataset, torch.device("cpu"), batch_size=2)
    assert bands.loss == pytest.approx(whole.loss, rel=1e-5)
    assert bands.scores.miou == pytest.approx(whole.scores.miou, abs=1e-4)
    assert bands.scores.pixels == whole.scores.pixels
    assert max(rows) > 0, "each picture came whole"


def test_bytes_of_a_phones_picture_do_not_grow_with_the_classes():
    def needed(classes):
        return scoring_bytes(at_working_size(torch.nn.Conv2d(3, classes, 1), 256), classes, (3000, 4000), 1, 0)

    picture = 3000 * 4000 * (2 * 8 + 3 * 4)  # masks and image are there whole
    assert needed(21) < picture + 0.9e9
    assert needed(150) < 1.1 * needed(21)
