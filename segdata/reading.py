"""Read one image or one mask from a file nobody vouches for; whatever is wrong is one line naming the file.

Images and masks are turned upright as their EXIF orientation says, and as prediction does: a mask is what a person
drew on the picture that the screen showed. One that was drawn on the stored pixels has another size, which is refused.
"""

from __future__ import annotations

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_jpeg

from basics.batch import VOID
from basics.errors import UserError
from segdata.label_faults import explain_labels
from segdata.orientation import SIDEWAYS, orientation_of, turn_upright, upright, upright_size
from segdata.tiff_pieces import is_planar

MAX_PIXELS = 100_000_000  # 300 MB decoded; far above any photograph here, far below a decompression bomb
IMAGE_FORMATS = ("JPEG", "PNG", "MPO", "WEBP", "BMP", "TIFF")  # MPO: a JPEG with a second view, made by phones
RGB_LIKE = ("RGB", "L", "P", "1", "RGBA", "LA", "PA")  # what converts to 8-bit RGB without guessing
MAX_BANDS = 4  # red, green, blue, and one that is dropped
COMPRESSIONS = {33003: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 50002: "JPEG XL"}
# What Pillow's parsers raise of damaged files; a directory that lies behind the end gives a TypeError.
PARSE_FAULTS = (OSError, SyntaxError, ValueError, ArithmeticError, EOFError, TypeError, LookupError, struct.error)
FLOAT = 3  # a TIFF's tag SampleFormat
TOO_LARGE = (
    f"training and scoring take pictures of up to {MAX_PIXELS // 10**6} megapixels: cut it into pieces or make it "
    "smaller, and its mask, too (predict.py --tile takes larger ones)"
)


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


@dataclass(frozen=True)
class Header:
    """What a picture's file says of it before it is decoded.

    Attributes:
        width, height: of the upright picture.
        orientation: the EXIF tag, 1..8; 1 is upright as stored.
        mode: Pillow's word for the kind of its pixels.
        bands: stored for each pixel; what lies beyond three is dropped.
        transparent: a colour or an entry of the palette is, without a band that says so.
    """

    width: int
    height: int
    orientation: int
    mode: str
    bands: int
    transparent: bool


def _open(file: IO[bytes], path: Path) -> Image.Image:
    """Parse the header alone: nothing is decoded until size and kind are known to be sane."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata
            image = Image.open(file)
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: {error} (decompression bomb?); {TOO_LARGE}") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: {what_it_is(file)}") from None
    except PARSE_FAULTS as error:
        raise DataError(f"{path}: damaged image header: {error}") from None
    width, height = image.size
    if width < 1 or height < 1:
        raise DataError(f"{path}: the image has no pixels ({width}x{height})")
    if width * height > MAX_PIXELS:
        raise DataError(f"{path}: {width}x{height} pixels are too many (decompression bomb?); {TOO_LARGE}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frames = getattr(image, "n_frames", 1)  # formats of one frame may lack it
    except PARSE_FAULTS as error:
        raise DataError(f"{path}: what follows its first page is damaged: {error}; get it again") from None
    if image.format != "MPO" and frames > 1:
        many = (
            f"a TIFF of {frames} pages"
            if image.format == "TIFF"
            else f"an animated {image.format} with {frames} frames"
        )
        raise DataError(f"{path}: {many}; save one of them alone")
    if _bands(image) > MAX_BANDS:
        raise DataError(f"{path}: {_too_many(_bands(image))}")
    if is_planar(image) and image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)) not in ((1,), (8,), (8, 8, 8)):
        # Pillow takes the planes of most others for pixels side by side, and gives noise.
        raise DataError(f"{path}: a TIFF whose bands lie in planes; save it as 8-bit RGB with its bands side by side")
    return image


def _bands(image: Image.Image) -> int:
    """Values stored for each pixel; Pillow drops some of a TIFF's without a word."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
    return len(image.getbands())


def _too_many(bands: int) -> str:
    return f"a picture of {bands} bands; models take three: save those that you want as 8-bit RGB"


