"""What the readers of annotation files share: records of what they read, findings, splits, lookup of pictures."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from basics.batch import VOID
from basics.files import files_below
from datalayouts.shapes import FARTHEST, Shape
from segdata.pairing import same_name
from segdata.reading import DataError

# Of the words in `segdata.split_lists` not `dev`: COCO's test-dev is a test.
SPLIT_WORDS = {
    "train": "train", "training": "train", "trn": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# Folders that say what kind of files they hold, and nothing about a picture.
KIND_FOLDERS = {
    "images", "image", "imgs", "img", "pictures", "jpegimages", "data", "labels", "label", "annotations", "annotation",
    "ann", "json", "jsons", "labelme",
}  # fmt: skip
BACKGROUND = "background"
BACKGROUND_NAMES = (BACKGROUND, "_background_", "__background__")
MOST_KINDS = 6  # of faults in one line
IGNORED = "__ignore__"  # LabelMe's word for void


@dataclass(frozen=True)
class Item:
    """One shape: what it covers is ``label``; ``name`` says in messages which one of its file it is."""

    label: int
    shape: Shape
    name: str


@dataclass
class Picture:
    """One picture and what is drawn on it.

    Attributes:
        id: its name within its split, unique there whatever the case of its letters.
        split: None where nothing says which.
        path: of the picture file.
        origin: the annotation file.
        size: (H, W) that the annotations were made for; None where they don't say.
        items: None where the picture is not annotated, which is not the same as all background.
        embedded: gives the picture file's bytes where they lie in the annotation file alone.
    """

    id: str
    split: str | None
    path: Path
    origin: Path
    size: tuple[int, int] | None
    items: list[Item] | None
    embedded: Callable[[], bytes] | None = None


@dataclass
class Annotations:
    """All that annotation files say.

    Attributes:
        keys: what each class is called there (a category's id, a label).
        smaller_on_top: how shapes overlap: by area, or (False) later ones over earlier ones.
        remarks: what was left out or is noteworthy.
    """

    class_names: list[str]
    keys: list[str]
    pictures: list[Picture]
    smaller_on_top: bool
    remarks: Findings

    @property
    def ground(self) -> int:
        """The label of what no shape covers."""
        return self.class_names.index(BACKGROUND)


@dataclass
class Findings:
    """Faults or remarks, gathered by kind: one line names the first of a kind and counts the others."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, place: str) -> None:
        self.found.setdefault(kind, []).append(place)

    def merge(self, other: Findings) -> None:
        for kind, places in other.found.items():
            self.found.setdefault(kind, []).extend(places)

    def lines(self) -> list[str]:
        """``place: kind``, with the number of others of the kind and the next few of them."""
        return [
            f"{places[0]}: {kind}"
            + f" ({len(places) - 1:,} more: {', '.join(places[1:4])}{', ...' * (len(places) > 4)})" * (len(places) > 1)
            for kind, places in self.found.items()
        ]

    def raise_any(self) -> None:
        """Raise one `DataError` that says all, if there is anything."""
        lines = self.lines()
        if lines:
            more = f"; and {len(lines) - MOST_KINDS} other kinds of faults" * (len(lines) > MOST_KINDS)
            raise DataError("; ".join(lines[:MOST_KINDS]) + more)


# LabelMe's of long ago, CVAT's and Pascal VOC's boxes: said where there is nothing else to read.
XML = (
    "annotations in .xml files are not read: export them as COCO (in CVAT 'COCO 1.0', or 'Segmentation mask 1.1' for "
    "--dataset folder)"
)


def check_folder(root: Path) -> None:
    """Raise `DataError` unless ``root`` is a folder."""
    if not root.is_dir():
        what = "is a file" if root.exists() else "no such folder"
        raise DataError(f"{root}: {what}; --data-dir must name the folder of the data set")


def read_json(path: Path) -> Any:
    """The content of a JSON file in any of Unicode's encodings.

    Raises:
        DataError: it cannot be read, or is not JSON.
    """
    try:
        content = path.read_bytes()
        if not content.strip():
            raise DataError(f"{path}: the file is empty; export the annotations again")
        return json.loads(content)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    except RecursionError:
        raise DataError(f"{path}: nested too deeply to be a file of annotations") from None
    except ValueError as error:  # of syntax, encoding, or the length of a number
        reason = str(error).split(":")[0] if isinstance(error, UnicodeError) else error
        raise DataError(f"{path}: not JSON, or cut off: {reason} (it begins with {content[:12]!r})") from None


def as_points(values: object) -> np.ndarray:
    """(n, 2) float64 x, y from a list of pairs or a flat list of numbers.

    Raises:
        ValueError: it is neither, or a number is none that a picture could hold.
    """
    try:
        points = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("has points that are not numbers") from None
    if points.ndim == 1 and len(points) % 2 == 0:
        points = points.reshape(-1, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError("has points that are not pairs of numbers")
    if not (np.abs(points) < FARTHEST).all():  # nan, too, is not below
        raise ValueError("has a coordinate that is not a finite number, or absurdly large")
    return points


def as_size(height: object, width: object) -> tuple[int, int] | None:
    """(H, W) if both are whole positive numbers, else None."""
    if not all(
        isinstance(side, int | float) and 1 <= side < FARTHEST and side == int(side) for side in (height, width)
    ):
        return None
    return int(height), int(width)  # type: ignore[call-overload]


def check_class_names(names: Sequence[str], where: Path) -> None:
    """Raise `DataError` unless a mask can tell ``names`` apart."""
    if len(names) > VOID:
        raise DataError(f"{where}: {len(names)} classes; a mask of 8 bits holds {VOID} at most")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise DataError(f"{where}: more than one class is called {doubled[0]!r}; rename or merge them")


# -- names -----------------------------------------------------------------------------------------


def split_in(text: str) -> str | None:
    """The split that a file's or folder's name speaks of (``instances_train2017``), or None."""
    words = {SPLIT_WORDS[word] for word in re.findall("[a-z]+", text.lower()) if word in SPLIT_WORDS}
    return words.pop() if len(words) == 1 else None


def split_of_folders(folders: Sequence[str]) -> str | None:
    """The split that the nearest of these nested folders speaks of, or None."""
    return next((split for folder in reversed(folders) if (split := split_in(folder))), None)


def telling_folders(folders: Sequence[str]) -> tuple[str, ...]:
    """Those of a picture's folders that are part of its name: neither a split nor a kind of files."""
    return tuple(part for part in folders if part.lower() not in KIND_FOLDERS and not split_in(part))


def settle_pictures(pictures: Sequence[Picture], root: Path, faults: Findings) -> None:
    """Give each picture its id; one that is annotated twice within a split is a fault."""
    by_split: dict[str | None, list[Picture]] = {}
    for picture in pictures:
        by_split.setdefault(picture.split, []).append(picture)
    for members in by_split.values():
        origins: dict[Path, Path] = {}
        for picture in members:
            if picture.path in origins:
                other = (
                    f"the same as in {origins[picture.path]}" if origins[picture.path] != picture.origin else "twice"
                )
                faults.add("is annotated twice; keep one", f"{picture.origin}, {picture.path.name} ({other})")
            origins[picture.path] = picture.origin
        names = []
        for picture in members:
            inside = picture.path.is_relative_to(root)
            folders = picture.path.relative_to(root).parts[:-1] if inside else ()
            names.append("/".join((*telling_folders(folders), picture.path.name)))
        for picture, name in zip(members, unique_ids(names), strict=True):
            picture.id = name


def unique_ids(names: Sequence[str]) -> list[str]:
    """Ids of pictures for names with folders and suffix: ``a/b.jpg`` -> ``a__b``.

    Where two would be the same on a disk that does not tell capitals, the later ones keep their suffix or get a number.
    """
    taken: set[str] = set()
    ids = [""] * len(names)
    for index in sorted(range(len(names)), key=lambda index: names[index]):
        path = PurePosixPath(names[index])
        plain = "__".join(path.with_suffix("").parts)
        choices = itertools.chain([plain, "__".join(path.parts)], (f"{plain}-{n}" for n in itertools.count(2)))
        ids[index] = next(choice for choice in choices if choice.casefold() not in taken)
        taken.add(ids[index].casefold())
    return ids


# -- files -----------------------------------------------------------------------------------------


def parts_below(root: Path) -> list[tuple[str, ...]]:
    """Every file below ``root``, hidden ones left out, as its parts relative to it."""
    return [path.relative_to(root).parts for path in files_below(root)]


class Pictures:
    """The files below a folder, to be found by the names that annotations give them."""

    def __init__(self, root: Path):
        self.root = root
        self.by_name: dict[str, list[tuple[str, ...]]] = {}
        self._by_letters: dict[str, list[tuple[str, ...]]] = {}  # without capitals: annotated on Windows
        for parts in parts_below(root):
            self.by_name.setdefault(same_name(parts[-1]), []).append(parts)
            self._by_letters.setdefault(same_name(parts[-1]).casefold(), []).append(parts)

    def find(self, name: str, fits: Callable[[tuple[str, ...]], bool]) -> list[Path]:
        """The files called ``name`` (no folders) whose parts below the root fit; or the only one, but for capitals."""
        found = [parts for parts in self.by_name.get(same_name(name), []) if fits(parts)]
        if not found:
            found = [parts for parts in self._by_letters.get(same_name(name).casefold(), []) if fits(parts)]
            found = found if len(found) == 1 else []
        return [self.root.joinpath(*parts) for parts in found]


class Listings:
    """Which files are there: each folder is listed once."""

    def __init__(self) -> None:
        self.names: dict[Path, set[str]] = {}

    def has(self, path: Path) -> bool:
        """Whether a file of exactly this name lies there, on disks that don't tell capitals as well."""
        folder = path.parent
        if folder not in self.names:
            try:
                self.names[folder] = set(os.listdir(folder))  # noqa: PTH208 (names alone: no path a file)
            except (OSError, ValueError):
                self.names[folder] = set()
        return path.name in self.names[folder]
