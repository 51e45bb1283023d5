"""Exported files as modules like every network here: normalised images in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.nn import functional as F

from basics.batch import MEAN, STD
from deploy.model_card import ModelCard


class ExportedModel(nn.Module, ABC):
    """A file of export.py or quantize.py; each format has a subclass, which `deploy.formats.load_exported` picks.

    `forward` takes images (N, 3, H, W) float32, normalised by ImageNet's statistics, and gives logits
    (N, C, H, W) float32, whatever the file itself takes and gives: raw RGB is recovered exactly, and a
    mask becomes logits of 1 at its class and 0 elsewhere.

    Attributes:
        card: what the file says about itself.
        device: where it runs; images may lie elsewhere, and the results go where they lie.
        decides_only: its file gives masks: there is no loss to be had of its logits.
    """

    def __init__(self, card: ModelCard, device: torch.device) -> None:
        super().__init__()
        self.card, self.device = card, device
        self.decides_only = card.output == "mask"

    @abstractmethod
    def run(self, images: torch.Tensor) -> torch.Tensor:
        """The file's own input to the file's own output."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
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
            result = F.one_hot(result.long(), len(self.card.class_names)).movedim(-1, 1)
        return result.float()
