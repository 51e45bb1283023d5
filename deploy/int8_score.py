"""What INT8 costs, on real pictures: a network and its INT8 files scored side by side."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import nn

from basics.batch import normalize
from basics.errors import UserError
from basics.progress import ProgressBar
from dataset import SegmentationDataset
from deploy.exported import one_hot_logits
from networks.working_size import at_working_size, logits_in_bands
from scoring.metrics import ConfusionMatrix, Scores


@dataclass(frozen=True)
class Cost:
    """A file against the network it was made from, on the same pictures.

    Attributes:
        before, after: mIoU of the network and of the file, in 0..1.
        agreement: share of pixels, void ones included, that both decide alike.
        pictures: which ones, in words.
    """

    before: float
    after: float
    agreement: float
    pictures: str

    @property
    def drop(self) -> float:
        """Points of mIoU (0..100) that the file loses; negative where it gains."""
        return 100 * (self.before - self.after)

    def __str__(self) -> str:
        return (
            f"mIoU {100 * self.before:.1f} -> {100 * self.after:.1f} % ({round(-self.drop, 1) + 0.0:+.1f} points), "
            f"{100 * self.agreement:.2f} % of pixels decided alike, on {self.pictures}"
        )


class RealPictures:
    """Pictures with masks, spread over a split, and what a network decides for them.

    Args:
        network: normalised images (N, 3, H, W) to logits (N, C, H, W); on the CPU.
        dataset: the split; whole pictures at native size.
        count: of pictures, or all where there are fewer.
        input_size: the network's working size; masks are compared at native size.

    Raises:
        UserError: not one pixel of these pictures is labelled.
    """

    def __init__(self, network: nn.Module, dataset: SegmentationDataset, count: int, input_size: int = 0) -> None:
        self.input_size = input_size
        count = min(count, len(dataset))
        self.dataset = dataset
        self.indices = [number * len(dataset) // count for number in range(count)]
        self.name = f"{count} pictures of {dataset.name}/{dataset.split}"
        self.network = network
        scores = self._before[1]
        if not scores.pixels:
            raise UserError(f"{self.name}: not one labelled pixel, so nothing to score INT8 on")
        self.miou = scores.miou

    @functools.cached_property
    def _before(self) -> tuple[list[torch.Tensor], Scores]:
        return self._run(self.network)

    @functools.cached_property
    def _before_decided(self) -> tuple[list[torch.Tensor], Scores]:
        return self._run(_Decided(self.network))

    def cost(self, file: nn.Module) -> Cost:
        """What the network loses as ``file``, but not by the coarser borders of masks at a working size."""
        masks, scores = self._run(file)
        ours, before = self._before_decided if getattr(file, "decides_only", False) else self._before
        same = sum(int((one == other).sum()) for one, other in zip(ours, masks, strict=True))
        return Cost(before.miou, scores.miou, same / sum(mask.numel() for mask in masks), self.name)

    @torch.inference_mode()
    def _run(self, network: nn.Module) -> tuple[list[torch.Tensor], Scores]:
        network = at_working_size(network, self.input_size)
        masks, confusion = [], ConfusionMatrix(self.dataset.num_classes)
        for index in ProgressBar(self.indices, desc="score", unit="img"):
            sample = self.dataset[index]
            bands = logits_in_bands(network, normalize(sample["image"][None]))
            mask = torch.cat([logits.max(1)[1][0] for _, logits in bands])
            confusion.update(mask, sample["mask"])
            masks.append(mask.to(torch.uint8))
        return masks, confusion.scores()


class _Decided(nn.Module):
    """A network whose logits are 1 at the class it decides for and 0 elsewhere, as of an `ExportedModel` of masks."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = self.network(images)
        return one_hot_logits(logits.argmax(1), logits.shape[1])
