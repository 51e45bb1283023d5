"""How fast several networks are, side by side: each on the same pictures, all in turn.

While a split is scored, one network after the other, a machine may change its pace by half.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from basics.batch import normalize
from basics.device import autocast
from basics.tiling import blended_bands, fits
from basics.timing import interleave
from dataset import SegmentationDataset
from scoring.tables import SummaryRow

PICTURES = 20  # spread over the split, each timed once
WARMUP_ROUNDS = 2
AHEAD = 2  # untimed runs before each timed one
LIMIT_S = 120.0  # of warm-up, and of the rounds: then fewer pictures have to do


def time_in_turn(
    rows: Sequence[SummaryRow],
    models: Sequence[tuple[nn.Module, torch.device]],
    dataset: SegmentationDataset,
    tile: int = 0,
    amp: str = "off",
) -> None:
    """Put into each of ``rows`` its network's median forward time of one image of ``dataset``; one alone keeps its own.

    Args:
        models: images (N, 3, H, W), normalised -> logits (N, C, H, W), in eval mode; and where each of them runs.
        tile: larger pictures are run in tiles of this side; 0: none are.
        amp: off, bf16 or fp16.
    """
    if len(rows) < 2:
        return
    count = min(PICTURES, len(dataset))
    pictures = [normalize(dataset[number * len(dataset) // count]["image"][None]) for number in range(count)]

    @torch.inference_mode()
    def run(model: nn.Module, device: torch.device, number: int) -> None:
        images = pictures[number % count].to(device)
        with autocast(device, amp):
            for _ in [model(images)] if fits(images, tile) else blended_bands(model, images, tile):
                pass

    variants = {
        str(place): lambda number, model=model, device=device: run(model, device, number)
        for place, (model, device) in enumerate(models)
    }
    queue = next((device for _, device in models if device.type != "cpu"), torch.device("cpu"))
    timings = interleave(variants, count, WARMUP_ROUNDS, queue, LIMIT_S, AHEAD)
    for name, row in zip(variants, rows, strict=True):
        row["ms_per_image"] = 1000 * timings.median(name)
