"""The EXIF orientation of a picture: which way up its pixels are meant to be seen.

Phones store the sensor's pixels and a tag that says how to turn them. Every file, image or mask, is read as a viewer
shows it: upright. TIFF files need no help, since Pillow itself turns them when it decodes them.
"""

from __future__ import annotations

import struct
import warnings
from typing import IO

import torch
from PIL import Image

TAG = 0x0112
UPRIGHT = 1
METHODS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # width and height change places
# The axes of (H, W) to reverse, after they have changed places where that is due.
FLIPS = {2: (-1,), 3: (-2, -1), 4: (-2,), 5: (), 6: (-1,), 7: (-2, -1), 8: (-2,)}
PNG_TEXT = (b"eXIf", b"iTXt", b"zTXt", b"tEXt")  # chunks of a PNG that may hold the tag


def orientation_of(image: Image.Image, file: IO[bytes] | None = None) -> int:
    """The tag of an opened picture, 1..8; 1 (upright) where there is none, or none that can be read.

    Args:
        file: what a picture was opened from, if its pixels need not be decoded: a PNG's tag may stand behind them, and
            then they are.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            if image.format == "PNG" and file is not None and not _text_behind_pixels(file):
                found = Image.Image.getexif(image).get(TAG)  # PNG's own getexif() decodes the pixels first
            else:
                found = image.getexif().get(TAG)
    except Exception:  # a stranger's metadata: Pillow's parsers raise whatever they stumble over
        return UPRIGHT
    return found if found in METHODS else UPRIGHT


def _text_behind_pixels(file: IO[bytes]) -> bool:
    """Whether a PNG has text or EXIF behind its pixels. Leaves the file where it was."""
    start, pixels_seen = file.tell(), False
    try:
        file.seek(8)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if pixels_seen and kind in PNG_TEXT:
                return True
            pixels_seen = pixels_seen or kind == b"IDAT"
            file.seek(length + 4, 1)
        return False
    finally:
        file.seek(start)


def upright(image: Image.Image) -> Image.Image:
    """The picture, decoded and turned as its tag says."""
    image.load()  # of a TIFF this turns it and takes the tag away
    method = METHODS.get(orientation_of(image))
    return image if method is None else image.transpose(method)


def turn_upright(pixels: torch.Tensor, orientation: int) -> torch.Tensor:
    """Stored pixels (..., H, W) as the tag says that they are to be seen, (..., W, H) if it lies on its side."""
    if orientation == UPRIGHT:
        return pixels
    if orientation in SIDEWAYS:
        pixels = pixels.transpose(-2, -1)
    return pixels.flip(FLIPS[orientation])


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(width, height) after turning."""
    return (size[1], size[0]) if orientation in SIDEWAYS else size
