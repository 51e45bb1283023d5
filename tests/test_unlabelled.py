"""Pictures without masks in training: how they are mixed in, what they take part in."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import default_collate

from basics.batch import normalize, prepare_batch
from basics.checkpoint import load_file, save_atomic
from basics.errors import UserError
from datachecks.stats import class_weights
from datachecks.unlabelled import find_unlabelled
from dataset import build_dataset, find_layout
from kd.distiller import DistilledStudent, Distiller, Recipe
from segdata.sampler import EpochSampler, Mixture
from segdata.transforms import TrainTransform
from tests.test_train import arguments, assert_same_run, rows
from tests.tiny import TinyModel
from train_kd import main
from training.data import build_data, draw_labelled
from zoo import load_checkpoint_model


@pytest.mark.parametrize(
    ("labelled", "per_batch", "images", "batch_size"), [(5, 2, 23, 6), (40, 1, 43, 8), (3, 3, 9, 4)]
)
def test_every_batch_has_its_labelled_images(labelled, per_batch, images, batch_size):
    sampler = EpochSampler(images, seed=1, mixture=Mixture(labelled, per_batch), batch_size=batch_size)
    pairs = list(sampler)
    assert len(pairs) == len(sampler) == images // batch_size * batch_size
    for start in range(0, len(pairs), batch_size):
        batch = [index for index, _ in pairs[start : start + batch_size]]
        assert sum(index < labelled for index in batch) == per_batch
    seen = [index for index, _ in pairs if index < labelled]
    times = [seen.count(index) for index in range(labelled)]
    assert max(times) - min(times) <= 1, "all of them come round before any comes again"
    assert len({seed for _, seed in pairs}) == len(pairs), "what comes again is seen otherwise"


def test_a_mixture_is_resumed_and_shared_among_ranks():
    def make(**options):
        return EpochSampler(24, seed=2, epoch=3, mixture=Mixture(5, 2), batch_size=6, **options)

    whole = list(make())
    assert list(make(start=7)) == whole[7:]
    ranks = [list(make(rank=rank, world_size=2)) for rank in range(2)]
    for step in range(4):
        batch = ranks[0][3 * step : 3 * step + 3] + ranks[1][3 * step : 3 * step + 3]
        assert sorted(batch) == sorted(whole[6 * step : 6 * step + 6])


# -- which pictures ----------------------------------------------------------------------------------


def picture(path, seed: int, size=(40, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def find(demo_data, *places):
    layout = find_layout("demo", demo_data)
    return find_unlabelled(layout, [str(place) for place in places], layout.files("train"), layout.files("val"))


def test_what_is_learnt_or_scored_does_not_join_as_a_copy_either(demo_data, tmp_path):
    """By content: copies under other names; what is new, in folders of any depth; what cannot be read is said."""
    layout = find_layout("demo", demo_data)
    shutil.copy(layout.files("val").images[0], tmp_path / "other_name.jpg")
    shutil.copy(layout.files("train").images[3], tmp_path / "x.jpg")
    for number, name in enumerate(("new.png", "deep/er/a.jpg", ".hidden/b.jpg")):
        picture(tmp_path / name, number)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("no picture either")
    files, (line,) = find(demo_data, tmp_path)
    assert files.ids == ["deep/er/a", "new"] and files.masks is None
    assert line.startswith(f"unlabelled: 2 of 5 pictures in {tmp_path}")
    assert "1 are in train" in line and "1 are in val" in line and "1 cannot be read" in line and "broken.jpg" in line


def test_pictures_that_end_in_the_middle_do_not_join(demo_data, tmp_path):
    """Their headers are good, and a training would end at them."""
    for number, name in enumerate(("whole.jpg", "cut.jpg", "cut.png", "cut.webp")):
        picture(tmp_path / name, number, (200, 160))
        if name.startswith("cut"):
            content = (tmp_path / name).read_bytes()
            (tmp_path / name).write_bytes(content[: len(content) // 2])
    for _ in range(2):  # also when the census knows them
        files, (line,) = find(demo_data, tmp_path)
        assert files.ids == ["whole"] and "3 cannot be read" in line and "cut." in line


def test_ids_are_unique_whatever_files_are_called(demo_data, tmp_path):
    taken = find_layout("demo", demo_data).files("train").ids[0]
    for number, name in enumerate((f"{taken}.png", "a.jpg", "a.png")):
        picture(tmp_path / "pics" / name, number)
    picture(tmp_path / "more" / "a.jpg", 9)
    files, _ = find(demo_data, tmp_path / "pics", tmp_path / "more", tmp_path / "pics")
    assert len(files.ids) == len(set(files.ids)) == 4 and taken not in files.ids
    assert [path.name for path in files.images] == ["a.jpg", "a.png", f"{taken}.png", "a.jpg"]


@pytest.mark.parametrize(
    ("wanted", "others"),
    [
        (["images/a.jpg", "images/deep/masks/b.png"], ["masks/a.png", "masks/b.png", "overview.png"]),
        (["images/a.jpg"], ["mask/a.png", "confidence/a.png", "overlay/a.png", "panel/a.png"]),
        (["train/images/a.jpg", "val/images/a.jpg"], ["train/masks/a.png", "val/gt/a.png"]),
        (["JPEGImages/a.jpg"], ["SegmentationClass/a.png", "SegmentationObject/a.png"]),
        (["my/set/images/a.jpg", "holiday/b.jpg"], ["my/set/masks/a.png", "my/set/depth/a.png"]),
        (["a.jpg", "b.jpg", "day/c.jpg", "day/d.jpg"], ["a_mask.png", "b_mask.png", "day/c.png", "day/d.png"]),
        (["solar/panel/a.jpg", "solar/b.png", "solar/b.jpg"], []),
        (["a.jpg", "b.jpg", "frames/c.jpg", "other/d.jpg"], []),
    ],
)
def test_masks_and_results_are_no_pictures(demo_data, tmp_path, wanted, others):
    """Folders as data sets have them, predict.py's own, masks beside their images; two photographs of one name are
    two."""
    for number, name in enumerate([*wanted, *others]):
        picture(tmp_path / name, number)
        if name.startswith("day") and name.endswith("png"):
            Image.new("L", (32, 40), number).save(tmp_path / name)
    files, (line,) = find(demo_data, tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in files.images) == sorted(wanted)
    assert line.startswith(f"unlabelled: {len(wanted)} of {len(wanted)} pictures")
    assert not others or f"{len(others)} that are masks, results or beside the folder of images, in " in line


def test_a_folder_of_masks_is_refused(demo_data, tmp_path):
    for name in ("images/a.jpg", "masks/a.png", "alone/gt/a.png"):
        picture(tmp_path / name, 1)
    with pytest.raises(UserError, match=r"masks: no pictures, by its name; .* --unlabelled .*images"):
        find(demo_data, tmp_path / "masks")
    with pytest.raises(UserError, match=r"alone: no pictures there .* but 1 that are masks"):
        find(demo_data, tmp_path / "alone")
    assert find(demo_data, tmp_path / "alone" / "gt")[0].ids == ["a"], "pictures may lie in a folder of any name"


def test_a_split_joins_but_for_its_labelled_images(demo_data):
    layout = find_layout("demo", demo_data)
    train, val = layout.files("train"), layout.files("val")
    few = train.part([2, 5, 11])
    files, (line,) = find_unlabelled(layout, ["train"], few, val)
    assert files.ids == [name for name in train.ids if name not in few.ids] and "13 of 16" in line
    nothing, _ = find_unlabelled(layout, ["train"], train, val)  # every one has its mask: no mistake
    assert nothing.ids == []


@pytest.mark.parametrize(
    ("place", "words"),
    [("nowhere", "neither a folder nor a split of"), ("val", "0 of 6 pictures in val"), (".", "no pictures there")],
)
def test_places_that_bring_nothing_are_refused(demo_data, tmp_path, monkeypatch, place, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words) as caught:
        find(demo_data, place)
    assert str(caught.value).startswith(f"--unlabelled {place}: ")


def test_label_budgets_are_nested_and_differ_by_seed(demo_data):
    files = find_layout("demo", demo_data).files("train")
    draws = {count: draw_labelled(files, count, 0, "x") for count in (2, 5, 16)}
    assert set(draws[2].ids) < set(draws[5].ids) < set(draws[16].ids) == set(files.ids)
    assert [path.stem for path in draws[5].masks] == draws[5].ids
    assert draws[5].ids == draw_labelled(files, 5, 0, "x").ids != draw_labelled(files, 5, 1, "x").ids
    with pytest.raises(UserError, match="--labels 17: x has only 16 images"):
        draw_labelled(files, 17, 0, "x")


def test_draws_of_masks_share_what_was_decoded(demo_data, tmp_path):
    """One cache of the split whatever was drawn, one for pictures of other places; both serve what the files say."""
    for number in range(3):
        picture(tmp_path / "more" / f"{number}.png", number)
    cache = tmp_path / "decoded"
    for seed, labels in ((0, 3), (1, 5), (1, 0)):
        words = ["--labels", labels, "--unlabelled", "train", "--unlabelled", tmp_path / "more", "--seed", seed]
        words += ["--alpha", "1", "--teacher", "compact", "--decode-cache", cache, "--input-size", "32"]
        args = arguments(demo_data, tmp_path, *map(str, words))
        cached = build_data(args, resumed=False).train_set
        direct = build_data(replace(args, decode_cache=None), resumed=False).train_set
        assert len(cached) == len(direct) == 16 + 3 and cached.num_labelled == labels
        for index in range(len(direct)):
            one, other = direct[index, 7], cached[index, 7]
            assert one["id"] == other["id"] and torch.equal(one["image"], other["image"])
            assert torch.equal(one["mask"], other["mask"]) and torch.equal(one["box"], other["box"])
            assert (other["mask"] == 255).all() == (index >= labels)
            assert one.get("labelled", False) == other.get("labelled", False) == (index < labels)
    assert len(list(cache.glob("*.bin"))) == 2


def test_few_masks_weigh_as_much_as_they_are_of_a_batch(demo_data, tmp_path):
    """Three masks in a batch of four: three quarters of their mean cross-entropy."""
    words = ["--labels", 3, "--unlabelled", "train", "--alpha", "1", "--teacher", "compact"]
    data = build_data(arguments(demo_data, tmp_path, *words), resumed=False).train_set
    data.transform = TrainTransform(64)
    batch = prepare_batch(default_collate([data[index, 7] for index in range(4)]), torch.device("cpu"))
    recipe, student = Recipe({"ce": 1.0}), TinyModel(data.num_classes).eval()
    found = Distiller(DistilledStudent(student, recipe), student, recipe).losses(batch)["ce"]
    mean = F.cross_entropy(student(batch["image"])[:3], batch["mask"][:3], ignore_index=255)
    assert found.item() == pytest.approx(0.75 * mean.item(), rel=1e-5)


def test_all_pictures_come_round_alike_in_epochs_of_a_given_length():
    """Five pictures in epochs of twelve: two or three times each, each time seen otherwise."""
    pairs = list(EpochSampler(5, seed=0, epoch_samples=12))
    times = [sum(index == number for index, _ in pairs) for number in range(5)]
    assert sorted(times) == [2, 2, 2, 3, 3] and len({seed for _, seed in pairs}) == 12


def test_epochs_of_a_given_length_take_the_same_steps_whatever_the_masks(demo_data, teacher_file, tmp_path):
    words = ["--epoch-images", "24", "--teacher", "compact", "--teacher-weights", teacher_file, "--alpha", "1"]
    for name, more in (("few", FEW), ("all", [])):
        assert main(arguments(demo_data, tmp_path / name, *words, *more)) == 0
        assert rows(tmp_path / name / "run")[-1]["step"] == "12"  # 2 epochs of 24 in batches of 4


# -- training ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher_file(demo_data, tmp_path_factory):
    output = tmp_path_factory.mktemp("teacher")
    assert main(arguments(demo_data, output, "--max-steps", "1")) == 0
    return output / "run" / "best.pth"


@pytest.fixture(scope="module")
def taught(teacher_file):
    return ["--teacher", "compact", "--teacher-weights", teacher_file, "--alpha", "1", "--beta", "0.5"]


FEW = ["--labels", "3", "--unlabelled", "train"]


@pytest.mark.parametrize(
    "more",
    [[], ["--labelled-per-batch", "2"], ["--freeze-epochs", "1", "--freeze-batch-size", "8", "--epoch-images", "24"]],
)
def test_an_interrupted_run_with_unlabelled_pictures_equals_a_whole_one(demo_data, taught, tmp_path, more):
    caches = ["--cache-teacher", "--cache-dir", tmp_path / "said", "--decode-cache", tmp_path / "decoded"]
    words = [*taught, *FEW, *more, *caches]
    assert main(arguments(demo_data, tmp_path / "whole", *words)) == 0
    assert main(arguments(demo_data, tmp_path / "parts", *words, "--max-steps", "3")) == 0
    assert main(arguments(demo_data, tmp_path / "parts", *words, "--resume", "auto")) == 0
    assert_same_run(tmp_path / "whole" / "run", tmp_path / "parts" / "run")
    report = (tmp_path / "whole" / "run" / "report.txt").read_text()
    assert re.search(r"labelled images +3\nunlabelled images +13\n", report)


def test_caches_and_workers_change_nothing_of_which_pictures_are_seen(demo_data, teacher_file, tmp_path):
    """The decoded cache and loader processes: bit for bit; the labels' share weighs the cross-entropy."""
    words = ["--teacher", "compact", "--teacher-weights", teacher_file, "--alpha", "1", *FEW]
    assert main(arguments(demo_data, tmp_path / "one", *words)) == 0
    assert main(arguments(demo_data, tmp_path / "two", *words, "--decode-cache", tmp_path, "--workers", "2")) == 0
    assert_same_run(tmp_path / "one" / "run", tmp_path / "two" / "run")


