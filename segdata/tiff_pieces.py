"""A TIFF's strips or tiles, decoded one by one: pictures larger than the memory, and planes that Pillow mixes up.

Pillow decodes a TIFF as a whole. Each piece of it, written into a TIFF of its own with the same tags, is decoded by
Pillow alone, so that all its compressions are at hand.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import IO, TypeGuard

import numpy as np
from PIL import Image, TiffTags
from PIL import TiffImagePlugin as tiff

ORIENTATION, T4_OPTIONS, T6_OPTIONS, YCBCR_POSITION = 274, 292, 293, 531  # tags that Pillow has no names for
# What a piece must say of itself to be decoded as the whole would be.
KEPT = (
    tiff.BITSPERSAMPLE, tiff.COMPRESSION, tiff.PHOTOMETRIC_INTERPRETATION, tiff.FILLORDER, tiff.SAMPLESPERPIXEL,
    tiff.PREDICTOR, tiff.COLORMAP, tiff.EXTRASAMPLES, tiff.SAMPLEFORMAT, tiff.JPEGTABLES, tiff.YCBCRSUBSAMPLING,
    YCBCR_POSITION, tiff.REFERENCEBLACKWHITE, T4_OPTIONS, T6_OPTIONS,
)  # fmt: skip
OF_ALL_BANDS = (tiff.PHOTOMETRIC_INTERPRETATION, tiff.COLORMAP, tiff.EXTRASAMPLES)  # no business of a plane alone
UNCOMPRESSED, OLD_JPEG = 1, 6
PREMULTIPLIED = (1,)  # what the fourth band is: transparency, by which the others are multiplied
PLANAR = 2  # a plane of red, then one of green, then one of blue
GREY, YCBCR = 1, 6  # photometric interpretations
ROWS = 256  # of an uncompressed strip that are read at once


class TiffPieces:
    """The page of a TIFF that ``image`` is at.

    Attributes:
        height, width: of the picture.
        rows_at_once: height of its pieces.

    Args:
        image: opened, not decoded.
        file: what it was opened from.
        to_rgb: a decoded piece -> uint8 (h, w, 3).
    """

    def __init__(self, image: tiff.TiffImageFile, file: IO[bytes], to_rgb: Callable[[Image.Image], np.ndarray]) -> None:
        self.tags, self.file, self.to_rgb, self.mode = image.tag_v2, file, to_rgb, image.mode
        self.width, self.height = self.tags[tiff.IMAGEWIDTH], self.tags[tiff.IMAGELENGTH]
        self.planes = len(image.getbands()) if is_planar(image) else 1
        if tiff.TILEOFFSETS in self.tags:
            self.piece_width, self.rows_at_once = self.tags[tiff.TILEWIDTH], self.tags[tiff.TILELENGTH]
            self.offsets, self.sizes = self.tags[tiff.TILEOFFSETS], self.tags[tiff.TILEBYTECOUNTS]
        else:
            self.piece_width = self.width
            self.rows_at_once = min(self.tags.get(tiff.ROWSPERSTRIP, self.height), self.height)
            self.offsets, self.sizes = self.tags[tiff.STRIPOFFSETS], self.tags[tiff.STRIPBYTECOUNTS]
            self._cut_long_strips()
        self.across = -(-self.width // self.piece_width)
        self._down = -(-self.height // self.rows_at_once)
        if min(len(self.offsets), len(self.sizes)) < self.planes * self.across * self._down:
            raise OSError("parts of the picture are not in the file")
        self._decoded: dict[int, np.ndarray] = {}  # RGB by row of pieces

    def _cut_long_strips(self) -> None:
        """Many programs write an uncompressed picture as one strip: each of its rows can be found by itself."""
        if (
            self.tags.get(tiff.COMPRESSION, UNCOMPRESSED) != UNCOMPRESSED
            or self.tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == YCBCR
            or len(self.offsets) != self.planes
        ):
            return
        bits = self.tags.get(tiff.BITSPERSAMPLE, (1,))
        row_bytes = (self.width * (bits[0] if self.planes > 1 else sum(bits)) + 7) // 8
        self.rows_at_once = min(ROWS, self.height)
        tops = range(0, self.height, self.rows_at_once)
        self.offsets = tuple(offset + top * row_bytes for offset in self.offsets for top in tops)
        self.sizes = tuple(min(ROWS, self.height - top) * row_bytes for _ in range(self.planes) for top in tops)

    def rows(self, top: int, bottom: int) -> np.ndarray:
        """uint8 (rows, W, 3); what lies above ``top`` is forgotten."""
        first, last = top // self.rows_at_once, (bottom - 1) // self.rows_at_once
        self._decoded = {row: pixels for row, pixels in self._decoded.items() if row >= first}
        for row in range(first, last + 1):
            if row not in self._decoded:
                pieces = [self.to_rgb(self.piece(row, column)) for column in range(self.across)]
                self._decoded[row] = np.concatenate(pieces, axis=1)[:, : self.width]
        start = first * self.rows_at_once
        joined = np.concatenate([self._decoded[row] for row in range(first, last + 1)])
        return joined[top - start : bottom - start]

    def __iter__(self) -> Iterator[Image.Image]:
        """All pieces, decoded one after the other."""
        return (self.piece(row, column) for row in range(self._down) for column in range(self.across))

    def piece(self, row: int, column: int) -> Image.Image:
        """A strip, or a tile, decoded; of tiles at the right and at the lower end what lies outside is padding."""
        index = row * self.across + column
        planes = [self._decode(plane * self.across * self._down + index, row) for plane in range(self.planes)]
        if self.planes == 1:
            return planes[0]
        bands = [Image.fromarray(_upper_byte(np.asarray(plane))) for plane in planes]
        mode = "RGBa" if self.tags.get(tiff.EXTRASAMPLES) == PREMULTIPLIED else self.mode
        return Image.merge(mode, bands)

    def _decode(self, index: int, row: int) -> Image.Image:
        tiled = tiff.TILEOFFSETS in self.tags
        height = self.rows_at_once if tiled else min(self.rows_at_once, self.height - row * self.rows_at_once)
        self.file.seek(self.offsets[index])
        data = self.file.read(self.sizes[index])
        if len(data) < self.sizes[index]:
            raise OSError("the file ends too early")
        image = Image.open(io.BytesIO(self._as_file(data, self.piece_width, height)))
        image.load()
        return image

    def _as_file(self, data: bytes, width: int, height: int) -> bytes:
        """The bytes of a TIFF with one strip."""
        tags = tiff.ImageFileDirectory_v2(prefix=self.tags.prefix)
        for tag in KEPT:
            if tag in self.tags and not (self.planes > 1 and tag in OF_ALL_BANDS):
                tags.tagtype[tag] = self.tags.tagtype[tag]
                tags[tag] = self.tags[tag]
        if self.planes > 1:
            tags[tiff.PHOTOMETRIC_INTERPRETATION], tags[tiff.SAMPLESPERPIXEL] = GREY, 1
            for tag in (tiff.BITSPERSAMPLE, tiff.SAMPLEFORMAT):
                if tag in tags:
                    tags[tag] = tags[tag][:1]
        tags[tiff.IMAGEWIDTH], tags[tiff.IMAGELENGTH], tags[tiff.ROWSPERSTRIP] = width, height, height
        tags.tagtype[tiff.STRIPOFFSETS] = TiffTags.LONG
        tags[tiff.STRIPOFFSETS], tags[tiff.STRIPBYTECOUNTS] = 0, len(data)  # Pillow adds where the tags end
        file = io.BytesIO()
        file.write(self.tags.prefix + (b"*\0" if self.tags.prefix == b"II" else b"\0*"))
        file.write((8).to_bytes(4, "little" if self.tags.prefix == b"II" else "big"))
        file.write(tags.tobytes(8))
        file.write(data)
        return file.getvalue()


def is_planar(image: Image.Image) -> TypeGuard[tiff.TiffImageFile]:
    """Whether the picture's bands lie in planes of their own."""
    return isinstance(image, tiff.TiffImageFile) and image.tag_v2.get(tiff.PLANAR_CONFIGURATION) == PLANAR


def can_be_read_in_pieces(image: Image.Image) -> TypeGuard[tiff.TiffImageFile]:
    """Whether `TiffPieces` knows how to read the page that ``image`` is at."""
    if not isinstance(image, tiff.TiffImageFile):
        return False
    tags = image.tag_v2
    subsampled_planes = is_planar(image) and tags.get(tiff.PHOTOMETRIC_INTERPRETATION) == YCBCR
    sizes = tiff.TILEBYTECOUNTS if tiff.TILEOFFSETS in tags else tiff.STRIPBYTECOUNTS
    return (
        tags.get(ORIENTATION, 1) == 1
        and tags.get(tiff.COMPRESSION, UNCOMPRESSED) != OLD_JPEG
        and not subsampled_planes
        and sizes in tags
    )


def _upper_byte(values: np.ndarray) -> np.ndarray:
    """A band of 8 or 16 bits in 8, as Pillow does where the bands are not in planes."""
    return (values >> 8 if values.dtype.itemsize == 2 else values).astype(np.uint8)
