"""The protocol behind every score: a network on a whole split, masks at native size, one integer confusion matrix.

evaluation = evaluate_model(model, dataset, device)
evaluation.scores.miou, evaluation.protocol
"""

from __future__ import annotations

import math
import statistics
import time
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from basics import distributed
from basics.batch import VOID, prepare_batch
from basics.device import autocast, exact_dtype, scoring_kernels, synchronize
from basics.errors import UserError
from basics.progress import ProgressBar
from basics.signals import Stopped, StopSignal, ignore_stop_signals
from basics.tiling import blended_bands, fits
from dataset import SegmentationDataset
from networks.class_names import class_difference, list_classes
from networks.working_size import WorkingSize, fitted_size_of, working_size_of
from scoring.metrics import ConfusionMatrix, Scores
from segdata.reading import image_size

PROTOCOL = "single scale, no flip, logits resized to the mask, void (255) left out, background counted"
WARMUP_IMAGES = 3
T = TypeVar("T")
SCORING_HELP = "pictures scored at once, if of one size; auto: 4 on a GPU, else 1; does not change the score"


def protocol_text(tile: int = 0, input_size: int = 0, fitted: tuple[int, int] | None = None, amp: str = "off") -> str:
    """The protocol in words.

    Args:
        tile: as for `evaluate_model`.
        input_size: the network's working size.
        fitted: height and width of the one picture that a network takes, into which all others are fitted.
        amp: off, bf16 or fp16; a score in half precision may differ in its second decimal.
    """
    sizes = [f"working size {input_size}"] if input_size else []
    sizes += [f"pictures fitted into {fitted[0]}x{fitted[1]}"] if fitted else []
    size = f"{', '.join(sizes)}, masks at native resolution" if sizes else "native resolution"
    said = f"{size}, {PROTOCOL}" + (f", larger pictures in blended tiles of {tile} pixels a side" if tile else "")
    return said if amp == "off" else f"{said}, computed in {amp}"


def check_untiled(label: str, input_size: int, option: str, tile: int) -> None:
    """A `UserError` for tiles and a working size, at which no picture is too large."""
    if tile and input_size:
        raise UserError(
            f"{label}: sees every picture at its working size, {input_size} pixels on the longer side, and there is "
            f"nothing to cut: leave out {option}"
        )


@dataclass(frozen=True)
class Evaluation:
    """What one pass over a split gives.

    Attributes:
        scores: all scores of the split.
        loss: mean cross-entropy over all labelled pixels of the split; nan for a network that gives masks, not logits.
        ms_per_image: median forward time of one image, in milliseconds, after a warm-up.
        protocol: how the numbers came about, in words; it is printed beside them and saved with them.
    """

    scores: Scores
    loss: float
    ms_per_image: float
    protocol: str


class Watcher(Protocol):
    """Is shown every prediction while a split is scored."""

    def update(self, batch: Mapping[str, Any], prediction: torch.Tensor) -> None:
        """Take in the predictions (N, H, W) for a batch of a data set, on the device."""


class Agreement:
    """A `Watcher` that counts the pixels, void ones included, at which a network decides as a first network did.

    The first network's masks are kept in memory, compressed: of photographs a small share of a byte a pixel.
    """

    def __init__(self) -> None:
        self.first: dict[int, bytes] = {}
        self.same = self.pixels = 0

    def restart(self) -> None:
        """Another network follows."""
        self.same = self.pixels = 0

    def update(self, batch: Mapping[str, Any], prediction: torch.Tensor) -> None:
        masks = prediction.to("cpu", torch.uint8).contiguous().numpy()
        for index, mask in zip(batch["index"].tolist(), masks, strict=True):
            if index not in self.first:
                self.first[index] = zlib.compress(mask, level=1)
            first = np.frombuffer(zlib.decompress(self.first[index]), np.uint8).reshape(mask.shape)
            self.same += int((first == mask).sum())
            self.pixels += mask.size

    @property
    def share(self) -> float:
        """In 0..1; 1 for the first network itself."""
        return self.same / self.pixels


