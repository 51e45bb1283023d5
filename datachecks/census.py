"""What was counted of a data set's files, kept beside the data: who starts again asks for file times, not for masks.

    with open_census(layout) as census:
        splits = census.take({"train": layout.files("train")})
        splits["train"].pixels        # of each label

A census is one JSON file in ``.census/`` of the data set, or in ``data/census/`` where the data must not be written. A
record in it holds for a file of that name, size and modification time; the file's name has a digest of how masks are
read. Whatever is missing, changed, faulty or cannot be trusted is read anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from basics.batch import VOID
from basics.checkpoint import file_sha256
from basics.errors import UserError
from basics.files import can_write, nearest, write_text
from segdata.layouts import Layout, SplitFiles
from segdata.parallel import map_in_order
from segdata.reading import DataError, Header, load_mask, read_header, read_image, read_palette, size_fault

FORMAT = 2
FOLDER = ".census"
ELSEWHERE = Path("data/census")
KEPT_EVERY_S = 300.0  # while it is made: a process may be killed
SAID_FROM = 200  # files to read; fewer take no time to speak of


class MaskRecord(NamedTuple):
    """What is in a mask.

    Attributes:
        bytes, mtime_ns: of the file, by which it is known again.
        labels, pixels: the labels that occur, in order, and how often.
        colours: of a palette file, for each number that occurs and has a colour of its own ``number:rrggbb:label``,
            in one text: ten thousand masks are read back in a blink.
    """

    bytes: int
    mtime_ns: int
    width: int
    height: int
    labels: list[int]
    pixels: list[int]
    colours: str

    @property
    def is_void(self) -> bool:
        """Not one labelled pixel."""
        return self.labels == [VOID]


class PictureRecord(NamedTuple):
    """What an image's header says (see `segdata.reading.Header`).

    Attributes:
        sha256: of the file, if it was ever wanted.
        decodes: the whole file was read once, and was sound.
    """

    bytes: int
    mtime_ns: int
    width: int
    height: int
    orientation: int
    mode: str
    bands: int
    transparent: bool
    sha256: str | None = None
    decodes: bool = False

    @property
    def header(self) -> Header:
        return Header(self.width, self.height, self.orientation, self.mode, self.bands, self.transparent)


class Unreadable(NamedTuple):
    """What is wrong with a file, in one line; and its size where that could be told."""

    fault: str
    size: tuple[int, int] | None = None


@dataclass
class SplitCensus:
    """What was counted of a split.

    Attributes:
        pictures, masks: in the order of ``files``, None for a file that could not be read; ``masks`` is None where the
            split has none.
        faults: of its files, one line each.
    """

    name: str
    files: SplitFiles
    pictures: list[PictureRecord | None] = field(default_factory=list)
    masks: list[MaskRecord | None] | None = None
    faults: list[str] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether all masks could be read, so that what is in none of them is known."""
        return bool(self.masks) and len(self.counted) == len(self.masks or [])

    @property
    def counted(self) -> list[MaskRecord]:
        """The masks that could be read."""
        return [mask for mask in self.masks or [] if mask is not None]

    def labelled(self) -> list[tuple[Path, MaskRecord]]:
        """The masks that could be read, with their files."""
        pairs = zip(self.files.masks or [], self.masks or [], strict=True)
        return [(path, mask) for path, mask in pairs if mask is not None]

    @property
    def pixels(self) -> np.ndarray:
        """int64 (256,): pixels of each label in all masks."""
        return self._sum([mask.pixels for mask in self.counted])

    @property
    def images(self) -> np.ndarray:
        """int64 (256,): masks in which each label occurs."""
        return self._sum([[1] * len(mask.labels) for mask in self.counted])

    def _sum(self, counts: Sequence[Sequence[int]]) -> np.ndarray:
        total = np.zeros(VOID + 1, np.int64)
        labels = [label for mask in self.counted for label in mask.labels]
        np.add.at(total, labels, [count for mask in counts for count in mask])
        return total


@contextlib.contextmanager
def open_census(layout: Layout, *, anew: bool = False) -> Iterator[Census]:
    """The census of a data set, kept when the block ends, however it ends; ``anew`` trusts nothing that was kept."""
    census = Census(layout, anew=anew)
    try:
        yield census
    finally:
        census.keep()