def test_one_cache_serves_all_label_budgets(demo_data, teacher_file, tmp_path, capsys):
    words = ["--teacher", "compact", "--teacher-weights", teacher_file, "--alpha", "1", "--max-steps", "1"]
    words += ["--cache-teacher", "--cache-dir", tmp_path / "said", "--unlabelled", "train"]
    for budget in (["--labels", "3"], ["--labels", "9", "--seed", "4"], []):
        assert main(arguments(demo_data, tmp_path / "-".join(["runs", *budget]), *words, *budget)) == 0
    assert capsys.readouterr().out.count("teacher cache: done") == 1
    assert len(list((tmp_path / "said").iterdir())) == 1


def test_without_a_teacher_unlabelled_pictures_are_refused(demo_data, tmp_path):
    with pytest.raises(UserError, match=r"--unlabelled: no loss has a teacher.*--alpha 1"):
        main(arguments(demo_data, tmp_path, *FEW))
    with pytest.raises(UserError, match="--labelled-per-batch mixes pictures with and without masks, and here every"):
        main(arguments(demo_data, tmp_path, "--labelled-per-batch", "2"))
    with pytest.raises(UserError, match="--labels 0 leaves no picture to train on"):
        main(arguments(demo_data, tmp_path, "--labels", "0"))
    assert not (tmp_path / "run").exists()