def same_size_batches(dataset: SegmentationDataset, batch_size: int) -> list[list[int]]:
    """The indices of images in batches of equal size, so that none is padded, and the score is that of batch size 1."""
    groups: dict[object, list[int]] = defaultdict(list)  # by size
    for index in range(len(dataset)):
        groups[image_size(dataset.image_path(index)) if batch_size > 1 else index].append(index)
    return [
        group[start : start + batch_size] for group in groups.values() for start in range(0, len(group), batch_size)
    ]


@torch.inference_mode()
def evaluate_model(
    model: nn.Module,
    dataset: SegmentationDataset,
    device: torch.device,
    *,
    batch_size: int = 1,
    tile: int = 0,
    workers: int = 0,
    amp: str = "off",
    progress: bool = True,
    stop: StopSignal | None = None,
    watcher: Watcher | None = None,
    loader: DataLoader | None = None,
) -> Evaluation:
    """Score ``model`` (images (N, 3, H, W) -> logits (N, C, H, W)) on every image of ``dataset``.

    The model's mode is put back as it was. The loss is summed over pixels and divided once, so that it,
    like the scores, does not depend on the batch size. In a distributed run, where all ranks must call
    it, each image is seen by one rank, and each rank gets the scores of all. ``watcher`` is shown every
    prediction. Whoever scores a split again and again keeps its ``loader`` (see `scoring_loader`); else one is
    made here, of ``batch_size`` and ``workers``. Pictures with a side longer than ``tile`` pixels are scored in
    tiles, as predict.py runs them; 0: none are. A `networks.working_size.WorkingSize` is scored at its working size.
    What another runtime than PyTorch's computes knows no ``amp``.

    Raises:
        Stopped: ``stop`` was requested before the last image.
        UserError: the split has no labelled pixel, or the network's outputs are not finite: there is no score.
    """
    amp = "off" if computes_itself(model) else amp
    protocol, was_training = protocol_text(tile, working_size_of(model), fitted_size_of(model), amp), model.training
    model.eval()
    if loader is None:  # an empty one, of a rank that has no batch, is false
        loader = scoring_loader(dataset, device, batch_size, workers)
    network, counts = _TimedNetwork(model, device, amp), _Counts(dataset.num_classes, device)
    quiet = not (progress and distributed.is_main())
    batches = ProgressBar(loader, desc=f"evaluate {dataset.split}", disable=quiet, unit="batch")
    try:
        with scoring_kernels():
            for batch in batches:
                if stop is not None and stop.requested:
                    break
                batch = prepare_batch(batch, device)
                bands = network.bands(batch["image"], tile)
                prediction = torch.cat([counts.add(batch, top, logits) for top, logits in bands], dim=1)
                network.end_batch(len(prediction))
                if watcher is not None:
                    watcher.update(batch, prediction)
    finally:
        model.train(was_training)
    if stop is not None and stop.poll():
        raise Stopped
    scores, loss, broken = counts.of_all_ranks()
    _refuse_no_score(dataset, scores, broken, amp)
    return Evaluation(
        scores=scores,
        loss=math.nan if getattr(model, "decides_only", False) else loss,
        ms_per_image=network.median_ms(),
        protocol=f"{dataset.name}/{dataset.split}, {len(dataset)} images: {protocol}",
    )


def computes_itself(model: nn.Module) -> bool:
    """Whether another runtime than PyTorch's runs it, or a part of it, which no autocast reaches."""
    return any(getattr(part, "computes_itself", False) for part in model.modules())


def _refuse_no_score(dataset: SegmentationDataset, scores: Scores, broken: Sequence[int], amp: str) -> None:
    """A `UserError` where nothing was labelled, or the outputs for the images ``broken`` are not finite."""
    where = f"{dataset.name}/{dataset.split}: no score"
    if broken:
        way_on = "" if amp == "off" else f", or leave out --amp {amp}"
        raise UserError(
            f"{where}: the network's outputs are not finite for {len(broken)} of {len(dataset)} images, first for "
            f"{dataset.ids[broken[0]]}: look at its weights{way_on}"
        )
    if not scores.pixels:
        raise UserError(
            f"{where}: not one labelled pixel in its {len(dataset)} masks, all is void (255): mend the masks, or name "
            "another --val-split"
        )


