"""Images for a network that takes one size only, and its maps put together again.

cut = Windows(512, "split").cut(images, black)      # (N, 3, H, W) -> cut.images (k * N, 3, 512, 512)
maps = network(cut.images)
whole = cut.join(maps, stride, (H // stride, W // stride))  # (N, D, H // stride, W // stride)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional as F

from basics.device import constant_on
from networks.working_size import resize

MODES = ("split", "pad", "squash")


@dataclass(frozen=True)
class Windows:
    """How an image processor of transformers brings images to a fixed size.

    Attributes:
        size: side of the square that the network takes, pixels.
        mode: ``split``: the shorter side is resized to it, the longer one cut into as few windows as cover it, which
            overlap; ``pad``: the longer side is resized to it, the rest is black; ``squash``: both are.
    """

    size: int
    mode: str

    def __post_init__(self) -> None:
        if self.mode not in MODES or self.size < 1:
            raise ValueError(f"windows of {self.size} pixels, {self.mode!r}: the modes are {', '.join(MODES)}")

    def as_plain(self) -> dict[str, object]:
        """For a checkpoint."""
        return asdict(self)

    def cut(self, images: torch.Tensor, black: Sequence[float]) -> Cut:
        """``images`` (N, 3, H, W) in the network's statistics, in which ``black`` is what black is."""
        height, width = images.shape[-2:]
        resized = self._resized(height, width)
        images = resize(images, resized)
        starts = [0]
        if self.mode == "split":
            longer = max(resized)
            count = math.ceil(longer / self.size)
            overlap = (count * self.size - longer) / max(count - 1, 1)
            starts = [int(number * (self.size - overlap)) for number in range(count)]
            dim = -2 if resized[0] > resized[1] else -1
            images = torch.cat([images.narrow(dim, start, self.size) for start in starts])
        elif self.mode == "pad":
            padding = (0, self.size - resized[1], 0, self.size - resized[0])
            level = constant_on(images.device, tuple(black), images.dtype).view(3, 1, 1)
            images = F.pad(images - level, padding) + level
        return Cut(images, self.size, (height, width), resized, starts)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if self.mode == "squash":
            return self.size, self.size
        side = min(height, width) if self.mode == "split" else max(height, width)
        if side == self.size:
            return height, width
        sides = (self.size if other == side else int(self.size * other / side) for other in (height, width))
        return next(sides), next(sides)


@dataclass(frozen=True)
class Cut:
    """The windows of a batch of N images.

    Attributes:
        images: (k * N, 3, side, side), the first window of every image first.
        side: of a window, pixels.
        whole: height and width of the images before they were resized.
        resized: and after that.
        starts: where along the longer side the k windows begin, pixels of the resized image.
    """

    images: torch.Tensor
    side: int
    whole: tuple[int, int]
    resized: tuple[int, int]
    starts: list[int]

    def join(self, maps: torch.Tensor, stride: int, cells: tuple[int, int]) -> torch.Tensor:
        """The maps of the windows (k * N, D, s, s), interpolated at the centres of a grid over each whole image.

        Where windows overlap, their mean counts; beyond the image its last value goes on.

        Returns:
            (N, D, *cells), a cell for ``stride`` pixels of the image before it was resized.
        """
        centres = []
        for whole, resized, count in zip(self.whole, self.resized, cells, strict=True):
            pixels = (torch.arange(count, device=maps.device) + 0.5) * (stride * resized / whole)
            centres.append(pixels.clamp(max=resized - 0.5))
        longer = 0 if self.resized[0] > self.resized[1] else 1
        total, windows = maps.new_zeros(()), maps.new_zeros(())
        for start, part in zip(self.starts, maps.chunk(len(self.starts)), strict=True):
            own = [axis - start if number == longer else axis for number, axis in enumerate(centres)]
            y, x = torch.meshgrid(*(2 * axis / self.side - 1 for axis in own), indexing="ij")
            grid = torch.stack([x, y], dim=-1).expand(len(part), -1, -1, -1)  # float32: half a cell matters
            inside = ((x.abs() <= 1) & (y.abs() <= 1)).to(maps.dtype)
            found = F.grid_sample(part.float(), grid, padding_mode="border", align_corners=False)
            total = total + inside * found.to(maps.dtype)
            windows = windows + inside
        return total / windows.clamp(min=1)
