"""Masks as pictures: class colours, overlays, and sheets of panels side by side."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextPath

from basics.batch import VOID
from basics.fonts import fonts_for
from segdata.borders import find_borders
from segdata.palettes import VOID_COLOR, colour_table

Palette = Sequence[Sequence[int]]
LegendEntry = tuple[str, tuple[float, ...]]


def colorize(mask: np.ndarray, palette: Palette) -> np.ndarray:
    """Class indices -> colours: ``mask`` (H, W) integers, 255 = void -> uint8 (H, W, 3) RGB."""
    return colour_table(palette)[np.asarray(mask).astype(np.uint8)]


def overlay(
    image: np.ndarray,
    mask: np.ndarray,
    palette: Palette,
    opacity: float = 0.55,
    clear: Sequence[int] = (),
) -> np.ndarray:
    """Lay the class colours over a picture, with a solid line along the borders of the regions.

    Args:
        image: uint8 (H, W, 3) RGB.
        mask: (H, W) integers; where it is 255 or one of ``clear`` the picture stays as it is.
        palette: colour of each class.
        opacity: 0 shows the picture alone, 1 the colours alone.
        clear: classes that are not painted, the background for one.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    mask = np.asarray(mask)
    colors = colorize(mask, palette)
    mixed = np.rint((1 - opacity) * image + opacity * colors).astype(np.uint8)
    mixed = np.where(find_borders(mask)[..., None], colors, mixed)
    painted = ~np.isin(mask, [VOID, *clear])
    return np.where(painted[..., None], mixed, image)


def background_classes(class_names: Sequence[str]) -> tuple[int, ...]:
    """Indices of the classes that an overlay leaves clear: those named "background"."""
    return tuple(index for index, name in enumerate(class_names) if name.lower() == "background")


@dataclass(frozen=True)
class PanelRow:
    """One image with its masks, side by side on a sheet.

    Attributes:
        name: written above the image.
        image: uint8 (H, W, 3) RGB.
        masks: one (H, W) a further column; None leaves a cell empty (no ground truth).
        notes: what to write above each mask, beside the column's own title.
    """

    name: str
    image: np.ndarray
    masks: Sequence[np.ndarray | None]
    notes: Sequence[str] = field(default=())


# Sizes of a sheet, in inches; a cell is COLUMN wide at most and ROW high at most.
COLUMN, ROW, GAP, MARGIN = 2.9, 2.9, 0.12, 0.15
HEADER, CAPTION, LEGEND_LINE = 0.30, 0.24, 0.21
SWATCH_WIDTH, SWATCH_HEIGHT, SWATCH_GAP, ENTRY_GAP = 0.18, 0.11, 0.07, 0.2
SMALL = 9  # points
DPI = 120


def panel(
    rows: Sequence[PanelRow],
    columns: Sequence[str],
    class_names: Sequence[str],
    palette: Palette,
    path: str | Path,
) -> None:
    """Write a sheet: a row an image, ``columns`` titles (the image's first), a legend of the classes present.

    Rows take the height their images need, so that wide, tall and square images share a sheet without
    distortion and without empty bands.
    """
    legend = _legend_entries(rows, class_names, palette)
    texts = [*columns, *(text for row in rows for text in (row.name, *row.notes)), *(name for name, _ in legend)]
    with fonts_for(texts):
        _draw_panel(rows, columns, legend, palette).savefig(path, dpi=DPI)


def _draw_panel(
    rows: Sequence[PanelRow], columns: Sequence[str], legend: Sequence[LegendEntry], palette: Palette
) -> Figure:
    heights = [_cell_size(row.image.shape)[1] for row in rows]
    width = 2 * MARGIN + len(columns) * COLUMN + (len(columns) - 1) * GAP
    lines = _legend_lines(legend, width - 2 * MARGIN)
    height = 2 * MARGIN + HEADER + sum(heights) + len(rows) * (CAPTION + GAP) + GAP + len(lines) * LEGEND_LINE

    figure = Figure(figsize=(width, height), facecolor="white")
    top = height - MARGIN
    for index, title in enumerate(columns):
        x = MARGIN + index * (COLUMN + GAP) + COLUMN / 2
        _text(figure, x, top - HEADER / 2, _shorten(title, 28), size=11, weight="bold")
    top -= HEADER
    for row, row_height in zip(rows, heights, strict=True):
        _draw_row(figure, row, top, row_height, palette)
        top -= CAPTION + row_height + GAP
    for line in lines:
        top -= LEGEND_LINE
        _draw_legend_line(figure, line, top)
    return figure


