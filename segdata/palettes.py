"""Class colours: VOC's own table, and a readable one for everybody else."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from basics.batch import VOID

Color = tuple[int, int, int]

VOID_COLOR = (224, 224, 192)  # the cream that VOC's own masks show for it
# Colours that stay apart for most eyes and print well (after S. Trubetskoy's list, 2017).
DISTINCT = [
    (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48),
    (145, 30, 180), (70, 240, 240), (240, 50, 230), (210, 245, 60), (250, 190, 212),
    (0, 128, 128), (220, 190, 255), (170, 110, 40), (128, 0, 0),
    (170, 255, 195), (128, 128, 0), (255, 215, 180), (0, 0, 128), (128, 128, 128),
]  # fmt: skip


def voc_palette(num_colours: int = 256) -> list[Color]:
    """VOC's colour table: bit k of the class number's octal digits becomes bit 7-k of red, green, blue."""
    palette = []
    for label in range(num_colours):
        red = green = blue = 0
        for bit in range(8):
            red |= (label >> (3 * bit) & 1) << (7 - bit)
            green |= (label >> (3 * bit + 1) & 1) << (7 - bit)
            blue |= (label >> (3 * bit + 2) & 1) << (7 - bit)
        palette.append((red, green, blue))
    return palette


def distinct_palette(class_names: list[str]) -> list[Color]:
    """One colour a class, all different: black for `background`, hand-picked ones first, then a hue spiral."""
    colours = iter(_endless_colours())
    return [(0, 0, 0) if name.lower() == "background" else next(colours) for name in class_names]


def colour_table(palette: Sequence[Sequence[int]] | np.ndarray) -> np.ndarray:
    """uint8 (256, 3) RGB to index with a mask: the classes' colours and that of void; black for all else."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    table[VOID] = VOID_COLOR
    return table


def palette_image(mask: np.ndarray, palette: Sequence[Sequence[int]] | np.ndarray) -> Image.Image:
    """Class numbers (H, W) as an image whose pixel values they are, shown in the colours of ``palette``."""
    image = Image.fromarray(mask)
    image.putpalette(colour_table(palette).tobytes())
    return image


def _endless_colours() -> Iterator[Color]:
    yield from DISTINCT
    seen = set(DISTINCT) | {(0, 0, 0)}
    step = 0
    while True:
        # The golden ratio never lets hues meet; brightness and saturation take turns to part neighbours.
        hue = step * 0.618033988749895 % 1
        saturation, value = (0.9, 0.55, 0.75)[step % 3], (0.95, 0.8, 0.6, 0.45)[step % 4]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colour = round(255 * red), round(255 * green), round(255 * blue)
        step += 1
        if colour not in seen:
            seen.add(colour)
            yield colour
