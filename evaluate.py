"""Score saved students on a split: one table by class, one line by checkpoint.

    python evaluate.py checkpoints/RUN/best.pth --dataset voc
    python evaluate.py checkpoints/*/best.pth --dataset voc --csv scores.csv --json scores.json
    python evaluate.py checkpoints/RUN/best.pth ptq_int8.onnx qat_int8.onnx --agreement
    python evaluate.py checkpoints/RUN/best.pth --submission voc_test.tgz        # for VOC's evaluation server

Architecture, classes and normalisation come from the checkpoint. The protocol: native resolution, one
scale, no flip; logits are resized to the mask, never the mask to the logits; only 255 is left out.
The column "score" is 4 * mIoU / (1 + millions of parameters), with mIoU in 0..1.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from basics.device import add_device_argument, pick_device
from basics.errors import UserError, run_cli
from basics.memory import explain_memory
from dataset import SegmentationDataset, add_data_arguments, build_dataset
from deploy.segmenter import Segmenter, load_segmenter
from networks.cost import count_parameters
from scoring.protocol import Agreement, check_classes, evaluate_model
from scoring.submission import write_submission
from scoring.tables import format_class_table, format_summary, summary_row, write_results
from segdata.layouts import VOC_CLASSES


@explain_memory("--batch-size, or use --amp")
def report(
    label: str,
    name: str,
    model: nn.Module,
    dataset: SegmentationDataset,
    args: argparse.Namespace,
    *,
    device: torch.device | None = None,
    parameters: int | None = None,
    agreement: Agreement | None = None,
    **more: float,
) -> dict:
    """Evaluate one model with the command line's options, print its class table, return its summary row.

    ``device`` (--device) and ``parameters`` (counted) are for models that say otherwise; ``more`` goes
    into the row as it is.
    """
    if args.batch_size < 1 or args.workers < 0:
        raise UserError("--batch-size must be at least 1, --workers at least 0")
    evaluation = evaluate_model(
        model,
        dataset,
        device or pick_device(args.device),
        batch_size=args.batch_size,
        workers=args.workers,
        amp=args.amp,
        agreement=agreement,
    )
    print(f"\n{label} ({name}), protocol: {evaluation.protocol}")
    print(format_class_table(evaluation.scores, dataset.class_names))
    if agreement is not None:
        more["agreement"] = agreement.share
    parameters = count_parameters(model) if parameters is None else parameters
    return summary_row(label, name, parameters, evaluation, dataset.class_names, **more)


def submit(path: Path, segmenter: Segmenter, dataset: SegmentationDataset) -> None:
    """Write the predictions for ``dataset``'s images as VOC's evaluation server wants them (see `scoring.submission`).

    Raises:
        UserError: the classes are not VOC's, or the file's name does not end in .tgz or .tar.gz.
    """
    if not path.name.endswith((".tgz", ".tar.gz")):
        raise UserError(f"--submission {path}: the name must end in .tgz")
    if dataset.class_names != VOC_CLASSES:
        raise UserError(f"--submission is for VOC's 21 classes: {dataset.name} has others")
    numbers = tqdm(range(len(dataset)), desc=f"predict {dataset.split}", leave=False, disable=None, unit="img")
    masks = ((dataset.ids[number], segmenter.mask(dataset[number]["image"]).numpy()) for number in numbers)
    write_submission(path, masks, dataset.palette)
    print(
        f"{path}: masks of the {len(dataset)} images of {dataset.name}/{dataset.split} (no scores: the server's task)"
    )


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """The options shared by every script that scores a model."""
    add_data_arguments(parser, train=False)
    add_device_argument(parser)
    parser.add_argument("--amp", default="off", choices=["off", "bf16", "fp16"])
    parser.add_argument("--batch-size", type=int, default=1, help="only images of equal size share a batch")
    parser.add_argument("--workers", type=int, default=2, help="loader processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results as JSON")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the results as CSV")


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help=".pth, .onnx or .pt2 files")
    parser.add_argument("--agreement", action="store_true", help="share of pixels each decides as the first one")
    parser.add_argument("--submission", type=Path, metavar="FILE.tgz", help="write the masks of VOC's test split")
    add_evaluation_arguments(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    if args.submission:
        if len(args.checkpoints) > 1:
            raise UserError("--submission takes one checkpoint")
        segmenter = load_segmenter(args.checkpoints[0], args.device)
        dataset = build_dataset(args.dataset, args.data_dir, "test")
        check_classes(str(args.checkpoints[0]), segmenter.class_names, dataset)
        submit(args.submission, segmenter, dataset)
        return
    dataset = build_dataset(args.dataset, args.data_dir, args.val_split)
    dataset.require_masks()
    for path in (args.json, args.csv):
        if path is not None and path.is_dir():
            raise UserError(f"{path}: a folder; name a file for the results")
    rows = []
    try:
        score_checkpoints(args, dataset, rows)
    finally:  # what was scored before one that could not be is not lost
        if rows:
            print("\n" + format_summary(rows))
            write_results(rows, args.json, args.csv)


def score_checkpoints(args: argparse.Namespace, dataset: SegmentationDataset, rows: list[dict]) -> None:
    """Add each checkpoint's summary row to ``rows``."""
    agreement = Agreement() if args.agreement else None
    for path in args.checkpoints:
        segmenter = load_segmenter(path, args.device)
        check_classes(str(path), segmenter.class_names, dataset)
        if agreement is not None:
            agreement.restart()
        row = report(
            str(path),
            segmenter.name,
            segmenter.model,
            dataset,
            args,
            device=segmenter.device,
            parameters=segmenter.parameters,
            agreement=agreement,
            file_mb=segmenter.file_bytes / 1e6,
        )
        rows.append(row)


if __name__ == "__main__":
    run_cli(main, get_args_parser)
