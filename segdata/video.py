"""Videos and cameras as frames, and frames as videos of the same size and timing; by PyAV (an optional package)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from basics.errors import UserError
from basics.files import replacing
from segdata.reading import DataError

if TYPE_CHECKING:
    from av.container import InputContainer

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv")
CAMERA = "camera:"
DEFAULT_RATE = Fraction(30)
BT601, LIMITED_RANGE = 6, 1  # FFmpeg's AVCOL_SPC_SMPTE170M and AVCOL_RANGE_MPEG
CAMERA_FORMATS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}", "avfoundation")}


def import_av() -> ModuleType:
    """PyAV, or a `UserError` that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise UserError("video needs the package av: pip install av (see requirements-extra.txt)") from error
    return av


@dataclass(frozen=True)
class Frame:
    """One picture of a video: uint8 (H, W, 3) RGB, upright, and when it is shown, in seconds from the first."""

    pixels: np.ndarray
    time: Fraction


class VideoReader:
    """The frames of a video file or a camera, one after the other.

    Attributes:
        rate: frames a second.
        frames: how many there are, as far as the file tells; 0 if it does not.
        time_base: the unit, in seconds, that frame times are whole multiples of.
    """

    def __init__(self, source: str | Path) -> None:
        av = import_av()
        self.source = str(source)
        try:
            self.container = _open_camera(av, self.source) if self.source.startswith(CAMERA) else av.open(self.source)
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(f"{source}: cannot be opened: {error.strerror or error}") from None
        if not self.container.streams.video:
            self.container.close()
            raise DataError(f"{source}: no video in this file")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.rate = Fraction(self.stream.average_rate or self.stream.guessed_rate or DEFAULT_RATE)
        self.time_base = Fraction(self.stream.time_base or 1 / self.rate)
        self.frames = self.stream.frames

    def __iter__(self) -> Iterator[Frame]:
        av = import_av()
        first = None
        try:
            for number, frame in enumerate(self.container.decode(self.stream)):
                time = frame.pts * self.time_base if frame.pts is not None else number / self.rate
                first = time if first is None else first
                yield Frame(upright(frame.to_ndarray(format="rgb24"), frame.rotation), time - first)
        except av.error.FFmpegError as error:
            raise DataError(f"{self.source}: damaged video: {error.strerror or error}") from None

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()


def upright(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Turn (H, W, 3) by the file's display rotation, counter-clockwise in steps of 90 degrees."""
    return np.ascontiguousarray(np.rot90(pixels, round(degrees / 90) % 4))


def _open_camera(av: ModuleType, source: str) -> InputContainer:
    number = source.removeprefix(CAMERA)
    if not number.isdigit():
        raise UserError(f"{source}: give the camera's number, such as {CAMERA}0")
    if sys.platform not in CAMERA_FORMATS:
        raise UserError(f"{source}: cameras are read on Linux and macOS; record a video file and give that")
    device, kind = CAMERA_FORMATS[sys.platform]
    return av.open(device.format(number), format=kind)


class VideoWriter:
    """Writes frames of one size to an H.264 file (MPEG-4 where this build of PyAV lacks the encoder)."""

    def __init__(self, path: Path, rate: Fraction, time_base: Fraction) -> None:
        self.av = import_av()
        self.container = self.av.open(str(path), "w")
        self.codec = "libx264" if "libx264" in self.av.codecs_available else "mpeg4"
        self.stream = self.container.add_stream(self.codec, rate=rate)
        self.rate = rate
        # MPEG-4 knows units down to 1/65535 s only: there, frames are a whole number of 1/rate apart.
        self.time_base = time_base if self.codec == "libx264" else 1 / rate
        self.stream.codec_context.time_base = self.time_base
        # How rgb24 becomes YCbCr below; players take untagged HD for BT.709.
        self.stream.codec_context.colorspace, self.stream.codec_context.color_range = BT601, LIMITED_RANGE
        self.size: tuple[int, int] | None = None
        self.last = -1  # time of the last frame, in units of `time_base`

    def write(self, frame: Frame) -> None:
        """Append a frame; the first one decides the size of the video."""
        height, width = frame.pixels.shape[:2]
        if self.size is None:
            self.size = height, width
            self.stream.height, self.stream.width = height, width
            # Halved colour resolution, which every player knows, needs even sides.
            odd = height % 2 or width % 2
            self.stream.pix_fmt = "yuv444p" if odd and self.codec == "libx264" else "yuv420p"
        if (height, width) != self.size:
            raise DataError(f"the picture's size changes within the video, from {self.size} to {(height, width)}")
        picture = self.av.VideoFrame.from_ndarray(frame.pixels, format="rgb24")
        time = round(frame.time / self.time_base)
        if time <= self.last:
            # Some files say that two frames come at once, or in another order. Where the clock jumps, go on evenly.
            step = max(1, round(1 / self.rate / self.time_base))
            time = self.last + (1 if self.last - time <= step else step)
        self.last = time
        picture.pts, picture.time_base = time, self.time_base
        self._encode(picture)

    def close(self) -> None:
        """Write what the encoder holds back, and the file's index."""
        try:
            if self.size is not None:
                self._encode(None)
        finally:
            self.container.close()

    def _encode(self, picture: object) -> None:
        try:
            self.container.mux(self.stream.encode(picture))
        except self.av.error.FFmpegError as error:
            raise DataError(f"the video cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def open_writer(path: Path, reader: VideoReader) -> Iterator[VideoWriter]:
    """A writer with the timing of ``reader``; ``path`` appears when all went well, whole."""
    with replacing(path) as temporary:
        writer = VideoWriter(temporary, reader.rate, reader.time_base)
        try:
            yield writer
        finally:
            writer.close()
