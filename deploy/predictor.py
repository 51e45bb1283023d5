"""One network over pictures, folders, videos and cameras: masks, overlays and panels as files."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import sys
import time
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path, PurePath

import numpy as np
import torch
from tqdm import tqdm

from basics.errors import UserError
from basics.files import LONGEST_NAME, folder_locked, free_bytes
from basics.memory import explain_memory
from basics.progress import ProgressBar
from deploy.results import KINDS, PICTURED, Areas, Band, Look, write_results
from deploy.segmenter import Segmenter
from segdata.drawing import colorize
from segdata.inputs import Source, find_sources, frames_folder
from segdata.pictures import Picture, PictureFile
from segdata.reading import DataError
from segdata.video import Frame, VideoReader, open_writer

FIRST_FEW, FIRST_FRAMES = 8, 100  # inputs, and a video's frames, after which it is known how much room one takes


@dataclass
class Tally:
    """What became of the inputs."""

    pictures: int = 0
    frames: int = 0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)

    def fail(self, error: Exception) -> None:
        """Report a file that is skipped, without tearing the progress bar."""
        message = " ".join(str(error).split())
        self.failures.append(message)
        tqdm.write(f"skipped: {message}", file=sys.stderr)

    def note(self, message: str) -> None:
        """Say what is worth knowing and no failure."""
        tqdm.write(f"note: {message}", file=sys.stderr)

    def summary(self, folder: Path) -> str:
        """One line: how much, how fast, where."""
        counts = [
            f"{number} {what}{'s' * (number != 1)}"
            for number, what in ((self.pictures, "picture"), (self.frames, "video frame"))
            if number
        ]
        done = self.pictures + self.frames
        line = f"{' and '.join(counts) or 'nothing'} in {self.seconds:.1f} s"
        if done:
            line += f" ({done / max(self.seconds, 1e-9):.1f} images/s), written to {folder}"
        return line + (f"; {len(self.failures)} skipped" if self.failures else "")


@dataclass(frozen=True)
class Options:
    """What is written, and of what.

    Attributes:
        kinds: of `KINDS`, what to write.
        tile: see `Segmenter.predict`; with it, or with a working size, pictures may be of any size.
        max_frames: of each video or camera.
        all_pages: every page of a TIFF and every frame of an animation, rather than the first.
        sound: whether videos keep theirs.
    """

    kinds: Sequence[str]
    tile: int = 0
    max_frames: int | None = None
    all_pages: bool = True
    sound: bool = True


class Predictor:
    """Runs one network over people's pictures and writes what was asked for.

    Args:
        segmenter: the network.
        folder: where results go to; a subfolder a kind.
    """

    def __init__(self, segmenter: Segmenter, folder: Path, options: Options) -> None:
        if "confidence" in options.kinds:
            segmenter.require_confidence()
        self.segmenter, self.folder, self.options = segmenter, folder, options
        self.look = Look(segmenter.class_names, segmenter.palette)
        self.files = [kind for kind in options.kinds if kind != "csv"]  # written for each picture
        self.areas = Areas(segmenter.class_names)
        self.source = ""  # what masks say of theirs
        self.taken: dict[str, str] = {}  # names of results, so that what is asked for later overwrites nothing

    def results(self, inputs: Sequence[str]) -> list[Path]:
        """Folders of results, and files, which are no inputs when they lie in a folder that is."""
        return [self.folder / kind for kind in KINDS]

    @property
    def memory_advice(self) -> str:
        """What to do where a picture does not fit into memory."""
        return "make the picture smaller" if self.segmenter.input_size else "cut the picture into tiles: --tile 512"

    def predict(self, inputs: Sequence[str]) -> Tally:
        """Files, folders, globs, URLs, ``camera:N``, with a progress bar; what cannot be read is told and skipped.

        Raises:
            UserError: no input means anything, memory ran out, or the results have no place to go to.
        """
        tally = Tally()
        found = find_sources(inputs, skip=self.results(inputs), taken=self.taken)
        for message in found.missing:
            tally.fail(DataError(message))
        for message in found.left_out:
            tally.note(message)
        start, free = time.monotonic(), free_bytes(self.folder)
        bar = ProgressBar(found.sources, unit="img", desc="predict", disable=len(found.sources) < 2)
        with folder_locked(self.folder, "give another --output-dir"):
            try:
                for done, source in enumerate(bar):
                    if done == FIRST_FEW:
                        _remark_room(self.folder, (free - free_bytes(self.folder)) / done, len(found.sources) - done)
                    try:
                        with explain_memory(self.memory_advice):
                            (self.video if source.is_video else self.picture)(source, tally)
                    except DataError as error:
                        tally.fail(error)
            finally:
                if "csv" in self.options.kinds and tally.pictures + tally.frames:
                    self.areas.write(self.folder)
        tally.seconds = time.monotonic() - start
        return tally

    # -- pictures ---------------------------------------------------------------------------------

    def picture(self, source: Source, tally: Tally) -> None:
        """Read, segment and write a picture, or the pages and frames of one."""
        any_size = self.options.tile > 0 or self.segmenter.input_size > 0  # neither has it in memory as a whole
        with PictureFile(source.path, any_size=any_size) as file:
            if file.pages == 1:
                self._write(source, source.name, file.page(0))
                tally.pictures += 1
                return
            if not self.options.all_pages:
                tally.note(f"{source.path}: the first of {file.pages} pages or frames")
                self._write(source, source.name, file.page(0), number=1)
                tally.pictures += 1
                return
            folder = frames_folder(source, self.taken)
            for number in range(1, file.pages + 1):
                try:
                    self._write(source, folder / f"{number:06d}", file.page(number - 1), number)
                    tally.pictures += 1
                except DataError as error:  # costs its page, and of an animation all that is drawn on it
                    tally.fail(error)
                    self._remove_numbers(folder, [number])
                    if not file.pages_stand_alone:
                        break
            self._remove_numbers(folder, range(number + 1, 1_000_000))

    def _write(self, source: Source, name: PurePath, picture: Picture, number: int | None = None) -> None:
        size = picture.height, picture.width
        paths = {kind: self._target(source, name, kind, ".png") for kind in self.files}
        areas = self._save(paths, size, self._bands(picture, name.name), name)
        self._add_areas(source, number, None, size, areas)

    def _save(self, paths: dict[str, Path], size: tuple[int, int], bands: Iterable[Band], name: PurePath) -> np.ndarray:
        """As `deploy.results.write_results`, with this network's look."""
        noted = functools.partial(self._note, paths["mask"]) if "mask" in paths else None
        return write_results(paths, size, bands, self.look, name.as_posix(), source=self.source, finished=noted)

    def _note(self, mask: Path, whole: Path) -> None:
        """A mask is whole, as the file ``whole``, and about to get its name."""

    def _add_areas(
        self, source: Source, number: int | None, seconds: Fraction | None, size: tuple[int, int], areas: np.ndarray
    ) -> None:
        if "csv" in self.options.kinds:  # else they would only fill the memory
            self.areas.add(source.shown, number, seconds, size, areas)

    def _bands(self, picture: Picture, name: str) -> Iterator[Band]:
        """What the network says of a picture; a tiled one with a progress bar."""
        kinds, tile = self.files, self.options.tile
        pictured = any(kind in PICTURED for kind in kinds)
        tiled = 0 < tile < max(picture.height, picture.width)
        said = self.segmenter.bands(
            picture.tensor_rows, (picture.height, picture.width), tile, confidence="confidence" in kinds
        )
        with ProgressBar(total=picture.height, unit="row", desc=name, disable=not tiled) as bar:
            for top, band in said:
                rows = len(band.mask)
                pixels = picture.read_rows(top, top + rows) if pictured else None
                sure = None if band.confidence is None else band.confidence.numpy()
                yield Band(pixels, band.mask.numpy(), sure)
                bar.update(rows)

    def _target(self, source: Source, name: PurePath, kind: str, suffix: str) -> Path:
        """Where a result goes; a `UserError` if its source lies there, a `DataError` if no file can be called so."""
        path = self.folder / kind / f"{name}{suffix}"
        if len(os.fsencode(path.name)) > LONGEST_NAME:
            raise DataError(f"{source.shown}: its name is too long for results to bear it; give it a shorter one")
        if path.resolve() == Path(source.path).resolve():
            raise UserError(f"{path} would be overwritten by its own prediction: give another --output-dir")
        return path

    def _is_a_persons(self, name: PurePath) -> bool:
        """Whether somebody has worked on what was written of a picture."""
        return False

    def _remove_numbers(self, folder: PurePath, numbers: Container[int]) -> None:
        """Remove what an earlier run wrote of pages or frames that this one has not: it would pass for this run's."""
        for kind in self.files:
            for path in (self.folder / kind / folder).glob("[0-9]" * 6 + ".png"):
                if int(path.stem) in numbers and not self._is_a_persons(folder / path.stem):
                    try:
                        path.unlink()
                    except OSError as error:  # such as one that is open in a viewer, on Windows
                        raise DataError(f"{path}: of an earlier run, cannot be removed: {error.strerror}") from error

    # -- videos -----------------------------------------------------------------------------------

    def video(self, source: Source, tally: Tally) -> None:
        """Segment a video, a stream or a camera: pictured kinds become videos, others a picture a frame."""
        moving = [kind for kind in self.files if kind in PICTURED]
        with VideoReader(source.path, source.shown) as reader, contextlib.ExitStack() as stack:
            frames = iter(reader)
            first = next(frames, None)
            if first is None:
                raise DataError(f"{source.shown}: not a single frame in this video; {reader.damage or 'it is empty'}")
            paths = {kind: self._target(source, source.name, kind, ".mp4") for kind in moving}
            sound = self.options.sound
            writers = {kind: stack.enter_context(open_writer(path, reader, sound)) for kind, path in paths.items()}
            limit = self.options.max_frames
            total = min(filter(None, (reader.frames, limit)), default=None)
            frames = itertools.islice(itertools.chain([first], frames), limit)
            bar = ProgressBar(frames, total=total, unit="img", desc=source.name.name)
            folder, free = frames_folder(source, self.taken), free_bytes(self.folder)
            # The end of a camera is Ctrl-C, and what it showed until then is kept.
            with contextlib.suppress(KeyboardInterrupt) if source.is_live else contextlib.nullcontext():
                for number, frame in enumerate(bar, start=1):
                    mask = self._write_frame(source, folder / f"{number:06d}", frame, number)
                    for kind, writer in writers.items():
                        writer.write(Frame(self._moving(kind, frame.pixels, mask), frame.time))
                    tally.frames += 1
                    if number == FIRST_FRAMES and total:
                        _remark_room(self.folder, (free - free_bytes(self.folder)) / number, total - number)
        if not source.is_live and number != limit:  # it was seen to its end
            self._remove_numbers(folder, range(number + 1, 1_000_000))
        if reader.damage:
            tally.note(f"{source.shown}: {reader.damage}")

    def _write_frame(self, source: Source, name: PurePath, frame: Frame, number: int) -> np.ndarray:
        """Write a frame's mask, confidence and areas, where they were asked for; returns the mask, uint8 (H, W)."""
        image = torch.from_numpy(frame.pixels).permute(2, 0, 1)
        said = self.segmenter.predict(image, self.options.tile, confidence="confidence" in self.files)
        band = Band(None, said.mask.numpy(), None if said.confidence is None else said.confidence.numpy())
        paths = {kind: self._target(source, name, kind, ".png") for kind in self.files if kind not in PICTURED}
        size = band.mask.shape[0], band.mask.shape[1]
        areas = self._save(paths, size, [band], name)
        self._add_areas(source, number, frame.time, size, areas)
        return band.mask

    def _moving(self, kind: str, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """A frame (H, W, 3) of the video that shows its prediction; of a panel (H, 2 W, 3)."""
        if kind == "overlay":
            return self.look.overlay(pixels, mask)
        return np.concatenate([pixels, colorize(mask, self.look.palette)], axis=1)


def _remark_room(folder: Path, bytes_each: float, left: int) -> None:
    """Say early that the disk will not hold it all; a full one ends the run, with what is written in order."""
    free = free_bytes(folder)
    if bytes_each * left > free:
        print(
            f"warning: some {bytes_each / 1e6:.1f} MB a picture: those that are left, {left:,}, want "
            f"{bytes_each * left / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free (the smallest "
            "of what --save takes is mask)",
            file=sys.stderr,
        )
