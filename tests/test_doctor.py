"""train_kd.py --dry-run: says all that is wrong at once, writes nothing, and what it calls well does run."""

import dataclasses
import shutil
from collections import Counter, namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from basics.checkpoint import load_file
from basics.errors import UserError
from dataset import build_dataset, find_layout
from kd.losses import LOSSES
from segdata.reading import image_size
from tests.test_train import arguments
from tests.tiny import TinyModel, tiny_in_zoo  # noqa: F401 (a fixture)
from train_kd import main
from training import doctor
from training.data import draw_labelled

WEIGHTS = Path(__file__).resolve().parent.parent.parent / "shared" / "weights"
REAL_TEACHER = WEIGHTS / "teacher_deeplabv3_mobilenetv2_voc.onnx"
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def dry_run(demo_data, tmp_path, capsys):
    """``dry_run("--more", data_dir=...)`` -> (exit status, lines)."""

    def run(*more, data_dir=demo_data):
        args = arguments(data_dir, tmp_path / "out", "--student", "tiny", "--dry-run", *more)
        status = main(args)
        return status, capsys.readouterr().out.splitlines()

    return run


def wrong(lines):
    return [line for line in lines if line.startswith("WRONG")]


def test_a_split_without_masks_is_nothing_to_train_on_or_score(demo_data, tmp_path):
    data_dir = tmp_path / "data"
    shutil.copytree(demo_data, data_dir)
    lists = next(data_dir.rglob("ImageSets/Segmentation"))
    (lists / "test.txt").write_text("x\n")
    image = next(lists.parents[1].glob("JPEGImages/*.jpg"))
    shutil.copy(image, image.with_name("x.jpg"))
    for more in (["--train-split", "test"], ["--val-split", "test"]):
        with pytest.raises(UserError, match="demo/test: no image has a mask, and no loss has a teacher"):
            main(arguments(data_dir, tmp_path / "out", "--batch-size", "1", *more))


def test_all_is_well_and_nothing_is_written(dry_run, tmp_path):
    status, lines = dry_run("--save-every", "1", "--workers", "1")
    assert status == 0, lines
    assert not wrong(lines) and lines[-1].startswith("all is well")
    assert list(tmp_path.iterdir()) == []
    looked_at = {line.split()[1] for line in lines if line.startswith("ok")}
    assert looked_at >= {"losses", "folder", "device", "data", "batches", "workers", "step", "memory", "disk"}


def test_a_draw_of_masks_may_lack_classes(dry_run, demo_data, tmp_path):
    """As the training has it, which judges all masks that there are."""
    root = tmp_path / "defects"
    for number in range(12):
        for place, values in (("images", 20 * number), ("masks", int(number == 11))):
            (root / place).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((64, 64), values, np.uint8)).save(root / place / f"{number:02d}.png")
    (root / "classes.txt").write_text("fine\ndefect\n")
    (root / "train.txt").write_text("".join(f"{number:02d}\n" for number in (*range(8), 11)))
    (root / "val.txt").write_text("08\n09\n")
    files = find_layout("folder", root).files("train")
    seed = next(seed for seed in range(99) if "11" not in draw_labelled(files, 2, seed, "x").ids)
    more = ["--dataset", "folder", "--labels", "2", "--seed", str(seed), "--batch-size", "2"]
    status, lines = dry_run(*more, data_dir=root)
    assert status == 0 and not wrong(lines), lines


def test_caches_are_looked_for_and_not_made(dry_run, demo_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = ["--decode-cache", "--cache-teacher", "--alpha", "1", "--teacher", "tiny"]
    status, lines = dry_run(*more, "--teacher-weights", str(demo_checkpoint("tiny")))
    assert status == 0, lines
    assert list(tmp_path.iterdir()) == []
    text = "\n".join(lines)
    assert "GB to write in data/decoded" in text and "GB to write in data/teacher_cache" in text


def test_everything_wrong_is_said_at_once(dry_run, tmp_path):
    (tmp_path / "out").write_text("a file where the folder should be")
    status, lines = dry_run(
        "--lr", "-1", "--epochs", "0", "--loss", "nothing=1", "--amp", "fp16", "--val-split", "nosuch",
        "--student", "nobody", "--teacher", "noone", "--alpha", "1", "--batch-size", "1000", "--wandb",
    )  # fmt: skip
    assert status == 1
    text = "\n".join(wrong(lines))
    for word in ("--lr", "--epochs", "'nothing'", "fp16", "'nosuch'", "'nobody'", "'noone'", "1000"):
        assert word in text, word
    assert len(wrong(lines)) >= 7 and f"{len(wrong(lines))} things are wrong" in lines[-1]


def test_a_fault_is_counted_once(dry_run):
    """Though both the whole run and its student fail by it."""
    status, lines = dry_run("--student", "nobody")
    assert status == 1 and len(wrong(lines)) == 1
    assert lines[-1].startswith("1 thing is wrong")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--student-weights", "absent.pth"], ["absent.pth"]),
        (["--alpha", "1", "--teacher", "tiny"], ["nobody publishes"]),
        (["--alpha", "1", "--teacher", "tiny", "--teacher-weights", "absent.pth"], ["absent.pth"]),
        (["--resume", "absent.pth"], ["absent.pth"]),
        (["--batch-size", "17"], ["--batch-size 17", "16 images"]),
    ],
)
def test_single_faults(more, words, dry_run):
    status, lines = dry_run(*more)
    assert status == 1
    assert all(word in "\n".join(wrong(lines)) for word in words), lines