def _draw_row(figure: Figure, row: PanelRow, top: float, height: float, palette: Palette) -> None:
    """Draw one image and its masks with their captions; ``top`` and ``height`` in inches."""
    pictures = [row.image, *(None if mask is None else colorize(mask, palette) for mask in row.masks)]
    captions = [row.name, *row.notes, *[""] * (len(row.masks) - len(row.notes))]
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = MARGIN + index * (COLUMN + GAP)
        _text(figure, left + COLUMN / 2, top - CAPTION / 2, _shorten(caption, 38), size=SMALL, color="#444444")
        if picture is None:
            _text(figure, left + COLUMN / 2, top - CAPTION - height / 2, "none", size=SMALL, color="#999999")
            continue
        cell_width, cell_height = _cell_size(picture.shape)
        axes = _axes(figure, left + (COLUMN - cell_width) / 2, top - CAPTION - cell_height, cell_width, cell_height)
        # A mask must not be smoothed into colours that stand for other classes.
        axes.imshow(picture, interpolation="antialiased" if index == 0 else "nearest", aspect="auto")


def _cell_size(shape: Sequence[int], column: float = COLUMN, row: float = ROW) -> tuple[float, float]:
    """Width and height in inches of an image (H, W, ...) that fits a cell without distortion."""
    height, width = shape[:2]
    scale = min(column / width, row / height)
    return width * scale, height * scale


