"""Pictures too large to go through a network at once: overlapping squares, one after the other, blended."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from basics.errors import UserError

LEAST_TILE = 64  # pixels a side: less shows a network too little of its surroundings


def check_tile(option: str, tile: int) -> None:
    """A `UserError` for a side that makes no sense; 0 stands for no tiles."""
    if tile != 0 and tile < LEAST_TILE:
        raise UserError(f"{option} must be at least {LEAST_TILE} pixels (or 0, for no tiles), not {tile}")


def fits(images: torch.Tensor, tile: int) -> bool:
    """Whether ``images`` (N, 3, H, W) need no tiles of this side; with 0 none ever do."""
    return not tile or max(images.shape[-2:]) <= tile


def blended_bands(
    network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, tile: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """`stream_bands` of images (N, 3, H, W) that are in memory."""
    height, width = images.shape[-2:]
    return stream_bands(network, lambda top, bottom: images[..., top:bottom, :], (height, width), tile)


def stream_bands(
    network: Callable[[torch.Tensor], torch.Tensor],
    read_rows: Callable[[int, int], torch.Tensor],
    size: tuple[int, int],
    tile: int,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Rows of blended logits that no later tile touches, from the top; only one row of tiles is in memory at a time.

    A tile's logits fade out linearly over its overlaps, so that its neighbour takes over without a seam.

    Args:
        network: images (N, 3, h, w) -> logits (N, C, h, w).
        read_rows: first row and the one behind the last -> images (N, 3, rows, W); called from the top to the bottom,
            with overlaps.
        size: (H, W).
        tile: side of the squares, which overlap by a quarter, in pixels.

    Yields:
        the first row, and logits (N, C, rows, W).
    """
    height, width = size
    rows, columns = tile_starts(height, tile), tile_starts(width, tile)
    total = torch.empty(0)
    for index, top in enumerate(rows):
        images = read_rows(top, min(top + tile, height))
        for left in columns:
            logits = network(images[..., left : left + tile])
            if not total.numel():  # the last map holds the weights
                shape = (len(images), logits.shape[1] + 1, min(tile, height), width)
                total = torch.zeros(shape, device=logits.device)
            weight = fade(logits.shape[-2], tile)[:, None] * fade(logits.shape[-1], tile)
            weight = weight.to(logits.device)
            place = total[..., : logits.shape[-2], left : left + logits.shape[-1]]
            place[:, :-1] += logits * weight
            place[:, -1] += weight
        done = (rows[index + 1] if index + 1 < len(rows) else height) - top
        yield top, total[:, :-1, :done] / total[:, -1:, :done]
        total = torch.cat([total[:, :, done:], torch.zeros_like(total[:, :, :done])], dim=2)


def tile_starts(length: int, tile: int) -> list[int]:
    """Where tiles begin along a side: a quarter of a tile shared by neighbours, the last flush with the end."""
    if length <= tile:
        return [0]
    step = tile - tile // 4
    return [*range(0, length - tile, step), length - tile]


def fade(length: int, tile: int) -> torch.Tensor:
    """Weights (length,) of a tile's pixels along a side: 1 inside, falling linearly over its outer quarters."""
    ramp = tile // 4
    position = torch.arange(length, dtype=torch.float32)
    return ((torch.minimum(position, length - 1 - position) + 1) / (ramp + 1)).clamp(max=1)
