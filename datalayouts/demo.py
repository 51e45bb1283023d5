"""The `demo` data set: made from a seed on first use, in VOC layout, so that the real loader reads it.

Six kinds of shapes lie on a cloudy ground and cover one another. A kind leans towards a hue and a texture,
but the hues overlap and any kind may carry any texture: colour and small patches give a quick first guess,
and only the outline decides. So a small network learns something within minutes, and a bigger one more.
"""

from __future__ import annotations

import colorsys
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from basics.batch import VOID
from basics.progress import ProgressBar
from datalayouts.folders import folder_layout
from segdata.borders import find_borders
from segdata.layouts import Layout
from segdata.palettes import colour_table, distinct_palette, palette_image
from segdata.reading import DataError
from segdata.split_lists import LISTS

CLASSES = ("background", "disk", "square", "triangle", "star", "ring", "cross")
TEXTURES = ("plain", "stripes", "checker", "dots", "waves", "grain")
VERSION = "3"  # raise it whenever the pictures change: an older data set on disk is then made anew
SEED = 2012
NUM_TRAIN, NUM_VAL = 400, 100  # and as many as for training for a teacher
PREFERENCE = 0.85  # how often a shape carries the texture of its kind, rather than any
HUE_SPREAD = 0.08  # standard deviation of a kind's hue; the kinds' mean hues are 1/6 apart


def find_demo(data_dir: Path) -> Layout:
    """The demo data set below ``data_dir``/demo, made first if it is not there yet."""
    root = Path(data_dir) / "demo"
    if not _is_current(root):
        try:
            _make_in_place(root)
        except OSError as error:
            raise DataError(
                f"{root}: the demo data cannot be written there ({error.strerror or error}); give another --data-dir"
            ) from None
    return folder_layout("demo", root)


def _is_current(root: Path) -> bool:
    try:
        return (root / "version.txt").read_text().strip() == VERSION
    except OSError:
        return False


def _is_ours(root: Path) -> bool:
    """Whether the folder holds a demo data set of any version, or nothing."""
    pictures = root.glob("JPEGImages/demo_train_*.jpg")
    return not any(root.iterdir()) or ((root / "version.txt").exists() and any(pictures))


def _make_in_place(root: Path) -> None:
    """Write to a folder of our own, then rename: a second process sees all of the data set or nothing."""
    if root.exists() and not _is_ours(root):
        raise DataError(f"{root}: is there, but was not made by this project: move it, or give another --data-dir")
    root.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".demo-", dir=root.parent))
    try:
        made = temporary / "demo"
        make_demo(made)
        try:
            if root.exists() and not _is_current(root):
                root.rename(temporary / "old")
            made.rename(root)
        except OSError:
            if not _is_current(root):  # otherwise another process was quicker, with the same pictures
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_demo(root: Path, num_train: int = NUM_TRAIN, num_val: int = NUM_VAL, seed: int = SEED) -> None:
    """Write a demo data set into the new folder ``root``: ``num_train`` + ``num_val`` pictures, and those of a teacher.

    The split ``teacher`` is as large as ``train``, of other pictures: what a teacher learns from, so that ``train`` is
    new to it. The n-th picture depends on (seed, n) alone, so a smaller set is the beginning of a larger one's split.
    """
    for folder in ("JPEGImages", "SegmentationClass", LISTS):
        (root / folder).mkdir(parents=True)
    colours = colour_table(distinct_palette(list(CLASSES)))
    splits = {"train": (0, num_train), "val": (1, num_val), "teacher": (2, num_train)}
    bar = ProgressBar(total=2 * num_train + num_val, desc="making demo data", unit="img")
    for split, (stream, count) in splits.items():
        ids = [f"demo_{split}_{number:04d}" for number in range(count)]
        for number, name in enumerate(ids):
            image, mask = draw_picture(np.random.default_rng([seed, stream, number]))
            Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=92)
            palette_image(mask, colours).save(root / "SegmentationClass" / f"{name}.png")
            bar.update()
        (root / LISTS / f"{split}.txt").write_text("".join(f"{name}\n" for name in ids))
    bar.close()
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in CLASSES))
    (root / "version.txt").write_text(f"{VERSION}\n")


