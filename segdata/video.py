"""Videos and cameras as frames, and frames as videos of the same size and timing; by PyAV (an optional package)."""

from __future__ import annotations

import contextlib
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from PIL import Image, ImageOps

from basics.errors import UserError
from basics.files import replacing
from basics.optional_packages import need
from segdata.reading import DataError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame

    from segdata.sound import Sound

# Of what PyAV reads: those that are videos as a rule.
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".qt", ".avi", ".divx", ".mkv", ".webm", ".mpg", ".mpeg", ".mpe", ".m2v", ".vob", ".wmv",
    ".asf", ".mts", ".m2ts", ".m2t", ".ts", ".tp", ".trp", ".mod", ".tod", ".3gp", ".3gpp", ".3g2", ".flv", ".f4v",
    ".ogv", ".ogm", ".mxf", ".dv", ".rm", ".rmvb", ".y4m", ".nut", ".h264", ".264", ".h265", ".265", ".hevc", ".ivf",
    ".mjpeg", ".mjpg", ".insv", ".lrv",
)  # fmt: skip
CAMERA = "camera:"
SCHEMES = ("http", "https", "rtsp", "rtsps", "rtmp", "rtmps", "udp", "rtp", "tcp", "srt", "mms", "ftp", "sftp", "hls")
PATIENCE = 20.0  # seconds without an answer, after which a URL is given up
DEFAULT_RATE = Fraction(30)
BT601, LIMITED_RANGE = 6, 1  # FFmpeg's AVCOL_SPC_SMPTE170M and AVCOL_RANGE_MPEG
CAMERA_FORMATS = {"linux": ("/dev/video{}", "v4l2"), "darwin": ("{}", "avfoundation")}


Time = TypeVar("Time", int, Fraction)  # in units or in seconds


def import_av(shown: str | Path) -> ModuleType:
    """PyAV, or a `DataError` that says how to install it: pictures beside the video can be read without."""
    return need("av", "av", f"{shown}: video", DataError)


@dataclass(frozen=True)
class Frame:
    """One picture of a video: uint8 (H, W, 3) RGB, upright, and when it is shown, in seconds from the first."""

    pixels: np.ndarray
    time: Fraction


def is_url(text: str) -> bool:
    """Whether an input is the address of a stream or of a file elsewhere."""
    scheme, separator, _ = text.partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


def looks_like_video(path: Path) -> bool:
    """Whether PyAV, if it is there, finds a video in a file, whatever its suffix."""
    try:
        import av

        with av.open(str(path)) as container:
            name = container.format.name  # FFmpeg takes any text for the screen of a terminal
            return bool(container.streams.video) and name != "tty" and "image2" not in name and "_pipe" not in name
    except Exception:  # of what is no video FFmpeg and PyAV raise whatever they stumble over
        return False


