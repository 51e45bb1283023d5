"""Exported files as modules like every network here: normalised images in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from basics.batch import MEAN, STD
from deploy.exporting import Size
from deploy.model_card import ModelCard
from networks.working_size import resize


class ExportedModel(nn.Module, ABC):
    """A file of export.py or quantize.py; each format has a subclass, which `deploy.formats.load_exported` picks.

    `forward` takes images (N, 3, H, W) float32, normalised by ImageNet's statistics, and gives logits
    (N, C, H, W) float32, whatever the file itself takes and gives: raw RGB is recovered exactly, and a
    mask becomes logits of 1 at its class and 0 elsewhere. To a file of one size images go one by one, shrunk or
    enlarged to fit, their sides in proportion; what is left is filled with the mean colour.

    Attributes:
        card: what the file says about itself.
        device: where it runs; images may lie elsewhere, and the results go where they lie.
        fitted_size: height and width of the one image that the file takes; None for any number and size.
        decides_only: its file gives masks: there is no loss to be had of its logits.
        computes_itself: another runtime than PyTorch's runs it, which no autocast reaches.
    """

    computes_itself = True

    def __init__(self, card: ModelCard, device: torch.device, size: Size | None = None) -> None:
        super().__init__()
        self.card, self.device, self.fitted_size = card, device, size
        self.decides_only = card.output == "mask"

    @abstractmethod
    def run(self, images: torch.Tensor) -> torch.Tensor:
        """The file's own input to the file's own output."""

    def integer_layers(self) -> tuple[int, int] | None:
        """Layers that run with integer arithmetic on this machine, and all convolutions and matrix products.

        None where the runtime does not tell.
        """
        return None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.fitted_size is None:
            return self._logits(images)
        return torch.cat([self._fitted(image[None], self.fitted_size) for image in images])

    def _fitted(self, image: torch.Tensor, size: Size) -> torch.Tensor:
        """Logits (1, C, h, w) of ``image`` (1, 3, h, w) by way of the file's own size."""
        own = image.shape[-2:]
        scale = min(size[0] / own[0], size[1] / own[1])
        height, width = (min(whole, max(1, round(scale * side))) for side, whole in zip(own, size, strict=True))
        image = resize(image, (height, width))
        padded = F.pad(image, (0, size[1] - width, 0, size[0] - height))
        logits = self._logits(padded)[..., :height, :width]
        if (height, width) != own:
            logits = F.interpolate(logits, own, mode="bilinear", align_corners=False)
        return logits

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """`forward`, of images that have the file's size."""
        # The file's mean and std may be others than those the caller normalised with.
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
        if self.card.input == "uint8":
            images = (images * std + mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)
        elif (tuple(self.card.mean), tuple(self.card.std)) != (MEAN, STD):
            own_mean, own_std = (
                torch.tensor(v, device=images.device).view(3, 1, 1) for v in (self.card.mean, self.card.std)
            )
            images = (images * std + mean - own_mean) / own_std
        result = self.run(images)
        if self.card.output == "mask":
            result = one_hot_logits(result, len(self.card.class_names))
        return result.float()


def one_hot_logits(mask: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Class numbers (N, H, W) -> logits (N, C, H, W) float32 of 1 at the class and 0 elsewhere."""
    return F.one_hot(mask.long(), num_classes).movedim(-1, 1).float()


def fixed_size(shape: Sequence[object]) -> Size | None:
    """The size in a file's input ``shape`` (N, 3, H, W), None if a side is free."""
    height, width = shape[-2:]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
