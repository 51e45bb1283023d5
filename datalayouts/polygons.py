"""Annotations that are shapes become masks: drawn once, kept beside the data, read like any others from then on.

The masks of a data set lie in ``.masks-NAME-DIGEST/`` in its folder, or below ``data/converted/`` where that cannot be
written. The digest is that of the annotation files' contents, so that changed annotations get new masks; the folder
is written under another name and renamed when it is whole, so that an interrupted one is never taken for it:

    SPLIT/ID.png     index masks in the data set's colours, 255 = void
    categories.csv   index, name and what the annotations call the class
    remarks.txt      what was left out
    about.json       what it was made from, and which picture belongs to which mask
    pictures/        pictures that lay in the annotation files alone
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from basics.errors import UserError
from basics.files import can_write, read_text, write_text
from datalayouts.annotations import Annotations, Listings
from datalayouts.rasterizing import draw_masks, embedded_name, mask_name
from segdata.layouts import Layout, SplitFiles
from segdata.palettes import distinct_palette
from segdata.reading import DataError

FORMAT = 1
ABOUT = {"stamps", "class_names", "remarks", "pictures"}
FIRST_SPLITS = ("train", "val", "test")
POOL = "default"  # what tools call a split where there is none
ELSEWHERE = Path("data/converted")
STALE_SECONDS = 86400  # an unfinished folder that is older belongs to a process that was killed


@dataclass
class AnnotatedLayout(Layout):
    """A data set whose masks were drawn from annotations: every picture is known by name, wherever it lies.

    Attributes:
        drawn: folder of the masks.
        pairs: by split, all its pictures and their masks; None instead of masks where it is not annotated.
    """

    drawn: Path = Path()
    pairs: dict[str, SplitFiles] = field(default_factory=dict)

    def splits(self) -> list[str]:
        names = {*self.pairs, *self.split_ids, *self.split_lists}
        if "train" in names:
            names.discard(POOL)  # parted
        first = [name for name in FIRST_SPLITS if name in names]
        return first + sorted(names - set(first))

    def scan(self, split: str) -> tuple[SplitFiles, list[str]]:
        split = self._known_split(split)
        faults: list[str] = []
        files, listings = self._members(split, faults), Listings()
        if not files.ids:
            faults.append(f"{self.root}: the split {split!r} is empty")
        whole = [listings.has(path) for path in files.images]
        remedy = f"put them back, or delete {self.drawn} to have them looked for anew"
        faults += _count_missing(files.images, whole, remedy)
        if files.masks:
            there = [listings.has(path) for path in files.masks]
            faults += _count_missing(files.masks, there, f"delete {self.drawn} to have the masks drawn anew")
            whole = [image and mask for image, mask in zip(whole, there, strict=True)]
        return files.part([index for index, complete in enumerate(whole) if complete]), faults

    def _members(self, split: str, faults: list[str]) -> SplitFiles:
        """The pictures of a split: those that a list names, or those that the annotations give it."""
        if split in self.split_lists:
            try:
                names = read_text(self.split_lists[split]).splitlines()
            except ValueError as error:
                faults.append(f"{self.split_lists[split]}: the list cannot be read: {error}")
                names = []
        elif split in self.split_ids:
            names = self.split_ids[split]
        else:
            return self.pairs[split]
        pool = self.pairs.get(POOL) or self.pairs["train"]
        places = {name: index for index, name in enumerate(pool.ids)}
        unknown = [name for name in names if name and name not in places]
        if unknown:
            more = f" (and {len(unknown) - 1:,} more)" * (len(unknown) > 1)
            origin = self.split_lists.get(split, "by chance")
            faults.append(
                f"{self.root}: {unknown[0]} is listed in the split {split!r} ({origin}), but not annotated{more}"
            )
        return pool.part([places[name] for name in names if name in places])


def _count_missing(paths: Sequence[Path], there: Sequence[bool], remedy: str) -> list[str]:
    missing = [path for path, found in zip(paths, there, strict=True) if not found]
    more = f" (and {len(missing) - 1:,} more of {len(paths):,})" * (len(missing) > 1)
    return [f"{missing[0]}: no such file any more{more}; {remedy}"] if missing else []


def open_layout(name: str, root: Path, sources: Sequence[Path], read: Callable[[], Annotations]) -> Layout:
    """The data set whose annotations are ``sources``; its masks are drawn first if there are none of just these.

    Args:
        name: of the format.
        read: reads the sources; called if masks are to be drawn.

    Raises:
        UserError: an annotation or a picture is faulty, or nothing can be written.
    """
    folder, about = _drawn(name, root, sources, read)
    return _make_layout(name, root, folder, about)


def _drawn(
    name: str, root: Path, sources: Sequence[Path], read: Callable[[], Annotations]
) -> tuple[Path, dict[str, Any]]:
    """The folder of masks and what it says of itself."""
    stamps = _stamps(root, sources)
    homes = [root, elsewhere(root)]
    for home in homes:
        for folder in sorted(home.glob(f".masks-{name}-*")):
            about = _load(folder)
            if about is not None and about["stamps"] == stamps:
                return folder, about
    # Copied or touched since: the contents decide.
    digest = _digest(name, root, sources)
    for home in homes:
        folder = home / f".masks-{name}-{digest}"
        about = _load(folder)
        if about is not None:
            with contextlib.suppress(UserError):  # read-only: it is found by its contents again
                _write_json(folder / "about.json", about | {"stamps": stamps})
            return folder, about
    annotations = read()
    home = writable_home(root)
    folder = home / f".masks-{name}-{digest}"
    about = _convert(annotations, root, home, folder, stamps)
    _announce(name, annotations, folder)
    return folder, about


def elsewhere(root: Path) -> Path:
    """Where to keep what belongs to a data set whose folder cannot be written."""
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]
    return ELSEWHERE / f"{root.resolve().name}-{digest}"


def writable_home(root: Path) -> Path:
    """``root``, or `elsewhere` if it cannot be written.

    Raises:
        UserError: neither can be.
    """
    if can_write(root):
        return root
    home = elsewhere(root)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"neither {root} nor {home} can be written, to keep masks there: {error.strerror}") from None
    return home


def _stamps(root: Path, sources: Sequence[Path]) -> list[list]:
    """Name, bytes and modification time of each annotation file."""
    stamps = []
    for path in sources:
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from None
        stamps.append([_relative(path, root), found.st_size, found.st_mtime_ns])
    return stamps


def _digest(name: str, root: Path, sources: Sequence[Path]) -> str:
    """Of the annotation files' names and contents."""
    digest = hashlib.sha256(json.dumps([FORMAT, name, [_relative(path, root) for path in sources]]).encode())
    for path in sources:
        try:
            with path.open("rb") as file:
                content = hashlib.sha256()
                while block := file.read(1 << 20):
                    content.update(block)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
        digest.update(content.digest())
    return digest.hexdigest()[:12]


