"""The sound of a video, brought over into another one that is made of its pictures; by PyAV."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import OutputContainer
    from av.packet import Packet

COPIED = ("aac", "mp3", "mp3float", "ac3", "eac3", "alac")  # as MP4 players play it; other kinds become AAC

AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)  # samples a second


class Sound:
    """A file's first sound track, on its way into ``output``, to which nothing was written yet.

    Args:
        path: the file.
        start: when the output begins, in seconds by the file's clock.
    """

    def __init__(self, path: str, output: OutputContainer, start: Fraction) -> None:
        self.container, self.output, self.start = av.open(path), output, start
        self._packets: Iterator[Packet] = iter(())
        self._waiting: Packet | None = None
        self._encoder = None
        stream = next((track for track in self.container.streams.audio if track.codec_context), None)
        if stream is None:
            return
        self._packets = self.container.demux(stream)
        if stream.codec_context.name in COPIED:
            self._track = output.add_stream_from_template(stream)
        else:
            rate = stream.rate if stream.rate in AAC_RATES else 48000
            self._encoder = output.add_stream("aac", rate=rate)
            self._encoder.layout = "mono" if stream.channels == 1 else "stereo"
            self._resampler = av.AudioResampler("fltp", self._encoder.layout, rate)

    def copy_until(self, time: Fraction | None) -> None:
        """Write what is heard until ``time`` seconds after the start; None for all that there is."""
        with contextlib.suppress(av.error.FFmpegError):  # behind damage that no sound is found behind, there is silence
            while (packet := self._waiting or next(self._packets, None)) is not None:
                self._waiting = None
                if packet.pts is None or packet.time_base is None:
                    continue
                heard = packet.pts * packet.time_base - self.start
                if time is not None and heard > time:
                    self._waiting = packet
                    return
                if heard >= 0:
                    self._write(packet)

    def finish(self) -> None:
        """Write what the encoder holds back, and close the file."""
        if self._encoder is not None:
            self.output.mux(self._encoder.encode(None))
        self.container.close()

    def _write(self, packet: Packet) -> None:
        assert packet.pts is not None and packet.time_base is not None
        offset = round(self.start / packet.time_base)
        if self._encoder is None:
            packet.pts -= offset
            packet.dts = packet.pts if packet.dts is None else packet.dts - offset
            packet.stream = self._track
            self.output.mux(packet)
            return
        with contextlib.suppress(av.error.FFmpegError):  # a damaged packet costs its own sound
            for frame in cast("list[AudioFrame]", packet.decode()):
                if frame.pts is not None:
                    frame.pts -= offset
                for piece in self._resampler.resample(frame):
                    self.output.mux(self._encoder.encode(piece))
