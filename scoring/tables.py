"""Scores as tables for people, and as rows for JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import torch

from basics.files import write_text
from scoring.metrics import Scores
from scoring.protocol import Evaluation


def lab_score(miou: float, parameters: int) -> float:
    """4 * mIoU / (1 + millions of parameters): accuracy weighed against size."""
    return 4 * miou / (1 + parameters / 1e6)


def format_class_table(scores: Scores, class_names: list[str]) -> str:
    """The table by class: IoU, accuracy and pixel share in percent, ``-`` where a class has none."""
    width = max(len(name) for name in [*class_names, "class"])

    def percent(value: torch.Tensor) -> str:
        return "-" if value.isnan() else f"{100 * value.item():.2f}"

    lines = [f"{'class':{width}}  {'IoU %':>7}  {'acc %':>7}  {'pixels %':>8}"]
    for name, iou, accuracy, share in zip(class_names, scores.iou, scores.accuracy, scores.pixel_share, strict=True):
        lines.append(f"{name:{width}}  {percent(iou):>7}  {percent(accuracy):>7}  {percent(share):>8}")
    if scores.classes_left_out:
        lines.append(f"{scores.classes_left_out} classes occur neither in truth nor prediction: not in the mean")
    return "\n".join(lines)


def format_summary(rows: list[dict]) -> str:
    """One line by checkpoint; ``rows`` as `summary_row` makes them. Columns that no row has are left out."""

    def number(value: float | None, unit: float = 1) -> str:
        return "-" if value is None else f"{value / unit:.3f}"

    width = max(len(row["checkpoint"]) for row in [*rows, {"checkpoint": "checkpoint"}])
    model_width = max(12, *(len(row["model"]) for row in rows))
    sizes = any("file_mb" in row for row in rows)
    agreements = any("agreement" in row for row in rows)
    lines = [
        f"{'checkpoint':{width}}  {'model':>{model_width}}  {'mIoU %':>7}  {'pixel acc %':>11}  {'params M':>8}  "
        f"{'ms/image':>8}  {'score':>6}" + (f"  {'file MB':>8}" if sizes else "") + ("  agree %" if agreements else "")
    ]
    for row in rows:
        line = (
            f"{row['checkpoint']:{width}}  {row['model']:>{model_width}}  {100 * row['miou']:7.2f}  "
            f"{100 * row['pixel_accuracy']:11.2f}  {number(row['parameters'], 1e6):>8}  {row['ms_per_image']:8.1f}  "
            f"{number(row['score']):>6}"
        )
        line += f"  {row['file_mb']:8.2f}" if sizes else ""
        lines.append(line + (f"  {100 * row['agreement']:7.2f}" if agreements else ""))
    return "\n".join(lines)


def summary_row(
    label: str, name: str, parameters: int | None, evaluation: Evaluation, class_names: list[str], **more: float
) -> dict:
    """The figures of one evaluation as plain numbers and strings, for printing, JSON and CSV.

    Where the number of ``parameters`` is not known, there is no score either.
    """
    scores = evaluation.scores
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
        **more,
        "protocol": evaluation.protocol,
        "iou": {
            name: None if value.isnan() else value.item() for name, value in zip(class_names, scores.iou, strict=True)
        },
    }


def write_results(rows: list[dict], json_path: Path | None, csv_path: Path | None) -> None:
    """Write summary rows as JSON and/or CSV (one column ``iou/NAME`` a class)."""
    if json_path:
        write_text(json_path, json.dumps(rows, indent=2, allow_nan=False) + "\n")
    if csv_path:
        flat = [
            {key: value for key, value in row.items() if key != "iou"}
            | {f"iou/{name}": value for name, value in row["iou"].items()}
            for row in rows
        ]
        file = io.StringIO()
        writer = csv.DictWriter(file, fieldnames=flat[0].keys())
        writer.writeheader()
        writer.writerows(flat)
        write_text(csv_path, file.getvalue())
