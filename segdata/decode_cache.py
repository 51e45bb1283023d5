"""Decoded images and masks of a split in one file, memory-mapped: for many epochs on few cores.

A record of the file is the image's bytes (H, W, 3) and the mask's (H, W), upright, at native size or, where a training
has one, at its working size, which takes less room and less time. Beside it lies a manifest with the images' native
sizes and with what they were made from: names, sizes and modification times of the source files. The manifest is
written last and the cache's name is a digest of the sources, so that a cache is whole and fits, or is not used.

Trainings with few masks of a split and the rest of it without share the cache of the whole split, whichever masks they
drew; pictures of other places are cached apart.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import torch

from basics.batch import VOID
from basics.errors import UserError
from basics.files import file_bytes, free_bytes, require_room
from basics.grids import working_shape
from basics.record_file import RecordFile, read_manifest, record_offsets
from segdata.layouts import Layout, SplitFiles
from segdata.orientation import UPRIGHT
from segdata.parallel import map_in_order
from segdata.reading import DataError, image_size, read_header
from segdata.transforms import to_working_size

FORMAT = 1
DIGITS = 16  # of the hash in a file's name
DEFAULT_FOLDER = Path("data/decoded")
STALE_SECONDS = 3600  # a temporary file that nobody wrote to for so long belongs to a run that was killed

Shape = tuple[int, int]  # (H, W)
Pair = tuple[torch.Tensor, torch.Tensor]
ReadPair = Callable[[Path, Path | None], Pair]


class DecodedFiles:
    """Decoded images and masks by their index in a list of files; made by `open_cache`.

    Args:
        records: for each index a cache and the place in it.
        labelled: how many have masks: the first ones. The others' are void, whatever the caches hold.
    """

    def __init__(self, records: Sequence[tuple[DecodeCache, int]], labelled: int):
        self._records, self._labelled = records, labelled

    def size(self, index: int) -> Shape:
        """The native (H, W)."""
        cache, place = self._records[index]
        return cache.sizes[place]

    def read(self, index: int) -> Pair:
        """See `DecodeCache.read`."""
        cache, place = self._records[index]
        image, mask = cache.read(place)
        return image, mask if index < self._labelled else torch.full_like(mask, VOID)


class DecodeCache:
    """Read access to a finished cache.

    Args:
        sizes: native (H, W) of the images.
        input_size: the working size that they are kept at; 0: native.
    """

    def __init__(self, path: Path, sizes: list[Shape], input_size: int = 0):
        self.sizes = sizes
        self.shapes = [working_shape(height, width, input_size) for height, width in sizes]
        self.file = RecordFile(path, record_offsets(map(_record_bytes, self.shapes)))

    def read(self, index: int) -> Pair:
        """Image uint8 (3, H, W) in channels-last memory and mask uint8 (H, W), both views of the file.

        Nothing is read before a pixel is looked at. They must not be written to.
        """
        height, width = self.shapes[index]
        sample = torch.from_numpy(self.file.record(index))
        image = sample[: 3 * height * width].view(height, width, 3).permute(2, 0, 1)
        return image, sample[3 * height * width :].view(height, width)


def open_cache(
    layout: Layout,
    split: str,
    files: SplitFiles,
    read_pair: ReadPair,
    folder: Path | None = None,
    input_size: int = 0,
) -> DecodedFiles:
    """The decoded files of a split, or of some that were chosen from it and from elsewhere.

    What no cache has yet is decoded first.

    Args:
        read_pair: gives the checked pair of an image and a mask, void for None.
        folder: where caches lie (default: data/decoded). Two runs may share it: both may build, and
            the first to finish puts its file in place.
        input_size: keep them at this working size; 0: native.

    Raises:
        UserError: a source file is faulty, there is no room, or the folder cannot be written.
    """
    folder = Path(folder or DEFAULT_FOLDER)
    kind = f"{layout.name}_{split}"
    there = set(folder.glob(f"{glob.escape(kind)}_{'[0-9a-f]' * DIGITS}.bin"))
    records: dict[Path, tuple[DecodeCache, int]] = {}
    for part in _parts(layout, split, files):
        cache = _open(layout, split, part, read_pair, folder, input_size)
        records |= {path: (cache, place) for place, path in enumerate(part.images)}
    own = {cache.file.path for cache, _ in records.values()}
    if own - there:  # something was made
        _name_others(kind, there - own)
    return DecodedFiles([records[path] for path in files.images], len(files.masks or []))


def _parts(layout: Layout, split: str, files: SplitFiles) -> list[SplitFiles]:
    """The lists of files that are cached, each in a file of its own: they do not depend on which masks were drawn."""
    whole = layout.files(split)
    if not set(whole.images) <= set(files.images):
        whole = files.labelled if files.masks else SplitFiles([], [], None)
    mine = set(whole.images)
    others = sorted((path, name) for path, name in zip(files.images, files.ids, strict=True) if path not in mine)
    rest = SplitFiles([name for _, name in others], [path for path, _ in others], None)
    return [part for part in (whole, rest) if part.ids]


def _open(
    layout: Layout, split: str, files: SplitFiles, read_pair: ReadPair, folder: Path, input_size: int
) -> DecodeCache:
    data, sources = _locate(layout, split, files, folder, input_size)
    cache = _load(data, sources, files, input_size)
    if cache is not None:
        return cache
    try:
        _remove_unturned(data)
        folder.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(folder)
        cache = _build(data, files, read_pair, input_size)
        about = {"format": FORMAT, "upright": True, "data_set": layout.name, "split": split}
        about |= {"root": str(layout.root.resolve())} | ({"input_size": input_size} if input_size else {})
        manifest = json.dumps(about | {"shapes": cache.sizes, "sources": sources}, indent=1)
        _put(data.with_suffix(".json"), [manifest.encode()], lambda: bool(_load(data, sources, files, input_size)))
    except OSError as error:
        raise UserError(f"--decode-cache: {folder} cannot be written: {error.strerror or error}") from None
    return cache


def _name_others(kind: str, others: Collection[Path]) -> None:
    """Say what else is kept of a split: each mended mask makes a new file."""
    if others:
        size = sum(map(file_bytes, others)) / 1e9
        print(
            f"decoded cache: beside it lie {len(others)} of {kind} that were made of other data, labels or sizes, "
            f"{size:.2f} GB: those that no run needs any more may be deleted"
        )


def room_needed(layout: Layout, split: str, files: SplitFiles, folder: Path, input_size: int = 0) -> int:
    """Bytes that `open_cache` would write; 0 if all is there."""
    absent = [
        part
        for part in _parts(layout, split, files)
        if not _load(*_locate(layout, split, part, folder, input_size), part, input_size)
    ]
    return sum(_record_bytes(working_shape(*size, input_size)) for part in absent for size in _sizes(part))


def check_room(folder: Path, needed: int) -> None:
    """A `UserError` if ``needed`` bytes are more than are free in ``folder``."""
    require_room(folder, needed, "--decode-cache", "leave the option out or make room")


def _locate(layout: Layout, split: str, files: SplitFiles, folder: Path, input_size: int) -> tuple[Path, list[list]]:
    """The data file's path in ``folder``, and the sources its name is made of."""
    sources = describe_sources(layout, files)
    about = [FORMAT, layout.class_names, sources, *([input_size] if input_size else [])]
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:DIGITS]
    return folder / f"{layout.name}_{split}_{digest}.bin", sources


