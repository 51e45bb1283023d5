"""What is counted of a data set is right, is kept, and is never believed where it no longer holds."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from basics import files as basic_files
from basics.batch import VOID
from datachecks import census as census_module
from datachecks.census import ELSEWHERE, FOLDER, SplitCensus, open_census
from datachecks.stats import count_classes
from dataset import find_layout
from segdata.labels import IndexLabels
from segdata.layouts import Layout, SplitFiles
from segdata.palettes import voc_palette
from segdata.reading import DataError
from tests.test_dataset import encode

NAMES = ("a", "b", "c", "d", "ü e")


@pytest.fixture
def root(tmp_path) -> Path:
    """Five pairs of random labels 0..2 and void; train = a, b, c, d; val = ü e."""
    root = tmp_path / "data set"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        size = (10 + number, 20)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / "JPEGImages" / f"{name}.jpg")
        save_mask(root, name, np.array([0, 1, 2, VOID], np.uint8)[rng.integers(0, 4, size)])
    (root / "classes.txt").write_text("one\ntwo\nthree\n")
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nb\nc\nd\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("ü e\n", encoding="utf-8")
    return root


def save_mask(root: Path, name: str, labels: np.ndarray, palette: list | None = None) -> Path:
    image = Image.fromarray(labels)
    image.putpalette([channel for colour in palette or voc_palette() for channel in colour])
    path = root / "SegmentationClass" / f"{name}.png"
    image.save(path, compress_level=0)  # so that masks of one size have files of one size
    return path


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """The names of all files that a census opens."""
    opened: list[str] = []
    for name in ("read_header", "read_palette"):
        function = getattr(census_module, name)
        monkeypatch.setattr(
            census_module, name, lambda path, function=function: (opened.append(path.name), function(path))[1]
        )
    return opened


def take(layout: Layout, *splits: str, **options) -> dict[str, SplitCensus]:
    with open_census(layout, **options) as census:
        return census.take({split: layout.files(split) for split in splits or ("train", "val")})


def file_of(root: Path) -> Path:
    (path,) = (root / FOLDER).glob("*.json")
    return path


# --- what is counted


def test_counts_are_those_of_numpy(root):
    layout = find_layout("folder", root)
    train = take(layout)["train"]
    masks = [np.asarray(Image.open(path)) for path in train.files.masks]
    everything = np.concatenate([mask.reshape(-1) for mask in masks])
    assert train.pixels.tolist() == [int((everything == label).sum()) for label in range(256)]
    assert train.images.tolist() == [sum(bool((mask == label).any()) for mask in masks) for label in range(256)]
    assert [(record.height, record.width) for record in train.masks] == [mask.shape for mask in masks]
    assert [(picture.height, picture.width) for picture in train.pictures] == [mask.shape for mask in masks]
    assert {(picture.mode, picture.bands, picture.orientation) for picture in train.pictures} == {("RGB", 3, 1)}
    assert train.faults == [] and train.is_whole


def test_labels_are_counted_as_they_are_read(tmp_path):
    """ADE20K's 0 is void and its k is class k - 1."""
    base = tmp_path / "ADEChallengeData2016"
    for kind in ("images", "annotations"):
        (base / kind / "training").mkdir(parents=True)
    Image.new("RGB", (4, 2)).save(base / "images/training/x.jpg")
    Image.fromarray(np.array([[0, 0, 0, 1], [1, 1, 7, 150]], np.uint8)).save(base / "annotations/training/x.png")
    record = take(find_layout("ade20k", tmp_path), "train")["train"].masks[0]
    assert dict(zip(record.labels, record.pixels, strict=True)) == {0: 3, 6: 1, 149: 1, VOID: 3}


