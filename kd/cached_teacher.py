"""The cached teacher: reads what a teacher said of the full image and cuts the crop's part out of it.

A crop's ``box`` and ``flip`` are the exact map from the crop to the image, so the cut is exact, too; only what the
teacher would have said of the crop *by itself* differs a little, and `measure_agreement` says by how much.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypedDict

import torch
from torch.utils.data import Dataset, default_collate
from torchvision.ops import roi_align

from basics.batch import prepare_batch
from basics.checkpoint import load_file
from basics.device import synchronize
from basics.grids import valid_cells
from kd.cache_store import CacheReader
from kd.distiller import FirstWord, LiveTeacher, Teacher, TeacherOutput, pad_batch
from kd.mapped_teacher import MappedTeacher
from kd.projection import Projection

AGREEMENT_CROPS = 32
TOLD = "told"  # in a batch: what the teacher says of its crops, by name
ROUNDING = 1e-4  # of a stored cell; a pixel of a crop, which is no error, is more than that


class TrainingSplit(Protocol):
    """What a cache asks of the images it is made for; `dataset.SegmentationDataset` is one.

    Attributes:
        list_name: what the list of its images is called.
    """

    name: str

    @property
    def list_name(self) -> str: ...

    @property
    def ids(self) -> list[str]: ...

    def image_path(self, index: int) -> Path: ...

    def whole(self, input_size: int = 0) -> TrainingSplit:
        """The same images, whole: at native size, or at so many pixels on the longer side."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        """The sample at an index, or at ``(index, seed)`` with its augmentation drawn from that seed alone."""


class InOrder(Dataset):
    """The images of a split in the order of ``ids``."""

    def __init__(self, split: TrainingSplit, ids: Sequence[str]):
        places = {name: place for place, name in enumerate(split.ids)}
        self.split, self.ids, self.places = split, list(ids), [places[name] for name in ids]
        self.name, self.list_name = split.name, split.list_name

    def image_path(self, index: int) -> Path:
        return self.split.image_path(self.places[index])

    def whole(self, input_size: int = 0) -> InOrder:
        return InOrder(self.split.whole(input_size), self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: int | tuple[int, int]) -> dict:
        index, seed = key if isinstance(key, tuple) else (key, None)
        place = self.places[index]
        return self.split[place if seed is None else (place, seed)] | {"index": index}


class CacheAgreement(TypedDict):
    """How far a cache is from the teacher itself, on so many crops with so many cells of logits inside the image."""

    crops: int
    cells: int
    mean_abs_dp: float  # mean over cells and classes of |p_cached - p_live|
    argmax_agreement: float  # share of cells


class CachedTeacher:
    """A `kd.distiller.Teacher` that reads instead of computing.

    A batch that `collate_for` has put together brings its crops' outputs along; those of another are cut when asked
    for.

    Args:
        ids: of the training images, in their order, where the cache holds others as well or in another order.

    Attributes:
        manifest: what the cache was made from and how well it agrees with the teacher.
    """

    def __init__(
        self, folder: Path, manifest: dict[str, Any], taps: Sequence[str] = (), ids: Sequence[str] | None = None
    ):
        made_from = manifest["made_from"]
        places = {image[0]: place for place, image in enumerate(made_from["images"])}
        self._places = [places[name] for name in (places if ids is None else ids)]
        self.folder, self.manifest = folder, manifest
        self.first_word = FirstWord(f"{made_from['teacher']} (from its cache {folder})")
        self.reader = CacheReader(folder, made_from)
        # A teacher with a working size was shown its own: sizes (H, W) that a box must be brought to.
        shown = [made_from["images"][place][1:3] for place in self._places] if made_from.get("input_size") else None
        self._shown = None if shown is None else torch.tensor(shown, dtype=torch.float32)
        self.stride = made_from["pad"]
        maps = made_from["maps"]
        self.logit_stride = maps["logits"][1]
        self.tap_channels = {tap: self.reader.layout.maps[tap][0] for tap in taps}
        self.tap_strides = {tap: maps[tap][1] for tap in taps}
        offsets = {tap: projection.offset for tap, projection in load_projections(folder, taps).items()}
        self._offsets = {tap: offset[:, None, None] for tap, offset in offsets.items()}

    @torch.no_grad()
    def __call__(self, batch: dict) -> TeacherOutput:
        """The outputs for a batch's crops: float32, on the device of ``batch["image"]``."""
        device = batch["image"].device
        told = batch.get(TOLD)
        if told is None:
            told = self.cut(batch)
            if device.type == "cuda":
                told = {name: values.pin_memory() for name, values in told.items()}
        taps = {name: values.to(device, non_blocking=device.type == "cuda") for name, values in told.items()}
        logits = taps.pop("logits")
        self.first_word.look(logits, batch.get("id", ()))
        return TeacherOutput(logits, taps)

    def cut(self, batch: dict) -> dict[str, torch.Tensor]:
        """The outputs for a batch's crops by name, float32 on the CPU; the batch is prepared, or just collated."""
        told = {"logits": self._crop("logits", self.logit_stride, batch)}
        for tap, offset in self._offsets.items():
            told[tap] = self._crop(tap, self.tap_strides[tap], batch) + offset
        return told

    def _crop(self, name: str, stride: int, batch: dict) -> torch.Tensor:
        """Cut one map to the crops of a batch: (N, C, H / stride, W / stride).

        Each output cell is the mean over the part of the image it stands for (one bilinear sample where that is no
        larger than a stored cell). Cells beyond the image hold any finite number: ``valid`` leaves them out.
        """
        height, width = batch["image"].shape[-2:]
        indices = [self._places[index] for index in batch["index"].tolist()]
        boxes = batch["box"] / stride  # in cells
        if self._shown is not None:
            boxes = boxes * (self._shown[batch["index"]] / batch["size"]).flip(1).repeat(1, 2)
        cells = height // stride, width // stride
        boxes = _without_rounding(boxes, cells)
        shapes = [self.reader.layout.shape(name, index)[1:] for index in indices]
        columns = [_span(box[0], box[2], shape[1]) for box, shape in zip(boxes.tolist(), shapes, strict=True)]
        rows = [_span(box[1], box[3], shape[0]) for box, shape in zip(boxes.tolist(), shapes, strict=True)]
        windows = self.reader.windows(name, indices, rows, columns)
        corner = torch.tensor([[left, top] * 2 for (left, _), (top, _) in zip(columns, rows, strict=True)])
        rois = torch.cat([torch.arange(len(indices))[:, None], boxes - corner], dim=1)
        cropped = roi_align(windows, rois, cells, aligned=True)  # half-pixel centres
        return torch.where(batch["flip"].view(-1, 1, 1, 1), cropped.flip(-1), cropped)