class VideoReader:
    """The frames of a video file, a stream or a camera, one after the other.

    Attributes:
        rate: frames a second.
        frames: how many there are, as far as the file tells; 0 if it does not.
        time_base: the unit, in seconds, that frame times are whole multiples of.
        start: when the first frame is shown by the file's own clock, in seconds; known once it was read.
        aspect: width of a pixel divided by its height, upright; known once the first frame was read.
        ended: whether its end was reached.
        damage: what could not be decoded so far, in words; empty if nothing.

    Args:
        source: a file, a URL or ``camera:N``.
        shown: what messages call it.
    """

    def __init__(self, source: str | Path, shown: str | None = None) -> None:
        self.source, self.shown = str(source), shown or str(source)
        av = import_av(self.shown)
        try:
            self.container = _open(av, self.source)
        except (av.error.FFmpegError, OSError) as error:
            raise DataError(f"{self.shown}: {self._why_not(error)}") from None
        if not self.container.streams.video:
            self.container.close()
            raise DataError(f"{self.shown}: no video in this file")
        self.stream = self.container.streams.video[0]
        self.stream.thread_type = "AUTO"
        self.rate = Fraction(self.stream.average_rate or self.stream.guessed_rate or DEFAULT_RATE)
        self.time_base = Fraction(self.stream.time_base or 1 / self.rate)
        self.frames = self.stream.frames
        self.start = Fraction(0)
        self.aspect = Fraction(1)
        self.ended = False
        self._read, self._damaged, self._broken_off = 0, 0, ""

    @property
    def is_file(self) -> bool:
        return not self.source.startswith(CAMERA) and not is_url(self.source)

    def _why_not(self, error: OSError) -> str:
        """Why it cannot be opened, and what to do."""
        if self.is_file and Path(self.source).is_file():
            if not Path(self.source).stat().st_size:
                return "the file is empty; get it again"
            return f"no video, or one that was cut off ({error.strerror or error}); get it again"
        advice = "; is the address right, and does it answer?" if is_url(self.source) else ""
        return f"cannot be opened: {error.strerror or error}{advice}"

    @property
    def damage(self) -> str:
        packets = f"{self._damaged} damaged packet{'s' if self._damaged > 1 else ''} left out" if self._damaged else ""
        count = f"{self._read} of {self.frames} frames could be read" if self.frames and self.ended else ""
        said = [part for part in (packets, self._broken_off) if part]
        return "; ".join([*said, count] if said and count else said)

    def __iter__(self) -> Iterator[Frame]:
        last, delay = Fraction(0), Fraction(0)
        for number, frame in enumerate(self._decode()):
            matrix, time = display_matrix(frame), self._time_of(frame)
            if number == 0:
                self.start = last = time or Fraction(0)
                if self._only_decoding and time is not None:  # decoding runs ahead of display
                    self.start = last = (self.stream.start_time or 0) * self.time_base
                    delay = time - self.start
                aspect = Fraction(self.stream.sample_aspect_ratio or 1)
                self.aspect = 1 / aspect if lies_on_its_side(matrix) else aspect
            else:
                step = 1 / self.rate
                last = last + step if time is None else next_time(last, time - delay, self.time_base, step)
            self._read += 1
            yield Frame(upright(frame.to_ndarray(format="rgb24"), matrix), last - self.start)

    @property
    def _only_decoding(self) -> bool:
        """Whether a file says when frames are decoded, and not when they are shown, and the two differ."""
        return self.container.format.name == "avi" and bool(self.stream.codec_context.has_b_frames)

    def _time_of(self, frame: VideoFrame) -> Fraction | None:
        stamp = frame.dts if self._only_decoding else frame.pts
        return None if stamp is None else stamp * self.time_base

    def _decode(self) -> Iterator[VideoFrame]:
        """All frames that can be decoded; a damaged packet costs its own."""
        av = import_av(self.shown)
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                self.ended = True
                return
            except av.error.FFmpegError as error:  # nothing can be found behind it
                self._broken_off = f"it breaks off: {error.strerror or error}"
                return
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                self._damaged += 1
                continue
            yield from frames

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()


def next_time(last: Time, time: Time, unit: Time, step: Time) -> Time:
    """When a frame is shown that says ``time`` and comes after one at ``last``.

    Some files say that two frames come at once, or in another order. Where the clock jumps back, it goes on evenly.

    Args:
        unit: the shortest time between two frames.
        step: the usual one.
    """
    if time > last:
        return time
    return last + (unit if last - time <= step else step)


def display_matrix(frame: VideoFrame) -> tuple[float, float, float, float]:
    """(a, b, c, d): what is stored at (x, y) is shown at (a x + c y, b x + d y), and all of it moved into view."""
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")  # PyAV's types do not say that it is a buffer
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix)) if matrix is not None else (1, 0, 0, 0, 1)
    return a, b, c, d


def lies_on_its_side(matrix: tuple[float, float, float, float]) -> bool:
    """Whether what is stored as rows is shown as columns."""
    a, b, c, d = matrix
    return abs(b) + abs(c) > abs(a) + abs(d)


def upright(pixels: np.ndarray, matrix: tuple[float, float, float, float]) -> np.ndarray:
    """Turn and mirror (H, W, 3) as a `display_matrix` says, to the nearest quarter of a turn."""
    a, b, c, d = matrix
    if lies_on_its_side(matrix):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _open(av: ModuleType, source: str) -> InputContainer:
    if source.startswith(CAMERA):
        return _open_camera(av, source)
    if is_url(source):
        # Over TCP an RTSP camera's packets come whole and in order.
        options = {"rtsp_transport": "tcp"} if source.lower().startswith("rtsp") else {}
        return av.open(source, options=options, timeout=PATIENCE)
    return av.open(source)


