"""Where the files of a COCO data set lie: the annotation files, and the pictures that these name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from datalayouts.annotations import SPLIT_WORDS, Pictures, split_in, split_of_folders, telling_folders
from segdata.pairing import same_name

K = TypeVar("K")

USUAL_NAMES = ("coco", "annotations", "instances", "labels")  # of a file that is for many pictures
PICTURE_FOLDERS = ("images", "JPEGImages", "data", "imgs", "img", ".")


def find_files(root: Path) -> list[Path]:
    """The annotation files of a data set: in ``annotations/``, else in the folders of splits, else in ``root``."""
    if not root.is_dir():
        return []

    def with_splits(folder: Path) -> list[Path]:
        below = sorted(folder.iterdir()) if folder.is_dir() else []
        return [folder, *(path for path in below if path.is_dir() and split_in(path.name))]

    annotations, labels, splits = with_splits(root / "annotations"), with_splits(root / "labels"), with_splits(root)[1:]
    nested = [folder / name for folder in splits for name in (".", "annotations", "labels")]
    for places in (annotations, nested, [root], labels):
        found = [path for place in places for path in _files_in(place)]
        # Beside a split's pictures there may be a file for each picture, too.
        found = [path for path in found if places is not nested or _is_named(path)] or found
        if found:
            return found
    return []


def _files_in(folder: Path) -> list[Path]:
    files = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    instances = [path for path in files if path.name.startswith("instances_")]  # COCO: beside captions and keypoints
    return instances or files


def _is_named(path: Path) -> bool:
    return any(name in path.name.lower() for name in USUAL_NAMES) or split_in(path.stem) is not None


def find_pictures(
    names: Mapping[K, tuple[str, ...]], file: Path, split: str | None, root: Path, listed: dict[Path, Pictures]
) -> dict[K, list[Path]]:
    """The pictures that each name may mean, in the first folder that has any of them.

    Args:
        names: the parts of each ``file_name``.
        file: the annotation file, and the ``split`` that it speaks of.
        listed: folders that have been listed before; those that are looked into are added.
    """
    for folder in _picture_folders(file, split, root):
        if folder not in listed:
            listed[folder] = Pictures(folder)
        found = {key: _matches(parts, split, listed[folder], root) for key, parts in names.items()}
        if any(found.values()):
            return found
    return {key: [] for key in names}


def _picture_folders(file: Path, split: str | None, root: Path) -> Iterator[Path]:
    """Where the pictures of a file may lie, the likeliest first."""
    for parent in reversed(file.parents):
        if parent != root and parent.is_relative_to(root) and split_in(parent.name):
            yield parent
    bases = [base for name in (".", *PICTURE_FOLDERS[:-1]) if (base := root / name).is_dir()]
    if split in SPLIT_WORDS:
        words = re.split("[^a-z0-9]+", file.stem.lower())
        folders = [path for base in bases for path in base.iterdir() if split_in(path.name) == split]
        # instances_train2017.json means train2017/ rather than train/
        yield from sorted(filter(Path.is_dir, folders), key=lambda path: (path.name.lower() not in words, path))
    yield from (*bases[1:], bases[0])


def _matches(name: tuple[str, ...], split: str | None, pictures: Pictures, root: Path) -> list[Path]:
    """The files that ``name`` may mean: no folder contradicts it, and none is that of another split."""
    above = pictures.root.relative_to(root).parts
    said = [same_name(part) for part in telling_folders(name[:-1])]

    def fits(parts: tuple[str, ...]) -> bool:
        folders = [same_name(part) for part in telling_folders(parts[:-1])]
        shared = min(len(folders), len(said))
        other = split_of_folders((*above, *parts[:-1])) if split in SPLIT_WORDS else None
        return folders[len(folders) - shared :] == said[len(said) - shared :] and other in (None, split)

    matches = pictures.find(name[-1], fits)
    exact = [path for path in matches if path == pictures.root.joinpath(*name)]
    return exact or matches
