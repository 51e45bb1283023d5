"""The picture of a run: losses on the left, scores on the right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from basics.charts import BLUE, GREEN, GREY, ORANGE, plain_axes
from basics.fonts import fonts_for
from training.goal import AGREEMENT, MIOU, Goal


def draw_curves(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str = "") -> None:
    """Draw ``train_loss``, ``val_loss`` and ``val_miou`` (or ``val_agreement``), ``val_pixel_accuracy`` over ``epoch``.

    Args:
        rows: metrics by epoch, scores in 0..1; a column may be missing, a value None or nan.
        path: picture to write; its suffix chooses the format.
        title: the run's name.
    """
    with fonts_for([title]):
        _draw(rows, title).savefig(path, dpi=130)


def _draw(rows: Sequence[Mapping[str, Any]], title: str) -> Figure:
    figure = Figure(figsize=(10, 4), layout="constrained", facecolor="white")
    losses, scores = figure.subplots(1, 2, sharex=True)
    _draw_line(losses, rows, "train_loss", "train", BLUE)
    _draw_line(losses, rows, "val_loss", "validation (cross-entropy)", ORANGE)
    _draw_line(scores, rows, "val_pixel_accuracy", "pixel accuracy", GREY)
    for goal in (MIOU, AGREEMENT):
        _draw_line(scores, rows, f"val_{goal.key}", goal.title, GREEN)
        _mark_best(scores, rows, goal)
    _finish(losses, "Loss")
    _finish(scores, "Validation scores")
    losses.set_ylim(bottom=0)
    scores.set_ylim(0, 1)
    scores.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", parse_math=False)
    return figure


def _series(rows: Sequence[Mapping[str, Any]], column: str) -> tuple[list[float], list[float]]:
    filled = [row for row in rows if isinstance(row.get(column), int | float) and math.isfinite(row[column])]
    return [row["epoch"] for row in filled], [row[column] for row in filled]


def _draw_line(axes: Axes, rows: Sequence[Mapping[str, Any]], column: str, label: str, color: str) -> None:
    epochs, values = _series(rows, column)
    if epochs:
        # Single dots matter while there are few: a run of one epoch has no line to draw.
        marker = "o" if len(epochs) <= 30 else None
        axes.plot(epochs, values, color=color, label=label, linewidth=1.8, marker=marker, markersize=3.5)


def _mark_best(axes: Axes, rows: Sequence[Mapping[str, Any]], goal: Goal) -> None:
    epochs, values = _series(rows, f"val_{goal.key}")
    if not epochs:
        return
    best = max(range(len(values)), key=values.__getitem__)
    label = f"best {goal.title} {100 * values[best]:.2f} % at epoch {epochs[best]}"
    axes.scatter(
        epochs[best], values[best], s=70, label=label, facecolor="none", edgecolor=GREEN, linewidth=1.8, zorder=3
    )


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=11, loc="left")
    plain_axes(axes, "epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if not axes.get_legend_handles_labels()[0]:
        axes.text(0.5, 0.5, "no values yet", transform=axes.transAxes, ha="center", va="center", color=GREY)
