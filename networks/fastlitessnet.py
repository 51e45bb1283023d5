"""FastLiteSSNet: a small encoder-decoder that fuses all scales once and sharpens boundaries as it goes up."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from networks.base import SegmentationModel

STAGE_WIDTHS = (32, 64, 128, 256)  # times the width factor
STAGE_STRIDES = (2, 4, 8, 16)


def conv_bn_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class Encoder(nn.Module):
    """Four stages: two 3x3 conv-BN-ReLU, then max pooling of stride 2."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(conv_bn_relu(before, width), conv_bn_relu(width, width), nn.MaxPool2d(2))
            for before, width in zip((3, *widths), widths, strict=False)
        )

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """``images`` (N, 3, H, W) -> one map a stage, at strides 2, 4, 8, 16."""
        maps, features = [], images
        for stage in self.stages:
            features = stage(features)
            maps.append(features)
        return maps


class CrossScaleFusion(nn.Module):
    """Fast Cross-Scale Fusion: the maps of all stages as one, on the grid of the coarsest.

    A 1x1 convolution a scale brings each to a common width, one linear 1x1 convolution shared by all
    puts them into one space, learned weights (softmax over the scales) sum them, a 3x3 mixes.
    """

    def __init__(self, widths: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in widths)
        self.shared = nn.Conv2d(width, width, 1, bias=False)
        self.scale_logits = nn.Parameter(torch.zeros(len(widths)))
        self.mix = conv_bn_relu(width, width)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        weights = self.scale_logits.softmax(dim=0)
        fused = 0
        for index, (project, features) in enumerate(zip(self.project, maps, strict=True)):
            # Averaged before the 1x1 convolutions: linear maps commute with it, and the grid is smaller.
            factor = STAGE_STRIDES[-1] // STAGE_STRIDES[index]
            features = F.avg_pool2d(features, factor) if factor > 1 else features
            fused = fused + weights[index] * self.shared(project(features))
        return self.mix(fused)


class BoundaryGuidance(nn.Module):
    """Boundary-Enhanced Guidance: attention a in (0, 1) from a depthwise look around, x * (1 + a), 3x3.

    Ends in BatchNorm; the ReLU is the caller's, so that the last one's output can be a tap.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 1, 1),
            nn.Sigmoid(),
        )
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(features * (1 + self.attention(features))))


class DecoderStage(nn.Module):
    """Twice the size, the encoder's map of that size beside it, 3x3, then boundary guidance (before its ReLU)."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = conv_bn_relu(in_channels + skip_channels, out_channels)
        self.guidance = BoundaryGuidance(out_channels)

    def forward(self, features: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        features = F.interpolate(features, size=skip.shape[-2:], mode="bilinear", align_corners=False)
        return self.guidance(self.conv(torch.cat([features, skip], dim=1)))


class FastLiteSSNet(SegmentationModel):
    """Encoder, cross-scale fusion, bottleneck, decoder with skips; logits at stride 2.

    Args:
        num_classes: classes of the data set, background included.
        width: factor on the stage widths 32, 64, 128, 256.
    """

    stride = 16
    logit_stride = 2

    def __init__(self, num_classes: int, width: float = 0.5) -> None:
        super().__init__()
        widths = tuple(round(channels * width) for channels in STAGE_WIDTHS)
        if min(widths) < 1:
            raise ValueError(f"width factor {width} leaves a stage without channels")
        self.num_classes = num_classes
        self.backbone = Encoder(widths)
        self.fusion = CrossScaleFusion(widths, widths[2])
        self.fusion_guidance = BoundaryGuidance(widths[2])
        self.bottleneck = nn.Sequential(conv_bn_relu(widths[2], widths[3]), conv_bn_relu(widths[3], widths[3]))
        self.decoder = nn.ModuleList(
            DecoderStage(widths[level + 1], widths[level], widths[level]) for level in (2, 1, 0)
        )
        self.classifier = nn.Conv2d(widths[0], num_classes, 1)
        self.tap_channels = {"low": widths[1], "mid": widths[2], "high": widths[3], "decoder": widths[0]}
        self.tap_strides = {"low": 4, "mid": 8, "high": 16, "decoder": 2}

    def _forward_padded(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        maps = self.backbone(images)
        features = self.bottleneck(F.relu(self.fusion_guidance(self.fusion(maps))))
        for stage, skip in zip(self.decoder, reversed(maps[:-1]), strict=True):
            decoded = stage(features, skip)
            features = F.relu(decoded)
        taps = {"low": maps[1], "mid": maps[2], "high": maps[3], "decoder": decoded}
        return self.classifier(features), taps
