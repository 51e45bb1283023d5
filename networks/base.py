"""What every model promises: any input size, logits at full size, named feature maps for distillation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn

from basics.errors import UserError
from basics.grids import pad_to_stride, upsample_logits

TAPS = ("low", "mid", "high", "decoder")


class SegmentationModel(nn.Module, ABC):
    """Base of all students and teachers.

    A subclass sets the attributes below, has a submodule ``backbone`` and implements `_forward_padded`.

    Attributes:
        stride: inputs are padded to a multiple of it, so that every feature map is an exact grid.
        logit_stride: pixels per logit cell, before upsampling.
        tap_channels: channels of each named feature map.
        tap_strides: pixels per cell of each named feature map.
        num_classes: channels of the logits.
        class_names: of the classes it speaks of, where it brings them; None: those of the data set.
        input_size: the working size it was trained for, in pixels on the longer side; 0: the pictures' own.
        made_of: what tells it from another with the same arguments and tensors: hashes of its code, its normalisation.
        model_args: what the model was built with besides ``num_classes``; saved with its weights.
        min_train_batch: images a batch needs in training mode.
        spare_backbone_keys: prefixes of tensors in backbone files that this model has no use for.
    """

    stride: int
    logit_stride: int
    tap_channels: dict[str, int]
    tap_strides: dict[str, int]
    num_classes: int
    class_names: list[str] | None = None
    input_size: int = 0
    backbone: nn.Module
    model_args: dict[str, object]
    made_of: Mapping[str, object] = {}
    min_train_batch: int = 1
    spare_backbone_keys: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.model_args = {}

    @abstractmethod
    def _forward_padded(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """``images`` (N, 3, H, W) with H, W multiples of ``stride`` -> strided logits and taps."""

    def forward_taps(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits at the model's own stride, and its named feature maps.

        Args:
            images: (N, 3, H, W) float, ImageNet-normalised RGB, any H, W >= 32.

        Returns:
            logits (N, C, Hp / logit_stride, Wp / logit_stride) and a dict from tap name
            (``low``: stride 4, ``mid``: stride 8, ``high``: the encoder's last map, ``decoder``: the
            last map before the classifier, before its ReLU) to (N, D, Hp / s, Wp / s). Hp and Wp are
            H and W rounded up to a multiple of ``stride``.

        Raises:
            UserError: in training mode, fewer images than ``min_train_batch``.
        """
        self.check_batch(images)
        return self._forward_padded(pad_to_stride(images, self.stride))

    def check_batch(self, images: torch.Tensor) -> None:
        """A `UserError` in training mode, if there are fewer images than ``min_train_batch``."""
        if self.training and images.shape[0] < self.min_train_batch:
            raise UserError(
                f"this model pools the whole image into BatchNorm and trains with batches of "
                f"{self.min_train_batch} images or more: raise --batch-size"
            )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` (N, 3, H, W) -> logits (N, C, H, W), upsampled bilinearly (half-pixel centres)."""
        logits, _ = self.forward_taps(images)
        height, width = images.shape[-2:]
        return upsample_logits(logits, self.logit_stride, (height, width))

    def head_names(self) -> set[str]:
        """The tensors that a network for other classes has no use for: its classifier's; empty where nobody knows."""
        return set()
