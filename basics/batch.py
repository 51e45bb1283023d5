"""From a collated batch of uint8 images to normalised tensors on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from basics.device import constant_on

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
VOID = 255  # in a mask: no class; neither trained on nor scored
ON_DEVICE = ("image", "mask", "valid", "jitter", "labelled")
GREY = (0.299, 0.587, 0.114)  # luma of ITU-R BT.601, as in Pillow and torchvision


def normalize(images: torch.Tensor, mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> torch.Tensor:
    """``images`` (N, 3, H, W) of 0..255 -> float32, ``(images / 255 - mean) / std`` per channel, where they lie.

    Images that are float32 already are overwritten.
    """
    offset, scale = (255 * constant_on(images.device, tuple(values)).view(3, 1, 1) for values in (mean, std))
    return images.to(torch.float32).sub_(offset).div_(scale)


def jitter_colours(images: torch.Tensor, factors: torch.Tensor, valid: torch.Tensor | None = None) -> torch.Tensor:
    """Scale brightness, contrast and saturation of each of ``images`` (N, 3, H, W), 0..255, by ``factors`` (N, 3).

    The same three steps as in `torchvision.transforms.v2.ColorJitter`; a factor of 1 leaves things as they are.
    Each step is linear, so here they are one 3x3 matrix and an offset per image, for the whole batch at once, without
    clipping or rounding in between. Hue is left out: it is not linear, and on a CPU costs more than reading the image.
    Contrast is scaled about the mean grey of those pixels that are ``valid`` (N, H, W; default: all).
    Returns float32 (N, 3, H, W) within 0..255.
    """
    brightness, contrast, saturation = factors.to(torch.float32)[..., None, None].unbind(1)  # (N, 1, 1) each
    pixels = images.to(torch.float32, memory_format=torch.contiguous_format).flatten(2)
    to_grey = constant_on(images.device, GREY).expand(3, 3)  # (r, g, b) -> the grey value, three times
    identity = torch.eye(3, device=images.device)
    matrix = brightness * contrast * (saturation * identity + (1 - saturation) * to_grey)
    if valid is None:
        mean = pixels.mean(2, keepdim=True)
    else:
        inside = valid.flatten(1).to(torch.float32)[..., None]
        mean = pixels @ inside / inside.sum(1, keepdim=True).clamp(min=1)
    mean_grey = brightness * (to_grey @ mean)
    return torch.baddbmm((1 - contrast) * mean_grey, matrix, pixels).clamp_(0, 255).view(images.shape)


def prepare_batch(batch: dict, device: torch.device) -> dict:
    """Move a collated batch to ``device``; there jitter its colours, normalise its images and blank their padding.

    The factors of the jitter, if any, come with the batch: the loader draws them, and leaves the arithmetic to the
    device, which does it in passing. Padding becomes 0 whatever was drawn.

    Images and masks cross as uint8 (a quarter of the bytes of float32, an eighth of those of int64) and without waiting
    for the copy when the loader pins its memory; there the masks become int64, as losses want them. What is said about
    the crops (box, flip, index, id, size) stays where it is: a cached teacher reads it on the CPU, and would wait for
    the GPU to get it back.
    """
    pinned = device.type == "cuda"  # from other memory a copy that nobody waits for may read what is there later
    moved = batch | {key: batch[key].to(device, non_blocking=pinned) for key in ON_DEVICE if key in batch}
    if "mask" in moved:
        moved["mask"] = moved["mask"].to(torch.int64)
    images = moved["image"]
    if "jitter" in moved:
        images = jitter_colours(images, moved.pop("jitter"), moved.get("valid"))
    moved["image"] = normalize(images)
    if "valid" in moved:
        moved["image"].mul_(moved["valid"].unsqueeze(1).to(torch.float32))  # much faster than masked_fill_
    return moved
