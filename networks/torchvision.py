"""torchvision's segmentation networks, without auxiliary heads, under torchvision's own state_dict keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import segmentation

from networks.base import SegmentationModel

# Child of the backbone -> tap. The last block at each stride, as far as the network has one.
RESNET_TAPS = {"layer1": "low", "layer2": "mid", "layer4": "high"}
MOBILENET_TAPS = {"3": "low", "6": "mid", "16": "high"}


class Network(Protocol):
    """What `torchvision.models.segmentation` builds."""

    backbone: nn.ModuleDict
    classifier: nn.Module


class TorchvisionModel(SegmentationModel):
    """A torchvision segmentation network: its ``backbone`` and ``classifier``, called child by child.

    At sizes that are multiples of ``stride`` the output is torchvision's own.

    Args:
        builder: a function of `torchvision.models.segmentation`.
        num_classes: classes of the data set, background included.
        tap_layers: backbone child -> tap name.
    """

    backbone: nn.ModuleDict

    def __init__(self, builder: Callable[..., Network], num_classes: int, tap_layers: dict[str, str]) -> None:
        super().__init__()
        network = builder(weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=False)
        self.num_classes = num_classes
        self.backbone = network.backbone
        self.classifier = network.classifier
        self.tap_layers = tap_layers

    def _encode(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """``images`` -> output of every tapped child of the backbone, under the tap's name."""
        taps, features = {}, images
        for name, block in self.backbone.items():
            features = block(features)
            if name in self.tap_layers:
                taps[self.tap_layers[name]] = features
        return taps


class HeadModel(TorchvisionModel):
    """FCN and DeepLabV3: the classifier is a plain sequence, applied to the encoder's last map."""

    classifier: nn.Sequential

    def __init__(self, builder: Callable[..., Network], num_classes: int, tap_layers: dict[str, str]) -> None:
        super().__init__(builder, num_classes, tap_layers)
        # One BatchNorm in either head; the ReLU behind it is not in place.
        (self.norm,) = (index for index, block in enumerate(self.classifier) if isinstance(block, nn.BatchNorm2d))

    def _forward_padded(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        taps = self._encode(images)
        features = taps["high"]
        for index, block in enumerate(self.classifier):
            features = block(features)
            if index == self.norm:
                taps["decoder"] = features
        return features, taps


class ResNetModel(HeadModel):
    """FCN (Long 2015) or DeepLabV3 (Chen 2017) on a dilated ResNet-50 or -101: output stride 8."""

    stride = 8
    logit_stride = 8

    def __init__(self, builder: Callable[..., Network], num_classes: int) -> None:
        super().__init__(builder, num_classes, RESNET_TAPS)
        last = self.classifier[-1]
        assert isinstance(last, nn.Conv2d)
        self.tap_channels = {"low": 256, "mid": 512, "high": 2048, "decoder": last.in_channels}
        self.tap_strides = {"low": 4, "mid": 8, "high": 8, "decoder": 8}
        if isinstance(self.classifier, segmentation.deeplabv3.DeepLabHead):
            self.min_train_batch = 2  # BatchNorm behind the image pooling


class DeepLabV3MobileNet(HeadModel):
    """DeepLabV3 on MobileNetV3-Large: output stride 16."""

    stride = 16
    logit_stride = 16
    min_train_batch = 2

    def __init__(self, num_classes: int) -> None:
        super().__init__(segmentation.deeplabv3_mobilenet_v3_large, num_classes, MOBILENET_TAPS)
        self.tap_channels = {"low": 24, "mid": 40, "high": 960, "decoder": 256}
        self.tap_strides = {"low": 4, "mid": 8, "high": 16, "decoder": 16}


def _lraspp(*, aux_loss: bool, **options: object) -> Network:
    """LR-ASPP has no auxiliary head, and not every torchvision takes the argument."""
    return segmentation.lraspp_mobilenet_v3_large(**options)


class LRASPPMobileNet(TorchvisionModel):
    """LR-ASPP (Howard 2019) on MobileNetV3-Large: logits at stride 8.

    Its head adds two classifiers, one on a stride-8 map and one on the gated high-level map. The
    latter map is the ``decoder`` tap: the gate is positive, so it may as well come before the ReLU.
    """

    classifier: segmentation.lraspp.LRASPPHead

    stride = 16
    logit_stride = 8

    def __init__(self, num_classes: int) -> None:
        # "4", the first block at stride 8, feeds the low-level classifier.
        super().__init__(_lraspp, num_classes, MOBILENET_TAPS | {"4": "low_classifier"})
        self.tap_channels = {"low": 24, "mid": 40, "high": 960, "decoder": 128}
        self.tap_strides = {"low": 4, "mid": 8, "high": 16, "decoder": 16}

    def _forward_padded(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        taps = self._encode(images)
        head, skip, high = self.classifier, taps.pop("low_classifier"), taps["high"]
        conv, norm = head.cbr[0], head.cbr[1]
        taps["decoder"] = norm(conv(high)) * head.scale(high)
        features = F.relu(taps["decoder"])
        features = F.interpolate(features, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return head.low_classifier(skip) + head.high_classifier(features), taps
