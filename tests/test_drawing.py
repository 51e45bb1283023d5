"""Colours where they belong, sheets that hold every shape of image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from segdata.drawing import (
    VOID_COLOR,
    PanelRow,
    _entry_width,
    _legend_entries,
    _legend_lines,
    background_classes,
    colorize,
    overlay,
    panel,
)

PALETTE = [(0, 0, 0), (200, 0, 0), (0, 100, 50)]
NAMES = ["background", "cat", "dog"]


def test_colorize_by_hand():
    colors = colorize(np.array([[0, 1], [2, 255]]), PALETTE)
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[0, 0, 0], [200, 0, 0]], [[0, 100, 50], list(VOID_COLOR)]]


def test_colorize_takes_any_integers():
    mask = np.array([[0, 255, 2]])
    for kind in (np.uint8, np.int32, np.int64):
        assert (colorize(mask.astype(kind), PALETTE) == colorize(mask, PALETTE)).all()


def test_overlay_mixes_and_leaves_clear_and_void_alone():
    image = np.full((4, 9, 3), 100, np.uint8)
    mask = np.zeros((4, 9), np.int64)
    mask[:, 3:6], mask[:, 6:] = 1, 255
    painted = overlay(image, mask, PALETTE, opacity=0.25, clear=(0,))
    assert (painted[:, :3] == 100).all(), "background is clear"
    assert (painted[:, 6:] == 100).all(), "void is not painted"
    assert (painted[:, 4] == [125, 75, 75]).all(), "100 * 0.75 + (200, 0, 0) * 0.25"
    assert (painted[:, 3] == PALETTE[1]).all() and (painted[:, 5] == PALETTE[1]).all(), "the border is solid"
    assert (image == 100).all(), "the picture itself is not touched"
    assert (overlay(image, mask, PALETTE, opacity=0.25)[:, 1] == 75).all(), "painted black unless it is clear"


def test_overlay_extremes():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    mask = np.ones((8, 8), np.uint8)
    assert (overlay(image, mask, PALETTE, opacity=0) == image).all()
    assert (overlay(image, mask, PALETTE, opacity=1) == colorize(mask, PALETTE)).all()


def test_background_classes():
    assert background_classes(NAMES) == (0,)
    assert background_classes(["sky", "Background", "road"]) == (1,)
    assert background_classes(["sky", "road"]) == ()


def make_row(height: int, width: int, labels=(0, 1), columns: int = 2, name: str = "some_$image_1$") -> PanelRow:
    image = np.full((height, width, 3), 180, np.uint8)
    mask = np.full((height, width), labels[0])
    mask[height // 2 :] = labels[1]
    return PanelRow(name, image, [mask] * columns, [""] + ["mIoU 51.0 %"] * (columns - 1))


def test_legend_names_what_is_there_in_class_order_and_void_last():
    rows = [make_row(40, 60, labels=(255, 2)), make_row(40, 60, labels=(0, 2))]
    assert [name for name, _ in _legend_entries(rows, NAMES, PALETTE)] == ["background", "dog", "void"]
    no_truth = PanelRow("x", rows[0].image, [None])
    assert _legend_entries([no_truth], NAMES, PALETTE) == []


@pytest.mark.parametrize("width", [6.0, 9.0, 30.0])
def test_legend_lines_fit_the_sheet_and_keep_the_order(width):
    entries = [("x" * (1 + 7 * number % 23), (0.0, 0.0, 0.0)) for number in range(40)]
    lines = _legend_lines(entries, width)
    assert [entry for line in lines for entry in line] == entries
    lengths = [sum(_entry_width(name) for name, _ in line) for line in lines]
    assert max(lengths) <= width
    assert len(lines) <= 1.3 * sum(lengths) / width + 1, "no more lines than it takes"
    assert _legend_lines([], width) == []


@pytest.mark.parametrize(
    "sizes",
    [[(60, 90)], [(90, 60), (60, 90), (60, 60)], [(33, 400), (400, 33)]],
    ids=["one", "mixed", "extreme"],
)
def test_panel_is_as_high_as_its_rows_and_shows_the_colours(tmp_path, sizes):
    rows = [make_row(*size) for size in sizes]
    panel(rows, ["Input", "Ground truth", "student"], NAMES, PALETTE, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as file:
        sheet = np.array(file.convert("RGB"))
    assert (sheet[0] == 255).all() and (sheet[:, 0] == 255).all(), "a white margin"
    shades, counts = np.unique(sheet.reshape(-1, 3), axis=0, return_counts=True)
    areas = {tuple(shade): count for shade, count in zip(shades.tolist(), counts, strict=True)}
    # Both classes fill half of two of the three columns, the plain picture all of the first.
    assert areas[(180, 180, 180)] == pytest.approx(areas[(200, 0, 0)], rel=0.1)
    single = tmp_path / "single.png"
    heights = []
    for row in rows:
        panel([row], ["Input", "Ground truth", "student"], NAMES, PALETTE, single)
        heights.append(Image.open(single).height)
    assert sheet.shape[0] < sum(heights) + 1, "rows only add up"
    assert sheet.shape[1] == Image.open(single).width


def test_panel_with_many_long_class_names_and_an_empty_cell(tmp_path):
    names = [f"a class with a long name {number}" for number in range(30)]
    palette = [(number * 8, 0, 255 - number * 8) for number in range(30)]
    mask = np.arange(30).repeat(40).reshape(30, 40)
    row = PanelRow("x" * 200, np.zeros((30, 40, 3), np.uint8), [None, mask])
    panel([row], ["Input", "Ground truth", "y" * 200], names, palette, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.width < 1200 and image.height < 1200