def _axes(figure: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    total_width, total_height = figure.get_size_inches()
    axes = figure.add_axes((left / total_width, bottom / total_height, width / total_width, height / total_height))
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():  # a hairline, so that white regions end somewhere
        spine.set(linewidth=0.4, edgecolor="#aaaaaa")
    return axes


def _text(figure: Figure, x: float, y: float, text: str, **style: Any) -> None:
    width, height = figure.get_size_inches()
    # parse_math: an underscore or a dollar sign in a file's name is no formula.
    style = {"ha": "center", "va": "center_baseline"} | style
    text = text.encode("utf-8", "backslashreplace").decode()  # names that are no UTF-8 have surrogates
    figure.text(x / width, y / height, text, parse_math=False, **style)


def _shorten(text: str, length: int) -> str:
    """Cut the middle out of a long text: of paths and ids the ends tell most."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def _legend_entries(rows: Sequence[PanelRow], class_names: Sequence[str], palette: Palette) -> list[LegendEntry]:
    """Name and colour (0..1) of each class on the sheet, in class order, void last."""
    present = {int(label) for row in rows for mask in row.masks if mask is not None for label in np.unique(mask)}
    entries = [(class_names[label], palette[label]) for label in sorted(present - {VOID})]
    if VOID in present:
        entries.append(("void", VOID_COLOR))
    return [(_shorten(name, 38), tuple(channel / 255 for channel in color)) for name, color in entries]


def _legend_lines(entries: Sequence[LegendEntry], width: float) -> list[list[LegendEntry]]:
    """Break the legend into as few lines as ``width`` inches allow, all about equally long."""
    total = sum(_entry_width(name) for name, _ in entries)
    target = total / max(1, math.ceil(total / width))
    lines: list[list[LegendEntry]] = []
    used = math.inf
    for entry in entries:
        extra = _entry_width(entry[0])
        # Half an entry may stand over on the balanced length, nothing on the sheet's.
        if used + extra / 2 > target or used + extra > width:
            lines.append([])
            used = 0.0
        lines[-1].append(entry)
        used += extra
    return lines


def _draw_legend_line(figure: Figure, line: Sequence[LegendEntry], bottom: float) -> None:
    """Draw swatches and names, centred, with their lower edge ``bottom`` inches up the sheet."""
    total_width, _ = figure.get_size_inches()
    left = (total_width - sum(_entry_width(name) for name, _ in line) + ENTRY_GAP) / 2
    for name, color in line:
        _swatch(figure, left, bottom + (LEGEND_LINE - SWATCH_HEIGHT) / 2, color)
        x = left + SWATCH_WIDTH + SWATCH_GAP
        _text(figure, x, bottom + LEGEND_LINE / 2, name, size=SMALL, ha="left")
        left += _entry_width(name)


def _swatch(figure: Figure, left: float, bottom: float, color: tuple[float, ...]) -> None:
    """Draw a small rectangle of a colour (0..1) with its lower left corner there, in inches."""
    width, height = figure.get_size_inches()
    figure.add_artist(
        Rectangle(
            (left / width, bottom / height),
            SWATCH_WIDTH / width,
            SWATCH_HEIGHT / height,
            facecolor=color,
            edgecolor="#888888",
            linewidth=0.6,
        )
    )


@functools.lru_cache(maxsize=1024)
def _entry_width(name: str) -> float:
    """Inches that a legend entry takes, the gap to the next one included."""
    path = TextPath((0, 0), name.replace("$", "S"), size=SMALL)  # a dollar sign would start a formula
    return SWATCH_WIDTH + SWATCH_GAP + path.get_extents().width / 72 + ENTRY_GAP


# -- the contact sheet -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Example:
    """An image in which a class occurs.

    Attributes:
        name: written above it.
        image: uint8 (H, W, 3) RGB.
        mask: (H, W) integers.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class ClassRow:
    """A class on a contact sheet: its number, what to write beside its name, and images in which it occurs."""

    label: int
    note: str
    examples: Sequence[Example]


TILE = 1.9  # inches; the side of the square into which a picture of a contact sheet is fitted
TINT = 0.45  # how much of the class's colour lies on its pixels
WASHED_OUT, PAPER = 0.35, 235  # how much is left of all other pixels, and the grey that they fade into


def mark_class(image: np.ndarray, mask: np.ndarray, label: int, color: Sequence[int]) -> np.ndarray:
    """The pixels of a class in its colour, with a border around them; all else in pale grey, void in cream.

    Args:
        image: uint8 (H, W, 3) RGB.
        mask: (H, W) integers.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    grey = image.mean(2, keepdims=True).repeat(3, axis=2)
    marked = WASHED_OUT * grey + (1 - WASHED_OUT) * PAPER
    marked = np.where((mask == VOID)[..., None], VOID_COLOR, marked)
    region = mask == label
    marked = np.where(region[..., None], (1 - TINT) * image + TINT * np.asarray(color), marked)
    border = find_borders(region.astype(np.uint8)) & region
    return np.where(border[..., None], color, marked).round().astype(np.uint8)


def contact_sheet(
    rows: Sequence[ClassRow], title: str, notes: Sequence[str], class_names: Sequence[str], palette: Palette, path: Path
) -> None:
    """Write a sheet: a row a class, each of its examples as it is and with the pixels of the class marked.

    ``notes`` are lines below the title; those too long for the sheet lose their middle.
    """
    names = [example.name for row in rows for example in row.examples]
    with fonts_for([title, *notes, *class_names, *names, *(row.note for row in rows)]):
        _draw_contact_sheet(rows, title, notes, class_names, palette).savefig(path, dpi=DPI)


def _draw_contact_sheet(
    rows: Sequence[ClassRow], title: str, notes: Sequence[str], class_names: Sequence[str], palette: Palette
) -> Figure:
    columns = max((len(row.examples) for row in rows), default=1)
    width = 2 * MARGIN + columns * (2 * TILE + GAP) + (columns - 1) * 2 * GAP
    heights = [max(_tile_size(example.image)[1] for example in row.examples) for row in rows]
    head = HEADER + LEGEND_LINE * len(notes)
    height = 2 * MARGIN + head + sum(heights) + len(rows) * (HEADER + CAPTION + 2 * GAP)
    figure = Figure(figsize=(width, height), facecolor="white")
    top = height - MARGIN - HEADER
    _text(figure, MARGIN, top + HEADER / 2, _shorten(title, int(10 * width)), size=11, ha="left")
    for note in notes:
        top -= LEGEND_LINE
        note = _shorten(note, int(14 * width))
        _text(figure, MARGIN, top + LEGEND_LINE / 2, note, size=SMALL, ha="left", color="#444444")
    for row, row_height in zip(rows, heights, strict=True):
        top -= GAP + HEADER
        color = tuple(channel / 255 for channel in palette[row.label])
        _swatch(figure, MARGIN, top + (HEADER - SWATCH_HEIGHT) / 2, color)
        heading = _shorten(f"{row.label} {class_names[row.label]}: {row.note}", int(11 * width))
        _text(figure, MARGIN + SWATCH_WIDTH + SWATCH_GAP, top + HEADER / 2, heading, size=10, ha="left")
        left = MARGIN
        for example in row.examples:
            _text(figure, left + TILE, top - CAPTION / 2, _shorten(example.name, 44), size=8, color="#444444")
            for picture in (example.image, mark_class(example.image, example.mask, row.label, palette[row.label])):
                tile_width, tile_height = _tile_size(picture)
                place = left + (TILE - tile_width) / 2
                axes = _axes(figure, place, top - CAPTION - tile_height, tile_width, tile_height)
                axes.imshow(picture, interpolation="antialiased", aspect="auto")
                left += TILE + GAP
            left += GAP
        top -= CAPTION + row_height + GAP
    return figure


def _tile_size(picture: np.ndarray) -> tuple[float, float]:
    return _cell_size(picture.shape, TILE, TILE)