def test_missing_data_do_not_hide_bad_weights(dry_run, tmp_path):
    bad = tmp_path / "bad.pth"
    bad.write_text("no weights")
    status, lines = dry_run("--dataset", "voc", "--student-weights", bad, data_dir=tmp_path / "nowhere")
    assert status == 1
    assert any("nowhere" in line for line in wrong(lines)) and any("bad.pth" in line for line in wrong(lines))


@pytest.mark.skipif(not REAL_TEACHER.exists(), reason=f"{REAL_TEACHER} is not here")
def test_missing_data_do_not_blame_an_onnx_teacher(dry_run, tmp_path):
    status, lines = dry_run(
        "--dataset", "voc", "--alpha", "1", "--teacher-weights", REAL_TEACHER, data_dir=tmp_path / "nowhere"
    )
    assert status == 1 and not any("onnx" in line for line in wrong(lines))
    assert any("teacher" in line and line.startswith("ok") for line in lines)


def test_a_damaged_mask_is_found(dry_run, demo_data, tmp_path):
    shutil.copytree(demo_data, tmp_path / "data")
    for mask in (tmp_path / "data").rglob("*val*.png"):
        Image.new("L", (7, 7)).save(mask)
    status, lines = dry_run(data_dir=tmp_path / "data")
    assert status == 1 and "7" in wrong(lines)[0] and "val" in wrong(lines)[0]


def test_resuming_is_tried(dry_run, demo_data, tmp_path):
    assert main(arguments(demo_data, tmp_path / "out", "--student", "tiny", "--max-steps", "1")) == 0
    status, lines = dry_run()
    assert status == 1 and "--resume auto" in wrong(lines)[0]
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "run").iterdir()}
    status, lines = dry_run("--resume", "auto")
    assert status == 0, lines
    status, lines = dry_run("--resume", "auto", "--batch-size", "2")
    assert status == 1 and "--batch-size was 4, is 2" in wrong(lines)[0]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "run").iterdir()}


def test_too_little_disk_memory_and_shared_memory(dry_run, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 1000))
    status, lines = dry_run("--workers", "1")
    assert status == 1 and "workers" in wrong(lines)[0]
    status, lines = dry_run()
    assert status == 1 and "disk" in wrong(lines)[0]
    monkeypatch.undo()
    monkeypatch.setitem(zoo.MODELS, "tiny", zoo.ModelSpec(TinyModel, None, "random"))
    monkeypatch.setattr(doctor, "free_memory", lambda device: 1000)
    status, lines = dry_run()
    assert status == 1 and "lower one of them" in wrong(lines)[0]


def test_the_disk_estimate_holds(demo_data, tmp_path, capsys):
    """What the folder takes is below the estimate less its fixed 10 MB, and not tenfold below."""
    folder = tmp_path / "run"
    assert main(arguments(demo_data, tmp_path, "--student", "standard", "--epochs", "1", "--save-every", "1")) == 0
    taken = sum(path.stat().st_size for path in folder.iterdir())
    taken += max(path.stat().st_size for path in folder.iterdir())  # the largest file, while it is replaced
    seen = {}

    def usage(path):
        return Usage(1, 1, seen["free"])

    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "disk_usage", usage)
        for seen["free"], expected in ((taken, 1), (5 * taken, 0)):
            more = ["--student", "standard", "--epochs", "1", "--save-every", "1", "--dry-run", "--name", "other"]
            assert main(arguments(demo_data, tmp_path, *more)) == expected


