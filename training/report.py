"""What a training run says of itself: the row and the line of each epoch, and the sections of report.txt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from basics.text import clock
from scoring.protocol import Evaluation
from scoring.tables import lab_score
from training.goal import MIOU, Goal
from training.optim import Optimization
from training.state import Progress


def epoch_row(
    progress: Progress,
    losses: Mapping[str, float],
    evaluation: Evaluation | None,
    optimization: Optimization,
    images: int,
    goal: Goal = MIOU,
) -> dict[str, Any]:
    """An epoch's row of metrics.csv; ``losses`` are the means of `RunState`, ``images`` those trained on.

    ``grad_norm`` is that before clipping, over the steps whose gradients were finite.
    """
    scores = evaluation.scores if evaluation else None
    row = {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "lr": optimization.optimizer.param_groups[0]["lr"],
        "train_loss": losses["loss"],
        **{f"train_{name}": value for name, value in losses.items() if name not in ("loss", "grad_norm")},
        "grad_norm": losses["grad_norm"] if math.isfinite(losses["grad_norm"]) else None,
        "val_loss": evaluation.loss if evaluation else None,
        f"val_{goal.key}": goal.of(scores) if scores else None,
        **({"val_pixel_accuracy": scores.pixel_accuracy if scores else None} if goal == MIOU else {}),
        "images_per_s": images / progress.epoch_s,
        "epoch_s": progress.epoch_s,
        "elapsed_s": progress.elapsed_s,
    }
    return row | ({"skipped_steps": progress.skipped_steps} if optimization.scaler.is_enabled() else {})


def epoch_line(
    row: Mapping, losses: Mapping[str, float], title: str, total_steps: int, spent_s: float, goal: Goal = MIOU
) -> str:
    """One line about the epoch ``title``.

    Args:
        row: as it goes into metrics.csv.
        losses: the mean of each term.
        total_steps: of the whole run.
        spent_s: seconds of training and scoring so far, without what comes once, such as a teacher's cache.
    """
    left = spent_s / row["step"] * (total_steps - row["step"])
    terms = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
    val = skipped = ""
    if row["val_loss"] is not None:
        val = f" | val loss {row['val_loss']:.4f} {goal.title} {100 * row[f'val_{goal.key}']:.2f} %"
        val += f" pixel acc {100 * row['val_pixel_accuracy']:.2f} %" if goal == MIOU else ""
    if row.get("skipped_steps"):
        skipped = f" | {row['skipped_steps']} steps skipped in all"
    return (
        f"epoch {title} | {terms}{val}{skipped} | lr {row['lr']:.2e} | "
        f"{row['images_per_s']:.1f} images/s | epoch {clock(row['epoch_s'])} "
        f"elapsed {clock(row['elapsed_s'])} left {clock(left)}"
    )


def report_sections(
    progress: Progress, rows: Sequence[Mapping], parameters: int, goal: Goal, protocol: str, images: Mapping[str, int]
) -> dict[str, dict[str, object]]:
    """Scores and timings for `training.runlog.RunLog.write_report`.

    Args:
        rows: those of metrics.csv.
        images: how many were trained on, with masks and without.
    """
    final = rows[-1] if rows else {}
    last, accuracy = final.get(f"val_{goal.key}"), final.get("val_pixel_accuracy")
    timings: dict[str, object] = {"elapsed": clock(progress.elapsed_s), "of it training": clock(progress.train_s)}
    timings["optimizer steps"] = progress.step
    if "skipped_steps" in final:
        timings["steps skipped by fp16 scaling"] = progress.skipped_steps
    if rows:
        timings["mean images/s"] = sum(row["images_per_s"] for row in rows) / len(rows)
    scores: dict[str, object] = {
        f"best {goal.title} %": 100 * progress.best_score if progress.best_epoch else None,
        "best epoch": progress.best_epoch,
        f"final {goal.title} %": 100 * last if last is not None else None,
    }
    if goal == MIOU:
        scores["final pixel accuracy %"] = 100 * accuracy if accuracy is not None else math.nan
    scores["student parameters"] = parameters
    if goal == MIOU:
        scores["score (best)"] = lab_score(progress.best_score, parameters) if progress.best_epoch else None
    return {"scores": scores | {"protocol": protocol}, "data": dict(images), "timings": timings}


def best_line(progress: Progress, parameters: int, goal: Goal) -> str:
    """What came of a run."""
    if not progress.best_epoch:
        return f"no epoch has been scored, so there is no best {goal.title}"
    line = f"best {goal.title} {100 * progress.best_score:.2f} % in epoch {progress.best_epoch}"
    return line + (f", score {lab_score(progress.best_score, parameters):.3f}" if goal == MIOU else "")
