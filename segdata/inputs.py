"""What a person names on the command line -> the pictures and videos it means, and names for their results."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import itertools
import os
import re
import shlex
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath

from basics.errors import UserError
from basics.files import files_below
from segdata.pictures import looks_like_picture, picture_suffixes
from segdata.video import CAMERA, VIDEO_SUFFIXES, is_url, looks_like_video

LIVE_PHOTO = (".heic", ".heif", ".jpg", ".jpeg")  # an iPhone's, with a second of video in a .mov of the same name
CODE_SUFFIXES = (".ts", ".mod")  # of videos, and of programs in TypeScript, Go and Fortran, which are text
NAMED = 5  # of the files that are left out, how many are named


@dataclass(frozen=True)
class Source:
    """One picture, video, camera or stream.

    Attributes:
        path: the file, ``camera:N`` or a URL.
        name: for its results: subfolders and stem, no suffix; no two sources of a call share one.
        is_video: more than pictures: read by PyAV.
    """

    path: str
    name: PurePath
    is_video: bool = False

    @property
    def is_live(self) -> bool:
        """Whether it may go on for ever, until Ctrl-C ends it."""
        return self.path.startswith(CAMERA) or is_url(self.path)

    @property
    def shown(self) -> str:
        """``path`` for messages: of a URL, without passwords."""
        return _without_secrets(self.path) if is_url(self.path) else self.path


@dataclass
class Found:
    """What inputs mean.

    Attributes:
        sources: each once.
        missing: a message for each input that means nothing.
        left_out: messages of what folders and globs hold and do not mean: files that are no pictures or videos,
            results and masks, and the moving half of Live Photos.
    """

    sources: list[Source] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)


def find_sources(inputs: Sequence[str], skip: Sequence[Path] = (), taken: dict[str, str] | None = None) -> Found:
    """All that ``inputs`` (files, folders, globs, URLs, ``camera:N``) mean.

    Folders are searched with their subfolders, those behind links, too, and hidden files left out: what has the suffix
    of a picture or a video is meant, and what its content shows to be a picture. A file named by itself is meant
    whatever it is. A file that is meant twice is taken once.

    Args:
        inputs: as given on the command line.
        skip: files, and folders whose content, that a folder or a glob never means: results and masks.
        taken: names that earlier calls gave, and the file each belongs to; those of this call are added.

    Raises:
        UserError: nothing at all is meant.
    """
    found, keys = Found(), set()
    taken = {} if taken is None else taken
    folders = {text for text in inputs if Path(text).expanduser().is_dir()}
    for text in inputs:
        passed_over = _PassedOver()
        matches = list(_expand(text, skip, passed_over))
        found.missing += [f"{path}: a link to nothing" for path in passed_over.dangling]
        if not matches:
            found.missing.append(_what_is_missing(text))
        for path, relative, is_video in matches:
            key = path if path.startswith(CAMERA) or is_url(path) else str(Path(path).resolve())
            if key in keys:
                passed_over.twice.append(relative)
                continue
            keys.add(key)
            # Two folders may hold the same names: their own names tell them apart.
            above = Path(text).expanduser().resolve().name if text in folders and len(folders) > 1 else ""
            full = PurePath(above) / relative
            found.sources.append(Source(path, unique_name(full, key, taken), is_video))
        found.left_out += passed_over.messages(text)
    if not found.sources:
        raise UserError("; ".join(found.missing))
    return found


@dataclass
class _PassedOver:
    """What a search came upon and does not mean.

    Attributes:
        others: files that are no pictures or videos.
        results: files that are results, or masks.
        dangling: links to nothing.
        twice: files that are meant already, under this name or another: links.
        moving: videos that belong to a picture beside them: Live Photos of an iPhone.
    """

    others: list[PurePath] = field(default_factory=list)
    results: list[PurePath] = field(default_factory=list)
    dangling: list[Path] = field(default_factory=list)
    twice: list[PurePath] = field(default_factory=list)
    moving: list[PurePath] = field(default_factory=list)

    def messages(self, text: str) -> Iterator[str]:
        """A line for each kind, naming some."""
        kinds = [
            (self.others, "file that is no picture or video", "files that are no pictures or videos"),
            (self.results, "file that is a result or a mask", "files that are results or masks"),
            (self.twice, "name of a file that is there already", "names of files that are there already"),
            (self.moving, "video of a Live Photo", "videos of Live Photos"),  # their pictures are taken
        ]
        for paths, one, many in kinds:
            if paths:
                named = ", ".join(path.as_posix() for path in paths[:NAMED]) + (", ..." if len(paths) > NAMED else "")
                yield f"{text}: left out {f'1 {one}' if len(paths) == 1 else f'{len(paths)} {many}'} ({named})"


def _expand(text: str, skip: Sequence[Path], passed_over: _PassedOver) -> Iterator[tuple[str, PurePath, bool]]:
    """(path, path relative to where the search began, whether it is a video) of every file that one input means."""
    path = Path(text).expanduser()
    if text.startswith(CAMERA):
        yield text, PurePath(text.replace(":", "_")), True
    elif is_url(text):
        if not _is_picture_url(text):
            yield text, PurePath(_url_name(text)), True
    elif path.is_dir():
        yield from _sort_out(path, sorted(files_below(path)), skip, passed_over)
    elif path.exists():
        is_video = _is_video(path) or (not looks_like_picture(path) and looks_like_video(path))
        yield str(path), PurePath(path.name), is_video
    elif glob.has_magic(text):
        fixed = _fixed_part(path)
        pattern = path.relative_to(fixed).parts
        below = sorted(files_below(fixed, None if "**" in pattern else len(pattern)))
        # A name with brackets is a name first, and a pattern second.
        names = [part.replace("[", "[[]") for part in pattern]
        files = [file for file in below if _matches(file.relative_to(fixed).parts, names)]
        files = files or [file for file in below if _matches(file.relative_to(fixed).parts, pattern)]
        yield from _sort_out(fixed, files, skip, passed_over)


def _is_video(path: Path) -> bool:
    if path.suffix.lower() in CODE_SUFFIXES:
        with contextlib.suppress(OSError), path.open("rb") as file:
            return b"\0" in file.read(1024)
    return path.suffix.lower() in VIDEO_SUFFIXES


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path matches a pattern, part by part; ``**`` stands for any number of folders."""
    if not parts or not pattern:
        return not parts and not pattern
    if pattern[0] == "**":
        return len(pattern) == 1 or _matches(parts, pattern[1:]) or _matches(parts[1:], pattern)
    return fnmatch.fnmatch(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _sort_out(
    folder: Path, files: Sequence[Path], skip: Sequence[Path], passed_over: _PassedOver
) -> Iterator[tuple[str, PurePath, bool]]:
    stills = {file.with_suffix("") for file in files if file.suffix.lower() in LIVE_PHOTO}
    results = {other.resolve() for other in skip}
    for file in files:
        relative = file.relative_to(folder)
        if file.suffix.lower() == ".mov" and file.with_suffix("") in stills:
            passed_over.moving.append(relative)
        elif results and not results.isdisjoint([file.resolve(), *file.resolve().parents]):
            passed_over.results.append(relative)
        elif not file.exists():
            passed_over.dangling.append(file)
        elif file.is_file() and (_is_video(file) or looks_like_picture(file)):
            yield str(file), relative, _is_video(file)
        else:
            passed_over.others.append(relative)


def _fixed_part(pattern: Path) -> Path:
    """The folders of a glob before its first wildcard; those that are there are no wildcards, brackets or not."""
    fixed = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part) and not (fixed / part).is_dir():
            break
        fixed = fixed / part
    return fixed