def _relative(path: Path, root: Path) -> str:
    """``path`` as seen from ``root``, or as it is where no way leads there (another drive)."""
    try:
        return Path(os.path.relpath(path, root)).as_posix()
    except ValueError:
        return path.absolute().as_posix()


def _load(folder: Path) -> dict[str, Any] | None:
    """What a folder of masks says of itself, or None where it is none of ours or of another version."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        return about if about["format"] == FORMAT and about.keys() >= ABOUT else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _write_json(path: Path, content: object) -> None:
    write_text(path, json.dumps(content) + "\n")


def _make_layout(name: str, root: Path, folder: Path, about: dict[str, Any]) -> AnnotatedLayout:
    """The layout that the drawn masks in ``folder`` make; the one place that does."""
    by_split: dict[str | None, list[tuple[str, Path, Path | None]]] = {}
    for split, picture_id, image, embedded, mask in about["pictures"]:
        path = folder / image if embedded else root / image
        by_split.setdefault(split, []).append((picture_id, path, folder / mask if mask is not None else None))
    if None in by_split and "train" not in by_split:
        by_split["train" if "val" in by_split else POOL] = by_split.pop(None)
    pairs = {}
    for name_of_split, entries in by_split.items():
        ids, images, masks = (list(column) for column in zip(*entries, strict=True))
        pairs[str(name_of_split)] = SplitFiles(ids, images, None if None in masks else masks)
    names = list(about["class_names"])
    return AnnotatedLayout(
        name,
        root,
        names,
        distinct_palette(names),
        image_folders={None: root},
        mask_folders={None: folder},
        drawn=folder,
        pairs=pairs,
        remarks=list(about["remarks"]),
    )


def _announce(name: str, annotations: Annotations, folder: Path) -> None:
    order = "smaller objects lie on top of larger ones" if annotations.smaller_on_top else "later shapes lie on top"
    count = sum(picture.items is not None for picture in annotations.pictures)
    print(f"{name}: {count:,} masks drawn in {folder}; where annotations overlap, {order}")
    older = [path.name for path in sorted(folder.parent.glob(f".masks-{name}-*")) if path != folder]
    if older:
        print(f"remark: masks of earlier annotations can be deleted: {', '.join(older)}")


# -- writing ---------------------------------------------------------------------------------------


def _convert(annotations: Annotations, root: Path, home: Path, folder: Path, stamps: list[list]) -> dict[str, Any]:
    """Draw all masks into the new folder ``folder``; what its about.json says."""
    with _renamed(home, folder) as made:
        draw_masks(annotations, made)
        pictures = [
            [
                picture.split,
                picture.id,
                embedded_name(picture) if picture.embedded else _relative(picture.path, root),
                picture.embedded is not None,
                mask_name(picture) if picture.items is not None else None,
            ]
            for picture in sorted(annotations.pictures, key=lambda picture: picture.id)
        ]
        remarks = annotations.remarks.lines()
        about = {
            "format": FORMAT,
            "stamps": stamps,
            "class_names": annotations.class_names,
            "remarks": remarks,
            "pictures": pictures,
        }
        _write_categories(annotations, made / "categories.csv")
        write_text(made / "remarks.txt", "".join(f"{line}\n" for line in remarks))
        _write_json(made / "about.json", about)
    return about


@contextlib.contextmanager
def _renamed(home: Path, folder: Path) -> Iterator[Path]:
    """A new folder that becomes ``folder`` when the block ends without an error, and is gone otherwise."""
    temporary = None
    try:
        _remove_stale(home)
        temporary = Path(tempfile.mkdtemp(prefix=".drawing-", dir=home))
        made = temporary / "masks"  # the outer folder is closed to other users, which the masks need not be
        made.mkdir()
        yield made
        if _load(folder) is None:  # otherwise another process was quicker, with the same masks
            with contextlib.suppress(FileNotFoundError):
                folder.rename(temporary / "old")  # damaged, or of another version
            made.rename(folder)
    except OSError as error:
        raise UserError(
            f"masks cannot be written in {home}: {error.strerror or error}; free some space or name another place"
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _remove_stale(home: Path) -> None:
    for path in home.glob(".drawing-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _write_categories(annotations: Annotations, path: Path) -> None:
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(["index", "name", "annotated as"])
    rows.writerows(
        (index, *row) for index, row in enumerate(zip(annotations.class_names, annotations.keys, strict=True))
    )
    write_text(path, table.getvalue())
