"""Projections that make a teacher's feature maps small enough to keep, angles and lengths as good as kept.

The basis is orthonormal and holds the mean's direction and the leading principal components beside it, as many as keep
`KEEP` of the variance of vectors that it was not fitted to. Inner products of feature vectors, the only thing that
losses which are `kd.losses.LossSpec.rotatable` look at on the teacher's side, survive up to the variance that is left
out. What is stored is centred, because the mean is large and would eat the storage type's precision; on reading it is
added again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

KEEP = 0.9  # share of the variance
EXACT_CHANNELS = 64  # maps of so few channels are kept as they are


@dataclass(frozen=True)
class Projection:
    """``basis`` (K, D) with orthonormal rows, ``mean`` (D,)."""

    basis: torch.Tensor
    mean: torch.Tensor

    @property
    def dims(self) -> int:
        """K, the channels of a projected map."""
        return len(self.basis)

    @property
    def offset(self) -> torch.Tensor:
        """(K,) what centring takes away from a projected vector."""
        return self.basis @ self.mean

    def centred(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(N, D, h, w) -> (N, K, h, w): the projection of ``feature_map`` less the mean."""
        basis = self.basis.to(feature_map)
        return F.conv2d(feature_map, basis[:, :, None, None], -self.offset.to(feature_map))

    def restored(self, centred: torch.Tensor) -> torch.Tensor:
        """(N, K, h, w) -> (N, D, h, w): the vectors whose projection less the mean that is."""
        full = F.conv2d(centred, self.basis.T.to(centred)[:, :, None, None])
        # The mean lies in the basis: what is left out is 0.
        return full + self.mean.to(centred)[:, None, None]

    def state(self) -> dict[str, torch.Tensor]:
        return {"basis": self.basis, "mean": self.mean}


@dataclass(frozen=True)
class _Moments:
    """Count, sum (D,) and sum of outer products (D, D) of vectors, in float64."""

    count: int
    total: torch.Tensor
    outer: torch.Tensor

    @classmethod
    def of(cls, samples: Sequence[torch.Tensor], channels: int) -> _Moments:
        count, total = 0, torch.zeros(channels, dtype=torch.float64)
        outer = torch.zeros(channels, channels, dtype=torch.float64)
        for sample in samples:
            vectors = sample.cpu().double()
            count += len(vectors)
            total += vectors.sum(0)
            outer += vectors.T @ vectors
        return cls(count, total, outer)

    @property
    def mean(self) -> torch.Tensor:
        return self.total / max(self.count, 1)

    @property
    def covariance(self) -> torch.Tensor:
        return self.outer / max(self.count, 1) - torch.outer(self.mean, self.mean)


def fit_projection(samples: Sequence[torch.Tensor], channels: int) -> Projection:
    """The mean's direction and the principal components beside it, of feature vectors.

    How many is found on half of the images with the components of the other half: on its own vectors a basis keeps more
    than on those of other images (320 channels of a DeepLabV3, 18 images: 104 components for 90 %, and 178 for 90 % of
    18 other ones). The basis is then that of all images.

    Args:
        samples: of each image float (cells, D).
        channels: D. With D <= `EXACT_CHANNELS` the basis is the identity, and nothing is lost.
    """
    moments = _Moments.of(samples, channels)
    if channels <= EXACT_CHANNELS:
        return Projection(torch.eye(channels), moments.mean.float())
    basis = _basis(_Moments.of(samples[::2], channels))
    others = _Moments.of(samples[1::2] or samples, channels).covariance
    shares = ((basis.T @ others) * basis.T).sum(1).cumsum(0) / others.trace().clamp(min=1e-30)
    dims = min(int((shares < KEEP).sum()) + 1, channels)
    return Projection(_basis(moments)[:, :dims].T.float().contiguous(), moments.mean.float())


def _basis(moments: _Moments) -> torch.Tensor:
    """(D, D) orthonormal columns: the mean's direction, then the principal components beside it, the largest first."""
    covariance = moments.covariance
    direction = F.normalize(moments.mean, dim=0)  # zeros stay zeros
    beside = covariance - torch.outer(direction, direction @ covariance)
    beside = beside - torch.outer(beside @ direction, direction)
    _, vectors = torch.linalg.eigh((beside + beside.T) / 2)
    # QR makes the columns orthonormal to the last bit, and fills in a direction where the mean has none. The last
    # eigenvector of all is the mean's own direction again, or one more that has no variance.
    return torch.linalg.qr(torch.cat([direction[:, None], vectors[:, 1:].flip(1)], dim=1))[0]