def what_it_is(file: IO[bytes]) -> str:
    """Why Pillow cannot tell what is in the file, and what to do."""
    file.seek(0)
    start = file.read(8)
    if not start:
        return "the file is empty; get it again"
    if start[:4] in (b"II*\0", b"MM\0*"):
        try:
            tags = TiffImagePlugin.ImageFileDirectory_v2(start)
            file.seek(tags.next)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tags.load(file)
            bands = int(tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1))
            bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        except Exception:  # of a damaged file Pillow's parser raises whatever it stumbles over
            return f"not an image that can be read (it begins with {start!r})"
        if bands > MAX_BANDS:
            return _too_many(bands)
        compression = tags.get(TiffImagePlugin.COMPRESSION, 1)
        if compression not in TiffImagePlugin.COMPRESSION_INFO:
            how = COMPRESSIONS.get(compression, f"scheme {compression}")
            return f"a TIFF compressed by {how}, which Pillow does not read; save it with LZW or without compression"
        each = "1 band with" if bands == 1 else f"{bands} bands with"
        kind = " in floats" if FLOAT in tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)) else ""
        return f"a TIFF of {each} {max(bits)} bits{kind}, which cannot be read; save it as 8-bit RGB"
    return f"not an image that can be read (it begins with {start!r})"


def _open_image(file: IO[bytes], path: Path) -> Image.Image:
    """`_open`, and refuse what is no picture to train on."""
    image = _open(file, path)
    if image.format not in IMAGE_FORMATS:
        raise DataError(f"{path}: a {image.format} file; save it as JPEG or PNG")
    if image.mode not in RGB_LIKE:
        raise DataError(f"{path}: colour mode {image.mode}; save it as 8-bit RGB")
    return image