def test_another_number_of_labels_is_another_run(demo_data, taught, tmp_path):
    assert main(arguments(demo_data, tmp_path, *taught, *FEW, "--max-steps", "1")) == 0
    with pytest.raises(UserError, match="--labels was 3, is 4"):
        main(arguments(demo_data, tmp_path, *taught, "--labels", "4", "--unlabelled", "train", "--resume", "auto"))


def test_class_weights_come_from_the_masks_that_are_used(demo_data, tmp_path):
    """Against a count by NumPy of the three drawn masks alone."""
    args = arguments(demo_data, tmp_path, "--labels", "3", "--class-weights", "auto")
    data = build_data(args, resumed=False)
    counts = sum(np.bincount(data.train_set[index]["mask"].flatten().numpy(), minlength=256)[:7] for index in range(3))
    present = counts > 0
    expected = np.ones(7)
    expected[present] = np.minimum(counts.sum() / (present.sum() * counts[present]), 10)
    weights = class_weights("auto", data.train_set.layout, "train", data.train_set.files.labelled)
    np.testing.assert_allclose(weights.numpy(), expected, rtol=1e-5)


# -- no labels at all --------------------------------------------------------------------------------


@pytest.fixture
def photos(demo_data, tmp_path):
    """A folder with nothing but pictures, and a class list elsewhere."""
    layout = find_layout("demo", demo_data)
    for path in layout.files("train").images:
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "photos")
    (tmp_path / "names.txt").write_text("\n".join(layout.class_names))
    return tmp_path / "photos"