class _TimedNetwork:
    """A network that gives float32 logits, and a clock."""

    def __init__(self, model: nn.Module, device: torch.device, amp: str):
        self.model, self.device, self.amp = model, device, amp
        self._seconds = 0.0  # of the batch under way
        self._per_image: list[float] = []

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self._timed(lambda: self.model(images).float())

    def _timed(self, compute: Callable[[], T]) -> T:
        synchronize(self.device)
        start = time.perf_counter()
        with autocast(self.device, self.amp):
            found = compute()
        synchronize(self.device)
        self._seconds += time.perf_counter() - start
        return found

    def bands(self, images: torch.Tensor, tile: int) -> Iterator[tuple[int, torch.Tensor]]:
        """First row and logits (N, C, rows, W) of the whole pictures, or of some of their rows after the other: of
        tiles, or, at a working size, of pictures whose logits would want gigabytes.
        """
        if not fits(images, tile):
            yield from blended_bands(self, images, tile)
        elif isinstance(self.model, WorkingSize):
            found = self.model.bands_of(images)
            while (band := self._timed(lambda: next(found, None))) is not None:
                yield band[0], band[1].float()
        else:
            yield 0, self(images)

    def end_batch(self, images: int) -> None:
        self._per_image += [self._seconds / images] * images
        self._seconds = 0.0

    def median_ms(self) -> float:
        """Of one image, after the warm-up; nan on a rank that had none: there may be more ranks than batches."""
        return 1000 * statistics.median(self._per_image[WARMUP_IMAGES:] or self._per_image or [math.nan])


class _Counts:
    """Confusion matrix and sum of the cross-entropy over what was seen of a split."""

    def __init__(self, num_classes: int, device: torch.device):
        self.confusion = ConfusionMatrix(num_classes, device)
        self.loss_sum = torch.zeros((), dtype=exact_dtype(device), device=device)
        self.finite: list[tuple[torch.Tensor, torch.Tensor]] = []  # indices of images, whether their outputs are

    def add(self, batch: dict, top: int, logits: torch.Tensor) -> torch.Tensor:
        """Take in logits (N, C, rows, W) for the rows from ``top`` on; returns their prediction (N, rows, W)."""
        mask = batch["mask"][:, top : top + logits.shape[-2]]
        # Summed apart: on a GPU the sum inside cross_entropy adds in any order (--deterministic).
        self.loss_sum += F.cross_entropy(logits, mask, ignore_index=VOID, reduction="none").sum()
        # max(1) gives the same indices as argmax(1), several times faster on the CPU; nan is above all numbers.
        highest, prediction = logits.max(1)
        self.finite.append((batch["index"], highest.isfinite().flatten(1).all(1)))
        self.confusion.update(prediction, mask)
        return prediction

    def of_all_ranks(self) -> tuple[Scores, float, list[int]]:
        """The scores, the mean loss of a labelled pixel, and the images without finite outputs; all must call it."""
        distributed.add_up(self.confusion.matrix)
        distributed.add_up(self.loss_sum)
        scores = self.confusion.scores()
        broken = {
            index
            for indices, finite in self.finite
            for index, is_finite in zip(indices.tolist(), finite.tolist(), strict=True)
            if not is_finite
        }
        everywhere = set().union(*distributed.gather(broken))
        return scores, self.loss_sum.item() / max(scores.pixels, 1), sorted(everywhere)


def scoring_batch(asked: int | None, device: torch.device) -> int:
    """How many pictures are scored at once: as many as ``asked``, or 4 on a GPU, which has little to do with one."""
    return asked or (1 if device.type == "cpu" else 4)


def scoring_loader(
    dataset: SegmentationDataset, device: torch.device, batch_size: int, workers: int, *, lasting: bool = False
) -> DataLoader:
    """This rank's share of the batches of whole pictures.

    Args:
        lasting: its processes stay between passes: to start them takes seconds where each must import all anew (macOS
            and Windows).
    """
    return DataLoader(
        dataset,
        batch_sampler=same_size_batches(dataset, batch_size)[distributed.rank() :: distributed.world_size()],
        num_workers=workers,
        persistent_workers=lasting and workers > 0,
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
