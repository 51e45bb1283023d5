"""PNG files written row by row, so that a picture need never be in memory as a whole."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from segdata.palettes import colour_table

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE = 0, 2, 3  # colour types
NO_FILTER, SUBTRACT_ABOVE = 0, 2
SOURCE = "Source"
LEVEL = 6  # of zlib's compression
CHUNK = 1 << 20  # bytes of compressed pixels that are written at once


class PngRows:
    """A picture of known size, whose rows come from the top to the bottom within a ``with``, at the end of which it is
    whole.

    Args:
        palette: colours of class numbers; without it, rows are grey values or RGB.
        rgb: whether rows are RGB.
        source: said in the file, as PNG's keyword of that name; latin-1.
    """

    def __init__(
        self,
        path: Path,
        height: int,
        width: int,
        palette: Sequence[Sequence[int]] | None = None,
        rgb: bool = False,
        source: str = "",
    ) -> None:
        kind = RGB if rgb else GREY if palette is None else PALETTE
        self.file = path.open("wb")
        self._zlib = zlib.compressobj(LEVEL)
        self._waiting = bytearray()
        # Numbers and flat greys are smallest as they are; of photographs the difference to the row above is.
        self._filter = SUBTRACT_ABOVE if rgb else NO_FILTER
        self._above = np.zeros(width * (3 if rgb else 1), np.uint8)
        self.file.write(SIGNATURE)
        self._write_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
        if palette is not None:
            self._write_chunk(b"PLTE", colour_table(palette).tobytes())
        if source:
            self._write_chunk(b"tEXt", f"{SOURCE}\0{source}".encode("latin-1"))

    def write(self, rows: np.ndarray) -> None:
        """Append uint8 (rows, W), or (rows, W, 3)."""
        flat = np.ascontiguousarray(rows).reshape(len(rows), -1)
        if self._filter == SUBTRACT_ABOVE:
            above = np.concatenate([self._above[None], flat[:-1]])
            self._above = flat[-1].copy()
            flat = flat - above
        filters = np.full((len(flat), 1), self._filter, np.uint8)
        self._waiting += self._zlib.compress(np.concatenate([filters, flat], axis=1).tobytes())
        if len(self._waiting) >= CHUNK:
            self._flush()

    def __enter__(self) -> PngRows:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the end of the file, if all rows have come."""
        try:
            if kind is None:
                self._waiting += self._zlib.flush()
                self._flush()
                self._write_chunk(b"IEND", b"")
        finally:
            self.file.close()

    def _flush(self) -> None:
        self._write_chunk(b"IDAT", bytes(self._waiting))
        self._waiting.clear()

    def _write_chunk(self, kind: bytes, data: bytes) -> None:
        self.file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))


def source_of(path: Path) -> str:
    """What a PNG file says of its source; "" where it says nothing, or cannot be read."""
    with contextlib.suppress(OSError, SyntaxError, ValueError), Image.open(path) as image:
        return str(image.info.get(SOURCE, ""))
    return ""