def photo_arguments(photos, *more):
    words = ["--dataset", "folder", "--classes", photos.parent / "names.txt", "--cache-dir", photos.parent / "said"]
    return arguments(photos, photos.parent / "out", *words, *more)


def test_pictures_alone_follow_the_teacher_and_are_scored_by_agreement(photos, teacher_file, capsys):
    """Against the teacher's own argmax of the validation pictures, as the student's checkpoint decides."""
    words = ["--teacher", "compact", "--teacher-weights", teacher_file, "--alpha", "1", "--lr", "3e-3"]
    assert main(photo_arguments(photos, *words)) == 0
    out = capsys.readouterr().out
    assert "no training picture has a mask: the teacher alone is followed (ce left out)" in out
    assert "warning: no person has drawn or checked the masks of folder/val" in out and "mIoU" not in out.replace(
        "that is no mIoU", ""
    )
    run = photos.parent / "out" / "run"
    best, last = (load_file(run / name) for name in ("best.pth", "last.pth"))
    assert "miou" not in best["info"] and "against what the teacher says" in best["info"]["protocol"]
    assert "train_ce" not in rows(run)[0] and "val_miou" not in rows(run)[0]
    student, teacher = (load_checkpoint_model(path)[0] for path in (run / "last.pth", teacher_file))
    val = build_dataset("folder", photos, "val", classes=photos.parent / "names.txt")
    same = total = 0
    with torch.inference_mode():
        for sample in val:
            images = normalize(sample["image"][None])
            agree = student(images).argmax(1) == teacher(images).argmax(1)
            same, total = same + agree.sum().item(), total + agree.numel()
    assert float(rows(run)[-1]["val_agreement"]) == pytest.approx(same / total, abs=1e-6)
    assert last["training"]["progress"]["best_score"] >= same / total - 1e-9

    assert main(photo_arguments(photos, *words, "--dry-run", "--resume", "auto")) == 0


