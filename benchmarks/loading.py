"""Loading side by side: the PIL pipeline, decode and crop first, and the decoded cache."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import default_collate

from basics.batch import prepare_batch
from basics.timing import interleave
from benchmarks.naive import NaiveDataset
from dataset import SegmentationDataset
from segdata.transforms import TrainTransform

NAIVE, LEAN, DECODED = "naive PIL pipeline", "decode, then crop first", "decoded cache"
PREPARED = "the same, jittered and normalised here"


def bench_loading(dataset: SegmentationDataset, folder: Path, *, crop_size: int, rounds: int) -> dict[str, Any]:
    """Time one sample after the other on one thread, as a loader process works.

    The naive pipeline jitters and normalises there; ours leaves that to the device. What it comes to where the
    device is the same CPU is shown as well.

    Args:
        dataset: the split without a transform; its decoded cache is made in ``folder``.
        rounds: samples of each variant; all see the same images.
    """
    source, transform = (dataset.layout, dataset.split), TrainTransform(crop_size)
    lean = SegmentationDataset(*source, transform, files=dataset.files)
    decoded = SegmentationDataset(*source, transform, files=dataset.files, decode_cache=folder)
    naive = NaiveDataset(dataset, crop_size)
    variants = {
        NAIVE: lambda n: naive[n % len(dataset)],
        LEAN: lambda n: lean[n % len(dataset), n],
        PREPARED: lambda n: prepare_batch(default_collate([lean[n % len(dataset), n]]), torch.device("cpu")),
        DECODED: lambda n: decoded[n % len(dataset), n],
    }
    random.seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        # Files come from memory in the timed rounds: the disk is not what is measured.
        times = interleave(variants, rounds, len(dataset), torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    return {
        "images_per_s": {name: 1 / times.median(name) for name in variants},
        "milliseconds": {name: 1000 * times.median(name) for name in variants},
        "ratios": {
            "loader / naive": times.ratio(NAIVE, LEAN),
            "loader + preparation here / naive": times.ratio(NAIVE, PREPARED),
            "loader with decoded cache / naive": times.ratio(NAIVE, DECODED),
        },
    }
