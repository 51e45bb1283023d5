"""Projections that make a teacher's feature maps small enough to keep: 2,048 channels to 64, angles and lengths kept.

The basis is orthonormal and holds the mean's direction and the leading principal components beside it. Inner
products of feature vectors, the only thing the losses in `KEPT_LOSSES` look at on the teacher's side, survive up to
the variance that is left out. What is stored is centred, because the mean is large and would eat the storage type's
precision; on reading it is added again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

DIMS = 64
# Feature losses that see the teacher's vectors by their inner products alone. The others look at each channel by
# itself (its ReLU, its softmax over positions, its deviation, its maximum), which means nothing for a rotated vector.
KEPT_LOSSES = ("cosine", "pixelwise", "pairwise", "at")


@dataclass(frozen=True)
class Projection:
    """``basis`` (K, D) with orthonormal rows, ``mean`` (D,); ``kept`` is the share of the variance that it keeps."""

    basis: torch.Tensor
    mean: torch.Tensor
    kept: float

    @property
    def offset(self) -> torch.Tensor:
        """(K,) what centring takes away from a projected vector."""
        return self.basis @ self.mean

    def centred(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(N, D, h, w) -> (N, K, h, w): the projection of ``feature_map`` less the mean."""
        basis = self.basis.to(feature_map)
        return F.conv2d(feature_map, basis[:, :, None, None], -self.offset.to(feature_map))

    def state(self) -> dict[str, torch.Tensor | float]:
        return {"basis": self.basis, "mean": self.mean, "kept": self.kept}


def projected_channels(channels: int) -> int:
    """Channels of the projection of a map with ``channels``."""
    return min(channels, DIMS)


def fit_projection(samples: Iterable[torch.Tensor], channels: int) -> Projection:
    """The mean's direction and the principal components beside it, of feature vectors.

    Args:
        samples: float (cells, D) each; sums are taken in float64 on the CPU.
        channels: D. With D <= 64 the basis is the identity, and nothing is lost.
    """
    count, total = 0, torch.zeros(channels, dtype=torch.float64)
    moment = torch.zeros(channels, channels, dtype=torch.float64)
    for sample in samples:
        vectors = sample.cpu().double()
        count += len(vectors)
        total += vectors.sum(0)
        moment += vectors.T @ vectors
    mean = total / max(count, 1)
    if channels <= DIMS:
        return Projection(torch.eye(channels), mean.float(), 1.0)
    covariance = moment / max(count, 1) - torch.outer(mean, mean)
    direction = F.normalize(mean, dim=0)  # zeros stay zeros
    beside = covariance - torch.outer(direction, direction @ covariance)
    beside = beside - torch.outer(beside @ direction, direction)
    _, vectors = torch.linalg.eigh((beside + beside.T) / 2)
    # QR makes the rows orthonormal to the last bit, and fills in a direction where the mean has none.
    basis, _ = torch.linalg.qr(torch.cat([direction[:, None], vectors[:, -(DIMS - 1) :].flip(1)], dim=1))
    kept = ((basis.T @ covariance @ basis).trace() / covariance.trace().clamp(min=1e-30)).item()
    return Projection(basis.T.float().contiguous(), mean.float(), min(max(kept, 0.0), 1.0))