def collate_for(teacher: Teacher | None, stride: int) -> Callable[[list[dict]], dict]:
    """How a loader makes a batch of samples: with what a cached teacher says of them, if it is one.

    Its windows are then read and cut by the loader's processes, beside the training.

    Args:
        stride: batches are padded to a multiple of it before the teacher is asked (see `kd.distiller.pad_batch`).
    """
    cached = teacher.teacher if isinstance(teacher, MappedTeacher) else teacher
    return functools.partial(_collate, cached, stride) if isinstance(cached, CachedTeacher) else default_collate


def _collate(cached: CachedTeacher, stride: int, samples: list[dict]) -> dict:
    batch = default_collate(samples)
    return batch | {TOLD: cached.cut(pad_batch(batch, stride))}


def _without_rounding(boxes: torch.Tensor, cells: tuple[int, int]) -> torch.Tensor:
    """``boxes`` (N, 4) with n stored cells for each of ``cells`` (h, w), give or take float32's rounding, take no more.

    roi_align samples ceil(n) points a side: a hair more than n would be one point more. Boxes in whole pixels are exact
    as they are, and left alone.
    """
    across = torch.tensor([cells[1], cells[0]])
    each = (boxes[:, 2:] - boxes[:, :2]) / across
    nearest = each.round()
    is_error = (each != nearest) & ((each - nearest).abs() < ROUNDING)
    ends = torch.where(is_error, boxes[:, :2] + nearest * (1 - ROUNDING) * across, boxes[:, 2:])
    return torch.cat([boxes[:, :2], ends], dim=1)


def _span(low: float, high: float, size: int) -> tuple[int, int]:
    """The cells [start, end) that interpolation between ``low`` and ``high`` touches, of ``size`` there are."""
    start = min(max(math.floor(low) - 1, 0), size - 1)
    return start, min(max(math.ceil(high) + 1, start + 1), size)


def load_projections(folder: Path, taps: Sequence[str]) -> dict[str, Projection]:
    """The projections of ``taps`` in a cache's folder."""
    if not taps:
        return {}
    content = load_file(folder / "projection.pth")
    return {tap: Projection(content[tap]["basis"], content[tap]["mean"]) for tap in taps}


@torch.no_grad()
def measure_agreement(
    cached: CachedTeacher, live: LiveTeacher, dataset: TrainingSplit, device: torch.device, batch_size: int
) -> tuple[CacheAgreement, float | None]:
    """How far the cached logits of random training crops are from the teacher's own on these crops.

    Both as softmax at T = 1, on the teacher's logit grid, over cells that lie in the image.

    Returns:
        the agreement, and the median seconds the live teacher took a crop.
    """
    count = min(AGREEMENT_CROPS, len(dataset))
    indices = [position * len(dataset) // count for position in range(count)]
    cells = agreed = 0
    distance, seconds = 0.0, list[float]()
    for start in range(0, count, batch_size):
        crops = [dataset[index, index] for index in indices[start : start + batch_size]]  # seeded: always the same
        for one_size in _by_size(crops):
            batch = pad_batch(prepare_batch(default_collate(one_size), device), cached.stride)
            if not seconds:
                live(batch)  # the first pass warms up
            synchronize(device)
            begin = time.perf_counter()
            p_live = live(batch).logits.float().softmax(1)
            synchronize(device)
            seconds.append((time.perf_counter() - begin) / len(one_size))
            p_cached = cached(batch).logits.softmax(1)
            valid = valid_cells(batch["valid"], cached.logit_stride)
            distance += ((p_cached - p_live).abs().mean(1) * valid).sum().item()
            agreed += int(((p_cached.argmax(1) == p_live.argmax(1)) & valid).sum())
            cells += int(valid.sum())
    share = max(cells, 1)
    agreement = CacheAgreement(crops=count, cells=cells, mean_abs_dp=distance / share, argmax_agreement=agreed / share)
    return agreement, statistics.median(seconds) if seconds else None


def _by_size(samples: list[dict]) -> list[list[dict]]:
    """Groups of samples that can share a batch; one group, but for data sets without a crop."""
    groups: dict[tuple[int, ...], list[dict]] = {}
    for sample in samples:
        groups.setdefault(tuple(sample["mask"].shape), []).append(sample)
    return list(groups.values())
