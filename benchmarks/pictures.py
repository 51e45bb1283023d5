"""The pictures that are measured on: the first of a data set, or some made up.

What is made up is a data set of VOC's measure: 500 x 375 photographs in their cost, not in their content. JPEG
decoding takes longer the more detail there is, so the pictures have a photograph's spectrum: noise whose contrast
falls with its frequency.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from basics.batch import VOID
from datalayouts.published import VOC_CLASSES
from dataset import SegmentationDataset
from segdata.palettes import palette_image, voc_palette
from segdata.split_lists import LISTS

JPEG_QUALITY = 82
COLOUR = 0.3  # with it a file has 93 kB, the mean of VOC's own


def first_images(dataset: SegmentationDataset, count: int) -> SegmentationDataset:
    """The same split, its first ``count`` images alone."""
    files = dataset.files.part(range(min(count, len(dataset))))
    return SegmentationDataset(dataset.layout, dataset.split, dataset.transform, files=files)


def make_pictures(root: Path, count: int, size: tuple[int, int] = (375, 500), seed: int = 0) -> None:
    """Write ``count`` pictures of ``size`` (H, W) with masks of 21 classes into the new folder ``root``, all in one
    split ``train``, in the layout of the data set ``folder``."""
    for folder in ("JPEGImages", "SegmentationClass", LISTS):
        (root / folder).mkdir(parents=True)
    palette = voc_palette(256)
    names = [f"picture_{number:04d}" for number in range(count)]
    for number, name in enumerate(names):
        rng = np.random.default_rng([seed, number])
        Image.fromarray(_photograph(rng, size)).save(root / "JPEGImages" / f"{name}.jpg", quality=JPEG_QUALITY)
        palette_image(_mask(rng, size), palette).save(root / "SegmentationClass" / f"{name}.png")
    (root / LISTS / "train.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in VOC_CLASSES))


def _photograph(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Noise with an amplitude of 1 / frequency, mostly shared by the colours, uint8 (H, W, 3)."""
    height, width = size
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None] * width)
    noise = rng.standard_normal((1, height, width)) + COLOUR * rng.standard_normal((3, height, width))
    spectrum = np.fft.rfft2(noise) / np.maximum(frequency, 1)
    image = np.fft.irfft2(spectrum, s=size)
    image = (image - image.mean()) / image.std()
    return np.clip(120 + 55 * image, 0, 255).astype(np.uint8).transpose(1, 2, 0)


def _mask(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Up to four ellipses of random classes, each with a void line round it, uint8 (H, W)."""
    y, x = np.mgrid[: size[0], : size[1]]
    mask = np.zeros(size, np.uint8)
    for _ in range(rng.integers(1, 5)):
        cy, cx = rng.uniform(0, size[0]), rng.uniform(0, size[1])
        radius_y, radius_x = rng.uniform(0.1, 0.5, 2) * size
        distance = np.hypot((y - cy) / radius_y, (x - cx) / radius_x)
        mask[distance < 1.03] = VOID
        mask[distance < 1] = rng.integers(1, len(VOC_CLASSES))
    return mask
