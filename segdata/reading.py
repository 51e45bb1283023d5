"""Read one image or one mask from a file nobody vouches for; whatever is wrong is one line naming the file.

EXIF orientation is *not* applied: the masks of VOC, ADE20K and their kin were drawn on the stored pixels,
so turning the image alone would tear the pair apart.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_jpeg

from basics.batch import VOID
from basics.errors import UserError

MAX_PIXELS = 100_000_000  # 300 MB decoded; far above any photograph here, far below a decompression bomb
IMAGE_FORMATS = ("JPEG", "PNG", "MPO", "WEBP", "BMP", "TIFF")  # MPO: a JPEG with a second view, made by phones
RGB_LIKE = ("RGB", "L", "P", "1", "RGBA", "LA", "PA")  # what converts to 8-bit RGB without guessing


class DataError(UserError):
    """A fault in the data; the message names the file.

    A DataLoader worker hands an exception on as its type and its printed traceback. Built from such
    a traceback this class finds its own last line again, so that the user reads the same single line
    with any number of workers.
    """

    def __init__(self, message: str):
        if message.startswith("Caught ") and "Traceback" in message:
            message = message.strip().splitlines()[-1].partition(f"{type(self).__name__}: ")[2] or message
        super().__init__(" ".join(message.split()))


def _open(file: IO[bytes], path: Path) -> Image.Image:
    """Parse the header alone: nothing is decoded until size and kind are known to be sane."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: decompression bomb? {error}") from None
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(8)
        if not start:
            raise DataError(f"{path}: the file is empty; get it again") from None
        raise DataError(f"{path}: not an image that can be read (it begins with {start!r})") from None
    except (OSError, SyntaxError, ValueError, OverflowError, EOFError) as error:
        raise DataError(f"{path}: damaged image header: {error}") from None
    width, height = image.size
    if width < 1 or height < 1:
        raise DataError(f"{path}: the image has no pixels ({width}x{height})")
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: {width}x{height} pixels are over the limit of {MAX_PIXELS:,} (decompression bomb?)")
    frames = getattr(image, "n_frames", 1)  # formats of one frame may lack it
    if image.format != "MPO" and frames > 1:
        many = (
            f"a TIFF of {frames} pages"
            if image.format == "TIFF"
            else f"an animated {image.format} with {frames} frames"
        )
        raise DataError(f"{path}: {many}; save one of them alone")
    return image


def _load_bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_image(path: Path) -> torch.Tensor:
    """Decode ``path`` (JPEG, PNG, WebP, BMP or TIFF, told by content, not by name) to RGB.

    Returns:
        uint8 (3, H, W), the stored pixels without EXIF orientation, in channels-last memory.

    Raises:
        DataError: missing, empty, truncated, not an image, too large, animated, 16-bit or CMYK.
    """
    data = _load_bytes(path)
    header = _open(io.BytesIO(data), path)
    if header.format not in IMAGE_FORMATS:
        raise DataError(f"{path}: a {header.format} file; save it as JPEG or PNG")
    if header.mode not in RGB_LIKE:
        raise DataError(f"{path}: colour mode {header.mode}; save it as 8-bit RGB")
    if header.format in ("JPEG", "MPO"):
        image = _decode_jpeg(data, path)
    else:
        image = torch.from_numpy(_decode_pillow(header, "RGB", path)).permute(2, 0, 1)
    if tuple(image.shape) != (3, header.height, header.width):
        raise DataError(f"{path}: decodes to {tuple(image.shape)}, its header says {header.size}")
    return image


def _decode_jpeg(data: bytes, path: Path) -> torch.Tensor:
    """torchvision's decoder: twice as fast as Pillow's. (Its PNG decoder crashes on damaged files.)"""
    try:
        # bytearray: torch wants a writable buffer, and decode_jpeg only reads it.
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition(", ")[2]  # behind a C++ source line
        raise DataError(f"{path}: truncated or damaged image: {reason}") from None


