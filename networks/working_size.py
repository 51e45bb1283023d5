"""Networks with a working size: they see every picture brought to so many pixels on the longer side.

    network = at_working_size(model, 256)       # images (N, 3, H, W) -> logits (N, C, H, W), of any H, W

Pictures are brought there bilinearly with antialiasing, smaller ones are enlarged; the logits are brought back
bilinearly to the picture's own size, so that masks and scores are native.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import nn
from torch.nn import functional as F

from basics.errors import UserError
from basics.grids import working_shape

LEAST_SIDE = 32  # pixels that a network wants: the shorter side of a long strip is padded to it
BAND_LOGITS = 1 << 26  # of a picture that are brought to its own size at a time: 256 MB in float32
BAND_PIXELS = 1 << 22  # of a picture that are read at a time


class WorkingSize(nn.Module):
    """A network behind a resize; in the mode, training or eval, of the network.

    Attributes:
        model: any network, images (N, 3, H, W) -> logits (N, C, H, W).
        input_size: pixels on the longer side.
        decides_only: as of the network, see `deploy.exported.ExportedModel`.
    """

    def __init__(self, model: nn.Module, input_size: int) -> None:
        super().__init__()
        self.model, self.input_size = model, input_size
        self.training = model.training
        self.decides_only: bool = getattr(model, "decides_only", False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised ``images`` (N, 3, H, W) -> logits (N, C, H, W)."""
        height, width = images.shape[-2:]
        small = resize(images, working_shape(height, width, self.input_size))
        return resize_rows(self.small_logits(small), (height, width), 0, height)

    def small_logits(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` (N, 3, h, w) that are at working size -> logits (N, C, h, w)."""
        height, width = images.shape[-2:]
        pad = (0, max(0, LEAST_SIDE - width), 0, max(0, LEAST_SIDE - height))
        return self.model(F.pad(images, pad))[..., :height, :width]

    def bands(
        self, read_rows: Callable[[int, int], torch.Tensor], size: tuple[int, int]
    ) -> Iterator[tuple[int, torch.Tensor]]:
        """`forward` from the top to the bottom, of a picture that need not be in memory as a whole.

        Args:
            read_rows: first row and the one behind the last -> normalised images (N, 3, rows, W).
            size: (H, W).

        Yields:
            the first row, and logits (N, C, rows, W).
        """
        height, width = size
        small_height, small_width = working_shape(height, width, self.input_size)
        rows = max(1, BAND_PIXELS // width)
        # Antialiasing goes along one axis after the other: across each band of rows, then down all of them.
        narrow = [
            resize(band, (band.shape[-2], small_width))
            for band in (read_rows(top, min(top + rows, height)) for top in range(0, height, rows))
        ]
        logits = self.small_logits(resize(torch.cat(narrow, dim=-2), (small_height, small_width)))
        rows = max(1, BAND_LOGITS // (logits.shape[1] * width))
        for top in range(0, height, rows):
            yield top, resize_rows(logits, size, top, min(top + rows, height))

    def bands_of(self, images: torch.Tensor) -> Iterator[tuple[int, torch.Tensor]]:
        """`bands` of ``images`` (N, 3, H, W) that are in memory: their logits at their own size need not be."""
        return self.bands(lambda top, bottom: images[..., top:bottom, :], (images.shape[-2], images.shape[-1]))


def logits_in_bands(model: nn.Module, images: torch.Tensor) -> Iterable[tuple[int, torch.Tensor]]:
    """First row and logits (N, C, rows, W) of ``images``: of some rows after the other from a network with a working
    size, at once from another.
    """
    return model.bands_of(images) if isinstance(model, WorkingSize) else [(0, model(images))]


def fault_of_size(option: str, size: int) -> str | None:
    """What is wrong with the ``size`` in pixels that a user gave as ``option``; None of 0, or of enough."""
    if size == 0 or size >= LEAST_SIDE:
        return None
    return f"{option} must be at least {LEAST_SIDE} pixels (or 0, for native), not {size}"


def at_working_size(model: nn.Module, input_size: int) -> nn.Module:
    """``model`` behind a resize to ``input_size`` on the longer side; 0: itself."""
    return WorkingSize(model, input_size) if input_size else model


def working_size_of(model: nn.Module) -> int:
    """Pixels on the longer side that a network sees, or one inside it; 0: the picture's own."""
    return next((part.input_size for part in model.modules() if isinstance(part, WorkingSize)), 0)


def fitted_size_of(model: nn.Module) -> tuple[int, int] | None:
    """Height and width of the one picture that a network, or one inside it, takes; None: any."""
    sizes = (getattr(part, "fitted_size", None) for part in model.modules())
    return next((size for size in sizes if size is not None), None)


def refuse_other_size(label: str, model: nn.Module) -> None:
    """A `UserError` where the network ``label`` is asked for a working size and takes pictures of one size."""
    if fitted := fitted_size_of(model):
        raise UserError(f"{label}: a file for pictures of {fitted[0]}x{fitted[1]} has no other size")


def resize(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Float ``images``, or maps, (N, D, H, W) -> (N, D, *size), bilinearly with antialiasing."""
    if images.shape[-2:] == size:
        return images
    at_home = images.cpu() if images.device.type == "mps" else images  # which may lack the kernel
    return F.interpolate(at_home, size=size, mode="bilinear", antialias=True).to(images.device)


def resize_rows(logits: torch.Tensor, size: tuple[int, int], top: int, bottom: int) -> torch.Tensor:
    """The rows ``top``..``bottom`` - 1 of ``logits`` (N, C, h, w) as they are at ``size`` (H, W), bilinearly."""
    height, width = size
    if logits.shape[-2:] == size:
        return logits[..., top:bottom, :]
    if (top, bottom) == (0, height):
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    # As F.interpolate: between the two rows whose centres lie around that of each row, held at the edges.
    row = torch.arange(top, bottom, device=logits.device, dtype=torch.float32)
    place = ((row + 0.5) * (logits.shape[-2] / height) - 0.5).clamp(min=0)
    above = place.long()
    below = (above + 1).clamp(max=logits.shape[-2] - 1)
    share = (place - above)[:, None]
    rows = logits[..., above, :] * (1 - share) + logits[..., below, :] * share
    return F.interpolate(rows, size=(bottom - top, width), mode="bilinear", align_corners=False)