def test_the_memory_estimate_counts_what_autograd_keeps(demo_data, tmp_path):
    """Twice the batch: twice the activations; the fixed part stays."""
    from train_kd import make_recipe
    from training.doctor import HEADROOM, trial_step
    from training.trainer import Trainer

    estimates = {}
    for batch in (2, 4, 8):
        args = arguments(demo_data, tmp_path, "--student", "tiny", "--batch-size", str(batch))
        trainer = Trainer(args, make_recipe(args))
        estimates[batch] = trial_step(trainer)
    assert estimates[8] - estimates[4] == pytest.approx(2 * (estimates[4] - estimates[2]), rel=1e-3)
    fixed = 2 * estimates[2] - estimates[4]
    weights = sum(parameter.numel() for parameter in trainer.student.parameters())
    assert fixed == pytest.approx(HEADROOM * 4 * 4 * weights, rel=0.01)
    pixels = 64 * 64 * 4 * trainer.data.train_set.num_classes  # bytes of one image's full-size logits
    assert estimates[8] - estimates[4] > 4 * pixels


def test_a_run_called_well_runs(dry_run, demo_data, tmp_path):
    status, _ = dry_run("--freeze-epochs", "1", "--freeze-batch-size", "8")
    assert status == 0
    more = ["--student", "tiny", "--freeze-epochs", "1", "--freeze-batch-size", "8"]
    assert main(arguments(demo_data, tmp_path / "out", *more)) == 0
    assert load_file(tmp_path / "out" / "run" / "last.pth")["training"]["progress"]["epoch"] == 2


def test_free_memory_of_this_machine():
    free = doctor.free_memory(torch.device("cpu"))
    assert free is None or 10_000_000 < free < 10**14
    assert free is not None or not Path("/proc/meminfo").exists()


# -- what validation takes ---------------------------------------------------------------------------


@pytest.fixture
def large_data(demo_data, tmp_path):
    """The demo data with one validation picture of 1500x1000."""
    shutil.copytree(demo_data, tmp_path / "data")
    val_set = build_dataset("demo", tmp_path / "data", "val")
    for path in (val_set.image_path(3), val_set.mask_path(3)):
        with Image.open(path) as picture:
            large = picture.resize((1500, 1000), Image.Resampling.NEAREST)
            if picture.mode == "P":
                large.putpalette(picture.getpalette())
        large.save(path)
    return tmp_path / "data"


def gigabytes(lines):
    (line,) = [line for line in lines if line.split()[1] == "scoring"]
    return float(line.split("about ")[1].split()[0]), line


def test_the_largest_validation_picture_counts(dry_run, demo_data, large_data, monkeypatch):
    status, lines = dry_run()
    assert status == 0
    small, line = gigabytes(lines)
    status, lines = dry_run(data_dir=large_data)
    whole, line = gigabytes(lines)
    assert status == 0 and "1 picture of 1500x1000" in line and whole > 10 * small
    status, lines = dry_run("--eval-tile", "256", data_dir=large_data)
    tiled, line = gigabytes(lines)
    assert status == 0 and "in tiles of 256" in line and small < tiled < whole

    # Between what training takes and what the picture does: the run would end at its first validation.
    monkeypatch.setattr(doctor, "free_memory", lambda device: int(1e9 * (tiled + whole) / 2))
    status, lines = dry_run(data_dir=large_data)
    assert status == 1
    (line,) = wrong(lines)
    assert "1500x1000" in line and "are free on cpu: score in tiles: --eval-tile 512" in line
    assert dry_run("--eval-tile", "256", data_dir=large_data)[0] == 0


def test_pictures_of_equal_size_are_scored_together(dry_run, demo_data):
    """The batch that takes most is not that of the largest picture."""
    sizes = Counter(image_size(path) for path in build_dataset("demo", demo_data, "val").files.images)
    (width, height), count = max(sizes.items(), key=lambda size: size[0][0] * size[0][1] * size[1])
    _, line = gigabytes(dry_run("--eval-batch-size", "100")[1])
    assert f"to score {count} picture{'s' * (count > 1)} of {width}x{height}; " in line


def test_a_loss_that_cannot_act_is_found_without_building_the_run(dry_run, monkeypatch):
    monkeypatch.setitem(LOSSES, "icsd", dataclasses.replace(LOSSES["icsd"], min_classes=8))
    status, lines = dry_run("--loss", "icsd=1", "--teacher-weights", "absent.pth")
    assert status == 1
    assert any("icsd would teach nothing: the data set has 7 classes" in line for line in wrong(lines))


def test_a_student_file_of_other_classes_says_so(dry_run, demo_checkpoint, monkeypatch, tmp_path):
    content = load_file(demo_checkpoint("tiny"))
    content["class_names"] = content["class_names"][::-1]
    torch.save(content, tmp_path / "other.pth")
    status, lines = dry_run("--student-weights", tmp_path / "other.pth")
    assert status == 0
    assert any("the same classes in another order" in line and "only the backbone" in line for line in lines)