def _open_camera(av: ModuleType, source: str) -> InputContainer:
    number = source.removeprefix(CAMERA)
    if not number.isdigit():
        raise UserError(f"{source}: give the camera's number, such as {CAMERA}0")
    if sys.platform not in CAMERA_FORMATS:
        raise UserError(f"{source}: cameras are read on Linux and macOS; record a video file and give that")
    device, kind = CAMERA_FORMATS[sys.platform]
    return av.open(device.format(number), format=kind)


class VideoWriter:
    """Writes frames of one size to an H.264 file (MPEG-4 where this build of PyAV lacks the encoder).

    Colour resolution is halved and sides are even, as every player can show it: an odd side gets a pixel more.

    Args:
        aspect: width of a pixel divided by its height.
        shown: what messages call it.
    """

    def __init__(
        self,
        path: Path,
        rate: Fraction,
        time_base: Fraction,
        aspect: Fraction = Fraction(1),
        shown: Path | None = None,
    ) -> None:
        self.av, self.shown = import_av(shown or path), shown or path
        self.container = self.av.open(str(path), "w")
        self.codec = "libx264" if "libx264" in self.av.codecs_available else "mpeg4"
        self.stream = self.container.add_stream(self.codec, rate=rate)
        self.stream.pix_fmt = "yuv420p"
        self.rate = rate
        # MPEG-4 knows units down to 1/65535 s only: there, frames are a whole number of 1/rate apart.
        self.time_base = time_base if self.codec == "libx264" else 1 / rate
        self.stream.codec_context.time_base = self.time_base
        self.stream.codec_context.sample_aspect_ratio = aspect
        # How rgb24 becomes YCbCr below; players take untagged HD for BT.709.
        self.stream.codec_context.colorspace, self.stream.codec_context.color_range = BT601, LIMITED_RANGE
        self.size: tuple[int, int] | None = None
        self.sound: Sound | None = None  # what is heard with it
        self.last = -1  # time of the last frame, in units of `time_base`

    def write(self, frame: Frame) -> None:
        """Append a frame; the first one decides the size of the video, others are scaled to it."""
        height, width = frame.pixels.shape[:2]
        if self.size is None:
            self.size = height + height % 2, width + width % 2
            self.stream.height, self.stream.width = self.size
        picture = self.av.VideoFrame.from_ndarray(_fit(frame.pixels, *self.size), format="rgb24")
        time = round(frame.time / self.time_base)
        if self.last >= 0:
            step = max(1, round(1 / self.rate / self.time_base))
            time = next_time(self.last, time, 1, step)  # two may fall into one unit
        self.last = time
        picture.pts, picture.time_base = time, self.time_base
        self._encode(picture)
        if self.sound is not None:
            self.sound.copy_until(frame.time)

    def close(self, whole: bool = False) -> None:
        """Write what the encoder holds back, the sound until the last frame ends, and the file's index.

        Args:
            whole: all of the sound.
        """
        try:
            if self.size is not None:
                self._encode(None)
            if self.sound is not None:
                self.sound.copy_until(None if whole else self.last * self.time_base + 1 / self.rate)
                self.sound.finish()
        finally:
            self.container.close()

    def _encode(self, picture: object) -> None:
        try:
            self.container.mux(self.stream.encode(picture))
        except self.av.error.FFmpegError as error:
            raise DataError(f"{self.shown}: the video cannot be written: {error.strerror or error}") from None


def _fit(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """A frame (h, w, 3) in a size: repeated by a pixel at odd sides, scaled, with black bars, if it is another."""
    rows, columns = height - pixels.shape[0], width - pixels.shape[1]
    if rows in (0, 1) and columns in (0, 1):
        return np.pad(pixels, ((0, rows), (0, columns), (0, 0)), mode="edge") if rows or columns else pixels
    return np.asarray(ImageOps.pad(Image.fromarray(pixels), (width, height)))


@contextlib.contextmanager
def open_writer(path: Path, reader: VideoReader, sound: bool = True) -> Iterator[VideoWriter]:
    """A writer with the timing, and the sound, of ``reader``, whose first frame was read.

    ``path`` appears when all went well, whole. Streams and cameras are silent: their sound is not to be had twice.
    """
    with replacing(path) as temporary:
        writer = VideoWriter(temporary, reader.rate, reader.time_base, reader.aspect, path)
        try:
            if sound and reader.is_file:
                from segdata.sound import Sound

                writer.sound = Sound(reader.source, writer.container, reader.start)
            yield writer
        finally:
            writer.close(whole=reader.ended)
