"""Pictures as people have them: turned by EXIF, grey, transparent, with a palette, 16 bits deep, CMYK, huge, of many
pages.

For prediction alone. Training reads its pairs with `segdata/reading.py`, which turns them upright in the same way,
but refuses what it would have to guess at.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from basics.memory import free_memory
from segdata.orientation import UPRIGHT, orientation_of, upright
from segdata.reading import DataError, what_it_is
from segdata.tiff_pieces import TiffPieces, can_be_read_in_pieces, is_planar

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
# What Pillow has a suffix for, and either cannot read or only with a program of its own.
NO_PICTURES = ("BUFR", "GRIB", "HDF5", "MPEG", "EPS", "WMF", "PDF", "PALM")
# Those that are known by their first bytes without doubt.
TOLD_BY_CONTENT = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "HEIF", "JPEG2000", "PSD", "QOI", "PPM")
PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": None}  # packages, and what to call after the import
RAW = "a camera's raw file: develop it and save it as JPEG or TIFF"  # Pillow would take its small preview for it
HINTS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC needs a plugin: pip install pillow-heif"),
    ".jxl": "JPEG XL needs a plugin: pip install pillow-jxl-plugin",
    **dict.fromkeys((".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"), RAW),
}
# Of these, what follows the first frame is another view, a preview or a layer of the same picture.
ONE_PICTURE = ("MPO", "PSD", "ICO", "ICNS")
PAGE_KIND, REDUCED, MASK = 254, 1, 4  # a TIFF's tag NewSubfileType, and two of its bits
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
STREAMED = 30_000_000  # pixels: TIFFs beyond are read piece by piece
BYTES_A_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "LA": 4, "PA": 4}  # in Pillow's memory; others: 4
PIECE_BYTES_A_PIXEL = 16  # at most, of a row of pieces while it is decoded
BEHIND_TRANSPARENCY = (255, 255, 255)
FULL = {bits: (1 << bits) - 1 for bits in (8, 15, 16, 31, 32)}  # the highest value of so many bits
OWN_LIBRARIES = ("webp", "zstd", "lzma")  # compressions of TIFFs that libtiff may have been built without
SIGNED = 2  # a TIFF's tag SampleFormat


@functools.lru_cache
def picture_suffixes() -> frozenset[str]:
    """In lower case, of what Pillow and its installed plugins read, and of what can only be given a hint about."""
    for package, function in PLUGINS.items():
        with contextlib.suppress(ImportError):
            plugin = importlib.import_module(package)
            if function:
                getattr(plugin, function)()
    Image.init()
    known = {
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name not in NO_PICTURES and (name in Image.OPEN or name == "MPO")
    }
    return frozenset(known | set(HINTS))


def looks_like_picture(path: Path) -> bool:
    """Whether a file has the suffix of a picture, or begins like one."""
    if path.suffix.lower() in picture_suffixes():
        return True
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            Image.open(file, formats=[name for name in TOLD_BY_CONTENT if name in Image.OPEN]).close()
    except Image.DecompressionBombError:
        return True
    except Exception:  # of what only begins like a picture Pillow's parsers raise whatever they stumble over
        return False
    return True


@dataclass(frozen=True)
class Picture:
    """A picture whose rows are decoded when they are asked for.

    Attributes:
        height, width: upright.
        read_rows: first row and the one behind the last -> uint8 (rows, W, 3), writable; from the top to the bottom,
            with overlaps. Raises `DataError`.
    """

    height: int
    width: int
    read_rows: Callable[[int, int], np.ndarray]

    def tensor_rows(self, top: int, bottom: int) -> torch.Tensor:
        """As ``read_rows``, but uint8 (3, rows, W)."""
        return torch.from_numpy(self.read_rows(top, bottom)).permute(2, 0, 1)


def read_picture(path: str | Path) -> torch.Tensor:
    """The first picture of a file, as `PictureFile` reads it, as a whole: uint8 (3, H, W)."""
    with PictureFile(path) as file:
        picture = file.page(0)
        return picture.tensor_rows(0, picture.height)


class PictureFile:
    """A file of any format that Pillow can decode, of one picture or several: pages of a TIFF, frames of an animation.

    Pictures come as 8-bit RGB, upright: EXIF orientation is applied; transparency lies on white; 16-bit grey is scaled
    from its full range. Pages of a TIFF that are smaller versions of others, or their masks, are left out.

    Attributes:
        pages: how many pictures there are.

    Args:
        any_size: also those that Pillow takes for a decompression bomb.

    Raises:
        DataError: missing, empty, truncated, not a picture, or too large.
    """

    def __init__(self, path: str | Path, any_size: bool = False) -> None:
        self.path, self.any_size = Path(path), any_size
        suffix = self.path.suffix.lower()
        if HINTS.get(suffix) == RAW:
            raise DataError(f"{path}: {RAW}")
        picture_suffixes()  # with the plugins
        with self._explain():
            # By its name Pillow would map an uncompressed TIFF into memory, and mangle one that lies on its side.
            self.file = self.path.open("rb")
            try:
                self.image = Image.open(self.file)
                self._frames = self._find_frames()
            except BaseException:
                self.file.close()
                raise
        self.pages = len(self._frames)

    def __enter__(self) -> PictureFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.image.close()
        self.file.close()

    @property
    def is_transparent(self) -> bool:
        """Whether what lies behind the picture may show through."""
        return _is_transparent(self.image)

    def page(self, number: int) -> Picture:
        """One of the pictures, counted from 0; they must be asked for in this order, and used before the next."""
        with self._explain():
            if self._frames[number] != self.image.tell():
                self.image.seek(self._frames[number])
            if is_planar(self.image) and not can_be_read_in_pieces(self.image):
                raise DataError(f"{self.path}: a TIFF of planes that cannot be read; save it as 8-bit RGB")
            if fault := _unclear_values(self.image):
                raise DataError(f"{self.path}: {fault}")
            large = self.any_size and self.image.width * self.image.height > STREAMED
            if can_be_read_in_pieces(self.image) and (large or is_planar(self.image)):
                return self._in_pieces(self.image)
            return self._as_whole()

    def _as_whole(self) -> Picture:
        orientation = orientation_of(self.image)
        copies = 1 if orientation == UPRIGHT else 2
        self._require_memory(copies * BYTES_A_PIXEL.get(self.image.mode, 4) * self.image.width * self.image.height)
        depth = _Depth.of(self.image)
        image = upright(self.image)
        depth.look_at([image])

        def read_rows(top: int, bottom: int) -> np.ndarray:
            with self._explain():
                return _to_rgb(image.crop((0, top, image.width, bottom)), depth)

        return Picture(image.height, image.width, read_rows)

    def _in_pieces(self, image: TiffImagePlugin.TiffImageFile) -> Picture:
        depth = _Depth.of(image)
        pieces = TiffPieces(image, self.file, lambda piece: _to_rgb(piece, depth))
        self._require_memory(PIECE_BYTES_A_PIXEL * pieces.rows_at_once * pieces.width)
        depth.look_at(pieces)

        def read_rows(top: int, bottom: int) -> np.ndarray:
            with self._explain():
                return pieces.rows(top, bottom)

        return Picture(pieces.height, pieces.width, read_rows)

    def _find_frames(self) -> list[int]:
        count = 1 if self.image.format in ONE_PICTURE else getattr(self.image, "n_frames", 1)
        if count == 1 or not isinstance(self.image, TiffImagePlugin.TiffImageFile):
            return list(range(count))
        own = []
        for number in range(count):
            self.image.seek(number)
            if not self.image.tag_v2.get(PAGE_KIND, 0) & (REDUCED | MASK):
                own.append(number)
        self.image.seek(0)
        return own or [0]

    def _require_memory(self, needed: int) -> None:
        """Refuse what would not fit, rather than being killed by the system."""
        free = free_memory(torch.device("cpu")) if self.any_size else None
        if free is not None and needed > free:
            raise DataError(
                f"{self.path}: {self.image.width}x{self.image.height} pixels of {self.image.format} need "
                f"{needed / 1e9:.1f} GB at once, {free / 1e9:.1f} GB are free: save it as a tiled TIFF, which is read "
                "piece by piece (vips tiffsave IN OUT.tif --tile --compression deflate)"
            )

    @contextlib.contextmanager
    def _explain(self) -> Iterator[None]:
        """Pillow's errors as one line that names the file; and Pillow's limit lifted where any size will do."""
        path, limit = self.path, Image.MAX_IMAGE_PIXELS
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata
                if self.any_size:
                    Image.MAX_IMAGE_PIXELS = None
                yield
        except DataError:
            raise
        except FileNotFoundError:
            raise DataError(f"{path}: no such file") from None
        except PermissionError:
            raise DataError(f"{path}: may not be read: permission denied") from None
        except IsADirectoryError:
            raise DataError(f"{path}: a folder, not a picture") from None
        except UnidentifiedImageError:
            raise DataError(f"{path}: {self._what_it_is()}") from None
        except Image.DecompressionBombError:
            raise DataError(
                f"{path}: more than the {2 * (limit or 0) / 1e6:.0f} megapixels that are read as a whole: cut it into "
                "tiles (--tile 512)"
            ) from None
        except (OSError, SyntaxError, ValueError, OverflowError, EOFError, struct.error) as error:
            compressed = self.image.info.get("compression") if hasattr(self, "image") else None
            cause = f"truncated or damaged picture: {error}"
            if compressed in OWN_LIBRARIES and "decoder error" in str(error):  # so libtiff calls all its faults
                cause += f" (or this build of Pillow lacks {compressed}, by which it is compressed: save it without)"
            raise DataError(f"{path}: {cause}") from None
        finally:
            Image.MAX_IMAGE_PIXELS = limit

    def _what_it_is(self) -> str:
        """Why Pillow cannot tell what is in the file, and what to do."""
        with self.path.open("rb") as file:
            hint = HINTS.get(self.path.suffix.lower()) or _hint_by_content(file.read(16))
            return hint or what_it_is(file)


def _hint_by_content(start: bytes) -> str | None:
    """For files with another suffix than they should have: phones call HEIC files .jpg."""
    if start[4:8] == b"ftyp" and start[8:12] in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"):
        return HINTS[".heic"]
    if start[:2] == b"\xff\x0a" or start[4:8] == b"JXL ":
        return HINTS[".jxl"]
    return None


def _unclear_values(image: Image.Image) -> str | None:
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
class _Depth:
    """What a picture's values mean, where its mode does not tell: how bright the brightest is, and which end is black.

    Integers of 32 bits whose ``full`` range is not known count as of 8 bits if all would fit, else of 16, else of 32;
    floats as 0..1 if none is above 1.

    Attributes:
        full: the highest value there can be; None where it is to be guessed.
        from_white: 0 is white (a TIFF's WhiteIsZero, which Pillow turns round for 8 bits alone).
        unsigned: whether integers of 32 bits are, which Pillow takes for signed ones.
        guess: made from the largest value there is.
    """

    full: int | None
    from_white: bool = False
    unsigned: bool = False
    guess: int = 1

    @classmethod
    def of(cls, image: Image.Image) -> _Depth:
        """Of the picture that ``image`` is at, and that has no `_unclear_values`."""
        if image.mode not in DEEP_GREY:
            return cls(FULL[8])
        if not isinstance(image, TiffImagePlugin.TiffImageFile):
            # Pillow scales PGM's depth to 16 bits, in a mode of 32.
            sixteen = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
            return cls(FULL[16] if sixteen else None)
        tags = image.tag_v2
        bits, kind = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))[0], tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0]
        from_white = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
        if kind == SIGNED and bits == 16:
            return cls(FULL[15], from_white)
        if image.mode.startswith("I;16"):
            return cls((1 << bits) - 1, from_white)
        return cls(None, unsigned=kind != SIGNED)

    def look_at(self, pieces: Iterable[Image.Image]) -> None:
        """Find the largest value, if it matters."""
        if self.full is None:
            arrays = (self._values(np.asarray(piece)) for piece in pieces)
            largest = float(np.nanmax([np.nanmax(array) for array in arrays] or [0]))
            most = FULL[32] if self.unsigned else FULL[31]
            self.guess = next((full for full in (1, FULL[8], FULL[16]) if largest <= full), most)

    def to_8bit(self, grey: np.ndarray) -> np.ndarray:
        """Grey (H, W) of 16 or 32 bits, or float -> uint8."""
        if np.issubdtype(grey.dtype, np.floating):
            full: float = 1 if self.guess == 1 else FULL[8]
        else:
            full = self.full or max(self.guess, FULL[8])
        values = np.nan_to_num(self._values(grey).astype(np.float64))
        if self.from_white:
            values = full - values
        return np.rint(values * (255 / full)).clip(0, 255).astype(np.uint8)

    def _values(self, grey: np.ndarray) -> np.ndarray:
        return grey.view(np.uint32) if self.unsigned and grey.dtype == np.int32 else grey


def _to_rgb(image: Image.Image, depth: _Depth) -> np.ndarray:
    """uint8 (H, W, 3), a writable copy."""
    if image.mode in DEEP_GREY:
        return np.repeat(depth.to_8bit(np.asarray(image))[..., None], 3, axis=2)
    if _is_transparent(image):
        image = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, (*BEHIND_TRANSPARENCY, 255))
        image = Image.alpha_composite(behind, image)
    return np.array(image.convert("RGB"))


def _is_transparent(image: Image.Image) -> bool:
    return "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa")


def palette_image(mask: np.ndarray, palette: Sequence[Sequence[int]] | np.ndarray) -> Image.Image:
    """Class numbers (H, W) as an image whose pixel values they are, shown in the colours of ``palette``."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    image = Image.fromarray(mask)
    image.putpalette(table.tobytes())
    return image
