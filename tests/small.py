"""A student with everything that deployment stumbles over, small enough to export and quantize in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from basics.batch import MEAN, STD
from networks.base import SegmentationModel
from zoo import ModelSpec

EPS, MOMENTUM, DROPOUT = 1e-3, 0.01, 0.3
CLASS_NAMES = ["background", "näit", "straße"]
PALETTE = [[0, 0, 0], [200, 30, 10], [10, 90, 250]]


class SmallStudent(SegmentationModel):
    """MobileNetV3's habits: eps 1e-3, in-place activations, a gate, a residual sum, a skip, dropout."""

    stride, logit_stride = 16, 4
    backbone: nn.ModuleDict

    def __init__(self, num_classes: int, width: int = 8) -> None:
        super().__init__()
        self.num_classes, self.model_args = num_classes, {}
        self.tap_channels = {"low": width, "mid": width, "high": 2 * width, "decoder": width}
        self.tap_strides = {"low": 4, "mid": 8, "high": 16, "decoder": 4}

        def block(inputs: int, outputs: int, stride: int, groups: int = 1, bias: bool = True) -> nn.Sequential:
            conv = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups, bias=bias)
            return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=EPS, momentum=MOMENTUM))

        self.backbone = nn.ModuleDict(
            {
                "low": nn.Sequential(block(3, width, 4, bias=False), nn.Hardswish(inplace=True)),
                "mid": nn.Sequential(block(width, width, 2), nn.ReLU(inplace=True)),  # a bias before BatchNorm
                "same": block(width, width, 1, groups=width, bias=False),
                "high": nn.Sequential(block(width, 2 * width, 2, bias=False), nn.Hardswish(inplace=True)),
            }
        )
        self.gate = nn.Conv2d(2 * width, 2 * width, 1)
        self.mix = block(3 * width, width, 1, bias=False)
        self.dropout = nn.Dropout(DROPOUT)
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def _forward_padded(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        low = self.backbone["low"](images)
        mid = self.backbone["mid"](low)
        mid = self.backbone["same"](mid) + mid
        high = self.backbone["high"](mid)
        high = high * F.hardsigmoid(self.gate(high.mean((2, 3), keepdim=True)))
        up = F.interpolate(high, size=low.shape[-2:], mode="bilinear", align_corners=False)
        decoder = self.mix(torch.cat([up, low], dim=1))
        logits = self.classifier(self.dropout(F.relu(decoder)))
        return logits, {"low": low, "mid": mid, "high": high, "decoder": decoder}


def lively(model: SmallStudent, seed: int = 0) -> SmallStudent:
    """Random weights and BatchNorm statistics as if trained; in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.copy_(0.1 * torch.randn(module.num_features, generator=generator))
            # Small beside eps, so that a wrong eps shows.
            module.running_var.copy_(0.002 + 0.02 * torch.rand(module.num_features, generator=generator))
            module.weight.data.copy_(0.2 + 0.4 * torch.rand(module.num_features, generator=generator))
            module.bias.data.copy_(0.3 * torch.randn(module.num_features, generator=generator))
        elif isinstance(module, nn.Conv2d):
            gain = 1.0 if module.bias is not None else 0.1  # what the statistics above belong to
            noise = torch.randn(module.weight.shape, generator=generator)
            module.weight.data.copy_(gain * noise * module.weight[0].numel() ** -0.5)
            if module.bias is not None:
                module.bias.data.copy_(0.02 * torch.randn(module.bias.shape, generator=generator))
    nn.init.zeros_(logit_bias(model))
    return model.eval()


def logit_bias(model: SmallStudent) -> torch.Tensor:
    """What every logit has on top, (C,)."""
    assert model.classifier.bias is not None
    return model.classifier.bias


def balanced(model: SmallStudent, images: torch.Tensor) -> SmallStudent:
    """``model`` with class scores of mean 0 on ``images``, so that no class wins everywhere."""
    with torch.no_grad():
        logit_bias(model).sub_(model(images).mean((0, 2, 3)))
    return model


@contextmanager
def in_zoo() -> Iterator[None]:
    """`SmallStudent` under the name ``small`` in the registry."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.MODELS, "small", ModelSpec(SmallStudent, None, "tests"))
        yield


def small_checkpoint(seed: int = 0, classes: int = 3) -> dict:
    """The content of a .pth file that holds a `SmallStudent`."""
    model = lively(SmallStudent(classes), seed)
    return {
        "format": 1,
        "model": "small",
        "model_args": {},
        "class_names": CLASS_NAMES,
        "palette": PALETTE,
        "mean": list(MEAN),
        "std": list(STD),
        "state_dict": model.state_dict(),
        "info": {},
    }