def _sizes(files: SplitFiles) -> list[Shape]:
    """Native (H, W) of each image, from the files' headers."""
    sizes = map(image_size, files.images)
    return [(height, width) for width, height in sizes]


def _record_bytes(shape: Shape) -> int:
    height, width = shape
    return 4 * height * width


def describe_sources(layout: Layout, files: SplitFiles) -> list[list]:
    """Name, bytes and modification time of each source file, and how masks are written.

    Files are named from the data set's root, if they lie there.
    """
    paths = [*files.images, *(files.masks or [])]
    described = []
    for path in paths:
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or error}") from None
        name = path.relative_to(layout.root) if path.is_relative_to(layout.root) else path
        described.append([name.as_posix(), found.st_size, found.st_mtime_ns])
    return described + layout.labels.key


def _load(data: Path, sources: list[list], files: SplitFiles, input_size: int) -> DecodeCache | None:
    """The cache if manifest and file are whole and of just these sources, otherwise None."""
    try:
        about = read_manifest(data.with_suffix(".json"))
        if about["format"] != FORMAT or about["sources"] != sources:
            return None
        cache = DecodeCache(data, [(int(height), int(width)) for height, width in about["shapes"]], input_size)
        # One that was made before pictures were turned is good if there was none to turn.
        turned = about.get("upright") or all(read_header(path).orientation == UPRIGHT for path in files.images)
        return cache if turned and cache.file.is_whole() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remove_unturned(data: Path) -> None:
    """Remove a file of stored pixels that the upright ones would be taken for."""
    try:
        turned = read_manifest(data.with_suffix(".json")).get("upright")
    except (OSError, ValueError):
        return
    if not turned:
        data.unlink(missing_ok=True)


def _build(data: Path, files: SplitFiles, read_pair: ReadPair, input_size: int) -> DecodeCache:
    """Decode everything into ``data`` by way of a temporary file."""
    cache = DecodeCache(data, _sizes(files), input_size)
    total = int(cache.file.offsets[-1])
    free = free_bytes(data.parent)
    print(f"decoded cache: {len(files.ids):,} images, {total / 1e9:.2f} GB in {data} ({free / 1e9:.1f} GB free)")
    check_room(data.parent, total)

    masks = [*(files.masks or []), *[None] * len(files.ids)]  # none for those that have none

    def encode(index: int) -> bytes:
        image, mask = to_working_size(*read_pair(files.images[index], masks[index]), input_size)
        return image.permute(1, 2, 0).contiguous().numpy().tobytes() + mask.contiguous().numpy().tobytes()

    samples = map_in_order(encode, range(len(files.ids)), desc="decoding", total=len(files.ids))
    _put(data, samples, cache.file.is_whole)
    return cache


def _put(path: Path, content: Iterable[bytes], is_there: Callable[[], bool]) -> None:
    """Write ``path`` by way of a file of this process's own: other runs may be making the same.

    Args:
        is_there: whether another one was quicker; what it has mapped cannot be replaced on Windows, and is the same.
    """
    temporary = path.with_name(f".decoding-{uuid.uuid4().hex}")
    try:
        # Written as a stream: on a full disk that is an error, where a memory map would be a crash.
        with temporary.open("xb") as file:
            for part in content:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        if not is_there():
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".decoding-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()
