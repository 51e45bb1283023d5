"""Where the maps of two networks lie, and whether a recipe can compare them."""

from __future__ import annotations

from typing import Protocol

from basics.errors import UserError
from basics.grids import common_stride
from kd.losses import Recipe, loss_of


class Grids(Protocol):
    """Where the outputs of a network lie.

    Attributes:
        stride: inputs are padded to a multiple of it.
        logit_stride: pixels per logit cell.
        tap_channels, tap_strides: channels, and pixels per cell, of each named feature map.
    """

    stride: int
    logit_stride: int
    tap_channels: dict[str, int]
    tap_strides: dict[str, int]


def require_maps(student: Grids, recipe: Recipe, teacher: Grids | None = None) -> None:
    """A `UserError` where a map that a head or a loss needs is lacking, or two to be compared have no common grid."""

    def require(what: str, tap: str, **networks: Grids) -> None:
        for role, network in networks.items():
            if tap not in network.tap_channels:
                known = ", ".join(network.tap_channels) or "none"
                raise UserError(f"{what} needs the feature map {tap!r}, which this {role} lacks (it has: {known})")

    for tap in recipe.heads:
        require(f"the auxiliary head @{tap}", tap, student=student)
    if teacher is None:
        return
    common_stride(student.stride, teacher.stride)
    for name in recipe.names("features"):
        for tap in loss_of(name).taps:
            require(f"loss {name!r}", tap, student=student, teacher=teacher)
            common_stride(student.tap_strides[tap], teacher.tap_strides[tap])
