"""One network over pictures, folders, videos and cameras: masks, overlays and panels as files."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from basics.errors import UserError
from basics.files import replacing
from basics.memory import explain_memory
from deploy.segmenter import Segmenter
from segdata.drawing import PanelRow, background_classes, colorize, overlay, panel
from segdata.inputs import Source, find_sources
from segdata.pictures import read_picture, write_png
from segdata.reading import DataError
from segdata.video import Frame, VideoReader, VideoWriter, open_writer

KINDS = ("mask", "overlay", "panel")


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

    def summary(self, folder: Path) -> str:
        """One line: how much, how fast, where."""
        counts = [
            f"{number} {what}"
            for number, what in ((self.pictures, "pictures"), (self.frames, "video frames"))
            if number
        ]
        done = self.pictures + self.frames
        line = f"{' and '.join(counts) or 'nothing'} in {self.seconds:.1f} s"
        if done:
            line += f" ({done / self.seconds:.1f} images/s), written to {folder}"
        return line + (f"; {len(self.failures)} skipped" if self.failures else "")


class Predictor:
    """Runs one network over people's pictures and writes what was asked for.

    Args:
        segmenter: the network.
        kinds: of `KINDS`, what to write.
        folder: where to; a subfolder a kind.
        tile: see `Segmenter.mask`.
        max_frames: of each video or camera.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        kinds: Sequence[str],
        folder: Path,
        tile: int = 0,
        max_frames: int | None = None,
    ) -> None:
        self.segmenter, self.kinds, self.folder = segmenter, kinds, folder
        self.tile, self.max_frames = tile, max_frames
        self.clear = background_classes(segmenter.class_names)
        self.taken: dict[str, str] = {}  # names of results, so that what is asked for later overwrites nothing

    def predict(self, inputs: Sequence[str]) -> Tally:
        """Files, folders, globs, ``camera:N``, with a progress bar; a file that cannot be read is told and skipped.

        Raises:
            UserError: no input means anything, memory ran out, or the results have no place to go to.
        """
        tally = Tally()
        sources, missing = find_sources(inputs, skip=[self.folder / kind for kind in KINDS], taken=self.taken)
        for message in missing:
            tally.fail(DataError(message))
        start = time.monotonic()
        bar = tqdm(sources, unit="img", desc="predict", disable=len(sources) < 2 or None, leave=False)
        for source in bar:
            try:
                with explain_memory("cut the picture into tiles: --tile 512"):
                    if source.is_video:
                        tally.frames += self.video(source)
                    else:
                        self.picture(source)
                        tally.pictures += 1
            except DataError as error:
                tally.fail(error)
        tally.seconds = time.monotonic() - start
        return tally

    def picture(self, source: Source) -> None:
        """Read, segment and write one picture."""
        image = read_picture(source.path)
        mask = self.segmenter.mask(image, self.tile).numpy()
        pixels = image.permute(1, 2, 0).numpy()
        for kind in self.kinds:
            path = self._target(source, kind, ".png")
            if kind == "mask":
                write_png(mask, path, self.segmenter.palette)
            elif kind == "overlay":
                write_png(self._overlay(pixels, mask), path)
            else:
                row = PanelRow(source.name.as_posix(), pixels, [mask])
                names, palette = self.segmenter.class_names, self.segmenter.palette
                with replacing(path) as temporary:
                    panel([row], ["Input", "Prediction"], names, palette, temporary)

    def _target(self, source: Source, kind: str, suffix: str) -> Path:
        """Where a result goes; a `UserError` if that is where its source lies."""
        path = self.folder / kind / f"{source.name}{suffix}"
        if path.resolve() == Path(source.path).resolve():
            raise UserError(f"{path} would be overwritten by its own prediction: give another --output-dir")
        return path

    def video(self, source: Source) -> int:
        """Segment a video or a camera frame by frame; returns how many there were."""
        with VideoReader(source.path) as reader, contextlib.ExitStack() as stack:
            paths = {kind: self._target(source, kind, ".mp4") for kind in self.kinds}
            writers = {kind: stack.enter_context(open_writer(path, reader)) for kind, path in paths.items()}
            limit = self.max_frames
            total = min(filter(None, (reader.frames, limit)), default=None)
            bar = tqdm(islice(reader, limit), total=total, unit="img", desc=source.name.name, leave=False, disable=None)
            frames = 0
            # The end of a camera is Ctrl-C, and what it showed until then is kept.
            with contextlib.suppress(KeyboardInterrupt) if source.is_camera else contextlib.nullcontext():
                for frame in bar:
                    self._write_frame(frame, writers)
                    frames += 1
            if not frames:
                raise DataError(f"{source.path}: not a single frame in this video")
        return frames

    def _write_frame(self, frame: Frame, writers: Mapping[str, VideoWriter]) -> None:
        image = torch.from_numpy(frame.pixels).permute(2, 0, 1)
        mask = self.segmenter.mask(image, self.tile).numpy()
        for kind, writer in writers.items():
            if kind == "overlay":
                pixels = self._overlay(frame.pixels, mask)
            else:
                pixels = colorize(mask, self.segmenter.palette)
                if kind == "panel":
                    pixels = np.concatenate([frame.pixels, pixels], axis=1)
            writer.write(Frame(pixels, frame.time))

    def _overlay(self, pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
        return overlay(pixels, mask, self.segmenter.palette, clear=self.clear)
