"""How much of a teacher's feature maps is left in a cache: stride, projection and storage type together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch.nn import functional as F

from basics.grids import to_stride
from kd.cache_store import CacheReader
from kd.projection import KEEP, Projection


class MapQuality(TypedDict):
    """Of one feature map, over the cells of so many images that lie in the image.

    Attributes:
        channels, dims: of the teacher's map, and of what is kept.
        stride, kept_stride: of both, pixels.
        variance_kept: 1 - sum |f - g|^2 / sum |f - mean|^2 of the teacher's vectors f, on its own grid, and those g
            that can be had of what is kept.
        grid_variance_kept: the same with f averaged to the kept stride, what a student of that stride is compared with.
        cosine_distance: mean of 1 - cos(f, g), on the teacher's own grid.
        mb_per_image: of the records.
    """

    images: int
    channels: int
    dims: int
    stride: int
    kept_stride: int
    variance_kept: float
    grid_variance_kept: float
    cosine_distance: float
    mb_per_image: float


@dataclass
class _Sums:
    """Squared errors and squares of f - mean, on the teacher's grid and on the kept one; and cosine distances."""

    errors: float = 0.0
    squares: float = 0.0
    grid_errors: float = 0.0
    grid_squares: float = 0.0
    distances: float = 0.0
    cells: int = 0
    numbers: int = 0  # of the records
    images: int = 0


def measure_maps(
    reader: CacheReader,
    projections: Mapping[str, Projection],
    told: Iterable[tuple[int, tuple[int, int], dict[str, torch.Tensor]]],
    strides: Mapping[str, int],
) -> dict[str, MapQuality]:
    """Compare what a finished cache holds with what the teacher says.

    Args:
        projections: by tap.
        told: of some images the index, height and width, and the teacher's feature maps (1, D, h, w) by tap.
        strides: of those maps, by tap.
    """
    sums = {tap: _Sums() for tap in projections}
    for index, size, taps in told:
        for tap, projection in projections.items():
            _, rows, columns = reader.layout.shape(tap, index)
            stored = reader.windows(tap, [index], [(0, rows)], [(0, columns)])
            stride, kept_stride = strides[tap], reader.layout.maps[tap][1]
            restored, true = projection.restored(stored), taps[tap].float().cpu()
            _add(sums[tap], true, restored, projection.mean, (stride, kept_stride), size)
            sums[tap].numbers += stored.numel()
    item = reader.layout.dtype.itemsize
    return {
        tap: MapQuality(
            images=total.images,
            channels=projections[tap].basis.shape[1],
            dims=projections[tap].dims,
            stride=strides[tap],
            kept_stride=reader.layout.maps[tap][1],
            variance_kept=1 - total.errors / max(total.squares, 1e-30),
            grid_variance_kept=1 - total.grid_errors / max(total.grid_squares, 1e-30),
            cosine_distance=total.distances / max(total.cells, 1),
            mb_per_image=total.numbers * item / max(total.images, 1) / 1e6,
        )
        for tap, total in sums.items()
    }


def _add(
    sums: _Sums,
    true: torch.Tensor,
    restored: torch.Tensor,
    mean: torch.Tensor,
    strides: tuple[int, int],
    size: tuple[int, int],
) -> None:
    """Take in one image's map (1, D, h, w) and what is left of it on the kept grid."""
    stride, kept_stride = strides
    mean = mean[:, None, None]
    coarse = to_stride(true, stride, kept_stride)
    inside = _inside(size, kept_stride)
    sums.grid_errors += (coarse - restored)[inside].square().sum().item()
    sums.grid_squares += (coarse - mean)[inside].square().sum().item()
    times = kept_stride // stride
    spread = restored.repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    inside = _inside(size, stride)
    true, spread = true[inside], spread[inside]
    sums.errors += (true - spread).square().sum().item()
    sums.squares += (true - mean).square().sum().item()
    distances = 1 - F.cosine_similarity(true, spread, dim=1)
    sums.distances += distances.sum().item()
    sums.cells += distances.numel()
    sums.images += 1


def _inside(size: tuple[int, int], stride: int) -> tuple[slice, ...]:
    """Of a map (N, D, h, w), the cells that lie in an image of ``size`` (H, W) altogether; one at least."""
    return (slice(None), slice(None), *(slice(max(side // stride, 1)) for side in size))


def quality_line(tap: str, quality: MapQuality) -> str:
    """One line for people."""
    line = (
        f"{tap} is kept with {quality['dims']} of {quality['channels']} channels at stride {quality['kept_stride']}, "
        f"{quality['mb_per_image']:.2f} MB an image: {100 * quality['variance_kept']:.0f} % of its variance, cosine "
        f"distance {quality['cosine_distance']:.3f}"
    )
    if quality["kept_stride"] > quality["stride"]:
        line += (
            f" (of its mean over cells of stride {quality['kept_stride']}, which students of that stride are compared "
            f"with, {100 * quality['grid_variance_kept']:.0f} %)"
        )
    if quality["grid_variance_kept"] < KEEP - 0.05:
        line += "; remark: that is less than was meant: the images differ more than those that it was fitted to"
    return line
