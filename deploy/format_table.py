"""Formats side by side: sizes of files, agreement with the checkpoint, speed and, on labelled pictures, mIoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from basics.machine import device_name
from basics.text import text_table
from deploy.export_checks import Difference
from deploy.exporting import Deployed, Size
from deploy.formats import load_exported, stored_bytes
from deploy.int8_score import RealPictures
from deploy.speed import milliseconds, size_alone


@dataclass(frozen=True)
class Made:
    """A file that was written.

    Attributes:
        path: of the file or folder.
        differences: from the checkpoint; none if its runtime is not to be had here.
    """

    path: Path
    differences: Sequence[Difference]


def format_table(
    deployed: Deployed,
    checkpoint: Path,
    made: Mapping[str, Made],
    *,
    size: Size,
    rounds: int,
    pictures: RealPictures | None = None,
) -> str:
    """A line a format, the network as PyTorch runs it first; all are timed in turn, on one picture of ``size``.

    Args:
        deployed: the network in the form that the files have.
        checkpoint: its file.
        made: what was written, by the name of what runs it and the precision.
        rounds: timed runs of each.
        pictures: labelled ones, on which the network was scored; each file is scored on them, too, at their own or the
            working size (fitted to that of a file that has one).
    """
    here = {name: load_exported(file.path) for name, file in made.items() if file.differences}
    runs = {"PyTorch fp32": deployed} | {name: model.run for name, model in here.items()}
    times = milliseconds(runs, size, deployed.card.input == "uint8", rounds)
    titles = ["runtime", "file MB", "agreement %", "max |delta|", "ms"]
    rows = [["PyTorch fp32", f"{stored_bytes(checkpoint) / 1e6:.2f}", "", "", f"{times['PyTorch fp32']:.1f}"]]
    for name, file in made.items():
        worst = ["-", "-"]
        if file.differences:
            agreement = min(difference.agreement for difference in file.differences)
            worst = [f"{100 * agreement:.3f}", f"{max(difference.delta for difference in file.differences):.1e}"]
        measured = f"{times[name]:.1f}" if name in times else "-"
        rows.append([name, f"{stored_bytes(file.path) / 1e6:.2f}", *worst, measured])
    lines = []
    if pictures is not None:
        titles += ["mIoU %", "decided alike %"]
        rows[0] += [f"{100 * pictures.miou:.2f}", ""]
        for row in rows[1:]:
            cost = pictures.cost(here[row[0]]) if row[0] in here else None
            row += [f"{100 * cost.after:.2f}", f"{100 * cost.agreement:.2f}"] if cost else ["-", "-"]
        lines.append(f"mIoU, and decisions as the checkpoint's: {pictures.name}; agreement: made-up pictures")
    height, width = size
    lines.append(
        f"ms: one picture of {height}x{width}, median of {rounds} runs in turn, "
        f"{torch.get_num_threads()} threads, on {device_name('cpu')}"
    )
    return "\n".join([text_table(titles, rows), *lines, *size_alone([times])])
