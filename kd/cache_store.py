"""The teacher cache on disk: one memory-mapped file of records, and the papers that say what it is.

A cache is a folder:

    manifest.json    what it was made from and how well it agrees with the teacher; written last, so that a
                     folder with one is whole, and a folder without one is not served
    outputs.bin      one record an image, in the split's order: its logits, then its projected feature maps
    projection.pth   the projections of the feature maps, if there are any
    building.json    while it is built: what it is being made from
    journal.txt      while it is built: how many records are safe on the disk, one line each time
    lock             held by the run that builds

A map (C, h, w) is stored as float16, or as uint8 behind two float32 numbers, its lowest value and the step between
two levels. All numbers are little-endian.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from basics.errors import UserError
from basics.files import file_bytes, free_bytes, require_room, try_lock
from basics.record_file import RecordFile, read_manifest, record_offsets

FORMAT = 1
OUTPUTS, MANIFEST, BUILDING, JOURNAL = "outputs.bin", "manifest.json", "building.json", "journal.txt"
DTYPES: dict[str, np.dtype[Any]] = {"fp16": np.dtype("<f2"), "uint8": np.dtype("u1")}
RANGE_BYTES = 8  # lowest value and step of a uint8 map
LEVELS = 255
COMMIT_SECONDS = 10.0
LOCK_POLL_SECONDS = 0.5

# What a cache is made from, in words. `images` and `maps` are compared by `differences` itself.
LABELS = {
    "format": "the cache's format",
    "teacher": "the teacher",
    "weights_sha256": "the sha256 of the teacher (weights, normalisation, code)",
    "mean": "the mean of the input",
    "std": "the standard deviation of the input",
    "pad": "the padding of images to multiples of",
    "dtype": "the storage type",
    "projection": "the projection of feature maps",
}


class RecordLayout:
    """Where each map of each image lies in ``outputs.bin``.

    Args:
        made_from: the dict that describes a cache (see `kd.teacher_cache.describe`): ``dtype``, ``pad``, ``maps``
            (name -> [the teacher's channels, stride]) and ``images`` ([id, height, width, bytes of the file] each, and
            what was done to the stored pixels, if anything); and ``dims``, the channels that are kept of those maps of
            which not all are.
    """

    def __init__(self, made_from: Mapping[str, Any]):
        self.dtype = DTYPES[made_from["dtype"]]
        dims = made_from.get("dims", {})
        self.maps = {name: (dims.get(name, channels), stride) for name, (channels, stride) in made_from["maps"].items()}
        pad = made_from["pad"]
        self.sizes = [(height + -height % pad, width + -width % pad) for _, height, width, *_ in made_from["images"]]
        self.offsets = record_offsets(
            sum(self._length(name, index) for name in self.maps) for index in range(len(self.sizes))
        )

    def shape(self, name: str, index: int) -> tuple[int, int, int]:
        """(C, h, w) of one map of one image."""
        channels, stride = self.maps[name]
        height, width = self.sizes[index]
        return channels, height // stride, width // stride

    def _length(self, name: str, index: int) -> int:
        return math.prod(self.shape(name, index)) * self.dtype.itemsize + self._range_bytes

    @property
    def _range_bytes(self) -> int:
        return RANGE_BYTES if self.dtype.itemsize == 1 else 0

    @property
    def total_bytes(self) -> int:
        return int(self.offsets[-1])

    def start(self, name: str, index: int) -> int:
        """Offset of a map's first value."""
        before = list(self.maps)[: list(self.maps).index(name)]
        return int(self.offsets[index]) + sum(self._length(other, index) for other in before) + self._range_bytes

    def encode(self, index: int, maps: Mapping[str, torch.Tensor]) -> bytes:
        """The record of one image from its ``maps``, float (C, h, w) on the CPU."""
        parts = []
        for name in self.maps:
            values = maps[name].to(torch.float32).numpy()
            if values.shape != self.shape(name, index):
                raise ValueError(f"{name} of image {index}: {values.shape}, expected {self.shape(name, index)}")
            if self.dtype.itemsize > 1:
                top = np.finfo(self.dtype).max
                parts.append(np.clip(values, -top, top).astype(self.dtype).tobytes())
                continue
            low = values.min()
            step = np.float32((values.max() - low) / LEVELS) or np.float32(1)
            parts += [np.array([low, step], "<f4").tobytes(), np.rint((values - low) / step).astype("u1").tobytes()]
        return b"".join(parts)


class CacheReader:
    """Reads windows of the maps in a finished ``outputs.bin``.

    Raises:
        UserError: the file is not as long as its records.
    """

    def __init__(self, folder: Path, made_from: Mapping[str, Any]):
        self.layout = RecordLayout(made_from)
        self.file = RecordFile(folder / OUTPUTS, self.layout.offsets)
        if not self.file.is_whole():
            raise UserError(
                f"{self.file.path}: damaged: {file_bytes(self.file.path)} bytes instead of {self.layout.total_bytes}; "
                f"remove {folder}"
            )

    def windows(
        self, name: str, indices: Sequence[int], rows: Sequence[tuple[int, int]], columns: Sequence[tuple[int, int]]
    ) -> torch.Tensor:
        """Windows of one map of several images, side by side in one tensor.

        Args:
            rows, columns: (start, end) of each window in cells, inside the map and not empty.

        Returns:
            float32 (N, C, h, w), h and w of the largest window; the smaller ones lie at the top left and go on with
            their last row and column, so that interpolation at their border meets no foreign value.
        """
        height, width = (max(end - start for start, end in spans) for spans in (rows, columns))
        channels, _ = self.layout.maps[name]
        out = torch.empty(len(indices), channels, height, width)
        for target, index, (top, bottom), (left, right) in zip(out, indices, rows, columns, strict=True):
            h, w = bottom - top, right - left
            target[:, :h, :w] = self._values(name, index)[:, top:bottom, left:right]
            if self.layout.dtype.itemsize == 1:
                low, step = self._range(name, index)
                target[:, :h, :w].mul_(step).add_(low)
            target[:, h:, :w] = target[:, h - 1 : h, :w]
            target[:, :, w:] = target[:, :, w - 1 : w]
        return out

    def _values(self, name: str, index: int) -> torch.Tensor:
        """One map as stored (C, h, w), a view of the file."""
        shape, start = self.layout.shape(name, index), self.layout.start(name, index)
        values = self.file.data[start : start + math.prod(shape) * self.layout.dtype.itemsize]
        return torch.from_numpy(values.view(self.layout.dtype)).view(shape)

    def _range(self, name: str, index: int) -> tuple[float, float]:
        start = self.layout.start(name, index)
        low, step = np.frombuffer(self.file.data[start - RANGE_BYTES : start].tobytes(), "<f4")
        return float(low), float(step)


class CacheWriter:
    """Appends records to ``outputs.bin``, going on after the last one that the journal vouches for.

    A journal line is written only when the records it counts have reached the disk, so a kill or a power cut at any
    instant costs the last seconds of work and never leaves a record that is trusted but not whole.
    """

    def __init__(self, folder: Path, layout: RecordLayout):
        self.folder, self.layout = folder, layout
        data, journal = folder / OUTPUTS, folder / JOURNAL
        with writing(folder):
            self.done = self._records_on_disk(data, journal)
            self._data = data.open("r+b" if self.done else "wb")
            self._data.truncate(int(layout.offsets[self.done]))
            self._data.seek(0, os.SEEK_END)
            self._journal = journal.open("a" if self.done else "w", encoding="ascii")
        self._committed, self._commit_time = self.done, time.monotonic()

    def _records_on_disk(self, data: Path, journal: Path) -> int:
        if not data.exists() or not journal.exists():
            return 0
        # The last line may have been cut short by a kill: only what ends in a newline counts.
        lines = journal.read_text(encoding="ascii").split("\n")[:-1]
        done = int(lines[-1]) if lines and lines[-1].isdigit() else 0
        whole = int(np.searchsorted(self.layout.offsets, file_bytes(data), side="right")) - 1
        return min(done, whole)

    def append(self, record: bytes) -> None:
        """Add the next image's record; now and then everything so far is made safe."""
        with writing(self.folder):
            self._data.write(record)
        self.done += 1
        if time.monotonic() - self._commit_time > COMMIT_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Make all records safe on the disk, then say so in the journal."""
        if self._committed < self.done:
            with writing(self.folder):
                self._data.flush()
                os.fsync(self._data.fileno())
                self._journal.write(f"{self.done}\n")
                self._journal.flush()
                os.fsync(self._journal.fileno())
        self._committed, self._commit_time = self.done, time.monotonic()

    def close(self) -> None:
        for file in (self._data, self._journal):
            with contextlib.suppress(OSError):  # a full disk, reported when it was met
                file.close()


@contextlib.contextmanager
def writing(folder: Path, what: str = "teacher cache") -> Iterator[None]:
    """Turn a failed write below ``folder`` into one line that says what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the {what} {folder}: {error.strerror or error}; make room (or name another "
            "--cache-dir) and run again: what is done is kept"
        ) from error


def check_room(folder: Path, needed: int) -> None:
    """Say what will be written to ``folder``; a `UserError` if ``needed`` bytes are more than are free."""
    print(f"teacher cache: {needed / 1e9:.2f} GB to write in {folder} ({free_bytes(folder) / 1e9:.1f} GB free)")
    advice = "make room, name another --cache-dir, pass --cache-teacher uint8 (half the size) or train live"
    require_room(folder, needed, "the teacher cache", advice)


def load_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any] | None:
    """The manifest in ``folder``, or None if there is none; a damaged one is a `UserError`."""
    path = folder / name
    try:
        manifest = read_manifest(path)
        manifest["made_from"]["maps"].items()
        return manifest
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {error}); remove {folder}") from error


