"""Pictures as people have them: turned by EXIF, grey, transparent, with a palette, 16 bits deep, CMYK.

For prediction alone. Training reads its pairs with `segdata/reading.py`, which turns them upright in the same way,
but refuses what it would have to guess at.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from basics.files import replacing
from segdata.orientation import upright
from segdata.reading import DataError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
BEHIND_TRANSPARENCY = (255, 255, 255)


def read_picture(path: str | Path) -> torch.Tensor:
    """Decode any picture that Pillow can to 8-bit RGB, upright.

    EXIF orientation is applied; transparency lies on white; 16-bit grey is scaled from its full range;
    of several frames or pages the first is taken.

    Returns:
        uint8 (3, H, W).

    Raises:
        DataError: missing, empty, truncated, not a picture, or absurdly large.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large pictures and odd metadata
            # By its name Pillow would map an uncompressed TIFF into memory, and mangle one that lies on its side.
            with path.open("rb") as file, Image.open(file) as image:
                # Pillow scales PGM's depth to 16 bits, in a mode of 32.
                sixteen = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
                rgb = _to_rgb(upright(image), sixteen)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except PermissionError:
        raise DataError(f"{path}: may not be read: permission denied") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder, not a picture") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: empty, damaged, or of a format that Pillow cannot read") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large a picture: {error}") from None
    except (OSError, SyntaxError, ValueError, OverflowError, EOFError) as error:
        raise DataError(f"{path}: truncated or damaged picture: {error}") from None
    return torch.from_numpy(rgb).permute(2, 0, 1)


def _to_rgb(image: Image.Image, sixteen: bool) -> np.ndarray:
    """uint8 (H, W, 3), a writable copy; ``sixteen``: its grey is known to be 16 bits deep."""
    if image.mode in DEEP_GREY:
        return np.repeat(_deep_to_8bit(np.asarray(image), sixteen)[..., None], 3, axis=2)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        image = image.convert("RGBA")
        behind = Image.new("RGBA", image.size, (*BEHIND_TRANSPARENCY, 255))
        image = Image.alpha_composite(behind, image)
    return np.array(image.convert("RGB"))


def _deep_to_8bit(grey: np.ndarray, sixteen: bool) -> np.ndarray:
    """Grey (H, W) of 16 or 32 bits, or float, -> uint8.

    Integers that are not known to be ``sixteen`` bits deep count as such unless all would fit into 8; floats as 0..1
    if none is above 1.
    """
    largest = grey.max()
    if np.issubdtype(grey.dtype, np.floating):
        scale = 255.0 if largest <= 1 else 1.0
    else:
        scale = 1 / 257 if largest > 255 or sixteen else 1.0
    return np.rint(np.nan_to_num(grey.astype(np.float64) * scale)).clip(0, 255).astype(np.uint8)


def write_png(pixels: np.ndarray, path: Path, palette: Sequence[Sequence[int]] | None = None) -> None:
    """Write uint8 RGB (H, W, 3), or class numbers (H, W) with their ``palette``, by way of a temporary name."""
    image = Image.fromarray(pixels) if palette is None else palette_image(pixels, palette)
    with replacing(path) as temporary:
        image.save(temporary)


def palette_image(mask: np.ndarray, palette: Sequence[Sequence[int]] | np.ndarray) -> Image.Image:
    """Class numbers (H, W) as an image whose pixel values they are, shown in the colours of ``palette``."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    image = Image.fromarray(mask)
    image.putpalette(table.tobytes())
    return image