def test_feature_losses_alone_would_leave_the_classifier_as_it_was_drawn(photos, teacher_file):
    words = ["--teacher", "compact", "--teacher-weights", teacher_file, "--beta", "1"]
    with pytest.raises(UserError, match=r"cosine alone: no loss looks at what the student itself says.*--alpha"):
        main(photo_arguments(photos, *words))  # cross-entropy drops out here
    with pytest.raises(UserError, match="cosine alone"):
        main(photo_arguments(photos, *words, "--loss", "ce=0"))
    assert not (photos.parent / "out").exists()


def test_masks_that_no_loss_uses_stop_nothing(tmp_path, demo_data, teacher_file, capsys):
    """--labels 0 follows the teacher alone, whatever the training masks hold."""
    data = shutil.copytree(demo_data, tmp_path / "data")
    layout = find_layout("demo", data)
    for path in layout.files("train").masks:
        Image.fromarray(np.zeros(Image.open(path).size[::-1], np.uint8)).save(path)
    teacher = ["--teacher", "compact", "--teacher-weights", teacher_file, "--alpha", "1", "--max-steps", "1"]
    with pytest.raises(UserError, match="masks of train hold one of"):
        main(arguments(data, tmp_path / "out", *teacher))
    for more in (["--dry-run"], []):
        assert main(arguments(data, tmp_path / "out", *teacher, "--labels", "0", "--unlabelled", "train", *more)) == 0
    assert "1 steps at most" in (out := capsys.readouterr().out) and "hold one of" not in out


