"""Formats side by side: sizes of files, agreement with the checkpoint, speed and, on labelled pictures, mIoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from basics.machine import device_name
from basics.text import text_table
from dataset import SegmentationDataset
from deploy.export_checks import Difference
from deploy.exporting import Deployed, Size
from deploy.formats import load_exported, stored_bytes
from deploy.speed import milliseconds
from scoring.protocol import evaluate_model


@dataclass(frozen=True)
class Made:
    """A file that was written.

    Attributes:
        path: of the file or folder.
        differences: from the checkpoint; none if its runtime is not to be had here.
        comparable: whether it takes and gives what the others do, so that its speed may stand beside theirs.
    """

    path: Path
    differences: Sequence[Difference]
    comparable: bool = True


def format_table(
    deployed: Deployed,
    checkpoint: Path,
    made: Mapping[str, Made],
    *,
    size: Size,
    rounds: int,
    dataset: SegmentationDataset | None = None,
) -> str:
    """A line a format, the network as PyTorch runs it first; all are timed in turn, on one picture of ``size``.

    Args:
        deployed: the network in the form that the comparable files have.
        checkpoint: its file.
        made: what was written, by the name of what runs it.
        rounds: timed runs of each.
        dataset: labelled pictures, scored at their own size (shrunk to ``size`` where a file has that for good).
    """
    here = {name: load_exported(file.path) for name, file in made.items() if file.comparable and file.differences}
    runs = {"PyTorch": deployed} | {name: model.run for name, model in here.items()}
    times = milliseconds(runs, size, deployed.card.input == "uint8", rounds)
    titles = ["runtime", "file MB", "agreement %", "max |delta|", "ms"] + (["mIoU %"] if dataset else [])
    rows = [["PyTorch", f"{stored_bytes(checkpoint) / 1e6:.2f}", "", "", f"{times['PyTorch']:.1f}"]]
    for name, file in made.items():
        worst = ["-", "-"]
        if file.differences:
            agreement = min(difference.agreement for difference in file.differences)
            worst = [f"{100 * agreement:.3f}", f"{max(difference.delta for difference in file.differences):.1e}"]
        measured = f"{times[name]:.1f}" if name in times else "-"
        rows.append([name, f"{stored_bytes(file.path) / 1e6:.2f}", *worst, measured])
    if dataset:
        from_checkpoint = {"PyTorch": deployed.model} | here
        for row in rows:
            row.append(_miou(from_checkpoint[row[0]], dataset) if row[0] in from_checkpoint else "-")
    height, width = size
    machine = (
        f"one picture of {width}x{height}, median of {rounds} runs in turn, "
        f"{torch.get_num_threads()} threads, on {device_name('cpu')}"
    )
    return "\n".join([text_table(titles, rows), machine])


def _miou(model: torch.nn.Module, dataset: SegmentationDataset) -> str:
    evaluation = evaluate_model(model, dataset, torch.device("cpu"))
    return f"{100 * evaluation.scores.miou:.2f}"
