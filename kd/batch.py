"""From a collated batch of uint8 images to normalised tensors on the device."""

from __future__ import annotations

import torch

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def normalize(images: torch.Tensor, mean=MEAN, std=STD) -> torch.Tensor:
    """uint8 ``images`` (N, 3, H, W) -> float32, ``(images / 255 - mean) / std`` per channel, where they lie."""
    mean = torch.tensor(mean, device=images.device).view(3, 1, 1) * 255
    std = torch.tensor(std, device=images.device).view(3, 1, 1) * 255
    return images.to(torch.float32).sub_(mean).div_(std)


def prepare_batch(batch: dict, device: torch.device) -> dict:
    """Move a collated batch to ``device`` and normalise its images there.

    The images cross as uint8 (a quarter of the bytes of float32) and without waiting for the copy
    when the loader pins its memory. What is said about the crops (box, flip, index, id, size) stays where it
    is: a cached teacher reads it on the CPU, and would wait for the GPU to get it back.
    """
    moved = batch | {
        key: batch[key].to(device, non_blocking=True) for key in ("image", "mask", "valid") if key in batch
    }
    moved["image"] = normalize(moved["image"])
    return moved
