"""Outlines, circles and run lengths of annotations -> the pixels that they cover.

Coordinates are in pixels from the picture's upper left corner: the centre of its first pixel is (0.5, 0.5). A pixel
belongs to a shape if its centre lies inside, so that shapes which share an edge share no pixel and leave none out.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

FARTHEST = 1e7  # a coordinate beyond it is no place in any picture


@dataclass(frozen=True)
class Region:
    """Pixels of a picture: ``inside`` (h, w) bool, its first pixel at row ``top`` and column ``left``."""

    top: int
    left: int
    inside: np.ndarray

    @property
    def area(self) -> int:
        return int(np.count_nonzero(self.inside))


class Shape(Protocol):
    """What an annotation draws."""

    def bounds(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) in pixels."""

    def draw(self, height: int, width: int) -> Region:
        """The pixels of a picture of this size that it covers; `ValueError` where it does not fit one."""


@dataclass(frozen=True)
class Polygons:
    """The union of polygons, each (n, 2) float64 x, y; one that crosses itself is filled by the even-odd rule."""

    parts: Sequence[np.ndarray]

    def bounds(self) -> tuple[float, float, float, float]:
        points = np.concatenate(list(self.parts))
        (x0, y0), (x1, y1) = points.min(0), points.max(0)
        return float(x0), float(y0), float(x1), float(y1)

    def draw(self, height: int, width: int) -> Region:
        top, left, rows, columns = _window(self.bounds(), height, width)
        inside = np.zeros((rows, columns), bool)
        for part in self.parts:
            inside |= fill_polygon(part - (left, top), rows, columns)
        return Region(top, left, inside)


@dataclass(frozen=True)
class Circle:
    """Centre and radius in pixels."""

    x: float
    y: float
    radius: float

    def bounds(self) -> tuple[float, float, float, float]:
        return self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius

    def draw(self, height: int, width: int) -> Region:
        top, left, rows, columns = _window(self.bounds(), height, width)
        dy = np.arange(top, top + rows)[:, None] + 0.5 - self.y
        dx = np.arange(left, left + columns) + 0.5 - self.x
        return Region(top, left, dx**2 + dy**2 < self.radius**2)


@dataclass(frozen=True)
class Runs:
    """COCO's run lengths: columns one after the other, outside first; a list of counts, or its compressed string."""

    counts: Sequence[int] | str
    height: int
    width: int

    def bounds(self) -> tuple[float, float, float, float]:
        return 0, 0, self.width, self.height

    def draw(self, height: int, width: int) -> Region:
        if (self.height, self.width) != (height, width):
            raise ValueError("has run lengths for a picture of another size")
        counts = decode_counts(self.counts) if isinstance(self.counts, str) else self.counts
        try:
            lengths = np.asarray(counts, np.int64)
        except OverflowError:
            lengths = np.array([-1])
        if lengths.ndim != 1 or (lengths < 0).any() or sum(lengths.tolist()) != height * width:
            raise ValueError("has run lengths that do not add up to the picture's pixels")
        values = np.arange(len(lengths)) % 2 == 1
        return _trimmed(np.repeat(values, lengths).reshape(width, height).T)


@dataclass(frozen=True)
class Bitmap:
    """A small picture (PNG bytes) whose pixels that are not 0 are covered, its first one at column x, row y."""

    png: bytes
    x: int
    y: int
    width: int
    height: int

    def bounds(self) -> tuple[float, float, float, float]:
        return self.x, self.y, self.x + self.width, self.y + self.height

    def draw(self, height: int, width: int) -> Region:
        try:
            with Image.open(io.BytesIO(self.png)) as image:
                if image.size != (self.width, self.height):
                    raise ValueError("has a mask of another size than its two points say")
                inside = np.asarray(image.convert("L")) != 0
        except (OSError, SyntaxError, EOFError, Image.DecompressionBombError):
            raise ValueError("has a mask that is no picture") from None
        top, left, rows, columns = _window(self.bounds(), height, width)
        return Region(top, left, inside[top - self.y :, left - self.x :][:rows, :columns])


def fill_polygon(points: np.ndarray, height: int, width: int) -> np.ndarray:
    """The pixels whose centres lie inside a closed polygon, by the even-odd rule.

    Of a centre on an edge, that on a left or upper edge is inside.

    Args:
        points: (n, 2) float64 x, y; they may lie outside the picture.

    Returns:
        bool (height, width).
    """
    x0, y0 = points.T
    x1, y1 = np.roll(points, -1, axis=0).T
    upward = y0 > y1
    x0, x1, y0, y1 = np.where(upward, (x1, x0, y1, y0), (x0, x1, y0, y1))
    # An edge crosses the rows first..last-1, at whose centres' height it has its x.
    first, last = (np.ceil(y - 0.5).clip(0, height).astype(np.int64) for y in (y0, y1))
    crossed = last - first
    edge = np.repeat(np.arange(len(points)), crossed)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(crossed) - crossed, crossed) + first[edge]
    x = x0[edge] + (row + 0.5 - y0[edge]) * ((x1 - x0)[edge] / (y1 - y0)[edge])
    column = np.ceil(x - 0.5).clip(0, width).astype(np.int64)
    crossings = np.zeros((height, width + 1), np.uint8)
    np.bitwise_xor.at(crossings, (row, column), 1)  # odd or even
    # A pixel is inside that has an odd number of crossings to its left.
    return np.bitwise_xor.accumulate(crossings[:, :width], axis=1).view(bool)


def decode_counts(text: str) -> list[int]:
    """COCO's compressed run lengths: 5 bits a sign, least first, each count less the one before the last.

    Raises:
        ValueError: it is no such string.
    """
    counts: list[int] = []
    value = shift = 0
    for sign in text:
        bits = ord(sign) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError("has compressed run lengths that are none")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:  # more to come
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ValueError("has compressed run lengths that break off")
    return counts


def paint(
    regions: Sequence[tuple[int, Region]], height: int, width: int, ground: int, *, smaller_on_top: bool
) -> np.ndarray:
    """Lay labelled regions over each other.

    Args:
        regions: label and pixels, in the order of the annotations.
        ground: the label of what no region covers.
        smaller_on_top: by falling area; otherwise, and among equals, later ones lie on top.

    Returns:
        uint8 (height, width).
    """
    mask = np.full((height, width), ground, np.uint8)
    if smaller_on_top:
        regions = sorted(regions, key=lambda labelled: -labelled[1].area)
    for label, region in regions:
        rows, columns = region.inside.shape
        window = mask[region.top : region.top + rows, region.left : region.left + columns]
        window[region.inside] = label
    return mask


def _window(bounds: tuple[float, float, float, float], height: int, width: int) -> tuple[int, int, int, int]:
    """Row, column, rows and columns of the part of a picture that holds all that ``bounds`` holds."""
    x0, y0, x1, y1 = bounds
    left, right = (int(np.clip(x, 0, width)) for x in (np.floor(x0), np.ceil(x1)))
    top, bottom = (int(np.clip(y, 0, height)) for y in (np.floor(y0), np.ceil(y1)))
    return top, left, bottom - top, right - left


def _trimmed(inside: np.ndarray) -> Region:
    """A whole picture's pixels (H, W) without the empty rows and columns around them."""
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return Region(0, 0, np.zeros((0, 0), bool))
    top, left = int(rows[0]), int(columns[0])
    return Region(top, left, inside[top : rows[-1] + 1, left : columns[-1] + 1].copy())