def test_flags_of_a_teacher_that_no_loss_asks_are_told(tmp_path, demo_data, capsys):
    words = ["--teacher", "nonsense", "--class-map", "nosuch.toml", "--max-steps", "1"]
    assert main(arguments(demo_data, tmp_path / "out", *words)) == 0
    said = "remark: no loss asks a teacher: without effect are --class-map, --teacher; --alpha 1"
    assert said in capsys.readouterr().out
    assert main(arguments(demo_data, tmp_path / "other", "--max-steps", "1")) == 0
    assert "no loss asks" not in capsys.readouterr().out


def test_pictures_alone_without_a_teacher_teach_nothing(photos):
    with pytest.raises(UserError, match=r"folder/train: no image has a mask, and no loss has a teacher.*--alpha 1"):
        main(photo_arguments(photos))
    assert not (photos.parent / "out").exists()


def test_what_a_teacher_says_is_kept_and_made_anew_for_another(photos, teacher_file):
    words = ["--teacher", "compact", "--alpha", "1", "--max-steps", "1"]
    assert main(photo_arguments(photos, *words, "--teacher-weights", teacher_file)) == 0
    (said,) = (photos.parent / "said").iterdir()
    times = {path: path.stat().st_mtime_ns for path in said.glob("*.png")}
    assert len(times) == 3
    shutil.rmtree(photos.parent / "out")
    assert main(photo_arguments(photos, *words, "--teacher-weights", teacher_file)) == 0
    assert {path: path.stat().st_mtime_ns for path in said.glob("*.png")} == times
    other = photos.parent / "other.pth"
    content = load_file(teacher_file)
    first = next(iter(content["state_dict"].values()))
    first += 0.01
    save_atomic(content, other)
    shutil.rmtree(photos.parent / "out")
    assert main(photo_arguments(photos, *words, "--teacher-weights", other)) == 0
    assert len(list((photos.parent / "said").iterdir())) == 2


COLOURS = """
import torch
class Net(torch.nn.Module):
    class_names = ["background", "disk", "square", "triangle", "star", "ring", "cross"]
    def forward(self, images):
        return torch.cat([images, images.mean(1, keepdim=True), -images], dim=1)
def build():
    return Net()
"""


