"""Validation at native size side by side: argmax and torchmetrics, and ours; the scores must be the same."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import default_collate

from basics.batch import prepare_batch
from basics.timing import PartTimer, interleave
from benchmarks.naive import NaiveValidation
from benchmarks.steps import untimed
from dataset import SegmentationDataset
from scoring.metrics import ConfusionMatrix
from scoring.protocol import evaluate_model
from student_model import StudentNet

NAIVE, LEAN = "argmax + torchmetrics", "ours"


def bench_validation(dataset: SegmentationDataset, device: torch.device, *, rounds: int) -> dict[str, Any]:
    """Time forward pass, prediction and counting, one native-size image at a time.

    Returns:
        images a second, the ratio, shares of our parts, and whether all scores are the same: ours and torchmetrics',
        batches of equal-sized images and single ones.
    """
    torch.manual_seed(2)
    model = StudentNet(dataset.num_classes).to(device).eval()
    samples = [default_collate([dataset[n]]) for n in range(len(dataset))]
    naive = NaiveValidation(model, dataset.num_classes, device)
    confusion = ConfusionMatrix(dataset.num_classes, device)

    @torch.inference_mode()
    def lean(batch: dict, timer: PartTimer | None = None) -> None:
        time = timer or untimed
        batch = time("preparation", prepare_batch, batch, device)
        logits = time("forward", model, batch["image"])
        prediction = time("maximum", lambda: logits.max(1)[1])
        time("counting", confusion.update, prediction, batch["mask"])

    variants = {
        NAIVE: lambda n: naive(samples[n % len(samples)]),
        LEAN: lambda n: lean(samples[n % len(samples)]),
    }
    times = interleave(variants, rounds, 2, device)
    iou = confusion.scores().iou
    theirs = naive.metric.compute().cpu().double()
    timer = PartTimer(device)
    for sample in samples[:4]:
        lean(sample, timer)
    single, batched = (
        evaluate_model(model, dataset, device, batch_size=size, progress=False).scores for size in (1, 4)
    )
    present = ~iou.isnan()  # torchmetrics gives 0 to a class that occurs nowhere
    return {
        "images_per_s": {name: 1 / times.median(name) for name in variants},
        "ratios": {"validation / naive": times.ratio(NAIVE, LEAN)},
        "shares": timer.shares(),
        "same_as_torchmetrics": bool(torch.allclose(iou[present], theirs[present], atol=1e-6, rtol=0)),
        "batched_is_single": bool(torch.equal(single.iou.nan_to_num(-1), batched.iou.nan_to_num(-1))),
    }
