"""The pictures of a data set that a teacher labels: none that lies there is ever replaced by another."""

from __future__ import annotations

import contextlib
import filecmp
import itertools
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePath

import numpy as np

from basics.files import replacing
from segdata.pairing import IMAGE_SUFFIXES
from segdata.pictures import Picture, PictureFile
from segdata.png_rows import PngRows
from segdata.reading import DataError, read_image

ROWS = 256  # of a picture that are decoded at a time


class PictureFolder:
    """The folder ``images/``, whose pictures have masks of their names.

    Attributes:
        renamed: names, and those that were taken in their place because another picture had them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.renamed: dict[str, str] = {}
        self._there: dict[str, list[Path]] = defaultdict(list)  # by name in lower case: disks may not tell it apart
        self._owners: dict[str, PurePath] = {}  # of this run, by name in lower case
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
                self._there[path.stem.lower()].append(path)

    def name_for(self, name: PurePath, is_same: Callable[[Path], bool]) -> PurePath:
        """``a/b`` is ``a_b``; ``a_b_2`` where another picture of this run, or one that lies there, has that name.

        Args:
            is_same: whether a file that lies there is the picture itself.
        """
        joined, displaced = "_".join(name.parts), False
        for flat in itertools.chain([joined], (f"{joined}_{number}" for number in itertools.count(2))):
            there = self._there.get(flat.lower(), [])
            if self._owners.get(flat.lower(), name) != name:
                continue
            if not there or any(map(is_same, there)):
                self._owners[flat.lower()] = name
                if displaced:
                    self.renamed[joined] = flat
                return PurePath(flat)
            displaced = True
        raise AssertionError("there are always more numbers")

    def holds(self, name: PurePath) -> bool:
        """Whether the picture of that name, which `name_for` gave, lies there already."""
        return name.name.lower() in self._there

    def link(self, original: Path, name: PurePath) -> None:
        """Put a file in: by a hard link where the disk can do that, as a copy elsewhere."""
        original, path = original.resolve(), self.folder / f"{name}{original.suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(original, path)
        except OSError:
            with replacing(path) as temporary:
                shutil.copyfile(original, temporary)
        self._there[name.name.lower()].append(path)

    def write(self, name: PurePath, size: tuple[int, int], rows: Iterable[np.ndarray]) -> None:
        """Put a picture of ``size`` (H, W) in, as the network saw it: uint8 (some rows, W, 3), from top to bottom."""
        path = self.folder / f"{name}.png"
        with replacing(path) as temporary, PngRows(temporary, *size, rgb=True) as png:
            for some in rows:
                png.write(some)
        self._there[name.name.lower()].append(path)


def rows_of(picture: Picture) -> Iterator[np.ndarray]:
    """Its rows as the network sees them, uint8 (some, W, 3), from the top to the bottom."""
    for top in range(0, picture.height, ROWS):
        yield picture.read_rows(top, min(top + ROWS, picture.height))


def is_same_file(path: Path, other: Path) -> bool:
    """Whether both are one file, or copies of it."""
    return path.samefile(other) or filecmp.cmp(path, other, shallow=False)


def shows(path: Path, size: tuple[int, int], rows: Iterable[np.ndarray]) -> bool:
    """Whether the file in ``path`` is a picture of ``size`` (H, W) and these ``rows``."""
    with contextlib.suppress(DataError), PictureFile(path, any_size=True) as file:
        there, top = file.page(0), 0
        if (there.height, there.width) != size:
            return False
        for some in rows:
            if not np.array_equal(there.read_rows(top, top + len(some)), some):
                return False
            top += len(some)
        return True
    return False


def is_read_alike(path: Path) -> bool:
    """Whether a training takes the file as it is, and sees in it what a network of predict.py does.

    Of a transparent picture, which predict.py lays on a ground, a training reads the colours alone.
    """
    with contextlib.suppress(DataError), PictureFile(path, any_size=True) as file:
        read_image(path)
        return not file.is_transparent
    return False
