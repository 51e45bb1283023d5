"""The demo data set: made once, whole or not at all, and read by the loader like any other."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datachecks.check import check_layout
from datalayouts import demo
from datalayouts.demo import CLASSES, draw_picture, find_demo, make_demo
from dataset import build_dataset
from segdata.reading import DataError


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch):
    monkeypatch.setattr(make_demo, "__defaults__", (6, 3, demo.SEED))


def test_made_on_first_use_and_kept(tmp_path):
    data = build_dataset("demo", tmp_path, "train")
    assert len(data) == 6 and data.class_names == list(CLASSES) and data.name == "demo"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo"]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    assert len(build_dataset("demo", tmp_path, "val")) == 3
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")} == times


def test_it_passes_the_check(tmp_path):
    report = check_layout(find_demo(tmp_path))
    assert report.faults == [] and report.remarks == []
    assert report.images == {"train": 6, "val": 3, "teacher": 6}


def test_the_seed_decides_every_byte(tmp_path):
    for name in ("a", "b"):
        make_demo(tmp_path / name)
    make_demo(tmp_path / "more", num_train=8, num_val=2)
    make_demo(tmp_path / "other", seed=1)
    for path in (tmp_path / "a").rglob("*.*"):
        name = path.relative_to(tmp_path / "a")
        assert path.read_bytes() == (tmp_path / "b" / name).read_bytes(), name
    picture = Path("JPEGImages") / "demo_train_0003.jpg"
    assert (tmp_path / "a" / picture).read_bytes() == (tmp_path / "more" / picture).read_bytes()
    assert (tmp_path / "a" / picture).read_bytes() != (tmp_path / "other" / picture).read_bytes()


def test_pictures_have_objects_overlaps_and_a_void_border():
    masks = [draw_picture(np.random.default_rng(seed))[1] for seed in range(60)]
    assert len({mask.shape for mask in masks}) > 30  # sizes differ
    shares = np.bincount(np.concatenate([mask.ravel() for mask in masks]), minlength=256) / sum(m.size for m in masks)
    assert 0.4 < shares[0] < 0.9
    assert all(0.01 < shares[label] < 0.2 for label in range(1, len(CLASSES)))
    assert 0.01 < shares[255] < 0.15
    assert shares[len(CLASSES) : 255].sum() == 0
    for mask in masks:  # no two classes touch without void between them
        for first, second in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            assert (first[first != second] == 255).sum() + (second[first != second] == 255).sum() == (
                first != second
            ).sum()


def test_colour_alone_does_not_tell_the_class():
    """The mean colour of an object, classified by the nearest class mean, is right in well under all cases."""
    colours, labels = [], []
    for seed in range(150):
        image, mask = draw_picture(np.random.default_rng(seed))
        for label in range(1, len(CLASSES)):
            if (mask == label).sum() > 100:
                colours.append(image[mask == label].mean(0))
                labels.append(label)
    colours, labels = np.array(colours), np.array(labels)
    means = np.array([colours[labels == label].mean(0) for label in range(1, len(CLASSES))])
    guesses = 1 + np.linalg.norm(colours[:, None] - means, axis=2).argmin(1)
    assert 1 / 6 < (guesses == labels).mean() < 0.75


def test_masks_are_palette_pngs_and_images_real_jpegs(tmp_path):
    root = find_demo(tmp_path).root
    with Image.open(root / "SegmentationClass" / "demo_val_0000.png") as mask:
        assert mask.mode == "P" and mask.format == "PNG"
        assert mask.getpalette()[3:6] == list(find_demo(tmp_path).palette[1])
    with Image.open(root / "JPEGImages" / "demo_val_0000.jpg") as image:
        assert image.format == "JPEG"


def test_an_older_version_is_made_anew(tmp_path, monkeypatch):
    find_demo(tmp_path)
    (tmp_path / "demo" / "version.txt").write_text("0\n")
    (tmp_path / "demo" / "JPEGImages" / "demo_train_0000.jpg").unlink()
    assert len(build_dataset("demo", tmp_path, "train")) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo"]


def test_a_folder_that_others_made_is_left_alone(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="was not made by this project"):
        find_demo(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["demo", "thesis.tex"]


def test_an_interrupted_making_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "putpalette", stop)
        with pytest.raises(KeyboardInterrupt):
            find_demo(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert find_demo(tmp_path).splits() == ["train", "val", "teacher"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written there.*--data-dir"):
        find_demo(tmp_path / "file")


def count_pictures(data_dir: Path) -> int:
    make_demo.__defaults__ = (6, 3, demo.SEED)
    return len(build_dataset("demo", data_dir, "train"))


def test_two_processes_may_race(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert pool.map(count_pictures, [tmp_path] * 2, chunksize=1) == [6, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo"]


def test_losing_the_race_is_no_error(tmp_path, monkeypatch):
    """Another process finishes while this one is drawing."""

    def make_and_lose(root, *args):
        original(root, *args)
        original(tmp_path / "demo")

    original = demo.make_demo
    monkeypatch.setattr(demo, "make_demo", make_and_lose)
    assert len(build_dataset("demo", tmp_path, "train")) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo"]
