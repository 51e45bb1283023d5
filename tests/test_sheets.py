"""The contact sheet: which images it shows, and that it marks the pixels of the class and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from basics.batch import VOID
from datachecks import sheets
from datachecks.sheets import pick_examples, save_sheets
from dataset import find_layout
from segdata.drawing import ClassRow, Example, mark_class
from segdata.palettes import VOID_COLOR
from tests.test_rules import counted, labels, make


def test_the_pixels_of_a_class_are_marked_and_no_others():
    mask = np.full((9, 9), 2)
    mask[2:7, 2:7] = 1
    mask[8] = VOID
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)
    marked = mark_class(image, mask, 1, (250, 0, 100))
    assert marked.shape == (9, 9, 3) and marked.dtype == np.uint8
    assert (marked[8] == VOID_COLOR).all()
    others = marked[mask == 2]
    assert (others == others[:, :1]).all()  # grey
    assert (marked[2, 2:7] == (250, 0, 100)).all()  # the border of the region
    inside = 0.55 * image[3:6, 3:6] + 0.45 * np.array([250, 0, 100])
    assert np.abs(marked[3:6, 3:6] - inside).max() <= 0.5


def test_examples_are_spread_over_the_images_with_the_class():
    split = counted("train", *({0: 100 - covered, 1: covered} if covered else {0: 100} for covered in range(0, 60, 3)))
    chosen = pick_examples(split, 1)
    assert len(chosen) == len(set(chosen)) == 3
    covered = [3 * index for index in chosen]
    assert covered == sorted(covered, reverse=True) and 0 not in covered and covered[0] > 40 > covered[-1]
    assert pick_examples(split, 1) == chosen
    assert pick_examples(counted("a", {0: 1}, {1: 5}, None, {0: 3, 1: 9}), 1) == [3, 1]
    assert pick_examples(split, 2) == []


@pytest.fixture
def drawn(monkeypatch) -> list[list[ClassRow]]:
    """The rows of each sheet that is drawn."""
    rows: list[list[ClassRow]] = []
    contact_sheet = sheets.contact_sheet
    monkeypatch.setattr(sheets, "contact_sheet", lambda *args: (rows.append(list(args[0])), contact_sheet(*args)))
    return rows


def test_every_class_that_occurs_has_its_images(tmp_path, drawn):
    root = make(tmp_path / "d", ("a", "b $x_1$", "ç", "d"), lambda number: labels(0, 1 + number % 2, seed=number))
    layout = find_layout("folder", root)
    (path,) = save_sheets(layout, "train", tmp_path / "out")
    assert path == tmp_path / "out" / "d_train_sheet.png"
    with Image.open(path) as picture:
        assert picture.size[0] > 1000 and picture.size[1] > 500
    assert [row.label for row in drawn[0]] == [0, 1, 2]
    assert [[example.name for example in row.examples] for row in drawn[0]][1:] == [["im0", "im2"], ["im1", "im3"]]
    for row in drawn[0]:
        assert all((example.mask == row.label).any() for example in row.examples)
    assert drawn[0][1].note == "in 2 of 4 images, 25 % of the labelled pixels"


def test_large_pictures_are_made_small_with_their_masks(tmp_path, drawn):
    root = make(tmp_path / "d", train=1, val=1)
    Image.new("RGB", (1300, 20)).save(root / "JPEGImages/im0.jpg")
    Image.fromarray(np.arange(1300).astype(np.uint8)[None].repeat(20, 0) % 2).save(root / "SegmentationClass/im0.png")
    save_sheets(find_layout("folder", root), "train", tmp_path)
    example: Example = drawn[0][0].examples[0]
    assert example.image.shape == (5, 320, 3) and example.mask.shape == (5, 320)
    assert set(np.unique(example.mask)) <= {0, 1}


@pytest.mark.parametrize(("num_classes", "sheets_drawn"), [(12, 1), (13, 2), (30, 3)])
def test_many_classes_take_several_sheets(tmp_path, num_classes, sheets_drawn, drawn):
    root = make(
        tmp_path / "d", [f"c{n}" for n in range(num_classes)], lambda number: labels(*range(num_classes)), train=1
    )
    paths = save_sheets(find_layout("folder", root), "train", tmp_path)
    assert len(paths) == len(set(paths)) == sheets_drawn and all(path.exists() for path in paths)
    assert [row.label for rows in drawn for row in rows] == list(range(num_classes))


def test_a_split_without_labels_has_an_empty_sheet(tmp_path, drawn):
    root = make(tmp_path / "d", masks=lambda number: labels(VOID))
    (path,) = save_sheets(find_layout("folder", root), "train", tmp_path)
    assert drawn == [[]] and isinstance(path, Path) and path.exists()
