"""The student: MobileNetV3-Small encoder, ASPP, and a light decoder with one skip.

    from student_model import StudentNet
    student = StudentNet(num_classes=21)                     # about 1.6 M parameters
    student = StudentNet(num_classes=21, variant="compact")  # under 0.5 M

Weights, checkpoints and all other models: `zoo.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v3_small

from basics.errors import choose
from networks.base import SegmentationModel


@dataclass(frozen=True)
class Variant:
    """One size of the student: how much of the encoder it keeps, and how wide its head is."""

    encoder_blocks: int  # of the 13 in torchvision's mobilenet_v3_small().features
    aspp_width: int
    decoder_width: int
    dropout: float


VARIANTS = {
    "standard": Variant(encoder_blocks=13, aspp_width=208, decoder_width=96, dropout=0.1),
    "compact": Variant(encoder_blocks=10, aspp_width=96, decoder_width=64, dropout=0.1),
}

# The original 6, 12, 18 at stride 16 belong to crops of 513 pixels, a 33 x 33 grid. A 256-pixel crop gives
# 16 x 16, where the outer taps at 12 and 18 fall on zero padding almost everywhere and are hardly trained.
# Half the rates cover the same share of the crop; the pooling branch sees the whole image anyway.
ASPP_RATES = (3, 6, 9)


class DepthwiseConv(nn.Conv2d):
    """A dilated depthwise convolution whose backward pass is fast on the CPU, too.

    Dilation d reads d * d grids that never meet, so each can go through the undilated kernel as an image of its
    own: the same sums, 3 to 5 times faster than the dilated backward of PyTorch's CPU kernels. Eval mode and
    other devices take the ordinary path.
    """

    def __init__(self, channels: int, kernel: int, dilation: int) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(channels, channels, kernel, padding=padding, dilation=dilation, groups=channels, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        height, width = features.shape[-2:]
        dilation, kernel = self.dilation[0], self.kernel_size[0]
        if not self.training or features.device.type != "cpu":
            return super().forward(features)
        if min(height, width) <= 2 * dilation:  # on grids 2 cells wide the dilated kernel is faster, in this layout
            return super().forward(features.contiguous())
        padded = F.pad(features, (0, -width % dilation, 0, -height % dilation)).permute(0, 2, 3, 1)
        # (N, h, d, w, d, C) -> (d, d, N, h, w, C): one image for each of the grids.
        grids = padded.unflatten(2, (-1, dilation)).unflatten(1, (-1, dilation)).permute(2, 4, 0, 1, 3, 5)
        images = grids.flatten(0, 2).permute(0, 3, 1, 2)
        images = F.conv2d(images, self.weight, padding=kernel // 2, groups=self.groups).permute(0, 2, 3, 1)
        grids = images.unflatten(0, grids.shape[:3]).permute(2, 3, 0, 4, 1, 5)
        return grids.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)[..., :height, :width]


def conv_bn(in_channels: int, out_channels: int) -> list[nn.Module]:
    """1x1 convolution and BatchNorm."""
    return [nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]


def separable_conv_bn(in_channels: int, out_channels: int, dilation: int = 1) -> list[nn.Module]:
    """3x3 depthwise, then 1x1, each with BatchNorm; the ReLU after the last is the caller's."""
    return [
        DepthwiseConv(in_channels, 3, dilation),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        *conv_bn(in_channels, out_channels),
    ]