def _decode_pillow(header: Image.Image, mode: str | None, path: Path) -> np.ndarray:
    """Decode an opened file, converted to ``mode`` if one is given."""
    try:
        return np.array(header.convert(mode) if mode else header, dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as error:
        raise DataError(f"{path}: truncated or damaged image: {error}") from None


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) from the file's header alone.

    Raises:
        DataError: missing, empty, not an image, too large or animated.
    """
    try:
        with Path(path).open("rb") as file:
            return _open(file, path).size
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def read_mask(path: Path) -> np.ndarray:
    """Read the class numbers of a mask: palette indices of a palette PNG, grey values of a grey one.

    An RGB mask whose three channels are the same is a grey one.

    Returns:
        uint8 (H, W) as stored; whether the numbers are classes is for `check_labels` to say.

    Raises:
        DataError: as `load_mask`; or the mask holds colours.
    """
    image = load_mask(path)
    if image.mode in ("P", "L", "1"):
        return np.array(image, dtype=np.uint8)
    *bands, last = (np.asarray(band) for band in image.convert("RGBA").split())
    # Transparency that varies may be what was meant to tell the classes apart.
    if image.mode == "PA" or any((band != bands[0]).any() for band in bands[1:]) or (last != last.flat[0]).any():
        raise DataError(
            f"{path}: the mask holds {image.mode} colours: say in classes.txt which colour is which class, as "
            "`name r g b`, or save class numbers as a palette or grey PNG"
        )
    return np.array(bands[0])


def load_mask(path: Path) -> Image.Image:
    """A mask's pixels as they are stored, decoded; of mode P, L, 1, RGB, RGBA, LA or PA.

    Raises:
        DataError: missing, empty, truncated, compressed with losses, CMYK, 16-bit, animated, too large.
    """
    data = _load_bytes(path)
    image = _open(io.BytesIO(data), path)
    if _is_lossy(image, data):
        raise DataError(f"{path}: a {image.format} mask: lossy compression changes class numbers; save it as PNG")
    if image.mode not in RGB_LIKE:
        raise DataError(f"{path}: mask of mode {image.mode}; save class numbers as an 8-bit palette or grey PNG")
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, OverflowError) as error:
        raise DataError(f"{path}: truncated or damaged image: {error}") from None
    return image


def _is_lossy(image: Image.Image, data: bytes) -> bool:
    """Whether the file was compressed with losses."""
    if image.format == "WEBP":  # its pixels are in a chunk VP8L where they are whole, otherwise in VP8
        return b"VP8L" not in _riff_chunks(data)
    return image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")


def _riff_chunks(data: bytes) -> set[bytes]:
    """The names of the chunks in a RIFF file, behind its twelve bytes of header."""
    names, start = set(), 12
    while start + 8 <= len(data):
        names.add(data[start : start + 4])
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        start += 8 + size + size % 2  # chunks begin at even bytes
    return names


def check_labels(mask: np.ndarray, num_classes: int, path: Path) -> None:
    """Raise `DataError` unless every value of ``mask`` (uint8) is a class or 255 (void)."""
    # 255 + 1 wraps round to 0, so one addition and one maximum test both allowed ranges at once.
    if mask.size and int((mask + np.uint8(1)).max()) > num_classes:
        wrong = [int(v) for v in np.unique(mask) if num_classes <= v < VOID]
        shown = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
        raise DataError(f"{path}: labels {shown} are neither a class (0..{num_classes - 1}) nor void ({VOID})")


def check_sizes(image: torch.Tensor, mask: np.ndarray, image_path: Path, mask_path: Path) -> None:
    """Raise `DataError` unless ``mask`` (H, W) covers ``image`` (3, H, W) exactly."""
    height, width = image.shape[1:]
    if mask.shape != (height, width):
        raise DataError(
            f"{mask_path}: {mask.shape[1]}x{mask.shape[0]} pixels, but its image {image_path} has {width}x{height}"
        )
