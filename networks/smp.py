"""Networks of segmentation_models_pytorch (an optional package): UNet, DeepLabV3+, SegFormer.

Our models hold smp's parts (``encoder`` is called ``backbone`` here, all else keeps its name), so that
a state_dict of smp loads after that renaming.
"""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from basics.errors import UserError
from networks.base import SegmentationModel

if TYPE_CHECKING:  # an optional package
    from segmentation_models_pytorch.base import SegmentationModel as SmpNetwork

PROBE_TIMEOUT_S = 10


def import_smp() -> ModuleType:
    """The package, or a `UserError` that says how to install it."""
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise UserError(
            "this model needs the package segmentation-models-pytorch: "
            "pip install segmentation-models-pytorch (see requirements-extra.txt)"
        ) from error
    return smp


def imagenet_encoder(name: str) -> dict[str, torch.Tensor]:
    """smp's ImageNet weights of encoder ``name``, from the Hugging Face cache or hub."""
    smp = import_smp()
    _require_hub(smp.encoders.encoders[name]["pretrained_settings"]["imagenet"])
    return smp.encoders.get_encoder(name, weights="imagenet").state_dict()


def _require_hub(settings: dict[str, str]) -> None:
    """Raise `OSError` at once if the weights are neither in the cache nor within reach.

    huggingface_hub itself tries again and again, for minutes. Behind a proxy it is left to find out.
    """
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(
        settings["repo_id"], "model.safetensors", revision=settings["revision"]
    )
    if isinstance(cached, str) or urllib.request.getproxies():
        return
    hub = urllib.parse.urlsplit(huggingface_hub.constants.ENDPOINT)
    port = hub.port or {"http": 80}.get(hub.scheme, 443)
    socket.create_connection((hub.hostname, port), timeout=PROBE_TIMEOUT_S).close()


class SmpModel(SegmentationModel):
    """A network of smp, its decoder's last ReLU taken out and applied after the ``decoder`` tap.

    Args:
        network: an smp model built with ``upsampling=1``.
        num_classes: channels of its head.
        last_block: the sequence whose ReLU ends the decoder.
        strides: of smp's feature maps number 2, 3 and 5 (the last), and of the decoder's output.
    """

    def __init__(
        self, network: SmpNetwork, num_classes: int, last_block: nn.Sequential, strides: tuple[int, ...]
    ) -> None:
        super().__init__()
        if not isinstance(last_block[-1], nn.ReLU):
            raise TypeError(f"the decoder was expected to end in a ReLU, not {type(last_block[-1]).__name__}")
        last_block[-1] = nn.Identity()
        self.num_classes = num_classes
        self.backbone = network.encoder
        self.decoder = network.decoder
        self.segmentation_head = network.segmentation_head
        channels = network.encoder.out_channels
        self.tap_channels = {
            "low": channels[2],
            "mid": channels[3],
            "high": channels[5],
            "decoder": self.segmentation_head[0].in_channels,
        }
        self.tap_strides = dict(zip(("low", "mid", "high", "decoder"), strides, strict=True))
        self.logit_stride = strides[-1]

    def _forward_padded(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        features = self.backbone(images)
        decoded = self.decoder(features)
        taps = {"low": features[2], "mid": features[3], "high": features[5], "decoder": decoded}
        return self.segmentation_head(F.relu(decoded)), taps


class UNet(SmpModel):
    """UNet (Ronneberger 2015) on an ImageNet encoder; logits at full resolution."""

    stride = 32

    def __init__(self, encoder: str, num_classes: int) -> None:
        network = import_smp().Unet(encoder, encoder_weights=None, classes=num_classes)
        super().__init__(network, num_classes, network.decoder.blocks[-1].conv2, strides=(4, 8, 32, 1))


class DeepLabV3Plus(SmpModel):
    """DeepLabV3+ (Chen 2018), output stride 16, logits at stride 4."""

    stride = 16
    min_train_batch = 2  # BatchNorm behind the image pooling

    def __init__(self, encoder: str, num_classes: int) -> None:
        network = import_smp().DeepLabV3Plus(
            encoder,
            encoder_weights=None,
            encoder_output_stride=16,
            decoder_atrous_rates=(6, 12, 18),  # the paper's for stride 16; smp's default is for stride 8
            classes=num_classes,
            upsampling=1,
        )
        super().__init__(network, num_classes, network.decoder.block2, strides=(4, 8, 16, 4))


class SegFormer(SmpModel):
    """SegFormer (Xie 2021), logits at stride 4. Its ``high`` tap lies at stride 32."""

    stride = 32

    def __init__(self, encoder: str, num_classes: int) -> None:
        width = 256 if encoder in ("mit_b0", "mit_b1") else 768  # as in the paper
        network = import_smp().Segformer(
            encoder,
            encoder_weights=None,
            decoder_segmentation_channels=width,
            classes=num_classes,
            upsampling=1,
        )
        super().__init__(network, num_classes, network.decoder.fuse_stage, strides=(4, 8, 32, 4))
