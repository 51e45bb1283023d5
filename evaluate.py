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
import csv
import io
import json
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from basics import distributed
from basics.batch import prepare_batch
from basics.device import autocast, exact_dtype, pick_device, synchronize
from basics.errors import UserError, run_cli
from basics.files import write_text
from dataset import SegmentationDataset, add_data_arguments, build_dataset
from deploy.segmenter import Segmenter, load_segmenter
from networks.cost import count_parameters
from scoring.metrics import IGNORE_INDEX, ConfusionMatrix, Scores
from scoring.submission import write_submission
from segdata.layouts import VOC_CLASSES
from segdata.reading import image_size
from training.failures import explain_memory
from training.state import Stopped, StopSignal, ignore_stop_signals

PROTOCOL = (
    "native resolution, single scale, no flip, logits resized to the mask, void (255) left out, background counted"
)
WARMUP_IMAGES = 3


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a split gives.

    Attributes:
        scores: all scores of the split.
        loss: mean cross-entropy over all labelled pixels of the split.
        ms_per_image: median forward time of one image, in milliseconds, after a warm-up.
        protocol: how the numbers came about, in words; it is printed beside them and saved with them.
    """

    scores: Scores
    loss: float
    ms_per_image: float
    protocol: str


class Agreement:
    """Counts the pixels, void ones included, at which a network decides as a first network did.

    The first network's masks are kept in memory, a byte a pixel.
    """

    def __init__(self) -> None:
        self.first: dict[int, torch.Tensor] = {}
        self.same = self.pixels = 0

    def restart(self) -> None:
        """Another network follows."""
        self.same = self.pixels = 0

    def update(self, indices: torch.Tensor, prediction: torch.Tensor) -> None:
        """Take in the predictions (N, H, W) for the images of these indices (N,)."""
        for index, mask in zip(indices.tolist(), prediction.to("cpu", torch.uint8), strict=True):
            self.same += int((self.first.setdefault(index, mask) == mask).sum())
            self.pixels += mask.numel()

    @property
    def share(self) -> float:
        """In 0..1; 1 for the first network itself."""
        return self.same / self.pixels


class SameSizeBatches:
    """Batch sampler that puts only images of equal size into one batch, so that none is padded.

    The score of a split is then that of batch size 1.
    """

    def __init__(self, dataset: SegmentationDataset, batch_size: int):
        groups = defaultdict(list)
        for index in range(len(dataset)):
            groups[image_size(dataset.image_path(index)) if batch_size > 1 else index].append(index)
        self.batches = [
            group[start : start + batch_size] for group in groups.values() for start in range(0, len(group), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)


@torch.inference_mode()
def evaluate_model(
    model: nn.Module,
    dataset: SegmentationDataset,
    device: torch.device,
    *,
    batch_size: int = 1,
    workers: int = 0,
    amp: str = "off",
    progress: bool = True,
    stop: StopSignal | None = None,
    agreement: Agreement | None = None,
) -> Evaluation:
    """Score ``model`` (images (N, 3, H, W) -> logits (N, C, H, W)) on every image of ``dataset``.

    The model's mode is put back as it was. The loss is summed over pixels and divided once, so that it,
    like the scores, does not depend on the batch size. In a distributed run, where all ranks must call
    it, each image is seen by one rank, and each rank gets the scores of all. ``agreement`` is shown every
    prediction.

    Raises:
        Stopped: ``stop`` was requested before the last image.
    """
    was_training = model.training
    model.eval()
    loader = DataLoader(
        dataset,
        batch_sampler=SameSizeBatches(dataset, batch_size).batches[distributed.rank() :: distributed.world_size()],
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_stop_signals if workers else None,
        generator=torch.Generator(),  # its own, so that scoring leaves the training's random numbers alone
    )
    confusion = ConfusionMatrix(dataset.num_classes, device)
    loss_sum = torch.zeros((), dtype=exact_dtype(device), device=device)
    seconds_per_image = []
    quiet = not (progress and distributed.is_main())
    for batch in tqdm(loader, desc=f"evaluate {dataset.split}", leave=False, disable=quiet or None, unit="batch"):
        if stop is not None and stop.requested:
            break
        batch = prepare_batch(batch, device)
        images, mask = batch["image"], batch["mask"]
        synchronize(device)
        start = time.perf_counter()
        with autocast(device, amp):
            logits = model(images).float()
        synchronize(device)
        seconds_per_image += [(time.perf_counter() - start) / len(images)] * len(images)
        # Summed apart: on a GPU the sum inside cross_entropy adds in any order (--deterministic).
        pixels = F.cross_entropy(logits, mask, ignore_index=IGNORE_INDEX, reduction="none")
        loss_sum += pixels.sum()
        # max(1) gives the same indices as argmax(1), several times faster on the CPU.
        prediction = logits.max(1)[1]
        confusion.update(prediction, mask)
        if agreement is not None:
            agreement.update(batch["index"], prediction)
    model.train(was_training)
    if stop is not None and stop.poll():
        raise Stopped
    distributed.add_up(confusion.matrix)
    distributed.add_up(loss_sum)
    scores = confusion.scores()
    return Evaluation(
        scores=scores,
        loss=loss_sum.item() / max(scores.pixels, 1),
        # A rank has no image at all where there are more ranks than batches.
        ms_per_image=1000 * statistics.median(seconds_per_image[WARMUP_IMAGES:] or seconds_per_image or [math.nan]),
        protocol=f"{dataset.name}/{dataset.split}, {len(dataset)} images: {PROTOCOL}",
    )


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


def check_classes(label: str, class_names: list[str], dataset: SegmentationDataset) -> None:
    """A model that was made for other classes than the data set's is a `UserError`."""
    if list(class_names) != list(dataset.class_names):
        raise UserError(
            f"{label} was trained for {len(class_names)} classes ({', '.join(class_names[:3])}, ...), "
            f"the data set {dataset.name} has {dataset.num_classes} ({', '.join(dataset.class_names[:3])}, ...): "
            "give the --dataset and --data-dir it was trained on"
        )


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
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "mps", "cpu"])
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
