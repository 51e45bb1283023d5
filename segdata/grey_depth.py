"""Grey of more than 8 bits: how bright a value is, which its file does not always say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image, TiffImagePlugin

DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
FULL = {bits: (1 << bits) - 1 for bits in (8, 15, 16, 31, 32)}  # the highest value of so many bits
SIGNED = 2  # a TIFF's tag SampleFormat


def unclear_values(image: Image.Image) -> str | None:
    """Why nobody can tell how bright the values of a TIFF are, and what to do."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    kinds = image.tag_v2.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
    if SIGNED in kinds and image.mode not in DEEP_GREY:
        return "its values have a sign, which pictures have not; save it as 8-bit RGB"
    if image.mode == "F" and image.tag_v2.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:
        return "its floats count down from white, and nothing says how far; save it as 8-bit RGB"
    return None


@dataclass
class Depth:
    """What a picture's values mean, where its mode does not tell: how bright the brightest is, and which end is black.

    Integers of 32 bits whose ``full`` range is not known count as of 8 bits if all would fit, else of 16, else of 32;
    floats as 0..1 if none is above 1, else as such integers, and above those of 16 bits the largest is white.

    Attributes:
        full: the highest value there can be; None where it is to be guessed.
        from_white: 0 is white (a TIFF's WhiteIsZero, which Pillow turns round for 8 bits alone).
        unsigned: whether integers of 32 bits are, which Pillow takes for signed ones.
        is_float: whether they are none.
        guess: made from the largest value there is.
    """

    full: int | None
    from_white: bool = False
    unsigned: bool = False
    is_float: bool = False
    guess: float = 1

    @classmethod
    def of(cls, image: Image.Image) -> Depth:
        """Of the picture that ``image`` is at, and that has no `unclear_values`."""
        if image.mode not in DEEP_GREY:
            return cls(FULL[8])
        if not isinstance(image, TiffImagePlugin.TiffImageFile):
            # Pillow scales PGM's depth to 16 bits, in a mode of 32; PNG's of 16 have that mode before Pillow 10.3.
            sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG"))
            return cls(FULL[16] if sixteen else None, is_float=image.mode == "F")
        tags = image.tag_v2
        bits, kind = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0], tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]
        from_white = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        if kind == SIGNED and bits == 16:
            return cls(FULL[15], from_white)
        if image.mode.startswith("I;16"):
            return cls((1 << bits) - 1, from_white)
        return cls(None, unsigned=kind != SIGNED, is_float=image.mode == "F")

    def look_at(self, pieces: Iterable[Image.Image]) -> None:
        """Find the largest value, if it matters."""
        if self.full is None:
            arrays = (self._values(np.asarray(piece)) for piece in pieces)
            largest = float(max((array.max(where=np.isfinite(array), initial=0) for array in arrays), default=0))
            most: float = FULL[32] if self.unsigned else FULL[31]
            if self.is_float:
                most = largest
            self.guess = next((full for full in (1, FULL[8], FULL[16]) if largest <= full), most)

    def to_8bit(self, grey: np.ndarray) -> np.ndarray:
        """Grey (H, W) of 16 or 32 bits, or float -> uint8."""
        full = self.full or (self.guess if self.is_float else max(self.guess, FULL[8]))
        values = np.nan_to_num(self._values(grey).astype(np.float64))
        if self.from_white:
            values = full - values
        return np.rint(values * (255 / full)).clip(0, 255).astype(np.uint8)

    def _values(self, grey: np.ndarray) -> np.ndarray:
        return grey.view(np.uint32) if self.unsigned and grey.dtype == np.int32 else grey
