"""A model small enough for tests of everything around it: a few convolutions, all four taps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zoo
from networks.base import SegmentationModel


class TinyModel(SegmentationModel):
    """Taps at strides 4, 8, ``high_stride`` and 4; BatchNorm and dropout, so that modes matter."""

    def __init__(self, num_classes: int = 3, width: int = 8, high_stride: int = 16, logit_stride: int = 4):
        super().__init__()
        self.num_classes = num_classes
        self.stride, self.logit_stride = 16, logit_stride
        self.tap_channels = {"low": width, "mid": 2 * width, "high": 4 * width, "decoder": width}
        self.tap_strides = {"low": 4, "mid": 8, "high": high_stride, "decoder": 4}

        def block(inputs, outputs, stride):
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU())

        self.backbone = nn.ModuleDict(
            {
                "low": block(3, width, 4),
                "mid": block(width, 2 * width, 2),
                "high": block(2 * width, 4 * width, high_stride // 8),
            }
        )
        self.decoder = nn.Conv2d(width, width, 1)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Conv2d(width, num_classes, 1, stride=logit_stride // 4)

    def _forward_padded(self, images: torch.Tensor):
        taps, features = {}, images
        for name, block in self.backbone.items():
            taps[name] = features = block(features)
        taps["decoder"] = self.decoder(taps["low"])
        return self.classifier(self.dropout(taps["decoder"].relu())), taps


def tiny_batch(size: int = 64, images: int = 2, classes: int = 3, seed: int = 0) -> dict:
    """A prepared batch: normalised images, masks with some void, everything valid."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, classes, (images, size, size), generator=generator)
    mask[:, :3] = 255
    return {
        "image": torch.randn(images, 3, size, size, generator=generator),
        "mask": mask,
        "valid": torch.ones(images, size, size, dtype=torch.bool),
        "box": torch.tensor([[0.0, 0.0, size, size]]).repeat(images, 1),
        "flip": torch.zeros(images, dtype=torch.bool),
        "index": torch.arange(images),
        "id": [str(index) for index in range(images)],
    }


@pytest.fixture(scope="module", autouse=True)
def tiny_in_zoo():
    """The model is the row ``tiny`` of the zoo, in every module that imports this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(zoo.MODELS, "tiny", zoo.ModelSpec(TinyModel, None, "random"))
        yield
