"""The grids that images, masks and feature maps live on: padding to a stride, going coarser, going back up."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from basics.errors import UserError


def pad_to_stride(images: torch.Tensor, stride: int) -> torch.Tensor:
    """Zero-pad ``images`` (N, C, H, W) on the right and bottom to the next multiple of ``stride``."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % stride, 0, -height % stride))


def working_shape(height: int, width: int, input_size: int) -> tuple[int, int]:
    """(H, W) of a picture that is brought to ``input_size`` on the longer side, its proportions kept; 0: its own."""
    longer = max(height, width)
    if not input_size:
        return height, width
    # In whole numbers, halves rounded up; a strip keeps a row of pixels.
    rows, columns = (max(1, (2 * side * input_size + longer) // (2 * longer)) for side in (height, width))
    return rows, columns


def upsample_logits(logits: torch.Tensor, logit_stride: int, size: Sequence[int]) -> torch.Tensor:
    """Strided logits (N, C, h, w) -> (N, C, H, W): bilinear by the whole stride, then cropped to ``size`` (H, W)."""
    if logit_stride > 1:
        full = (logits.shape[-2] * logit_stride, logits.shape[-1] * logit_stride)
        logits = F.interpolate(logits, size=full, mode="bilinear", align_corners=False)
    return logits[..., : size[0], : size[1]]


@functools.lru_cache(maxsize=64)
def upsampling_matrix(cells: int, stride: int, size: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(size, cells): what `upsample_logits` does along one side; of a map X it makes ``rows @ X @ columns.T``."""
    with torch.inference_mode(False):
        identity = torch.eye(cells, dtype=dtype, device=device)[None, None]
        full = F.interpolate(identity, size=(cells * stride, cells), mode="bilinear", align_corners=False)
        return full[0, 0, :size].contiguous()


def common_stride(*strides: int) -> int:
    """The coarser of several strides; the finer map is averaged to it, so it must divide the coarser."""
    coarsest = max(strides)
    if any(coarsest % stride for stride in strides):
        raise UserError(f"feature maps at strides {strides} have no common grid: one must divide the other")
    return coarsest


def to_stride(feature_map: torch.Tensor, stride: int, target: int) -> torch.Tensor:
    """Average a map (N, D, h, w) at ``stride`` to the coarser ``target`` stride."""
    return feature_map if stride == target else F.avg_pool2d(feature_map, target // stride)


def adaptive_average(feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`F.adaptive_avg_pool2d` as two matrix products, float (N, D, h, w) -> (N, D, *size).

    So it runs on MPS at any two sizes, and its gradient on CUDA is deterministic.
    """
    rows, columns = (_bins(cells, bins, feature_map) for cells, bins in zip(feature_map.shape[-2:], size, strict=True))
    return rows @ feature_map @ columns.T


def _bins(cells: int, bins: int, like: torch.Tensor) -> torch.Tensor:
    """(bins, cells): row i averages the cells from floor(i * cells / bins) to ceil((i + 1) * cells / bins)."""
    cell, start = torch.arange(cells, device=like.device), torch.arange(bins, device=like.device)[:, None] * cells
    inside = ((cell >= start // bins) & (cell * bins < start + cells)).to(like.dtype)
    return inside / inside.sum(1, keepdim=True)


def valid_cells(valid: torch.Tensor, stride: int) -> torch.Tensor:
    """``valid`` (N, H, W) bool -> (N, H / stride, W / stride): True where the whole cell is valid."""
    return -F.max_pool2d(-valid[:, None].float(), stride)[:, 0] > 0.5
