"""Labels mean what they say: each kind of wrong or doubtful data, said in one voice by all that looks at them."""

from __future__ import annotations

import io
import itertools
import os
import re
import shlex
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dataset as dataset_script
import zoo
from basics.batch import VOID
from basics.errors import UserError
from datachecks import teacher_masks
from datachecks.census import MaskRecord, PictureRecord, SplitCensus
from datachecks.check import check_layout, invitation, look_at
from datachecks.rules import Finding, judge
from dataset import find_layout
from segdata.label_faults import explain_labels
from segdata.layouts import Layout, SplitFiles
from segdata.palettes import voc_palette
from segdata.reading import DataError, read_header, read_image
from tests.test_train import arguments
from tests.tiny import TinyModel
from train_kd import main

SIZE = (48, 64)  # (H, W)
VOC_COLOURS = [channel for colour in voc_palette() for channel in colour]


def labels(*values: int, seed: int = 0) -> np.ndarray:
    """A mask in which all of ``values`` occur, in stripes whose order a seed decides."""
    order = np.random.default_rng(seed).permutation(values)
    return np.array(order, np.uint8)[np.arange(SIZE[1]) * len(order) // SIZE[1]][None].repeat(SIZE[0], axis=0)


def make(
    root: Path,
    names: Sequence[str] = ("background", "crack"),
    masks: Callable[[int], np.ndarray | Image.Image] = lambda number: labels(0, 1, seed=number),
    *,
    train: int = 4,
    val: int = 2,
) -> Path:
    """A `folder` data set; ``masks`` gives the mask of each image, the training images first."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(train + val):
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(root / f"JPEGImages/im{number}.jpg")
        mask = masks(number)
        mask = mask if isinstance(mask, Image.Image) else Image.fromarray(mask)
        mask.save(root / f"SegmentationClass/im{number}.png")
    (root / "classes.txt").write_text("\n".join(names) + "\n")
    write_list(root, "train", range(train))
    write_list(root, "val", range(train, train + val))
    return root


def write_list(root: Path, split: str, numbers) -> None:
    (root / f"ImageSets/Segmentation/{split}.txt").write_text("".join(f"im{number}\n" for number in numbers))


def findings(root: Path, train: str = "train", val: str = "val") -> list[Finding]:
    """What is said of a `folder` data set, faulty files included."""
    layout = find_layout("folder", root)
    return list(look_at(layout, {split: layout.files(split) for split in (train, val)}, train, val).summary())


def only(found: list[Finding], *, stops: bool) -> str:
    """The line of the only finding."""
    (finding,) = found
    assert finding.stops is stops, finding
    assert "\n" not in finding.line
    return finding.line


def test_nothing_is_said_of_data_that_are_right(tmp_path):
    assert findings(make(tmp_path)) == []
    assert findings(make(tmp_path / "b", masks=lambda number: labels(0, 1, VOID, seed=number))) == []


# --- labels that fit the range


@pytest.mark.parametrize("names", [("background", "crack"), ("no", "yes"), ("Boden", "Riß")])
def test_black_and_white_masks_stop(tmp_path, names):
    found = findings(make(tmp_path, names, lambda number: labels(0, 255, seed=number)))
    assert [finding.stops for finding in found] == [True, True]
    for finding, split in zip(found, ("train", "val"), strict=True):
        assert f"masks of {split} hold 0 and 255 alone" in finding.line
        assert f"none of them holds {names[1]!r}" in finding.line
        assert f"`{names[0]} 0 0 0` and `{names[1]} 255 255 255`" in finding.line
        assert finding.line.startswith(f"{tmp_path}: ")


def test_black_and_white_in_validation_alone_stops(tmp_path):
    line = only(findings(make(tmp_path, masks=lambda number: labels(0, 255 if number > 3 else 1))), stops=True)
    assert "masks of val hold 0 and 255 alone" in line


@pytest.mark.parametrize("white", [1, 2, 3])
def test_some_black_and_white_masks_are_a_remark(tmp_path, white):
    line = only(findings(make(tmp_path, masks=lambda number: labels(0, 255 if number < white else 1))), stops=False)
    assert f"{white} of the 4 masks of train hold 0 and 255 alone, for example im0.png" in line and "'crack'" in line


def test_void_around_things_is_not_black_and_white(tmp_path):
    """As VOC does it: a mask without a thing may have void all the same."""
    assert findings(make(tmp_path, masks=lambda number: labels(0, 255) if number == 1 else labels(0, 1, 255))) == []


@pytest.mark.parametrize("label", [0, 1, 2])
@pytest.mark.parametrize("with_void", [False, True])
def test_one_class_in_all_training_masks_stops(tmp_path, label, with_void):
    def mask(number):
        return labels(0, 1, 2) if number > 3 else labels(label, *[VOID] * with_void)

    line = only(findings(make(tmp_path, ("a", "b", "c"), mask)), stops=True)
    assert "the 4 masks of train hold one of 3 classes, '" + "abc"[label] + "'" in line
    assert ("void (255)" in line) is with_void


@pytest.mark.parametrize("unsure", [False, True])
def test_a_teacher_that_says_one_class_is_no_question_of_colours(tmp_path, unsure):
    """255 is where it is not sure: who wrote colours beside the names would make these the other class."""
    root = make(tmp_path, masks=lambda number: labels(0, *[VOID] * unsure))
    (root / teacher_masks.FILE).write_text("{}")
    train, val = findings(root)
    assert (train.stops, val.stops) == (True, False)
    for finding, count in ((train, 4), (val, 2)):
        assert f"in all {count} masks of" in finding.line and "the teacher says 'background'" in finding.line
        assert ("--min-confidence" in finding.line) is unsure and "classes.txt" not in finding.line
    root = make(tmp_path / "some", masks=lambda number: labels(0, VOID) if number == 1 else labels(0, 1))
    (root / teacher_masks.FILE).write_text("{}")
    assert findings(root) == []


def test_one_class_in_all_validation_masks_is_a_remark(tmp_path):
    line = only(findings(make(tmp_path, masks=lambda number: labels(0) if number > 3 else labels(0, 1))), stops=False)
    assert "the 2 masks of val hold one of 2 classes, 'background'" in line


@pytest.mark.parametrize(
    ("train_labels", "val_labels", "words"),
    [
        ([0, 1], [0, 1], ["holds 2 of the 4 classes (c, d): nothing"]),
        ([0, 1], [0, 2], ["holds 2 of the 4 classes (c, d), though val has c: nothing"]),
        ([1, 3], [0, 2, 3], ["(a, c), though val has a, c: nothing"]),
        ([0, 1, 3], [0], ["holds 1 of the 4 classes (c): nothing", "masks of val hold one of 4 classes, 'a'"]),
    ],
)
def test_classes_that_no_training_mask_holds_are_named(tmp_path, train_labels, val_labels, words):
    found = findings(make(tmp_path, "abcd", lambda number: labels(*(val_labels if number > 3 else train_labels))))
    assert len(found) == len(words) and not any(finding.stops for finding in found)
    for finding, word in zip(found, words, strict=True):
        assert word in finding.line


def test_of_many_absent_classes_some_are_named(tmp_path):
    line = only(findings(make(tmp_path, [f"c{number}" for number in range(30)])), stops=False)
    assert "28 of the 30 classes (c2, c3, c4, c5, c6, c7, c8, c9 and 20 more)" in line


def test_a_class_list_of_one_stops(tmp_path):
    line = only(findings(make(tmp_path, ["crack"], lambda number: labels(0, VOID))), stops=True)
    assert "one class, 'crack'" in line and "`background`" in line


@pytest.mark.parametrize("name", ["void", "Unlabeled", "ignore"])
def test_a_class_called_void_is_a_remark(tmp_path, name):
    line = only(findings(make(tmp_path, [name, "crack"])), stops=False)
    assert f"class 0 is called {name!r}" in line and "label 255" in line


@pytest.mark.parametrize(("split", "verb"), [("train", "learnt"), ("val", "scored")])
def test_a_split_of_void_stops(tmp_path, split, verb):
    def mask(number):
        return labels(VOID) if (number > 3) == (split == "val") else labels(0, 1)

    line = only(findings(make(tmp_path, masks=mask)), stops=True)
    assert f"masks of {split} is void (255): nothing can be {verb}" in line


def test_single_masks_of_void_are_counted(tmp_path):
    found = findings(make(tmp_path, masks=lambda number: labels(VOID) if number in (1, 2, 5) else labels(0, 1)))
    assert [finding.stops for finding in found] == [False, False]
    assert "2 of the 4 masks of train are void (255) everywhere, for example im1.png" in found[0].line
    assert "1 of the 2 masks of val are void (255) everywhere, for example im5.png" in found[1].line


def test_nothing_is_said_of_absent_classes_while_masks_cannot_be_read(tmp_path):
    root = make(tmp_path, ("a", "b", "c"), lambda number: labels(0, 1))
    (root / "SegmentationClass/im0.png").write_bytes(b"")
    line = only(findings(root), stops=True)
    assert line.endswith("im0.png: the file is empty; get it again")


# --- labels out of range


@pytest.mark.parametrize(
    ("values", "num_classes", "words"),
    [
        ([0, 127, 255], 3, "`name 127 127 127`"),
        ([0, 128, 255], 3, "`name 128 128 128`"),
        ([0, 85, 170, 255], 4, "`name 85 85 85`"),
        ([0, 128], 2, "`name 128 128 128`"),
        ([0, 64, 128, 192], 5, "`name 64 64 64`"),
        ([0, 38, 75], 3, "VOC's colours turned to grey"),
        ([38, 75, 113, 255], 21, "VOC's colours turned to grey"),
        ([0, 1, 2], 2, "a name short: is `background` in it?"),
        ([0, 5, 255], 5, "a name short"),
        ([1, 2, 3], 3, "count from 1, take 1 away"),
        ([1, 21, 255], 21, "count from 1"),
        (list(range(0, 256, 5)), 4, "nearest neighbour"),
        ([0, 1, 5, 6, 7, 9], 3, "the class list that the masks were made for"),
    ],
)
def test_labels_out_of_range_name_cause_and_remedy(tmp_path, values, num_classes, words):
    assert words in explain_labels(values, num_classes)
    root = make(tmp_path, [f"c{number}" for number in range(num_classes)], lambda number: labels(*values, seed=number))
    layout = find_layout("folder", root)
    with pytest.raises(DataError, match="neither a class") as caught:
        layout.read_labels(root / "SegmentationClass/im0.png")
    assert words in str(caught.value)
    assert only(findings(root), stops=True).startswith(f"{caught.value}; and 5 more: ")


def test_grey_of_voc_colours_is_what_pillow_and_the_formula_make():
    """Of any two or more classes of the palette, converted to grey."""
    image = Image.fromarray(np.arange(21, dtype=np.uint8)[None])
    image.putpalette(VOC_COLOURS)
    greys = np.asarray(image.convert("RGB").convert("L"))[0].tolist()
    for pair in itertools.combinations(sorted({grey for grey in greys if grey > 20}), 2):
        assert "VOC's colours" in explain_labels(sorted({0, *pair}), 21), pair


# --- palettes


def coloured(indices: np.ndarray, palette: Sequence[tuple[int, int, int]]) -> Image.Image:
    image = Image.fromarray(indices)
    image.putpalette([channel for colour in palette for channel in colour])
    return image


ROAD, CAR, TREE = (128, 64, 128), (0, 0, 142), (107, 142, 35)


def test_quantised_colour_masks_stop(tmp_path):
    """Each file with a palette of its own, the most frequent colour first."""

    def mask(number):
        truth = labels(0, 1, 2, seed=number)
        truth[:, :40] = number % 3
        order = np.argsort(-np.bincount(truth.reshape(-1), minlength=3), kind="stable")
        return coloured(np.argsort(order).astype(np.uint8)[truth], [(ROAD, CAR, TREE)[label] for label in order])

    found = findings(make(tmp_path, ("road", "car", "tree"), mask))
    (line,) = [finding.line for finding in found if finding.stops]
    told = re.search(r"the colour (\d+ \d+ \d+) is label (\d) in (\w+\.png) and label (\d) in (\w+\.png)", line)
    colour, first, first_file, second, second_file = told.groups()
    assert first != second and f"`name {colour}`" in line
    for label, file in ((int(first), first_file), (int(second), second_file)):
        with Image.open(tmp_path / "SegmentationClass" / file) as image:
            assert image.getpalette()[3 * label : 3 * label + 3] == [int(channel) for channel in colour.split()]
            assert label in np.asarray(image)


@pytest.mark.parametrize(
    ("first", "second", "stops"),
    [
        ([ROAD, CAR], [CAR, ROAD], True),  # swapped
        ([ROAD, CAR, TREE], [TREE, ROAD, CAR], True),  # moved round
        ([(0, 0, 0), CAR], [(0, 0, 0), TREE], False),  # another colour for the same class
        ([ROAD, CAR], [ROAD, CAR], None),
        ([(1, 1, 1), (1, 1, 1)], [(2, 2, 2), (2, 2, 2)], None),  # palettes that tell nothing
    ],
)
def test_palettes_of_two_files(tmp_path, first, second, stops):
    def mask(number):
        return coloured(labels(0, 1, seed=number), second if number == 3 else first)

    found = findings(make(tmp_path, masks=mask))
    if stops is None:
        assert found == []
        return
    line = only(found, stops=stops)
    assert "im3.png" in line and "im0.png" in line
    assert ("has the colour 0 0 142 in im0.png and 107 142 35 in im3.png" in line) is (not stops)


def test_palettes_are_compared_between_splits(tmp_path):
    found = findings(make(tmp_path, masks=lambda n: coloured(labels(0, 1), [ROAD, CAR] if n < 4 else [CAR, ROAD])))
    assert "im4.png" in only(found, stops=True)


def test_unused_colours_are_no_contradiction(tmp_path):
    """Two files that agree on what occurs in them."""

    def mask(number):
        return coloured(labels(0, 1), [ROAD, CAR, *([TREE, (9, 9, 9)] if number else [(9, 9, 9), TREE])])

    assert findings(make(tmp_path, masks=mask)) == []


def test_a_table_of_colours_makes_numbers_meaningless_and_nothing_is_said():
    """Labels by colour, some classes merged: the palettes may be what they like."""
    split = counted("train", {0: 1, 1: 1}, {0: 1, 1: 1}, {0: 1, 1: 1})
    colours = ["0:aa0000:0 1:00bb00:1", "0:00bb00:1 1:aa0000:0", "0:cc0000:0 1:00bb00:1"]
    split.masks = [mask._replace(colours=entry) for mask, entry in zip(split.masks, colours, strict=True)]
    assert judge(layout_of("a", "b"), {"train": split}, "train", None, {}) == []


# --- pictures


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_exif_is_a_remark_and_torn_pairs_stop(tmp_path, orientation):
    root = make(tmp_path)
    for number in (1, 4):
        path = root / f"JPEGImages/im{number}.jpg"
        tags = Image.Exif()
        tags[0x0112] = orientation
        Image.open(path).copy().save(path, exif=tags)
    remark = [finding.line for finding in findings(root) if not finding.stops]
    assert f"2 images with an EXIF orientation, for example im1.jpg ({orientation})" in remark[0]
    stops = [finding.line for finding in findings(root) if finding.stops]
    if orientation > 4:
        assert "as stored" in stops[0] and f"orientation {orientation}" in stops[0] and "; and 1 more" in stops[0]
    else:
        assert stops == []


@pytest.mark.parametrize(("mode", "said"), [("RGBA", True), ("LA", True), ("RGB", False), ("L", False)])
def test_a_band_that_is_dropped_is_said_once(tmp_path, mode, said):
    root = make(tmp_path)
    for path in (root / "JPEGImages").iterdir():
        Image.open(path).convert(mode).save(path.with_suffix(".png"))
        path.unlink()
    found = findings(root)
    assert len(found) == said
    if said:
        assert "6 images with a band beside the colours, for example im0.png" in only(found, stops=False)


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_a_transparent_colour_is_said(tmp_path, mode):
    """tRNS: prediction lays it on white, training does not see it."""
    root = make(tmp_path)
    path = root / "JPEGImages/im1.jpg"
    picture = Image.open(path).convert(mode)
    picture.save(path.with_suffix(".png"), transparency=0 if mode == "P" else (1, 2, 3))
    path.unlink()
    assert "1 image in which a colour is transparent, for example im1.png" in only(findings(root), stops=False)
    assert len(findings(root)) == 1, "the census keeps it"


def test_masks_for_images_are_a_remark(tmp_path):
    root = make(tmp_path, masks=lambda number: coloured(labels(0, 1), [ROAD, CAR]))
    for path in list((root / "JPEGImages").iterdir()):
        coloured(labels(0, 1), [ROAD, CAR]).save(path.with_suffix(".png"))
        path.unlink()
    lines = [finding.line for finding in findings(root)]
    assert any("all 6 images are palette files" in line for line in lines)


def tiff(bands: int, bits: int = 8, photometric: int = 1, order: str = "<") -> bytes:
    """A TIFF of 4x3 pixels in one strip, written by hand: Pillow writes no more than four bands."""
    pixels = bytes(4 * 3 * bands * bits // 8)
    beyond = max(bands - (3 if photometric == 2 else 1), 0)
    shorts = {258: [bits] * bands, 338: [0] * beyond}  # bits per sample, and what the extra samples are
    values = {256: 4, 257: 3, 258: 0, 259: 1, 262: photometric, 273: 0, 277: bands, 278: 3, 279: len(pixels), 338: 0}
    values = {tag: value for tag, value in values.items() if tag not in shorts or shorts[tag]}
    place, behind, entries = 8 + 2 + 12 * len(values) + 4, b"", []
    for tag, value in values.items():
        if tag in shorts:
            content = struct.pack(f"{order}{len(shorts[tag])}H", *shorts[tag])
            field = content.ljust(4, b"\0") if len(content) <= 4 else struct.pack(f"{order}I", place + len(behind))
            behind += content if len(content) > 4 else b""
            entries.append(struct.pack(f"{order}HHI", tag, 3, len(shorts[tag])) + field)
        else:
            entries.append(struct.pack(f"{order}HHII", tag, 4, 1, value))
    number = list(values).index(273)  # where the pixels begin is known only now
    entries[number] = struct.pack(f"{order}HHII", 273, 4, 1, place + len(behind))
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(entries))
    return head + b"".join(entries) + bytes(4) + behind + pixels


def test_the_handmade_tiff_is_one():
    with Image.open(io.BytesIO(tiff(3, photometric=2))) as image:
        image.load()
        assert (image.format, image.mode, image.size) == ("TIFF", "RGB", (4, 3))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("photometric", [1, 2])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("bands", [5, 6, 8, 13])
def test_many_bands_are_refused_with_their_number(tmp_path, bands, bits, photometric, order):
    path = tmp_path / "scene.tif"
    path.write_bytes(tiff(bands, bits, photometric, order=order))
    for read in (read_image, read_header):
        with pytest.raises(DataError, match=rf"scene\.tif: a picture of {bands} bands; .*8-bit RGB"):
            read(path)


def test_deep_bands_are_refused_with_their_depth(tmp_path):
    path = tmp_path / "scene.tif"
    path.write_bytes(tiff(2, 16))
    with pytest.raises(DataError, match="2 bands with 16 bits"):
        read_image(path)
    path.write_bytes(b"II*\0\xff\xff\xff\x7f")
    with pytest.raises(DataError, match=r"scene\.tif: "):
        read_image(path)


def test_pictures_of_too_many_pixels_come_with_a_remedy(tmp_path):
    path = tmp_path / "huge.png"
    for width in (11_000, 100_000):
        header = struct.pack(">IIBBBBB", width, 10_000, 8, 2, 0, 0, 0)
        Image.new("RGB", (1, 1)).save(path)
        content = bytearray(path.read_bytes())
        content[16:29] = header
        content[29:33] = struct.pack(">I", zlib.crc32(b"IHDR" + header))
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"huge\.png: .*up to 100 megapixels: cut it .*--tile"):
            read_header(path)


# --- splits


@pytest.mark.parametrize("names", [("train", "val"), ("fold1_learn", "fold1_score"), ("a", "test")])
def test_common_images_whatever_the_splits_are_called(tmp_path, names):
    root = make(tmp_path)
    write_list(root, names[0], [0, 1, 2, 3])
    write_list(root, names[1], [3, 4, 5, 2])
    line = only(findings(root, *names), stops=False)
    assert f"2 images are in both {names[0]} and {names[1]} (of 4 there), for example im3: scores" in line


def test_copies_under_other_names_are_common_images(tmp_path):
    root = make(tmp_path)
    shutil.copy(root / "JPEGImages/im1.jpg", root / "JPEGImages/im5.jpg")
    line = only(findings(root), stops=False)
    assert "1 image is in both train and val (of 2 there), for example im5 (im1 in train)" in line


def test_all_of_val_in_train_stops_unless_they_are_one_split(tmp_path):
    root = make(tmp_path)
    write_list(root, "trainval", range(6))
    line = only(findings(root, "trainval", "val"), stops=True)
    assert "all images of val are in trainval, too, for example im4" in line and "--val-split trainval" in line
    line = only(findings(root, "trainval", "trainval"), stops=False)
    assert "trainval is trained on and scored on" in line


# --- one voice


def faulty_sets(root: Path) -> dict[str, Path]:
    """A data set of each kind that stops."""

    def torn(number):
        return coloured(labels(0, 1), [ROAD, CAR] if number % 2 else [CAR, ROAD])

    sets = {
        "black and white": make(root / "bw", masks=lambda number: labels(0, 255)),
        "one class": make(root / "one", masks=lambda number: labels(0)),
        "list of one": make(root / "list", ["crack"], lambda number: labels(0)),
        "void": make(root / "void", masks=lambda number: labels(0, 1) if number < 4 else labels(VOID)),
        "palettes": make(root / "palettes", masks=torn),
        "out of range": make(root / "range", masks=lambda number: labels(0, 1, 2)),
        "in common": make(root / "common"),
    }
    write_list(sets["in common"], "val", [1, 2])
    return sets


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(zoo.MODELS, "tiny", zoo.ModelSpec(TinyModel, None, "random"))


def train_args(root: Path, out: Path, *more: str):
    more = ("--dataset", "folder", "--student", "tiny", "--batch-size", "2", "--epochs", "1", *more)
    return arguments(root, out, *more)


@pytest.mark.parametrize(
    "name", ["black and white", "one class", "list of one", "void", "palettes", "out of range", "in common"]
)
def test_check_dry_run_and_training_say_the_same_line_and_stop(tmp_path, name, tiny, capsys):
    root = faulty_sets(tmp_path)[name]
    wanted = next(finding.line for finding in findings(root) if finding.stops)
    first = wanted.partition("; and 5 more")[0]  # --check lists what the others count
    assert dataset_script.main(dataset_script.get_args_parser().parse_args(check_args(root))) == 1
    assert any(line.startswith(f"fault: {first}") for line in capsys.readouterr().out.splitlines())
    assert main(train_args(root, tmp_path / "out", "--dry-run")) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"WRONG  data       {wanted}" in lines
    with pytest.raises(UserError) as caught:
        main(train_args(root, tmp_path / "out"))
    assert str(caught.value).startswith(first)
    assert not (tmp_path / "out").exists()  # before the first step, and before anything is made


def check_args(root: Path) -> list[str]:
    return ["--dataset", "folder", "--data-dir", str(root), "--check"]


def test_check_dry_run_and_training_make_the_same_remark_and_go_on(tmp_path, tiny, capsys):
    root = make(tmp_path / "d", ("a", "b", "c"))
    line = only(findings(root), stops=False)
    shutil.rmtree(root / ".census")
    assert dataset_script.main(dataset_script.get_args_parser().parse_args(check_args(root))) == 0
    printed = capsys.readouterr().out
    assert f"remark: {line}\n" in printed and "no faults" in printed
    assert f"--dataset folder --data-dir {root} --stats" in printed  # nobody had looked before
    assert main(train_args(root, tmp_path / "out", "--dry-run")) == 0
    assert f"remark data       {line}\n" in capsys.readouterr().out
    assert main(train_args(root, tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert f"remark: {line}\n" in printed and "--stats" not in printed


def test_the_first_training_points_to_the_sheet(tmp_path, tiny, capsys):
    root = make(tmp_path / "my data")
    for name, expected in (("one", True), ("two", False)):
        assert main(train_args(root, tmp_path / "out", "--name", name)) == 0
        pointed = f"python dataset.py --dataset folder --data-dir '{root}' --stats" in capsys.readouterr().out
        assert pointed is expected


def test_the_command_that_draws_the_sheet_is_for_the_same_data(tmp_path):
    given = ["--dataset", "folder", "--data-dir", "a b", "--classes", "few.txt", "--val-share", "0.3"]
    parse = dataset_script.get_args_parser().parse_args
    assert shlex.join(["dataset.py", *given, "--train-split", "x", "--stats"]) in invitation(
        parse([*given, "--train-split", "x"])
    )
    for words in (given, given[:4], [*given[:4], "--val-split", "test"]):
        command = shlex.split(invitation(parse(words)).partition("python dataset.py ")[2])
        assert parse(command) == parse([*words, "--stats"])


def test_a_decoded_cache_is_not_made_of_senseless_data(tmp_path, tiny):
    root = make(tmp_path / "d", masks=lambda number: labels(0, 255))
    with pytest.raises(UserError, match="0 and 255"):
        main(train_args(root, tmp_path / "out", "--decode-cache", str(tmp_path / "decoded")))
    assert not (tmp_path / "decoded").exists()


def test_check_of_a_set_without_val_says_what_splits_there_are(tmp_path, capsys):
    root = make(tmp_path)
    (root / "ImageSets/Segmentation/val.txt").unlink()
    write_list(root, "holdout", [4])
    report = check_layout(find_layout("folder", root))
    assert report.faults == []
    assert report.remarks == [f"{root}: no split 'val' (there: train, holdout); name another with --val-split"]
    assert check_layout(find_layout("folder", root), val="holdout").remarks == []


def test_check_names_what_other_splits_have_in_common(tmp_path):
    root = make(tmp_path)
    write_list(root, "train_aug", [0, 1, 4])
    write_list(root, "trainval", range(6))  # by its name the union
    (remark,) = check_layout(find_layout("folder", root)).remarks
    assert "train_aug and val (1, for example im4)" in remark and "trainval" not in remark


def test_check_believes_no_census(tmp_path):
    """A file that changed without another size or time."""
    root = make(tmp_path)
    assert findings(root) == []
    path = root / "SegmentationClass/im0.png"
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-20] ^= 0xFF
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert findings(root) == []
    assert any("im0.png" in fault for fault in check_layout(find_layout("folder", root)).faults)


# --- the rules by themselves


def counted(name: str, *masks: dict[int, int] | None) -> SplitCensus:
    """A split of these masks, label -> pixels."""
    ids = [f"{name}{number}" for number in range(len(masks))]
    files = SplitFiles(ids, [Path(f"{each}.jpg") for each in ids], [Path(f"{each}.png") for each in ids])
    records = [
        None if mask is None else MaskRecord(1, 1, 10, 10, sorted(mask), [mask[label] for label in sorted(mask)], "")
        for mask in masks
    ]
    return SplitCensus(name, files, [PictureRecord(1, 1, 10, 10, 1, "RGB", 3, False)] * len(ids), records)


def layout_of(*names: str) -> Layout:
    return Layout("folder", Path("root"), list(names), [(0, 0, 0)] * len(names), {}, {})


@pytest.mark.parametrize("num_classes", [2, 3, 20])
def test_any_mixture_of_two_classes_or_more_goes_on(num_classes):
    """Over all sets of present classes: one alone stops, more do not, and just the absent ones are named."""
    names = [f"<{label}>" for label in range(num_classes)]
    rng = torch.Generator().manual_seed(0)
    for _ in range(60):
        present = torch.rand(num_classes, generator=rng) < torch.rand(1, generator=rng)
        if not present.any():
            continue
        held = present.nonzero().flatten().tolist()
        train = counted("train", *({label: 5, VOID: 1} for label in held))
        found = judge(layout_of(*names), {"train": train}, "train", "val", {})
        assert [finding.stops for finding in found if finding.stops] == [True] * (len(held) == 1)
        if 1 < len(held) < num_classes:
            absent = [name for name, there in zip(names, present.tolist(), strict=True) if not there]
            (line,) = [finding.line for finding in found]
            assert f"{len(absent)} of the {num_classes} classes" in line
            assert all((name in line) == (name in absent[:8]) for name in names)


def test_splits_that_are_not_there_are_not_judged():
    layout = layout_of("a", "b")
    assert judge(layout, {}, "train", "val", {}) == []
    assert judge(layout, {"other": counted("other", {0: 1})}, "train", "val", {}) == []
    assert judge(layout, {"val": counted("val", {0: 1, 1: 1})}, None, "val", {}) == []


def test_what_the_layout_remarks_is_passed_on():
    layout = layout_of("a", "b")
    layout.remarks = ["labelmap.txt is not used"]
    assert judge(layout, {}, "train", "val", {}) == [Finding("labelmap.txt is not used")]


def test_ten_thousand_masks_are_judged_in_no_time():
    train = counted("train", *({0: 50, number % 20 + 1: 50} for number in range(10_000)))
    start = time.process_time()
    assert judge(layout_of(*map(str, range(21))), {"train": train}, "train", None, {}) == []
    assert time.process_time() - start < 2
