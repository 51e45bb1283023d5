"""Pictures too large to go through a network at once: overlapping squares, one after the other, blended."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch

from basics.errors import UserError

LEAST_TILE = 64  # pixels a side: less shows a network too little of its surroundings


def fault_of_tile(option: str, tile: int) -> str:
    """What is wrong with a side that makes no sense, or nothing; 0 stands for no tiles."""
    if tile == 0 or tile >= LEAST_TILE:
        return ""
    return f"{option} must be at least {LEAST_TILE} pixels (or 0, for no tiles), not {tile}"


def check_tile(option: str, tile: int) -> None:
    """A `UserError` if there is a `fault_of_tile`."""
    if fault := fault_of_tile(option, tile):
        raise UserError(fault)


def fits(images: torch.Tensor, tile: int) -> bool:
    """Whether ``images`` (N, 3, H, W) need no tiles of this side; with 0 none ever do."""
    return not tile or max(images.shape[-2:]) <= tile


def blended_bands(
    network: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, tile: int
) -> Iterator[tuple[int, torch.Tensor]]:
    """`blended_blocks` of images (N, 3, H, W) that are in memory, a row of tiles at a time.

    Yields:
        the first row, and logits (N, C, rows, W).
    """
    height, width = images.shape[-2:]
    blocks = blended_blocks(network, lambda top, bottom: images[..., top:bottom, :], (height, width), tile)
    for top, row in itertools.groupby(blocks, key=lambda block: block[0]):
        yield top, torch.cat([logits for _, _, logits in row], dim=-1)


def blended_blocks(
    network: Callable[[torch.Tensor], torch.Tensor],
    read_rows: Callable[[int, int], torch.Tensor],
    size: tuple[int, int],
    tile: int,
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Blocks of blended logits that no later tile touches, as one reads; in memory are one and what overlaps it.

    A tile's logits fade out linearly over its overlaps, so that its neighbour takes over without a seam.

    Args:
        network: images (N, 3, h, w) -> logits (N, C, h, w).
        read_rows: first row and the one behind the last -> images (N, 3, rows, W); called from the top to the bottom,
            with overlaps.
        size: (H, W).
        tile: side of the squares, which overlap by a quarter, in pixels.

    Yields:
        the first row, the first column, and logits (N, C, rows, columns).
    """
    height, width = size
    above = None  # weighted logits, and their weights, of the tiles above, where these lie on the row's own
    for top, next_top in pairwise([*tile_starts(height, tile), height]):
        images = read_rows(top, min(top + tile, height))
        rows, beside, below = next_top - top, None, []
        for left, next_left in pairwise([*tile_starts(width, tile), width]):
            columns = next_left - left
            total = _weighted(network(images[..., left : left + tile]), tile)
            if beside is not None:
                total[..., : beside.shape[-1]] += beside
            beside = total[..., columns:].clone()
            total = total[..., :columns]
            if above is not None:
                total[..., : above.shape[-2], :] += above[..., left:next_left]
            below.append(total[..., rows:, :].clone())
            yield top, left, total[:, :-1, :rows] / total[:, -1:, :rows]
        above = None  # was used, and need not be in memory beside what follows
        above = torch.cat(below, dim=-1)


def _weighted(logits: torch.Tensor, tile: int) -> torch.Tensor:
    """A tile's logits (N, C, h, w) by their weights, and the weights as one more map: (N, C + 1, h, w)."""
    weight = fade(logits.shape[-2], tile)[:, None] * fade(logits.shape[-1], tile)
    weight = weight.to(logits.device)
    return torch.cat([logits * weight, weight.expand_as(logits[:, :1])], dim=1)


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