def other_manifest(folder: Path) -> dict[str, Any] | None:
    """As `load_manifest`; None for a damaged one, too: in another folder it may be of something else altogether."""
    with contextlib.suppress(UserError):
        return load_manifest(folder)
    return None


ENDS = ", ends with "  # before the digest of how an image's file begins and ends


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What keeps a cache made from ``there`` from serving a run that needs ``here``, in words; empty if nothing.

    More images and more feature maps than needed are no difference, nor are maps that are kept as once they were.
    """
    maps_there, maps_here = there["maps"], here["maps"]
    looks_at_maps = len(maps_here) > 1 and not is_blurred(there)
    found = []
    for key, label in LABELS.items():
        if there.get(key) != here[key] and (key != "projection" or looks_at_maps):
            found.append(f"{label} is {_short(there.get(key))} there, {_short(here[key])} here")
    for name, spec in maps_here.items():
        if name not in maps_there:
            found.append(f"the feature map {name!r} is not there")
        elif maps_there[name] != spec and (name == "logits" or looks_at_maps):
            found.append(f"{name} has channels and stride {maps_there[name]} there, {spec} here")
    ours, theirs = here["images"], {image[0]: image for image in there["images"]}
    if missing := [image[0] for image in ours if image[0] not in theirs]:
        found.append(f"{len(missing)} of {len(ours)} images are not there, such as {missing[0]}")
    pairs = [(theirs[image[0]], image) for image in ours if image[0] in theirs]
    # Caches of old say nothing of what is in the files.
    unlike = [(there, here) for there, here in pairs if there != (here if _has_ends(there) else here[:-1])]
    if unlike:
        text = "image {} (height {}, width {}, {} bytes{})"
        first, second = (text.format(*image[:4], "".join(image[4:])) for image in unlike[0])
        found.append(f"{len(unlike)} images differ: {first} there, {second} here")
    return found


def refuse_other(folder: Path, found: list[str]) -> None:
    """A `UserError` about a cache of which these `differences` were found."""
    raise UserError(
        f"the teacher cache {folder} was made from something else: {'; '.join(found)}; remove that folder or name "
        "another --cache-dir"
    )


def is_blurred(made_from: Mapping[str, Any]) -> bool:
    """Whether a cache's feature maps, if it has any, are averaged to stride 16 and cut to 64 dimensions, as of old."""
    return made_from.get("projection") == {"kind": "mean and principal components", "dims": 64, "images": 48}


def _has_ends(image: list) -> bool:
    return str(image[-1]).startswith(ENDS)


def _short(value: Any) -> str:
    """A hash by its first digits, all else as it is."""
    return value[:12] + "..." if isinstance(value, str) and len(value) == 64 else str(value)


@contextlib.contextmanager
def locked(path: Path, what: str = "teacher cache", *, needed: bool = True) -> Iterator[None]:
    """Hold ``path`` as a lock between processes; the system gives it back when a process ends, however it ends.

    Args:
        what: is made, in words, for who waits.
        needed: a file system without locks is an error; else nothing is held there.
    """
    with writing(path.parent, what):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+b")
    with file:
        waited = False
        while True:
            with writing(path.parent, what):  # a file system without locks is an error, not a lock held for ever
                try:
                    if try_lock(file):
                        break
                except OSError:
                    if needed:
                        raise
                    break
            if not waited:
                print(f"{what}: another run is building {path.parent}; waiting for it", flush=True)
            waited = True
            time.sleep(LOCK_POLL_SECONDS)
        yield  # closing the file gives the lock back
