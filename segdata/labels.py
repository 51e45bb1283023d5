"""How masks are written: from a mask file to the labels it holds.

A way of writing is an object with `read(path)`, uint8 (H, W) with classes and 255 for void, and a `key` that changes
whenever the same file would mean something else. `Layout.labels` is the one of a data set.

    IndexLabels     the numbers in the file are the classes
    ColourLabels    a table says which colour is which class
    MergedLabels    another way of writing, its classes brought together to fewer
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from basics.batch import VOID
from segdata.palettes import Color
from segdata.reading import DataError, check_labels, load_mask, read_mask

SHOWN = 3  # colours that an error names
LISTED = 12  # colours or numbers that are named where nobody says what they mean


class Labels(Protocol):
    """A way of writing masks."""

    @property
    def key(self) -> list[list]:
        """What the labels depend on besides the files, as plain values; nothing where numbers are classes."""

    def read(self, path: Path) -> np.ndarray:
        """The labels in a mask file, uint8 (H, W); whether all of them are classes is for the layout to say.

        Raises:
            DataError: the file is no mask, or not one of this kind.
        """


@dataclass(frozen=True)
class IndexLabels:
    """The numbers in a mask, palette indices or grey values, are the classes.

    Attributes:
        reduce_zero_label: stored 0 means void and k means class k - 1 (ADE20K).
    """

    reduce_zero_label: bool = False

    @property
    def key(self) -> list[list]:
        return []

    def read(self, path: Path) -> np.ndarray:
        labels = read_mask(path)
        if self.reduce_zero_label:
            labels = labels - np.uint8(1)  # 0 - 1 wraps round to 255 in uint8: void, as a reduced zero label means
        return labels


@dataclass(frozen=True)
class ColourLabels:
    """A table says which colour is which class; palette indices mean nothing, transparency neither.

    Grey masks have colours, too: 255 is (255, 255, 255).

    Attributes:
        names: of the classes, for messages.
        colours: of the classes, in their order.
        void: colours that mean void.
        others_are_void: any colour that is not in the table means void, instead of being an error.
        source: the file that the table stands in.
    """

    names: tuple[str, ...]
    colours: tuple[Color, ...]
    void: tuple[Color, ...]
    others_are_void: bool
    source: Path

    @property
    def key(self) -> list[list]:
        return [["colours", *map(list, self.colours)], ["void", self.others_are_void, *map(list, self.void)]]

    @property
    def unknown(self) -> int:
        """What a colour that is not in the table becomes: the first number that is no class, or void."""
        return VOID if self.others_are_void else len(self.colours)

    def read(self, path: Path) -> np.ndarray:
        image = load_mask(path)
        table = _colour_table(self.colours, self.void, self.unknown)
        if image.mode in ("P", "L", "1"):  # 256 colours at most: look these up, and take the pixels' from there
            indices = np.asarray(image.convert("L") if image.mode == "1" else image)
            labels_of = np.full(256, self.unknown, np.uint8)
            for index, colour in _colours_of(image).items():
                labels_of[index] = table[colour]
            labels = labels_of[indices]
        else:
            labels = np.take(table, _packed(image))
        if not self.others_are_void and (labels == self.unknown).any():
            raise DataError(f"{path}: {self._unknown_colours(image, labels == self.unknown)}")
        return labels

    def _unknown_colours(self, image: Image.Image, where: np.ndarray) -> str:
        """What is wrong with a mask that has colours which are not in the table at the pixels ``where`` (H, W)."""
        packed, counts = np.unique(_packed(image)[where], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        shown = []
        for index in order[:SHOWN]:
            colour = (int(packed[index]) >> 16, int(packed[index]) >> 8 & 255, int(packed[index]) & 255)
            distances = ((np.array(self.colours) - colour) ** 2).sum(1)
            nearest = int(distances.argmin())
            shown.append(f"{colour} {counts[index]:,} times, nearest is {self.names[nearest]} {self.colours[nearest]}")
        more = f"; and {len(packed) - SHOWN:,} more colours" * (len(packed) > SHOWN)
        remedy = "add them there, or a line `void *` to make all other colours void"
        if image.mode in ("L", "1") and np.asarray(image).max() < len(self.names):
            remedy = "if the mask's numbers are classes, take the colours out of it"
        return (
            f"{where.sum():,} pixels have colours that {self.source.name} does not name: {'; '.join(shown)}{more}: "
            f"{remedy} ({self.source})"
        )


@dataclass(frozen=True)
class MergedLabels:
    """Another way of writing, its classes brought together to fewer or put in another order.

    Attributes:
        merged: for each class that is read the class it belongs to, or 255.
    """

    stored: Labels
    merged: tuple[int, ...]

    @property
    def key(self) -> list[list]:
        return [*self.stored.key, ["merged", *self.merged]]

    def read(self, path: Path) -> np.ndarray:
        labels = self.stored.read(path)
        check_labels(labels, len(self.merged), path)
        table = np.full(256, VOID, np.uint8)
        table[: len(self.merged)] = self.merged
        return table[labels]


@functools.lru_cache(maxsize=2)
def _colour_table(colours: tuple[Color, ...], void: tuple[Color, ...], unknown: int) -> np.ndarray:
    """uint8 (2^24,): the label of each packed colour. 16 MB, and three times as fast as any search."""
    table = np.full(1 << 24, unknown, np.uint8)
    for label, (red, green, blue) in [*enumerate(colours), *((VOID, colour) for colour in void)]:
        table[red << 16 | green << 8 | blue] = label
    return table


def _packed(image: Image.Image) -> np.ndarray:
    """uint32 (H, W): red, green and blue of each pixel in one number."""
    rgb = np.asarray(image.convert("RGB"))
    packed = rgb[..., 0].astype(np.uint32)
    for channel in (1, 2):
        packed <<= 8
        packed |= rgb[..., channel]
    return packed


def _colours_of(image: Image.Image) -> dict[int, int]:
    """The packed colour of each number that a grey or palette image may hold."""
    if image.mode != "P":
        return {value: value << 16 | value << 8 | value for value in range(256)}
    entries = np.array(image.getpalette("RGB") or [], np.uint32).reshape(-1, 3)
    return dict(enumerate((entries[:, 0] << 16 | entries[:, 1] << 8 | entries[:, 2]).tolist()))


def describe_content(paths: Sequence[Path]) -> str:
    """What the masks ``paths`` hold, in words, for somebody who has yet to name it; nothing if none can be read."""
    numbers: set[int] = set()
    colours: set[Color] = set()
    for path in paths:
        try:
            image = load_mask(path)
            if image.mode in ("P", "L", "1"):
                numbers |= set(np.unique(np.array(image, np.uint8)).tolist())
            else:
                rgb = np.unique(_packed(image))
                colours |= {(int(value) >> 16, int(value) >> 8 & 255, int(value) & 255) for value in rgb[: LISTED + 1]}
        except DataError:
            continue
    if colours:
        shown = [" ".join(map(str, colour)) for colour in sorted(colours)]
        what = "colours"
    else:
        shown, what = [str(number) for number in sorted(numbers)], "numbers"
    if not shown:
        return ""
    return f"the first masks hold the {what} {', '.join(shown[:LISTED])}{', ...' * (len(shown) > LISTED)}"