@pytest.mark.parametrize(
    ("labels", "palette", "expected"),
    [
        ([0, 1], [(0, 0, 0), (9, 8, 7)], "0:000000:0 1:090807:1"),
        ([1, 2], [(0, 0, 0), (9, 8, 7), (255, 0, 1)], "1:090807:1 2:ff0001:2"),
        ([0, 1, 2], [(5, 5, 5), (5, 5, 5), (1, 2, 3)], "2:010203:2"),  # two numbers in one colour tell nothing
        ([2], [(0, 0, 0)] * 9, ""),  # a palette that nobody filled in
    ],
)
def test_colours_of_palette_files(root, labels, palette, expected):
    values = np.array(labels, np.uint8)[np.arange(200).reshape(10, 20) % len(labels)]
    save_mask(root, "a", values, palette)
    assert take(find_layout("folder", root))["train"].masks[0].colours == expected


def test_grey_masks_have_no_colours(root):
    Image.fromarray(np.ones((10, 20), np.uint8)).save(root / "SegmentationClass" / "a.png")
    assert take(find_layout("folder", root))["train"].masks[0].colours == ""


def test_faults_of_all_files_are_listed_and_the_rest_is_counted(root):
    (root / "JPEGImages" / "a.jpg").write_bytes(b"")
    (root / "SegmentationClass" / "b.png").write_bytes(encode(Image.new("RGB", (20, 11)), "JPEG"))
    save_mask(root, "c", np.full((12, 21), 1, np.uint8))
    save_mask(root, "d", np.full((13, 19), 77, np.uint8))
    train = take(find_layout("folder", root))["train"]
    assert len(train.faults) == 5 and not train.is_whole
    for fault, words in zip(
        train.faults,
        ["a.jpg: the file is empty", "b.png: ", "c.png: 21x12 pixels, but", "d.png: labels 77", "d.png: 19x13 pixels"],
        strict=True,
    ):
        assert words in fault
    assert [mask is None for mask in train.masks] == [False, True, False, True]
    assert train.images[:2].sum() > 0
    with pytest.raises(DataError, match=r"a\.jpg: the file is empty"):
        count_classes(find_layout("folder", root), "train")


def test_an_image_that_is_its_own_mask_is_a_fault(root):
    layout = find_layout("folder", root)
    masks = layout.files("train").masks
    with open_census(layout) as census:
        train = census.take({"train": SplitFiles(list("abcd"), masks, masks)})["train"]
    assert [fault.partition(": is both an image and its own mask")[0] for fault in train.faults] == list(
        map(str, masks)
    )
    assert not train.is_whole


# --- what is kept


def test_a_second_start_opens_no_file(root, reads):
    layout = find_layout("folder", root)
    first = take(layout)
    assert sorted(reads) == sorted(f"{name}{suffix}" for name in NAMES for suffix in (".jpg", ".png"))
    before = file_of(root).stat().st_mtime_ns
    reads.clear()
    assert take(find_layout("folder", root)) == first
    assert reads == [] and file_of(root).stat().st_mtime_ns == before
    assert count_classes(layout, "train").pixels.tolist() == first["train"].pixels[:3].tolist()
    assert reads == []


def test_only_the_first_census_is_the_first(root):
    for expected in (True, False):
        with open_census(find_layout("folder", root)) as census:
            assert census.is_first is expected
            census.take({"train": census.layout.files("train")})


