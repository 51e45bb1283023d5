"""Scores as tables for people, and as rows for JSON and CSV."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import torch

from basics.files import write_text
from basics.text import csv_text, text_table
from scoring.metrics import Scores
from scoring.protocol import Evaluation


class _Extras(TypedDict, total=False):
    file_mb: float
    agreement: float


class SummaryRow(_Extras):
    """The figures of one evaluation as plain numbers and strings, for printing, JSON and CSV.

    Shares are in 0..1, ``loss`` is the mean cross-entropy of a labelled pixel, ``score`` that of `lab_score`, and an
    ``iou`` of None belongs to a class that occurs in neither truth nor prediction. By ``class_pixels``, the labelled
    ones of each class, rows of the same masks are known. Not every row has ``file_mb``, of 10^6 bytes, and
    ``agreement`` with another network.
    """

    checkpoint: str
    model: str
    miou: float
    pixel_accuracy: float
    loss: float
    parameters: int | None
    ms_per_image: float
    score: float | None
    classes_left_out: int
    pixels: int
    protocol: str
    iou: dict[str, float | None]
    class_pixels: dict[str, int]


def lab_score(miou: float, parameters: int) -> float:
    """4 * mIoU / (1 + millions of parameters): accuracy weighed against size."""
    return 4 * miou / (1 + parameters / 1e6)


def format_class_table(scores: Scores, class_names: Sequence[str]) -> str:
    """The table by class: IoU, accuracy and pixel share in percent, ``-`` where a class has none."""

    def percent(value: torch.Tensor) -> str:
        return "-" if value.isnan() else f"{100 * value.item():.2f}"

    by_class = zip(class_names, scores.iou, scores.accuracy, scores.pixel_share, strict=True)
    table = text_table(
        ["class", "  IoU %", "  acc %", "pixels %"], [[name, *map(percent, values)] for name, *values in by_class]
    )
    if scores.classes_left_out:
        table += f"\n{scores.classes_left_out} classes occur neither in truth nor prediction: not in the mean"
    return table


def mean_over(row: SummaryRow, classes: Sequence[str]) -> float | None:
    """Mean IoU (0..1) of these classes, those left out that occur in neither truth nor prediction; None of none."""
    known = [value for name in classes if (value := row["iou"][name]) is not None]
    return statistics.fmean(known) if known else None


def format_summary(rows: Sequence[SummaryRow], classes: Sequence[str] = ()) -> str:
    """One line by checkpoint; ``file MB`` and ``agree %`` only where some rows have them.

    Args:
        classes: the mean over these alone is a column, too.
    """

    def number(value: float | None, unit: float = 1, digits: int = 3) -> str:
        return "-" if value is None else f"{value / unit:.{digits}f}"

    columns: list[tuple[str, Callable[[SummaryRow], str]]] = [
        ("checkpoint", lambda row: row["checkpoint"]),
        ("       model", lambda row: row["model"]),
        (" mIoU %", lambda row: f"{100 * row['miou']:.2f}"),
        ("pixel acc %", lambda row: f"{100 * row['pixel_accuracy']:.2f}"),
        ("params M", lambda row: number(row["parameters"], 1e6)),
        ("ms/image", lambda row: f"{row['ms_per_image']:.1f}"),
        (" score", lambda row: number(row["score"])),
    ]
    if classes:
        columns.insert(3, (f"of {len(classes)} %", lambda row: number(mean_over(row, classes), 0.01, 2)))
    if any("file_mb" in row for row in rows):
        columns.append((" file MB", lambda row: number(row.get("file_mb"), digits=2)))
    if any("agreement" in row for row in rows):
        columns.append(("agree %", lambda row: number(row.get("agreement"), 0.01, 2)))
    return text_table([title for title, _ in columns], [[cell(row) for _, cell in columns] for row in rows])


def summary_row(
    label: str,
    name: str,
    parameters: int | None,
    evaluation: Evaluation,
    class_names: Sequence[str],
    *,
    file_mb: float | None = None,
    agreement: float | None = None,
) -> SummaryRow:
    """One evaluation's row; where the number of ``parameters`` is not known, there is no score either."""
    scores = evaluation.scores
    extras: _Extras = {}
    if file_mb is not None:
        extras["file_mb"] = file_mb
    if agreement is not None:
        extras["agreement"] = agreement
    return {
        "checkpoint": label,
        "model": name,
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "loss": evaluation.loss,
        "parameters": parameters,
        "ms_per_image": evaluation.ms_per_image,
        "score": None if parameters is None else lab_score(scores.miou, parameters),
        "classes_left_out": scores.classes_left_out,
        "pixels": scores.pixels,
        **extras,
        "protocol": evaluation.protocol,
        "iou": {
            name: None if value.isnan() else value.item() for name, value in zip(class_names, scores.iou, strict=True)
        },
        "class_pixels": {
            name: round(share.item() * scores.pixels)
            for name, share in zip(class_names, scores.pixel_share, strict=True)
        },
    }


def iou_columns(iou: Mapping[str, float | None]) -> dict[str, float | None]:
    """IoU by class as columns ``iou/NAME`` of a CSV file."""
    return {f"iou/{name}": value for name, value in iou.items()}


def write_results(rows: Sequence[SummaryRow], json_path: Path | None, csv_path: Path | None) -> None:
    """Write summary rows as JSON and/or CSV; a number that is none becomes null, and an empty cell."""
    plain = [{key: _number(value) for key, value in row.items()} for row in rows]
    if json_path:
        write_text(json_path, json.dumps(plain, indent=2, allow_nan=False) + "\n")
    if csv_path:
        ious = [iou_columns(row["iou"]) for row in rows]
        numbers = [{key: value for key, value in row.items() if key not in ("iou", "class_pixels")} for row in plain]
        flat = [row | iou for row, iou in zip(numbers, ious, strict=True)]
        write_text(csv_path, csv_text(flat))


def _number(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
