"""One model scored as a script's command line asks for it: the options, the split, class table, and summary's row."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn

from basics.device import add_device_argument, check_amp, pick_device
from basics.errors import UserError
from basics.machine import WORKERS_HELP, loader_processes, number_or_auto
from basics.memory import explain_memory
from basics.tiling import check_tile
from datachecks import teacher_masks
from dataset import SegmentationDataset, add_data_arguments, build_split
from networks.working_size import working_size_of
from scoring.memory import memory_advice
from scoring.protocol import Agreement, check_untiled, computes_itself, evaluate_model
from scoring.tables import SummaryRow, format_class_table, summary_row


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """The options shared by every script that scores a model."""
    add_data_arguments(parser, train=False)
    add_device_argument(parser)
    parser.add_argument("--amp", default="off", choices=["off", "bf16", "fp16"])
    parser.add_argument("--batch-size", type=int, default=1, help="only images of equal size share a batch")
    parser.add_argument(
        "--eval-tile", type=int, default=0, metavar="PIXELS", help="score larger pictures in blended tiles of this side"
    )
    parser.add_argument("--workers", type=number_or_auto, metavar="auto|N", help=WORKERS_HELP)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the results as CSV")


def split_to_score(args: argparse.Namespace) -> SegmentationDataset:
    """--val-split of the data set that the arguments of `add_data_arguments` name.

    What is remarkable about the data, and masks that a teacher wrote, are told.

    Raises:
        UserError: there are no such data, or no masks.
    """
    dataset = build_split(args, args.val_split)
    dataset.require_masks()
    for remark in dataset.layout.remarks:
        print(f"remark: {remark}")
    teacher_masks.warn(dataset)
    return dataset


def report(
    label: str,
    name: str,
    model: nn.Module,
    dataset: SegmentationDataset,
    args: argparse.Namespace,
    *,
    parameters: int | None,
    device: torch.device | None = None,
    file_mb: float | None = None,
    agreement: Agreement | None = None,
) -> SummaryRow:
    """Evaluate one model with the options of `add_evaluation_arguments`, print its class table, return its row.

    Args:
        label: the model as the user named it.
        name: its architecture.
        model: images (N, 3, H, W) -> logits (N, C, H, W), on ``device``.
        parameters: of the network; None: not known.
        device: where another than --device was taken.
        file_mb: size of its file in MB of 10^6 bytes, for the row.
        agreement: is shown its predictions; the row gets the share.

    Raises:
        UserError: an option has no sense, or memory ran out.
    """
    if args.batch_size < 1 or (args.workers or 0) < 0:
        raise UserError("--batch-size must be at least 1, --workers at least 0")
    check_tile("--eval-tile", args.eval_tile)
    check_untiled(label, working_size_of(model), "--eval-tile", args.eval_tile)
    device = device or pick_device(args.device)
    if not computes_itself(model):
        check_amp(device, args.amp)
    with explain_memory(memory_advice(args.batch_size, args.eval_tile, "--batch-size", working_size_of(model))):
        evaluation = evaluate_model(
            model,
            dataset,
            device,
            batch_size=args.batch_size,
            tile=args.eval_tile,
            workers=loader_processes(args.workers, device),
            amp=args.amp,
            watcher=agreement,
        )
    print(f"\n{label} ({name}), protocol: {evaluation.protocol}")
    print(format_class_table(evaluation.scores, dataset.class_names))
    return summary_row(
        label,
        name,
        parameters,
        evaluation,
        dataset.class_names,
        file_mb=file_mb,
        agreement=None if agreement is None else agreement.share,
    )