def _what_is_missing(text: str) -> str:
    if is_url(text):
        return f"{_without_secrets(text)}: pictures are read from files: download it first"
    if Path(text).expanduser().is_dir():
        return f"{text}: no pictures or videos in this folder"
    if glob.has_magic(text):
        return f"{text}: no picture or video matches"
    return f"{text}: no such file or folder"


def _url_name(url: str) -> str:
    """What results of a URL are called: its host and path, in characters that every file system takes."""
    parts = urllib.parse.urlsplit(url)
    path = parts.path.removesuffix(PurePosixPath(parts.path).suffix)
    return re.sub(r"[^\w-]+", "_", f"{parts.hostname or ''}{urllib.parse.unquote(path)}").strip("_") or "stream"


def _is_picture_url(url: str) -> bool:
    suffix = PurePosixPath(urllib.parse.urlsplit(url).path).suffix.lower()
    return suffix in picture_suffixes() and suffix not in VIDEO_SUFFIXES


def _without_secrets(url: str) -> str:
    """A URL without user, password and query, where keys may stand."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def unique_name(relative: PurePath, owner: str, taken: dict[str, str]) -> PurePath:
    """A name for results, without a suffix, that no other has: a.jpg and a.png, or two folders' a.jpg, may come in.

    Args:
        relative: the file's path below where its results go.
        owner: what the name is for; the same owner gets the same name again.
        taken: owners by name, in lower case, since file systems may not tell it from upper case; the name is added.
    """
    stem = relative.with_suffix("")
    names = itertools.chain(
        [stem, stem.with_name(f"{stem.name}_{relative.suffix[1:]}")],
        (stem.with_name(f"{stem.name}_{number}") for number in itertools.count(2)),
    )
    return next(name for name in names if taken.setdefault(str(name).lower(), owner) == owner)


def unquoted(text: str) -> str:
    """The path of a file that was dropped on a terminal, which quotes it, or puts backslashes before its blanks."""
    if sys.platform != "win32" and not Path(text).exists():
        with contextlib.suppress(ValueError):
            if len(words := shlex.split(text)) == 1:
                return words[0]
    return text.strip("'\"")


def frames_folder(source: Source, taken: dict[str, str]) -> PurePath:
    """A folder for the results of a file's pages or frames, called as the file, in which no other's results lie."""
    others = (source.name.with_name(f"{source.name.name}_frames{number or ''}") for number in itertools.count())
    for folder in itertools.chain([source.name], others):
        below = f"{folder}{os.sep}".lower()
        free = folder == source.name or taken.setdefault(str(folder).lower(), source.path) == source.path
        if free and not any(name.startswith(below) for name in taken):
            return folder
    raise AssertionError("there are always more numbers")