class Census:
    """What is known of the files of a data set; made by `open_census`.

    Attributes:
        is_first: nobody has counted this data set before.
    """

    def __init__(self, layout: Layout, *, anew: bool = False):
        self.layout = layout
        self._masks: dict[str, MaskRecord] = {}
        self._pictures: dict[str, PictureRecord] = {}
        self._changed = False
        self._root = f"{layout.root}{os.sep}"
        beside, elsewhere = layout.root / FOLDER, ELSEWHERE
        name, reading = layout.name, how_masks_are_read(layout)
        self._places = [
            beside / f"{name}_{_digest(reading)}.json",
            elsewhere / f"{name}_{_digest([str(layout.root.resolve()), *reading])}.json",
        ]
        kept = next((kept for kept in map(_load, self._places) if kept is not None), None)
        self.is_first = kept is None
        if kept is not None and not anew:
            self._masks, self._pictures = kept

    def take(self, splits: Mapping[str, SplitFiles]) -> dict[str, SplitCensus]:
        """What there is to know of these splits, reading the files that are new or have changed."""
        known: dict[Path, MaskRecord | PictureRecord | Unreadable] = {}
        images = dict.fromkeys(path for files in splits.values() for path in files.images)
        masks = dict.fromkeys(path for files in splits.values() for path in files.masks or [])
        todo: list[tuple[Path, bool, os.stat_result]] = []
        for paths, records in ((images, self._pictures), (masks, self._masks)):
            for path in paths:
                try:
                    found = path.stat()
                except OSError as error:
                    known[path] = Unreadable(f"{path}: {error.strerror or error}")
                    continue
                kept = records.get(self._name(path))
                if kept is not None and kept[:2] == (found.st_size, found.st_mtime_ns):
                    known[path] = kept
                else:
                    todo.append((path, records is self._masks, found))
        if len(todo) >= SAID_FROM:
            print(f"data: reading {len(todo):,} images and masks in {self.layout.root} once, to count what is in them")
        due = time.monotonic() + KEPT_EVERY_S
        for (path, _, _), record in zip(todo, map_in_order(self._read, todo, "counting", len(todo)), strict=True):
            known[path] = record
            if isinstance(record, MaskRecord):
                self._masks[self._name(path)] = record
            elif isinstance(record, PictureRecord):
                self._pictures[self._name(path)] = record
            self._changed |= not isinstance(record, Unreadable)
            if time.monotonic() > due:
                self.keep()
                due = time.monotonic() + KEPT_EVERY_S
        return {name: _of_split(name, files, known) for name, files in splits.items()}

    def shared_images(self, first: SplitCensus, second: SplitCensus) -> dict[str, str]:
        """Images of ``first`` that are in ``second``, too, as the same file or a copy: id there -> id in ``second``."""
        by_path = dict(zip(second.files.images, second.files.ids, strict=True))
        shared = {
            name: by_path[path]
            for name, path in zip(first.files.ids, first.files.images, strict=True)
            if path in by_path
        }
        rest = [found for found in _sized(first) if found[0] not in shared]
        sizes = {size for _, _, size in rest}
        others = [found for found in _sized(second) if found[2] in sizes]
        sizes = {size for _, _, size in others}
        rest = [found for found in rest if found[2] in sizes]
        hashes = self._hashes(dict.fromkeys(path for _, path, _ in [*rest, *others]))
        by_hash = {hashes[path]: name for name, path, _ in others}
        return shared | {name: by_hash[hashes[path]] for name, path, _ in rest if hashes[path] in by_hash}

    def _hashes(self, paths: Mapping[Path, None]) -> dict[Path, str]:
        """The sha256 of images that have a record."""
        todo = [path for path in paths if self._pictures[self._name(path)].sha256 is None]
        for path, found in zip(todo, map_in_order(file_sha256, todo, "comparing", len(todo)), strict=True):
            self._pictures[self._name(path)] = self._pictures[self._name(path)]._replace(sha256=found)
            self._changed = True
        return {path: self._pictures[self._name(path)].sha256 or "" for path in paths}

    def damaged(self, paths: Sequence[Path]) -> dict[Path, str]:
        """What is wrong with those of the images, all of them with a record, that cannot be decoded, in one line."""
        todo = [path for path in paths if not self._pictures[self._name(path)].decodes]
        faults = map_in_order(decoding_fault, todo, "looking for damage", len(todo))
        found = dict(zip(todo, faults, strict=True))
        for path in (path for path, fault in found.items() if not fault):
            self._pictures[self._name(path)] = self._pictures[self._name(path)]._replace(decodes=True)
            self._changed = True
        return {path: fault for path, fault in found.items() if fault}

    def _read(self, task: tuple[Path, bool, os.stat_result]) -> MaskRecord | PictureRecord | Unreadable:
        path, is_mask, found = task
        try:
            if is_mask:
                return MaskRecord(found.st_size, found.st_mtime_ns, *count_mask(self.layout, path))
            header = read_header(path)
        except DataError as error:
            size = None
            if is_mask:
                with contextlib.suppress(DataError):  # wrong labels: its size can be compared all the same
                    size = load_mask(path).size
            return Unreadable(str(error), size)
        return PictureRecord(found.st_size, found.st_mtime_ns, *dataclasses.astuple(header))

    def _name(self, path: Path) -> str:
        """Relative to the data set, which may be moved; absolute for what lies elsewhere."""
        name = str(path)
        return name.removeprefix(self._root) if name.startswith(self._root) else str(path.absolute())

    def keep(self) -> None:
        """Write down what is new. Where nothing can be written nothing is kept, and the next start counts again."""
        if not self._changed:
            return
        text = json.dumps({"masks": self._masks, "pictures": self._pictures}, separators=(",", ":"))
        for place in self._places:
            with contextlib.suppress(UserError, OSError):
                if can_write(nearest(place.parent)):
                    write_text(place, f"{zlib.crc32(text.encode()):08x}\n{text}")
                    self._changed = False
                    return


