"""Saved networks and teachers, scored by one protocol with the options of `scoring.reporting`.

    for scored in score_files(paths, dataset, args): ...
    for scored in score_teacher(TeacherChoice.of(args), dataset, args, sizes=[192, 256]): ...

Used by evaluate.py and test_teacher.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from basics.device import pick_device
from dataset import SegmentationDataset
from deploy.segmenter import load_segmenter
from deploy.teachers import TeacherChoice, load_teacher_for, remark_of
from networks.cost import count_parameters
from networks.working_size import refuse_other_size
from scoring.protocol import Agreement, check_classes
from scoring.reporting import report
from scoring.tables import SummaryRow


@dataclass(frozen=True)
class ScoredNetwork:
    """What was scored, and how it did.

    Attributes:
        row: its figures.
        network: normalised images (N, 3, H, W) -> logits (N, C, H, W) of the data's classes, on ``device``.
    """

    row: SummaryRow
    network: nn.Module
    device: torch.device


def score_files(
    paths: Iterable[Path],
    dataset: SegmentationDataset,
    args: argparse.Namespace,
    sizes: Sequence[int] = (),
    agreement: Agreement | None = None,
) -> Iterator[ScoredNetwork]:
    """Each checkpoint or exported file, as soon as it is scored.

    Args:
        args: of `add_evaluation_arguments`.
        sizes: working sizes, 0 for native; by default its own.
        agreement: is shown all predictions.

    Raises:
        UserError: a file that cannot be read, or is of other classes.
    """
    for path in paths:
        segmenter = load_segmenter(path, args.device)
        check_classes(str(path), segmenter.class_names, dataset)
        for sized in map(segmenter.at, dict.fromkeys(sizes)) if sizes else [segmenter]:
            if agreement is not None:
                agreement.restart()
            row = report(str(path), sized.name, sized.model, dataset, args, device=sized.device,
                         parameters=sized.parameters, file_mb=sized.file_bytes / 1e6, agreement=agreement)  # fmt: skip
            yield ScoredNetwork(row, sized.model, sized.device)


def score_teacher(
    choice: TeacherChoice, dataset: SegmentationDataset, args: argparse.Namespace, sizes: Sequence[int] = ()
) -> Iterator[ScoredNetwork]:
    """A teacher, at each size as soon as it is scored; what is to be said of its classes is printed.

    Args:
        args: of `add_evaluation_arguments`.
        sizes: working sizes, 0 for native; by default what ``choice`` says, or else its own.

    Raises:
        UserError: it cannot be had, nobody says what its classes mean, or it takes pictures of one size alone.
    """
    teacher, device = load_teacher_for(choice, dataset), pick_device(args.device)
    label = teacher.label if choice.weights == "default" else choice.weights
    parameters = count_parameters(teacher.model)
    if sizes:
        refuse_other_size(label, teacher.model)
    for size in dict.fromkeys(sizes or [teacher.model.input_size]):
        network = teacher.as_network(size).to(device)
        row = report(label, teacher.label, network, dataset, args, parameters=parameters)
        if remark := remark_of(network, row["iou"]):
            print(f"remark: {remark}")
        yield ScoredNetwork(row, network, device)
