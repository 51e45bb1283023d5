"""What a network of somebody else wants its images to be, read from whatever says it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import torch

from basics.batch import MEAN, STD

Triple = tuple[float, float, float]

# Of values in 0..1 neither is larger; of values in 0..255 every mean and deviation that anybody uses is.
LARGEST = 1.5


@dataclass(frozen=True)
class Normalisation:
    """What a network wants its images to be: ``(image - mean) / std`` of values in 0..1.

    Attributes:
        mean, std: per channel, in the network's own channel order.
        bgr: the network wants blue first.
    """

    mean: Triple = MEAN
    std: Triple = STD
    bgr: bool = False

    @classmethod
    def of(cls, mean: object, std: object, bgr: bool = False) -> Normalisation:
        """From any three numbers each: lists, arrays, tensors of any shape.

        Raises:
            ValueError: they are something else, or meant for values in 0..255.
        """
        normalisation = cls(_triple(mean, "mean"), _triple(std, "std"), bool(bgr))
        if min(normalisation.std) <= 0:
            raise ValueError(f"std {list(normalisation.std)} must be larger than 0")
        for what, values in (("mean", normalisation.mean), ("std", normalisation.std)):
            if max(map(abs, values)) > LARGEST:
                raise ValueError(
                    f"{what} {list(values)} is for values in 0..255, wanted is one for values in 0..1: divide mean and "
                    "std by 255"
                )
        return normalisation

    @property
    def is_imagenets(self) -> bool:
        """Images come as it wants them already."""
        return self == Normalisation()

    def from_imagenets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Factor and summand (3, 1, 1), in RGB order, that make ImageNet-normalised values the network's own."""
        mean, std = (values[::-1] if self.bgr else values for values in (self.mean, self.std))
        scale = torch.tensor([imagenet / own for imagenet, own in zip(STD, std, strict=True)])
        shift = torch.tensor([(imagenet - own) / s for imagenet, own, s in zip(MEAN, mean, std, strict=True)])
        return scale.view(3, 1, 1), shift.view(3, 1, 1)

    def as_plain(self) -> dict[str, object]:
        """For a checkpoint: lists, numbers, a bool."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def _triple(values: object, what: str) -> Triple:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.zeros(0)
    if isinstance(values, str) or numbers.size != 3 or not np.isfinite(numbers).all():
        shown = values.tolist() if isinstance(values, np.ndarray) else values
        raise ValueError(f"{what} must be three numbers, one a channel, not {shown!r}")
    first, second, third = numbers.reshape(-1).tolist()
    return first, second, third