def how_masks_are_read(layout: Layout) -> list[Any]:
    """All that decides which label a pixel of a mask file gets, as plain values."""
    return [FORMAT, layout.name, layout.class_names, *layout.labels.key]


def count_mask(layout: Layout, path: Path) -> tuple[int, int, list[int], list[int], str]:
    """Width, height, labels, pixels and colours, as in `MaskRecord`; `DataError` if the mask is faulty."""
    labels = layout.read_labels(path)
    counts = _histogram(labels)
    present = np.flatnonzero(counts)
    height, width = labels.shape
    return width, height, present.tolist(), counts[present].tolist(), _palette_colours(path, labels)


def _palette_colours(path: Path, labels: np.ndarray) -> str:
    """Number, colour and label of each number that occurs in a palette file, see `MaskRecord`; none for other files.

    A colour that several numbers have, as in a palette that was never filled in, tells nothing and is left out.
    """
    found = read_palette(path)
    if found is None:
        return ""
    stored, palette = found
    used = np.flatnonzero(_histogram(stored))
    label_of = np.arange(256)
    if not np.array_equal(stored, labels):  # a number has one label: that of the first pixel will do
        for number in used:
            label_of[number] = labels.flat[(stored == number).argmax()]
    colours = [bytes(colour).hex() for colour in palette[: used[-1] + 1]]
    times = Counter(colours)
    return " ".join(
        f"{number}:{colours[number]}:{label_of[number]}"
        for number in used.tolist()
        if number < len(colours) and times[colours[number]] == 1
    )


def _histogram(values: np.ndarray) -> np.ndarray:
    """int64 (256,): how often each uint8 occurs; as `numpy.bincount`, which makes integers of eight bytes first."""
    return np.array(Image.fromarray(values).histogram())


def decoding_fault(path: Path) -> str:
    """Why the image cannot be decoded; empty if it can."""
    try:
        read_image(path)
    except DataError as error:
        return str(error)
    return ""


def _of_split(
    name: str, files: SplitFiles, known: Mapping[Path, MaskRecord | PictureRecord | Unreadable]
) -> SplitCensus:
    """A split's records and faults out of those of all files."""
    split = SplitCensus(name, files, masks=None if files.masks is None else [])
    masks: Sequence[Path | None] = files.masks or [None] * len(files.ids)
    for image_path, mask_path in zip(files.images, masks, strict=True):
        picture: MaskRecord | PictureRecord | Unreadable | None = known[image_path]
        mask = known[mask_path] if mask_path else None
        if mask_path == image_path:
            split.faults.append(f"{image_path}: is both an image and its own mask: name two folders")
            picture = mask = None
        split.faults += [found.fault for found in (picture, mask) if isinstance(found, Unreadable)]
        split.pictures.append(picture if isinstance(picture, PictureRecord) else None)
        if split.masks is not None:
            split.masks.append(mask if isinstance(mask, MaskRecord) else None)
        size = mask.size if isinstance(mask, Unreadable) else mask and (mask.width, mask.height)
        if isinstance(picture, PictureRecord) and mask_path and size:
            fault = size_fault(picture.header, *size, image_path, mask_path)
            split.faults += [fault] if fault else []
    return split


def _sized(split: SplitCensus) -> list[tuple[str, Path, int]]:
    """Id, path and bytes of each image that could be read."""
    files = zip(split.files.ids, split.files.images, split.pictures, strict=True)
    return [(name, path, picture.bytes) for name, path, picture in files if picture]


# -- the file ----------------------------------------------------------------------------------------


def _digest(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def _load(path: Path) -> tuple[dict[str, MaskRecord], dict[str, PictureRecord]] | None:
    """The records in a census file; None if there is none, or not one that is whole."""
    try:
        checksum, _, text = path.read_text(encoding="ascii").partition("\n")
        if int(checksum, 16) != zlib.crc32(text.encode()):
            return None
        kept = json.loads(text)
        masks = {name: MaskRecord(*record) for name, record in kept["masks"].items()}
        return masks, {name: PictureRecord(*record) for name, record in kept["pictures"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
