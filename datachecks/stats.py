"""How often each class occurs in a split, and the weights that even it out."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from basics.batch import VOID
from basics.errors import UserError
from basics.files import read_text, replacing, write_text
from basics.text import csv_text, text_table
from datachecks.census import open_census
from segdata.layouts import Layout, SplitFiles
from segdata.palettes import Color
from segdata.reading import DataError

MAX_WEIGHT = 10.0  # a class seen in a handful of pixels would otherwise drown all others
COLUMNS = ("class", "name", "pixels", "pixel_share", "images", "image_share", "weight")


@dataclass
class ClassStats:
    """Counts of one split.

    Attributes:
        pixels, images: int64 (C,), labelled pixels of each class and images in which it occurs.
        num_images: images read.
        void_pixels: pixels labelled 255, which no share counts.
    """

    name: str
    split: str
    class_names: list[str]
    palette: list[Color]
    pixels: np.ndarray
    images: np.ndarray
    num_images: int
    void_pixels: int

    @property
    def pixel_share(self) -> np.ndarray:
        """float64 (C,): share of the labelled pixels."""
        return self.pixels / max(int(self.pixels.sum()), 1)

    @property
    def image_share(self) -> np.ndarray:
        """float64 (C,): share of the images in which the class occurs."""
        return self.images / max(self.num_images, 1)

    @property
    def weights(self) -> np.ndarray:
        """float64 (C,): inverse-frequency weights, see `inverse_frequency`."""
        return inverse_frequency(self.pixels)


def inverse_frequency(pixels: np.ndarray) -> np.ndarray:
    """Weights (C,) proportional to 1 / pixel share: 1 / (K * share), K the number of classes that occur.

    A class of average frequency has weight 1, and before the cap every class contributes the same total.
    Weights are cut at `MAX_WEIGHT`; a class that never occurs has weight 1, which then weighs nothing.
    """
    present = pixels > 0
    share = pixels / max(int(pixels.sum()), 1)
    weights = np.ones(len(pixels))
    weights[present] = np.minimum(1 / (present.sum() * share[present]), MAX_WEIGHT)
    return weights


def count_classes(layout: Layout, split: str, files: SplitFiles | None = None) -> ClassStats:
    """The classes in all masks of a split; they are read only if that was never done, see `datachecks.census`.

    Args:
        files: others than the split's.

    Raises:
        DataError: the split has no masks, or one of its files is faulty.
    """
    files = files or layout.files(split)
    if files.masks is None:
        raise DataError(f"{layout.root}: the split {split!r} has no masks to count classes in")
    with open_census(layout) as census:
        counted = census.take({split: files})[split]
    if counted.faults:
        raise DataError(counted.faults[0])
    num_classes, pixels, images = len(layout.class_names), counted.pixels, counted.images
    return ClassStats(
        data_name(layout),
        split,
        layout.class_names,
        layout.palette,
        pixels[:num_classes],
        images[:num_classes],
        len(files.ids),
        int(pixels[VOID]),
    )


def frequency_table(counted: Sequence[ClassStats]) -> str:
    """Shares of pixels and of images: a row a class, two columns a split; one split at least."""
    titles, columns = ["class"], [counted[0].class_names]
    for stats in counted:
        titles += [f"{stats.split + ' pixels':>16}", f"{'images':>7}"]
        columns += [[f"{share:.3%}" for share in stats.pixel_share], [f"{share:.1%}" for share in stats.image_share]]
    return text_table(titles, list(zip(*columns, strict=True)))


def save_stats(stats: ClassStats, folder: Path) -> tuple[Path, Path]:
    """Write ``NAME_SPLIT_stats.csv`` and ``.png`` into ``folder``; return both paths."""
    from basics.fonts import fonts_for  # matplotlib, which the loader processes have no use for

    stem = f"{stats.name}_{stats.split}_stats"  # may have dots, which are no suffix
    table, chart = Path(folder) / f"{stem}.csv", Path(folder) / f"{stem}.png"
    columns = (
        range(len(stats.class_names)),
        stats.class_names,
        stats.pixels,
        [f"{share:.6g}" for share in stats.pixel_share],
        stats.images,
        [f"{share:.6g}" for share in stats.image_share],
        [f"{weight:.6g}" for weight in stats.weights],
    )
    rows = [dict(zip(COLUMNS, values, strict=True)) for values in zip(*columns, strict=True)]
    write_text(table, csv_text(rows, COLUMNS))
    with replacing(chart) as temporary, fonts_for([stats.name, stats.split, *stats.class_names]):
        _plot(stats, temporary)
    return table, chart


def data_name(layout: Layout) -> str:
    """What files call the data set."""
    return layout.root.resolve().name if layout.name in ("folder", "coco", "labelme") else layout.name


def _plot(stats: ClassStats, path: Path) -> None:
    """Three bar charts side by side, the most frequent class at the top."""
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    order = np.argsort(stats.pixels, kind="stable")
    names = [stats.class_names[label] for label in order]
    colours = [tuple(channel / 255 for channel in stats.palette[label]) for label in order]
    size = 0.24 * len(order) + 1.6
    figure = Figure(figsize=(12, size), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    panels = [
        ("share of labelled pixels in % (log scale)", 100 * stats.pixel_share[order], "{:.2g}"),
        ("share of images with the class in %", 100 * stats.image_share[order], "{:.3g}"),
        (f"inverse-frequency weight (cut at {MAX_WEIGHT:g})", stats.weights[order], "{:.2f}"),
    ]
    for axis, (title, values, form) in zip(axes, panels, strict=True):
        bars = axis.barh(names, values, color=colours, edgecolor="0.3", linewidth=0.6, height=0.75)
        axis.bar_label(bars, [form.format(value) for value in values], padding=3, fontsize=8)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.18, y=0.5 / len(order))
        axis.tick_params(axis="y", length=0, labelsize=9)
        for label in axis.get_yticklabels():
            label.set_parse_math(False)  # a dollar sign in a name is no formula
        axis.tick_params(axis="x", labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    if (stats.pixels > 0).any():
        smallest = 100 * stats.pixel_share[stats.pixels > 0].min()
        axes[0].set_xscale("log")
        axes[0].set_xlim(smallest / 2, 600)  # beyond 100 % there is room for the longest bar's number
        axes[0].set_xticks([10.0**power for power in range(-6, 3) if 10.0**power > smallest / 2])
        axes[0].minorticks_off()
    void = stats.void_pixels / max(int(stats.pixels.sum()) + stats.void_pixels, 1)
    figure.suptitle(
        f"{stats.name} / {stats.split}: {stats.num_images:,} images, {int(stats.pixels.sum()):,} labelled pixels, "
        f"{void:.1%} void",
        fontsize=12,
        parse_math=False,
    )
    figure.savefig(path, dpi=110)


def class_weights(source: str | Path, layout: Layout, split: str, files: SplitFiles | None = None) -> torch.Tensor:
    """The weights for `--class-weights`.

    Args:
        source: ``auto`` counts the classes of ``split``; anything else is a file: the CSV of
            ``dataset.py --stats`` (possibly edited), or plain text with one number a class.
        files: others than the split's.

    Returns:
        float32 (C,).

    Raises:
        UserError: the file is missing, malformed or made for other classes.
    """
    if str(source) == "auto":
        return torch.from_numpy(count_classes(layout, split, files).weights).to(torch.float32)
    path = Path(source)
    try:
        lines = [line for line in read_text(path).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"--class-weights {path}: cannot be read: {error}; give `auto` or a file") from None
    if lines and lines[0].startswith(",".join(COLUMNS[:2])):
        rows = list(csv.DictReader(lines))
        names = [row["name"] for row in rows]
        if names != layout.class_names:
            raise UserError(f"--class-weights {path}: its classes are not those of {layout.name} ({layout.root})")
        words = [row.get("weight") or "" for row in rows]
    else:
        words = lines
    return _parse_weights(words, len(layout.class_names), path)


def _parse_weights(words: list[str], num_classes: int, path: Path) -> torch.Tensor:
    try:
        values = torch.tensor([float(word) for word in words], dtype=torch.float32)
    except ValueError as error:
        raise UserError(f"--class-weights {path}: {error}; one number a class is wanted") from None
    if len(values) != num_classes:
        raise UserError(f"--class-weights {path}: {len(values)} weights for {num_classes} classes")
    if not (values.isfinite() & (values >= 0)).all() or not (values > 0).any():
        raise UserError(f"--class-weights {path}: weights must be finite, none negative, not all 0")
    return values