class MobileNetEncoder(nn.Module):
    """The first ``blocks`` of MobileNetV3-Small at output stride 16, with torchvision's own key names."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.features = mobilenet_v3_small(weights=None, dilated=True).features[:blocks]
        for module in list(self.features.modules()):
            for name, layer in module.named_children():
                if isinstance(layer, nn.Conv2d) and layer.groups > 1 and layer.dilation[0] > 1:
                    setattr(module, name, DepthwiseConv(layer.in_channels, layer.kernel_size[0], layer.dilation[0]))
                elif isinstance(layer, nn.BatchNorm2d):
                    # torchvision's 0.01 averages over hundreds of steps: more than a short fine-tuning has.
                    layer.momentum = 0.1

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """``images`` (N, 3, H, W) -> ``low`` (N, 16, H/4, W/4), ``mid`` (N, 24, H/8, W/8), ``high`` at H/16."""
        taps = {}
        features = images
        for index, block in enumerate(self.features):
            features = block(features)
            if index == 1:
                taps["low"] = features
            elif index == 3:
                taps["mid"] = features
        taps["high"] = features
        return taps


class ImagePooling(nn.Module):
    """Mean over the image, 1x1, ReLU, spread over the grid again.

    Without BatchNorm: with one image in the batch it would see one value per channel and fail in
    training. The mean and the `expand` export with free sizes, which adaptive pooling and resizing don't.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        pooled = F.relu(self.conv(features.mean(dim=(2, 3), keepdim=True)))
        return pooled.expand(-1, -1, features.shape[2], features.shape[3])


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (Chen 2017), its 3x3 branches depthwise-separable (Chen 2018).

    The 3x3 branches read the 1x1 branch's output, not the encoder's 576 channels: a third of the work.
    """

    def __init__(self, in_channels: int, out_channels: int, rates: tuple[int, ...] = ASPP_RATES) -> None:
        super().__init__()
        self.narrow = nn.Sequential(*conv_bn(in_channels, out_channels), nn.ReLU(inplace=True))
        self.dilated = nn.ModuleList(
            nn.Sequential(*separable_conv_bn(out_channels, out_channels, rate), nn.ReLU(inplace=True)) for rate in rates
        )
        self.pooling = ImagePooling(in_channels, out_channels)
        joined = (2 + len(rates)) * out_channels
        self.project = nn.Sequential(*conv_bn(joined, out_channels), nn.ReLU(inplace=True))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        narrow = self.narrow(features)
        branches = [narrow, *(branch(narrow) for branch in self.dilated), self.pooling(features)]
        return self.project(torch.cat(branches, dim=1))


class Decoder(nn.Module):
    """ASPP output brought to stride 4, joined with the reduced low-level map, mixed once.

    The last BatchNorm has no ReLU behind it: its output is the ``decoder`` tap.
    """

    def __init__(self, in_channels: int, low_channels: int, width: int, skip_width: int = 24) -> None:
        super().__init__()
        # Narrowed before it is enlarged: the convolutions at stride 4 are the dear ones.
        self.reduce = nn.Sequential(*conv_bn(in_channels, width), nn.ReLU(inplace=True))
        self.skip = nn.Sequential(*conv_bn(low_channels, skip_width), nn.ReLU(inplace=True))
        self.mix = nn.Sequential(*separable_conv_bn(width + skip_width, width))

    def forward(self, features: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
        features = F.interpolate(self.reduce(features), size=low.shape[-2:], mode="bilinear", align_corners=False)
        return self.mix(torch.cat([features, self.skip(low)], dim=1))


class StudentNet(SegmentationModel):
    """MobileNetV3-Small + ASPP + decoder; logits at stride 4.

    Args:
        num_classes: classes of the data set, background included.
        variant: ``standard`` (about 1.6 M parameters) or ``compact`` (under 0.5 M: the last two
            inverted residuals and the wide 1x1 of the encoder are left out).
    """

    stride = 16
    logit_stride = 4

    def __init__(self, num_classes: int, variant: str = "standard") -> None:
        super().__init__()
        size = choose(VARIANTS, variant, "student variant")
        self.num_classes = num_classes
        self.backbone = MobileNetEncoder(size.encoder_blocks)
        # The compact variant takes the same weights' file and leaves the last blocks in it.
        self.spare_backbone_keys = tuple(f"features.{index}." for index in range(size.encoder_blocks, 13))
        high_channels = self.backbone.features[-1].out_channels
        self.aspp = ASPP(high_channels, size.aspp_width)
        self.decoder = Decoder(size.aspp_width, low_channels=16, width=size.decoder_width)
        # Whole channels (Tompson 2015): neighbours at stride 4 tell what a dropped value was.
        self.dropout = nn.Dropout2d(size.dropout)
        self.classifier = nn.Conv2d(size.decoder_width, num_classes, 1)
        self.tap_channels = {"low": 16, "mid": 24, "high": high_channels, "decoder": size.decoder_width}
        self.tap_strides = {"low": 4, "mid": 8, "high": 16, "decoder": 4}

    def _forward_padded(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        taps = self.backbone(images)
        taps["decoder"] = self.decoder(self.aspp(taps["high"]), taps["low"])
        # Not in place: the tap keeps its sign.
        logits = self.classifier(self.dropout(F.relu(taps["decoder"])))
        return logits, taps