def test_what_changed_is_read_anew_and_nothing_else(root, reads):
    layout = find_layout("folder", root)
    take(layout)
    reads.clear()
    save_mask(root, "b", np.full((11, 20), 1, np.uint8))
    stat = (root / "JPEGImages" / "d.jpg").stat()  # same bytes, another time
    os.utime(root / "JPEGImages" / "d.jpg", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    train = take(layout)["train"]
    assert sorted(reads) == ["b.png", "d.jpg"]
    assert train.masks[1].labels == [1] and train.masks[1].pixels == [220]
    reads.clear()
    take(layout)
    assert reads == []


def test_splits_share_what_is_known(root, reads):
    layout = find_layout("folder", root)
    take(layout, "train")
    reads.clear()
    (root / "ImageSets/Segmentation/trainval.txt").write_text("a\nb\nc\nd\nü e\n", encoding="utf-8")
    take(find_layout("folder", root), "trainval")
    assert sorted(reads) == ["ü e.jpg", "ü e.png"]


def test_faulty_files_are_read_every_time(root, reads):
    save_mask(root, "b", np.full((11, 20), 99, np.uint8))
    for _ in range(2):
        assert "b.png: labels 99" in take(find_layout("folder", root))["train"].faults[0]
    reads.clear()
    save_mask(root, "b", np.full((11, 20), 2, np.uint8))
    assert take(find_layout("folder", root))["train"].faults == []
    assert reads == ["b.png"]


def test_another_class_list_counts_anew(root, reads):
    take(find_layout("folder", root))
    (root / "classes.txt").write_text("one\ntwo\n")
    reads.clear()
    assert any("labels 2" in fault for fault in take(find_layout("folder", root))["train"].faults)
    assert len(reads) >= len(NAMES)
    (root / "classes.txt").write_text("one\ntwo\nthree\n")
    reads.clear()
    assert take(find_layout("folder", root))["train"].faults == [] and reads == []


def test_another_way_of_reading_masks_counts_anew(root, reads):
    layout = find_layout("folder", root)
    take(layout)
    reads.clear()

    class Otherwise(IndexLabels):
        @property
        def key(self):
            return [["colours", [0, 0, 0]]]

    layout.labels = Otherwise()
    take(layout)
    assert len(reads) == 2 * len(NAMES)


def test_a_data_set_may_be_moved(root, tmp_path, reads):
    take(find_layout("folder", root))
    moved = tmp_path / "elsewhere" / "moved"
    moved.parent.mkdir()
    root.rename(moved)
    reads.clear()
    take(find_layout("folder", moved))
    assert reads == []


def test_anew_means_anew(root, reads):
    take(find_layout("folder", root))
    reads.clear()
    take(find_layout("folder", root), anew=True)
    assert len(reads) == 2 * len(NAMES)


def rewrite(path: Path, change) -> None:
    """Change the content, the checksum fitting."""
    kept = json.loads(path.read_text().partition("\n")[2])
    text = json.dumps(change(kept))
    path.write_text(f"{zlib.crc32(text.encode()):08x}\n{text}")


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-30]),
    "a digit changed": lambda path: path.write_bytes(path.read_bytes().replace(b"[0,1,", b"[0,2,", 1)),
    "no checksum": lambda path: path.write_text(path.read_text().partition("\n")[2]),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
    "another kind of file": lambda path: path.write_text("[]"),
    "a list": lambda path: rewrite(path, lambda kept: []),
    "a part missing": lambda path: rewrite(path, lambda kept: {"masks": kept["masks"]}),
    "records too short": lambda path: rewrite(path, lambda kept: kept | {"masks": {"a": [1, 2]}}),
    "records too long": lambda path: rewrite(path, lambda kept: kept | {"pictures": {"a": [1] * 20}}),
    "a number for a record": lambda path: rewrite(path, lambda kept: kept | {"masks": {"a": 7}}),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_census_is_ignored_and_written_anew(root, reads, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = take(find_layout("folder", root))
    path = file_of(root)
    DAMAGE[name](path)
    reads.clear()
    assert take(find_layout("folder", root)) == first
    assert len(reads) == 2 * len(NAMES)
    reads.clear()
    assert take(find_layout("folder", root)) == first and reads == []


@pytest.mark.parametrize("how", ["marked", "no folder can be made", "it fails"])
def test_data_that_cannot_be_written_are_kept_elsewhere(root, reads, how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if how == "marked":
        root.chmod(0o555)  # root could write there all the same
    elif how == "no folder can be made":
        (root / FOLDER).write_text("a file")
    else:
        replacing = basic_files.replacing
        monkeypatch.setattr(
            basic_files, "replacing", lambda path: replacing(Path(os.devnull) / "x" if FOLDER in str(path) else path)
        )
    try:
        first = take(find_layout("folder", root))
        assert not (root / FOLDER).is_dir() or not any((root / FOLDER).iterdir())
        assert len(list((tmp_path / ELSEWHERE).glob("*.json"))) == 1
        reads.clear()
        assert take(find_layout("folder", root)) == first and reads == []
        twin = tmp_path / "twin" / root.name  # of the same name, in another place, with other labels of the same age
        shutil.copytree(root, twin)
        twin.chmod(0o755)
        shutil.rmtree(twin / FOLDER, ignore_errors=True)
        path, stat = save_mask(twin, "a", np.zeros((10, 20), np.uint8)), (root / "SegmentationClass/a.png").stat()
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_size == stat.st_size
        assert take(find_layout("folder", twin))["train"].masks[0].labels == [0]
    finally:
        root.chmod(0o755)


def test_where_nothing_can_be_written_nothing_is_kept(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (root / FOLDER).write_text("a file")
    (tmp_path / "data").write_text("another")
    assert take(find_layout("folder", root)) == take(find_layout("folder", root))


def test_what_was_read_before_an_interruption_is_kept(root, reads, monkeypatch):
    count_mask = census_module.count_mask

    def count(layout, path):
        if path.name == "ü e.png":
            raise KeyboardInterrupt
        return count_mask(layout, path)

    monkeypatch.setattr(census_module, "count_mask", count)
    with pytest.raises(KeyboardInterrupt):
        take(find_layout("folder", root))
    monkeypatch.setattr(census_module, "count_mask", count_mask)
    reads.clear()
    take(find_layout("folder", root))
    assert reads == ["ü e.png"]


def test_many_files_are_announced_once(root, capsys, monkeypatch):
    take(find_layout("folder", root))
    assert capsys.readouterr().out == ""  # a few take no time to speak of
    shutil.rmtree(root / FOLDER)
    monkeypatch.setattr(census_module, "SAID_FROM", 5)
    take(find_layout("folder", root))
    assert "reading 10 images and masks" in capsys.readouterr().out
    take(find_layout("folder", root))
    assert capsys.readouterr().out == ""


# --- images in common


def shared(root: Path) -> dict[str, str]:
    layout = find_layout("folder", root)
    with open_census(layout) as census:
        counted = census.take({split: layout.files(split) for split in ("train", "val")})
        return census.shared_images(counted["val"], counted["train"])


def test_images_in_common_by_list(root):
    assert shared(root) == {}
    (root / "ImageSets/Segmentation/val.txt").write_text("ü e\nb\n", encoding="utf-8")
    assert shared(root) == {"b": "b"}


def test_copies_under_other_names_are_found(root, monkeypatch):
    shutil.copy(root / "JPEGImages" / "c.jpg", root / "JPEGImages" / "ü e.jpg")
    assert shared(root) == {"ü e": "c"}
    monkeypatch.setattr(census_module, "file_sha256", None)  # the hashes are kept, too
    assert shared(root) == {"ü e": "c"}


def test_the_same_size_is_not_the_same_picture(root):
    content = (root / "JPEGImages" / "c.jpg").read_bytes()
    (root / "JPEGImages" / "ü e.jpg").write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    assert shared(root) == {}


def test_a_changed_picture_is_hashed_anew(root):
    path = root / "JPEGImages" / "ü e.jpg"
    content = (root / "JPEGImages" / "c.jpg").read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    assert shared(root) == {}
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))
    assert shared(root) == {"ü e": "c"}


def test_pictures_of_one_name_in_two_folders_are_two(root):
    """`train/1.jpg` and `val/1.jpg`, as many data sets have them."""
    layout = find_layout("folder", root)
    other = root / "other"
    other.mkdir()
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(other / "a.jpg")
    (root / "ImageSets/Segmentation/val.txt").write_text("a\n")
    layout.image_folders["val"] = other
    with open_census(layout) as census:
        counted = census.take({split: layout.files(split) for split in ("train", "val")})
        assert census.shared_images(counted["val"], counted["train"]) == {}