def _load_bytes(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def read_image(path: Path) -> torch.Tensor:
    """Decode ``path`` (JPEG, PNG, WebP, BMP or TIFF, told by content, not by name) to RGB, upright.

    Returns:
        uint8 (3, H, W), in channels-last memory.

    Raises:
        DataError: missing, empty, truncated, not an image, too large, animated, CMYK, or grey of more than 8 bits (of
            colours with 16 the upper byte is taken).
    """
    data = _load_bytes(path)
    header = _open_image(io.BytesIO(data), path)
    if header.format not in ("JPEG", "MPO"):
        return torch.from_numpy(_decode_pillow(header, "RGB", path)).permute(2, 0, 1)
    image = _decode_jpeg(data, path)
    if tuple(image.shape) != (3, header.height, header.width):
        raise DataError(f"{path}: decodes to {tuple(image.shape)}, its header says {header.size}")
    return turn_upright(image, orientation_of(header))


def _decode_jpeg(data: bytes, path: Path) -> torch.Tensor:
    """torchvision's decoder: twice as fast as Pillow's. (Its PNG decoder crashes on damaged files.)"""
    try:
        # bytearray: torch wants a writable buffer, and decode_jpeg only reads it.
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition(", ")[2]  # behind a C++ source line
        raise DataError(f"{path}: truncated or damaged image: {reason}") from None


def _decode_pillow(header: Image.Image, mode: str | None, path: Path) -> np.ndarray:
    """Decode an opened file, turn it upright, and convert it to ``mode`` if one is given."""
    try:
        image = upright(header)
        return np.array(image.convert(mode) if mode else image, dtype=np.uint8)
    except PARSE_FAULTS as error:
        raise DataError(f"{path}: truncated or damaged image: {error}") from None


def read_header(path: Path) -> Header:
    """What the file of an image says of it, without decoding.

    Raises:
        DataError: missing, empty, or what `read_image` would refuse before decoding.
    """
    try:
        with Path(path).open("rb") as file:
            image = _open_image(file, path)
            size, orientation = image.size, orientation_of(image, file)
            if isinstance(image, TiffImagePlugin.TiffImageFile):  # some versions of Pillow turn its size already
                size = image.tag_v2[TiffImagePlugin.IMAGEWIDTH], image.tag_v2[TiffImagePlugin.IMAGELENGTH]
            upright_is = upright_size(size, orientation)
            return Header(*upright_is, orientation, image.mode, _bands(image), "transparency" in image.info)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright picture, from the file's header alone; raises as `read_header` does."""
    header = read_header(path)
    return header.width, header.height


def read_mask(path: Path) -> np.ndarray:
    """Read the class numbers of a mask: palette indices of a palette PNG, grey values of a grey one.

    An RGB mask whose three channels are the same is a grey one.

    Returns:
        uint8 (H, W), upright; whether the numbers are classes is for `check_labels` to say.

    Raises:
        DataError: as `load_mask`; or the mask holds colours.
    """
    image = load_mask(path)
    if image.format == "GIF":
        raise DataError(
            f"{path}: a GIF mask: programs number its colours anew when they save one; say in classes.txt which colour "
            "is which class, as `name r g b`, or save it as PNG"
        )
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
    """A mask as it is stored, decoded and upright; of mode P, L, 1, RGB, RGBA, LA or PA.

    Raises:
        DataError: missing, empty, truncated, compressed with losses, CMYK, 16-bit, animated, too large.
    """
    data = _load_bytes(path)
    image = _open(io.BytesIO(data), path)
    if _is_lossy(image, data):
        raise DataError(
            f"{path}: a {image.format} mask: lossy compression changes class numbers; save it as PNG (or are "
            "the folders of images and masks swapped?)"
        )
    if image.mode not in RGB_LIKE:
        raise DataError(f"{path}: mask of mode {image.mode}; save class numbers as an 8-bit palette or grey PNG")
    try:
        bits, turned = _stored_bits(image, data), upright(image)
    except PARSE_FAULTS as error:
        raise DataError(f"{path}: truncated or damaged image: {error}") from None
    if bits == 16 or (bits in (2, 4) and image.mode != "P"):  # what is read is the higher byte, or a multiple
        raise DataError(
            f"{path}: a mask of {bits} bits a channel, whose numbers programs read in two ways; save class numbers as "
            "an 8-bit palette or grey PNG"
        )
    return turned


def _is_lossy(image: Image.Image, data: bytes) -> bool:
    """Whether the file was compressed with losses."""
    if image.format == "WEBP":  # its pixels are in a chunk VP8L where they are whole, otherwise in VP8
        return b"VP8L" not in _riff_chunks(data)
    return image.format in ("JPEG", "MPO") or image.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")


def _stored_bits(image: Image.Image, data: bytes) -> int:
    """Bits of a channel in the file, of which Pillow makes 8; 8 where a format has no others."""
    if image.format == "PNG":
        return data[24]  # in the chunk IHDR, behind width and height
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    return 8


def _riff_chunks(data: bytes) -> set[bytes]:
    """The names of the chunks in a RIFF file, behind its twelve bytes of header."""
    names, start = set(), 12
    while start + 8 <= len(data):
        names.add(data[start : start + 4])
        size = int.from_bytes(data[start + 4 : start + 8], "little")
        start += 8 + size + size % 2  # chunks begin at even bytes
    return names


def read_palette(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The stored numbers of a palette file, uint8 (H, W), and the colours they are shown in, uint8 (K, 3).

    None for a file without a palette.

    Raises:
        DataError: as `read_mask`.
    """
    image = _open(io.BytesIO(_load_bytes(path)), path)
    if image.mode != "P":
        return None
    indices = _decode_pillow(image, None, path)
    return indices, np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)


def check_labels(mask: np.ndarray, num_classes: int, path: Path) -> None:
    """Raise `DataError` unless every value of ``mask`` (uint8) is a class or 255 (void)."""
    # 255 + 1 wraps round to 0, so one addition and one maximum test both allowed ranges at once.
    if mask.size and int((mask + np.uint8(1)).max()) > num_classes:
        values = [int(value) for value in np.unique(mask)]
        wrong = [value for value in values if num_classes <= value < VOID]
        shown = ", ".join(map(str, wrong[:8])) + (", ..." if len(wrong) > 8 else "")
        raise DataError(
            f"{path}: labels {shown} are neither a class (0..{num_classes - 1}) nor void ({VOID}); "
            f"{explain_labels(values, num_classes)}"
        )


def check_sizes(image: torch.Tensor, mask: np.ndarray, image_path: Path, mask_path: Path) -> None:
    """Raise `DataError` unless ``mask`` (H, W) covers ``image`` (3, H, W) exactly."""
    height, width = image.shape[1:]
    if mask.shape != (height, width):
        fault = size_fault(read_header(image_path), mask.shape[1], mask.shape[0], image_path, mask_path)
        raise DataError(fault or f"{mask_path}: {mask.shape[1]}x{mask.shape[0]}, its image {width}x{height}")


def size_fault(header: Header, width: int, height: int, image_path: Path, mask_path: Path) -> str | None:
    """What is wrong with a mask of this size for an image with this ``header``; None if it fits."""
    if (width, height) == (header.width, header.height):
        return None
    if header.orientation in SIDEWAYS and (height, width) == (header.width, header.height):
        return (
            f"{mask_path}: {width}x{height} pixels, drawn on its image {image_path} as stored, but the EXIF "
            f"orientation {header.orientation} turns that upright to {header.width}x{header.height}; draw the mask on "
            "the upright picture, or take the tag out of the image (exiftool -Orientation= FILE)"
        )
    return f"{mask_path}: {width}x{height} pixels, but its image {image_path} has {header.width}x{header.height}"
