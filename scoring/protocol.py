"""The protocol behind every score: a network on a whole split at native size, one integer confusion matrix.

evaluation = evaluate_model(model, dataset, device)
evaluation.scores.miou, evaluation.protocol
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from tqdm import tqdm

from basics import distributed
from basics.batch import VOID, prepare_batch
from basics.device import autocast, exact_dtype, synchronize
from basics.errors import UserError
from basics.signals import Stopped, StopSignal, ignore_stop_signals
from dataset import SegmentationDataset
from networks.class_names import class_difference, list_classes
from scoring.metrics import ConfusionMatrix, Scores
from segdata.reading import image_size

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


class Watcher(Protocol):
    """Is shown every prediction while a split is scored."""

    def update(self, indices: torch.Tensor, prediction: torch.Tensor) -> None:
        """Take in the predictions (N, H, W) for the images of these indices (N,)."""


class Agreement:
    """A `Watcher` that counts the pixels, void ones included, at which a network decides as a first network did.

    The first network's masks are kept in memory, a byte a pixel.
    """

    def __init__(self) -> None:
        self.first: dict[int, torch.Tensor] = {}
        self.same = self.pixels = 0

    def restart(self) -> None:
        """Another network follows."""
        self.same = self.pixels = 0

    def update(self, indices: torch.Tensor, prediction: torch.Tensor) -> None:
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
        groups: dict[object, list[int]] = defaultdict(list)  # by size
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
    watcher: Watcher | None = None,
) -> Evaluation:
    """Score ``model`` (images (N, 3, H, W) -> logits (N, C, H, W)) on every image of ``dataset``.

    The model's mode is put back as it was. The loss is summed over pixels and divided once, so that it,
    like the scores, does not depend on the batch size. In a distributed run, where all ranks must call
    it, each image is seen by one rank, and each rank gets the scores of all. ``watcher`` is shown every
    prediction.

    Raises:
        Stopped: ``stop`` was requested before the last image.
    """
    was_training = model.training
    model.eval()
    loader = _make_loader(dataset, device, batch_size, workers)
    counts = _Counts(dataset.num_classes, device)
    seconds_per_image: list[float] = []
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
        prediction = counts.add(logits, mask)
        if watcher is not None:
            watcher.update(batch["index"], prediction)
    model.train(was_training)
    if stop is not None and stop.poll():
        raise Stopped
    scores, loss = counts.of_all_ranks()
    return Evaluation(
        scores=scores,
        loss=loss,
        # A rank has no image at all where there are more ranks than batches.
        ms_per_image=1000 * statistics.median(seconds_per_image[WARMUP_IMAGES:] or seconds_per_image or [math.nan]),
        protocol=f"{dataset.name}/{dataset.split}, {len(dataset)} images: {PROTOCOL}",
    )


class _Counts:
    """Confusion matrix and sum of the cross-entropy over what was seen of a split."""

    def __init__(self, num_classes: int, device: torch.device):
        self.confusion = ConfusionMatrix(num_classes, device)
        self.loss_sum = torch.zeros((), dtype=exact_dtype(device), device=device)

    def add(self, logits: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Take in logits (N, C, H, W) and mask (N, H, W); returns the prediction (N, H, W)."""
        # Summed apart: on a GPU the sum inside cross_entropy adds in any order (--deterministic).
        self.loss_sum += F.cross_entropy(logits, mask, ignore_index=VOID, reduction="none").sum()
        # max(1) gives the same indices as argmax(1), several times faster on the CPU.
        prediction = logits.max(1)[1]
        self.confusion.update(prediction, mask)
        return prediction

    def of_all_ranks(self) -> tuple[Scores, float]:
        """The scores, and the mean loss of a labelled pixel; all ranks must call it."""
        distributed.add_up(self.confusion.matrix)
        distributed.add_up(self.loss_sum)
        scores = self.confusion.scores()
        return scores, self.loss_sum.item() / max(scores.pixels, 1)


def _make_loader(dataset: SegmentationDataset, device: torch.device, batch_size: int, workers: int) -> DataLoader:
    """Of this rank's share of the batches."""
    return DataLoader(
        dataset,
        batch_sampler=SameSizeBatches(dataset, batch_size).batches[distributed.rank() :: distributed.world_size()],
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_stop_signals if workers else None,
        generator=torch.Generator(),  # its own, so that scoring leaves the training's random numbers alone
    )


def check_classes(label: str, class_names: Sequence[str], dataset: SegmentationDataset) -> None:
    """A model that was made for other classes than the data set's is a `UserError`."""
    if list(class_names) != list(dataset.class_names):
        raise UserError(
            f"{label} was trained for {list_classes(class_names)}, the data set {dataset.name} has "
            f"{list_classes(dataset.class_names)} ({class_difference(class_names, dataset.class_names)}): "
            "give the --dataset, --data-dir and --classes it was trained on"
        )
