"""What a person names on the command line -> the pictures and videos it means, and names for their results."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from basics.errors import UserError
from segdata.pictures import PICTURE_SUFFIXES
from segdata.video import CAMERA, VIDEO_SUFFIXES


@dataclass(frozen=True)
class Source:
    """One picture, video or camera.

    Attributes:
        path: the file, or ``camera:N``.
        name: for its results: subfolders and stem, no suffix; no two sources of a call share one.
    """

    path: str
    name: PurePath

    @property
    def is_camera(self) -> bool:
        return self.path.startswith(CAMERA)

    @property
    def is_video(self) -> bool:
        return self.is_camera or Path(self.path).suffix.lower() in VIDEO_SUFFIXES


def find_sources(
    inputs: Sequence[str], skip: Sequence[Path] = (), taken: dict[str, str] | None = None
) -> tuple[list[Source], list[str]]:
    """All that ``inputs`` (files, folders, globs, ``camera:N``) mean, and a message for each that means nothing.

    Folders are searched with their subfolders for files with a known suffix, hidden ones left out; a file
    named by itself is taken whatever its suffix. A file that is meant twice is taken once.

    Args:
        inputs: as given on the command line.
        skip: folders whose content is never meant by a folder or a glob: those of the results.
        taken: names that earlier calls gave, and the file each belongs to; those of this call are added.

    Raises:
        UserError: nothing at all is meant.
    """
    found: dict[str, tuple[str, PurePath]] = {}
    missing = []
    folders = {text for text in inputs if Path(text).is_dir()}
    for text in inputs:
        matches = list(_expand(text, skip))
        if not matches:
            missing.append(_what_is_missing(text))
        for path, relative in matches:
            key = path if path.startswith(CAMERA) else str(Path(path).resolve())
            # Two folders may hold the same names: their own names tell them apart.
            name = PurePath(Path(text).resolve().name) / relative if text in folders and len(folders) > 1 else relative
            found.setdefault(key, (path, name))
    if not found:
        raise UserError("; ".join(missing))
    return _with_unique_names(found, {} if taken is None else taken), missing


def _expand(text: str, skip: Sequence[Path]) -> Iterator[tuple[str, PurePath]]:
    """(path, path relative to where the search began) of every file that one input means."""
    path = Path(text).expanduser()
    if text.startswith(CAMERA):
        yield text, PurePath(text.replace(":", "_"))
    elif path.is_dir():
        yield from _search(path, "**/*", skip)
    elif path.exists():
        yield str(path), PurePath(path.name)
    elif glob.has_magic(text):
        fixed = _fixed_part(path)
        yield from _search(fixed, str(path.relative_to(fixed)), skip)


def _search(folder: Path, pattern: str, skip: Sequence[Path]) -> Iterator[tuple[str, PurePath]]:
    for file in sorted(folder.glob(pattern)):
        relative = file.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        known = file.suffix.lower() in (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES)
        if known and not hidden and file.is_file() and not any(_is_below(file, other) for other in skip):
            yield str(file), relative


def _is_below(file: Path, folder: Path) -> bool:
    return folder.resolve() in file.resolve().parents


def _fixed_part(pattern: Path) -> Path:
    """The folders of a glob before its first wildcard."""
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts[:-1]))


def _what_is_missing(text: str) -> str:
    if Path(text).is_dir():
        return f"{text}: no pictures or videos in this folder"
    if glob.has_magic(text):
        return f"{text}: no picture or video matches"
    return f"{text}: no such file or folder"


def _with_unique_names(found: Mapping[str, tuple[str, PurePath]], taken: dict[str, str]) -> list[Source]:
    """Sources whose names differ even where a.jpg and a.png, or two folders' a.jpg, came in."""
    sources = []
    for file, (path, relative) in found.items():
        stem = relative.with_suffix("")
        names = itertools.chain(
            [stem, stem.with_name(f"{stem.name}_{relative.suffix[1:]}")],
            (stem.with_name(f"{stem.name}_{number}") for number in itertools.count(2)),
        )
        # Compared in lower case: file systems may not tell it from upper case.
        name = next(name for name in names if taken.setdefault(str(name).lower(), file) == file)
        sources.append(Source(path, name))
    return sources
