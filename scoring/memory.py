"""What it takes to score a large picture, and what to do when that is not there."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from basics.memory import LiveBytes
from basics.tiling import blended_bands, fits
from networks.working_size import logits_in_bands


def memory_advice(batch_size: int, tile: int, batch_option: str, input_size: int = 0) -> str:
    """What to do when memory runs out while scoring, with a network of this working size."""
    lower = [f"lower {batch_option}"] if batch_size > 1 else []
    if input_size:  # what is large then are the pictures and their logits at native size
        return " or ".join([*lower, "make the largest pictures smaller, and their masks"])
    return " or ".join([*lower, f"lower --eval-tile from {tile}" if tile else "score in tiles: --eval-tile 512"])


@torch.no_grad()
def scoring_bytes(model: nn.Module, num_classes: int, size: tuple[int, int], batch_size: int, tile: int) -> int | None:
    """Bytes of the tensors of a batch while `scoring.protocol.evaluate_model` scores it, the weights aside.

    Nothing is computed: a copy of ``model`` runs on the device ``meta``, which knows shapes alone.

    Args:
        size: (H, W) of the pictures.

    Returns:
        None where the network cannot run like that.
    """
    network = copy.deepcopy(model).to("meta").eval()

    def count(images: torch.Tensor) -> None:
        """As `scoring.protocol._Counts.add`; the masks are the truth, and the prediction before in memory."""
        masks = torch.empty((2, len(images), *images.shape[-2:]), dtype=torch.int64, device="meta")
        whole = fits(images, tile)
        for top, logits in logits_in_bands(network, images) if whole else blended_bands(stand_in, images, tile):
            plain = torch.empty_like(logits)  # cross_entropy wants the layout with a class after the other
            F.cross_entropy(plain, masks[0, :, top : top + logits.shape[-2]], reduction="none")
            logits.max(1)

    def stand_in(images: torch.Tensor) -> torch.Tensor:
        """Makes logits out of nothing: all tiles take the same, and one is counted below."""
        return torch.empty((len(images), num_classes, *images.shape[-2:]), device="meta")

    try:
        with LiveBytes() as picture:
            count(torch.empty(batch_size, 3, *size, device="meta"))
        with LiveBytes() as single:
            if max(size) > tile > 0:
                network(torch.empty(batch_size, 3, tile, tile, device="meta"))
    except Exception:  # code that looks at numbers, or brings tensors of its own: it may fail in any way
        return None
    return picture.peak + single.peak