def test_masks_of_a_teacher_make_agreement_until_they_are_mended(photos, run_script, capsys):
    """Labelled by predict.py: the score is no mIoU; one that a person has mended is kept, and counted as such."""
    (photos.parent / "colours.py").write_text(COLOURS)
    words = [
        "--teacher",
        f"{photos.parent / 'colours.py'}:build",
        "--save",
        "mask",
        "--output-dir",
        photos.parent / "labelled",
        "--device",
        "cpu",
    ]
    run_script("predict.py", photos, *words)
    labelled = photos.parent / "labelled"
    train = ["--dataset", "folder", "--max-steps", "1"]
    capsys.readouterr()
    assert main(arguments(labelled, photos.parent / "out", *train)) == 0
    assert "agreement with the teacher" in capsys.readouterr().out
    mended = build_dataset("folder", labelled, "val").mask_path(0)
    pixels = np.asarray(Image.open(mended)).copy()
    pixels[:3] = 1
    Image.fromarray(pixels).save(mended)
    for more in ([], ["--allow-changed"]):
        with pytest.raises(UserError, match=r"was scored by agreement, and its validation masks now make that miou"):
            main(arguments(labelled, photos.parent / "out", *train, "--resume", "auto", *more))
    shutil.rmtree(photos.parent / "out")
    assert main(arguments(labelled, photos.parent / "out", *train)) == 0
    out = capsys.readouterr().out
    assert "2 of 3 masks are as a teacher wrote them" in out and "mIoU" in rows_text(photos.parent / "out" / "run")
    again = run_script("predict.py", photos, *words)
    assert "1 mask is a person's, mended or found right" in again.stdout
    assert (np.asarray(Image.open(mended)) == pixels).all()
    (labelled / "classes.txt").write_text("a\nb\n")
    refused = run_script("predict.py", photos, *words, check=False)
    assert refused.returncode and "names other classes (a, b, ...)" in refused.stderr


def rows_text(run) -> str:
    return (run / "report.txt").read_text()


def test_the_guards_hold_whatever_places_are_called(tmp_path):
    """A split named as a guard does not take its place: what is scored stays out."""
    for number in range(9):
        picture(tmp_path / "d" / "images" / f"{number:02d}.png", number)
        mask = tmp_path / "d" / "masks" / f"{number:02d}.png"
        mask.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 32), number % 2, np.uint8)).save(mask)
    for split, numbers in {"train": range(3), "val": range(3, 6), "test": range(6, 9)}.items():
        (tmp_path / "d" / f"{split}.txt").write_text("".join(f"{number:02d}\n" for number in numbers))
    (tmp_path / "d" / "classes.txt").write_text("a\nb\n")
    layout = find_layout("folder", tmp_path / "d")
    places = ["val", str(tmp_path / "d" / "images")]
    with pytest.raises(UserError, match=r"0 of 9 pictures.*3 are in train; 3 are in val; 3 are in val"):
        find_unlabelled(layout, places, layout.files("train"), layout.files("test"))
    picture(tmp_path / "d" / "images" / "09.png", 9)
    files, _ = find_unlabelled(layout, places, layout.files("train"), layout.files("test"))
    assert files.ids == ["03", "04", "05", "09"]


@pytest.mark.skipif(os.name == "nt", reason="links want rights on Windows")
def test_folders_behind_links_are_searched(demo_data, tmp_path):
    """As predict.py searches them."""
    picture(tmp_path / "elsewhere" / "real.png", 1)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "day1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    files, _ = find(demo_data, tmp_path / "photos")
    assert files.ids == ["day1/real"]


def test_files_beside_the_data_are_no_files_in_them(tmp_path, monkeypatch):
    """Relative paths that look alike, from the data set and from the current folder, are other files."""
    for number in range(4):
        picture(tmp_path / "images" / f"{number:02d}.png", number)
        picture(tmp_path / "my" / "images" / f"{number:02d}.png", 100 + number)
        (tmp_path / "my" / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 32), number % 2, np.uint8)).save(tmp_path / "my" / "masks" / f"{number:02d}.png")
    (tmp_path / "my" / "classes.txt").write_text("a\nb\n")
    monkeypatch.chdir(tmp_path)
    layout = find_layout("folder", Path("my"), val_share=0.25)
    files, _ = find_unlabelled(layout, ["images"], layout.files("train"), layout.files("val"))
    assert len(files.ids) == 4