def draw_picture(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One picture: image uint8 (H, W, 3) and mask uint8 (H, W) with a void line round every object."""
    height, width = int(rng.integers(104, 145)), int(rng.integers(136, 185))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    image = _ground(rng, x, y)
    objects = np.zeros((height, width), np.int32)  # which object is on top, for the void line
    mask = np.zeros((height, width), np.uint8)
    for number in range(1, int(rng.integers(2, 6)) + 1):
        label = int(rng.integers(1, len(CLASSES)))
        distance = _outline(rng, CLASSES[label], x, y)
        preferred = TEXTURES[label - 1]
        name = preferred if rng.random() < PREFERENCE else TEXTURES[rng.integers(len(TEXTURES))]
        hue = label / (len(CLASSES) - 1) + rng.normal(0, HUE_SPREAD)
        alpha = np.clip(0.5 - distance, 0, 1)[..., None]  # a soft edge of one pixel
        image = image * (1 - alpha) + _texture(rng, name, hue, x, y) * alpha
        mask[distance < 0] = label
        objects[distance < 0] = number
    light = 1 + rng.uniform(-0.25, 0.25) * (x / width - 0.5) + rng.uniform(-0.25, 0.25) * (y / height - 0.5)
    image = image * light[..., None] + rng.normal(0, 6, image.shape)
    mask[find_borders(objects)] = VOID
    return np.clip(image, 0, 255).astype(np.uint8), mask


def _outline(rng: np.random.Generator, kind: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Roughly the signed distance in pixels to a randomly placed shape, negative inside."""
    height, width = x.shape
    size = rng.uniform(0.18, 0.34) * min(height, width)  # "radius"
    cx, cy = rng.uniform(0.05, 0.95) * width, rng.uniform(0.05, 0.95) * height
    turn = rng.uniform(0, 2 * np.pi)
    stretch = rng.uniform(0.8, 1.25)
    dx, dy = (x - cx) * stretch, (y - cy) / stretch
    u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    if kind == "disk":
        return radius - size
    if kind == "ring":
        return np.abs(radius - 0.85 * size) - 0.33 * size
    if kind == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.88 * size
    if kind == "cross":
        arm, thin = 1.1 * size, 0.36 * size
        across = np.maximum(np.abs(u) - arm, np.abs(v) - thin)
        return np.minimum(across, np.maximum(np.abs(v) - arm, np.abs(u) - thin))
    if kind == "triangle":
        sector = (angle % (2 * np.pi / 3)) - np.pi / 3
        return radius * np.cos(sector) - 0.68 * size
    if kind == "star":  # five points: straight edges between an outer and an inner radius
        sector = np.abs((angle % (2 * np.pi / 5)) - np.pi / 5)
        inner, outer = 0.5 * size, 1.25 * size
        tip, notch = np.array([outer, 0.0]), inner * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
        edge = notch - tip
        normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
        if normal @ tip < 0:
            normal = -normal
        px, py = radius * np.cos(sector), radius * np.sin(sector)
        return (px - tip[0]) * normal[0] + (py - tip[1]) * normal[1]
    raise ValueError(f"unknown shape {kind!r}")


def _ground(rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The background float32 (H, W, 3), 0..255: soft clouds between two pale or greyish colours of any hue."""
    first, second = (_colour(rng, rng.uniform(0, 1), saturation=(0, 0.5)) for _ in range(2))
    waves = zip(rng.uniform(0, np.pi, 4), rng.uniform(8, 40, 4), rng.uniform(0, 7, 4), strict=True)
    blend = sum(np.sin((x * np.cos(turn) + y * np.sin(turn)) / period + phase) for turn, period, phase in waves)
    return first + (second - first) * (0.5 + blend[..., None] / 8)


def _colour(rng: np.random.Generator, hue: float, saturation: tuple[float, float]) -> np.ndarray:
    red_green_blue = colorsys.hsv_to_rgb(hue % 1, rng.uniform(*saturation), rng.uniform(0.35, 0.95))
    return 255 * np.array(red_green_blue)


def _texture(rng: np.random.Generator, name: str, hue: float, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A patterned surface float32 (H, W, 3), 0..255: a colour of ``hue`` (0..1) and a lighter or darker one."""
    first = _colour(rng, hue, saturation=(0.4, 1.0))
    second = first + rng.choice([-1, 1]) * rng.uniform(50, 110, 3)
    turn, period = rng.uniform(0, np.pi), rng.uniform(5, 12)
    u = (x * np.cos(turn) + y * np.sin(turn)) / period
    v = (y * np.cos(turn) - x * np.sin(turn)) / period
    if name == "plain":
        blend = 0.5 + 0.15 * np.sin(0.3 * u)
    elif name == "stripes":
        blend = (np.sin(2 * np.pi * u) > 0).astype(np.float32)
    elif name == "checker":
        blend = ((np.floor(u) + np.floor(v)) % 2).astype(np.float32)
    elif name == "dots":
        blend = (np.hypot(u % 1 - 0.5, v % 1 - 0.5) < 0.3).astype(np.float32)
    elif name == "waves":
        blend = 0.5 + 0.5 * np.sin(2 * np.pi * (u + 0.4 * np.sin(np.pi * v)))
    else:  # grain: noise in cells of about two pixels
        height, width = x.shape
        blend = np.kron(rng.random((height // 2 + 1, width // 2 + 1)), np.ones((2, 2)))[:height, :width]
    return first + (second - first) * blend[..., None].astype(np.float32)
