"""What a training run says of itself: the row and the line of each epoch, and the sections of report.txt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from basics.text import clock
from scoring.protocol import Evaluation
from training.optim import Optimization
from training.state import Progress


def epoch_row(
    progress: Progress,
    losses: Mapping[str, float],
    evaluation: Evaluation | None,
    optimization: Optimization,
    images: int,
) -> dict[str, Any]:
    """An epoch's row of metrics.csv; ``losses`` are the means of `RunState`, ``images`` those trained on.

    ``grad_norm`` is that before clipping, over the steps whose gradients were finite.
    """
    row = {
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "lr": optimization.optimizer.param_groups[0]["lr"],
        "train_loss": losses["loss"],
        **{f"train_{name}": value for name, value in losses.items() if name not in ("loss", "grad_norm")},
        "grad_norm": losses["grad_norm"] if math.isfinite(losses["grad_norm"]) else None,
        "val_loss": evaluation.loss if evaluation else None,
        "val_miou": evaluation.scores.miou if evaluation else None,
        "val_pixel_accuracy": evaluation.scores.pixel_accuracy if evaluation else None,
        "images_per_s": images / progress.epoch_s,
        "epoch_s": progress.epoch_s,
        "elapsed_s": progress.elapsed_s,
    }
    return row | ({"skipped_steps": progress.skipped_steps} if optimization.scaler.is_enabled() else {})


def epoch_line(row: Mapping, losses: Mapping[str, float], epochs: int, total_steps: int) -> str:
    """One line about an epoch: ``row`` as it goes into metrics.csv, ``losses`` the mean of each term."""
    left = row["elapsed_s"] / row["step"] * (total_steps - row["step"])
    terms = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
    val = skipped = ""
    if row["val_miou"] is not None:
        val = (
            f" | val loss {row['val_loss']:.4f} mIoU {100 * row['val_miou']:.2f} % "
            f"pixel acc {100 * row['val_pixel_accuracy']:.2f} %"
        )
    if row.get("skipped_steps"):
        skipped = f" | {row['skipped_steps']} steps skipped"
    return (
        f"epoch {row['epoch']}/{epochs} | {terms}{val}{skipped} | lr {row['lr']:.2e} | "
        f"{row['images_per_s']:.1f} images/s | epoch {clock(row['epoch_s'])} "
        f"elapsed {clock(row['elapsed_s'])} left {clock(left)}"
    )


def report_sections(
    progress: Progress, rows: Sequence[Mapping], parameters: int, lab_score: float, protocol: str
) -> dict[str, dict[str, object]]:
    """Scores and timings for `training.runlog.RunLog.write_report`; ``rows`` are those of metrics.csv."""
    final = rows[-1] if rows else {}
    miou, accuracy = final.get("val_miou"), final.get("val_pixel_accuracy")
    timings = {"elapsed": clock(progress.elapsed_s), "optimizer steps": progress.step}
    if "skipped_steps" in final:
        timings["steps skipped by fp16 scaling"] = progress.skipped_steps
    if rows:
        timings["mean images/s"] = sum(row["images_per_s"] for row in rows) / len(rows)
    return {
        "scores": {
            "best mIoU %": 100 * progress.best_miou if progress.best_epoch else None,
            "best epoch": progress.best_epoch,
            "final mIoU %": 100 * miou if miou is not None else None,
            "final pixel accuracy %": 100 * accuracy if accuracy is not None else math.nan,
            "student parameters": parameters,
            "lab score (best)": lab_score,
            "protocol": protocol,
        },
        "timings": timings,
    }
