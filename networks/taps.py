"""Which maps inside a network are its taps, told by their strides: `low`, `mid`, `high`."""

from __future__ import annotations

import math
from collections.abc import Mapping

Shape = tuple[int, ...]


def choose_taps(blocks: Mapping[str, Shape], size: tuple[int, int]) -> dict[str, str]:
    """Tap name -> block name, from the shapes of what the encoder's blocks give for an image of ``size``.

    Args:
        blocks: by name, in the order of the encoder.

    Returns:
        ``low`` and ``mid`` are the last blocks at strides 4 and 8, ``high`` the encoder's last. In an encoder that ends
        at stride 8 (dilated) ``mid`` is the first block there.
    """
    strides = {name: exact_stride(shape, size) for name, shape in blocks.items()}
    if not strides or None in strides.values():
        return {}
    names = list(strides)
    taps, deepest = {}, strides[names[-1]]
    for tap, stride in (("low", 4), ("mid", 8)):
        found = [name for name in names if strides[name] == stride]
        if found:
            taps[tap] = found[0] if stride == deepest else found[-1]
    return taps | {"high": names[-1]}


def exact_stride(shape: Shape, size: tuple[int, int]) -> int | None:
    """Pixels a cell of a map (N, C, h, w) of an image of ``size``; None if it is no such map."""
    if len(shape) != 4 or not shape[2] or not shape[3] or size[0] % shape[2] or size[1] % shape[3]:
        return None
    stride = size[0] // shape[2]
    return stride if stride == size[1] // shape[3] else None


def nearest_stride(shape: Shape, size: tuple[int, int]) -> int | None:
    """As `exact_stride`, for a map that may be a cell larger or smaller: the power of two that is nearest."""
    if len(shape) != 4 or not 1 < shape[2] <= size[0] or not 1 < shape[3] <= size[1]:
        return None
    stride, other = (2 ** round(math.log2(side / cells)) for side, cells in zip(size, shape[2:], strict=True))
    return stride if stride == other else None
