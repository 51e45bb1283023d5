"""Pictures as people have them: turned by EXIF, grey, transparent, with a palette, 16 bits deep, CMYK, huge, of many
pages.

For prediction alone. Training reads its pairs with `segdata/reading.py`, which turns them upright in the same way,
but refuses what it would have to guess at.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from basics.memory import free_memory
from segdata.grey_depth import DEEP_GREY, Depth, unclear_values
from segdata.orientation import UPRIGHT, orientation_of, upright
from segdata.reading import PARSE_FAULTS, DataError, what_it_is
from segdata.tiff_pieces import TiffPieces, can_be_read_in_pieces, is_planar

# What Pillow has a suffix for, and either cannot read or only with a program of its own.
NO_PICTURES = ("BUFR", "GRIB", "HDF5", "MPEG", "EPS", "WMF", "PDF", "PALM")
# Those that are known by their first bytes without doubt.
TOLD_BY_CONTENT = ("JPEG", "MPO", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "HEIF", "JPEG2000", "PSD", "QOI", "PPM")
PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_jxl": None}  # packages, and what to call after the import
RAW = "a camera's raw file: develop it and save it as JPEG or TIFF"  # Pillow would take its small preview for it
RAW_SUFFIXES = (
    *(".dng", ".nef", ".nrw", ".cr2", ".cr3", ".crw", ".arw", ".sr2", ".srf", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    *(".3fr", ".fff", ".iiq", ".erf", ".mef", ".mrw", ".mos", ".kdc", ".dcr", ".gpr", ".x3f", ".rwl"),
)
HINTS = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "HEIC needs a plugin: pip install pillow-heif"),
    ".jxl": "JPEG XL needs a plugin: pip install pillow-jxl-plugin",
    **dict.fromkeys(RAW_SUFFIXES, RAW),
}
# Of these, what follows the first frame is another view, a preview or a layer of the same picture.
ONE_PICTURE = ("MPO", "PSD", "ICO", "ICNS")
PAGE_KIND, REDUCED, MASK = 254, 1, 4  # a TIFF's tag NewSubfileType, and two of its bits
DNG_VERSION, SUB_PICTURES = 50706, 330  # tags that raw files have, whatever their suffix
STREAMED = 30_000_000  # pixels: TIFFs beyond are read piece by piece
BYTES_A_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "LA": 4, "PA": 4}  # in Pillow's memory; others: 4
PIECE_BYTES_A_PIXEL = 16  # at most, of a row of pieces while it is decoded
BEHIND_TRANSPARENCY = (255, 255, 255)
OWN_LIBRARIES = ("webp", "zstd", "lzma")  # compressions of TIFFs that libtiff may have been built without


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
        self._where = str(path)  # for messages
        suffix = self.path.suffix.lower()
        if HINTS.get(suffix) == RAW:
            raise DataError(f"{path}: {RAW}")
        picture_suffixes()  # with the plugins
        with self._explain():
            # By its name Pillow would map an uncompressed TIFF into memory, and mangle one that lies on its side.
            self.file = self.path.open("rb")
            try:
                self.image = Image.open(self.file)
                if _is_raw(self.image):
                    raise DataError(f"{path}: {RAW}")
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
    def pages_stand_alone(self) -> bool:
        """Whether one can be decoded where the one before it cannot."""
        return isinstance(self.image, TiffImagePlugin.TiffImageFile)

    @property
    def is_transparent(self) -> bool:
        """Whether what lies behind the picture may show through."""
        return _is_transparent(self.image)

    def page(self, number: int) -> Picture:
        """One of the pictures, counted from 0; they must be asked for in this order, and used before the next.

        A page of a TIFF may be damaged, and the next one not.
        """
        if self.pages > 1:
            self._where = f"{self.path}: page or frame {number + 1}"
        with self._explain():
            if self._frames[number] != self.image.tell():
                self.image.seek(self._frames[number])
            if is_planar(self.image) and not can_be_read_in_pieces(self.image):
                raise DataError(f"{self._where}: a TIFF of planes that cannot be read; save it as 8-bit RGB")
            if fault := unclear_values(self.image):
                raise DataError(f"{self._where}: {fault}")
            large = self.any_size and self.image.width * self.image.height > STREAMED
            if can_be_read_in_pieces(self.image) and (large or is_planar(self.image)):
                return self._in_pieces(self.image)
            return self._as_whole()

    def _as_whole(self) -> Picture:
        orientation = orientation_of(self.image)
        copies = 1 if orientation == UPRIGHT else 2
        self._require_memory(copies * BYTES_A_PIXEL.get(self.image.mode, 4) * self.image.width * self.image.height)
        depth = Depth.of(self.image)
        image = upright(self.image)
        depth.look_at([image])

        def read_rows(top: int, bottom: int) -> np.ndarray:
            with self._explain():
                return _to_rgb(image.crop((0, top, image.width, bottom)), depth)

        return Picture(image.height, image.width, read_rows)

    def _in_pieces(self, image: TiffImagePlugin.TiffImageFile) -> Picture:
        depth = Depth.of(image)
        pieces = TiffPieces(image, self.file, lambda piece: _to_rgb(piece, depth))
        self._require_memory(PIECE_BYTES_A_PIXEL * pieces.rows_at_once * pieces.width)
        depth.look_at(pieces)

        def read_rows(top: int, bottom: int) -> np.ndarray:
            with self._explain():
                return pieces.rows(top, bottom)

        return Picture(pieces.height, pieces.width, read_rows)

    def _find_frames(self) -> list[int]:
        if self.image.format in ONE_PICTURE:
            return [0]
        if not isinstance(self.image, TiffImagePlugin.TiffImageFile):
            return list(range(getattr(self.image, "n_frames", 1)))
        own, number, is_there = [], 0, True
        while is_there:
            try:
                self.image.seek(number)
                kind = self.image.tag_v2.get(PAGE_KIND, 0)
            except EOFError:  # there is no such page
                break
            except PARSE_FAULTS:
                kind, is_there = 0, self.image.tell() == number  # else nothing can be found behind it
            if not kind & (REDUCED | MASK):
                own.append(number)
            number += 1
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
        path, limit = self._where, Image.MAX_IMAGE_PIXELS
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
        except PARSE_FAULTS as error:
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


def _is_raw(image: Image.Image) -> bool:
    """Whether a TIFF is a camera's raw file, of which Pillow would show the preview."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    tags = image.tag_v2
    return DNG_VERSION in tags or bool(tags.get(PAGE_KIND, 0) & REDUCED and SUB_PICTURES in tags)


def _to_rgb(image: Image.Image, depth: Depth) -> np.ndarray:
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
