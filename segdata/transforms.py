"""From a full image and its mask to a training sample: crop first, then convert.

The usual pipeline resizes the whole picture and throws most of it away. Here the crop's window is chosen
first, in whole pixels of the original; only that window is cut, resized, flipped and jittered, in uint8.
The window and the flip are therefore the *exact* affine map from the sample back to the image, which is
what lets cached teacher outputs be cropped with it.
"""

from __future__ import annotations

import torch
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from kd.batch import MEAN
from segdata.reading import VOID

FILL = tuple(round(255 * channel) for channel in MEAN)  # normalises to about 0, as zero padding would


def full_sample(image: torch.Tensor, mask: torch.Tensor) -> dict:
    """The whole image at native size as a sample: every pixel valid, the box the image's own frame."""
    height, width = image.shape[1:]
    return {
        "image": image.contiguous(),
        "mask": mask.to(torch.int64),
        "valid": torch.ones(height, width, dtype=torch.bool),
        "box": torch.tensor([0, 0, width, height], dtype=torch.float32),
        "flip": False,
    }


class TrainTransform:
    """Random scale, random crop, flip and colour jitter; drawn from torch's global CPU generator.

    Args:
        crop_size: side of the square sample in pixels, or (height, width).
        scale: the image is magnified by a factor drawn uniformly from this range, i.e. a window of
            ``round(crop / factor)`` original pixels becomes the sample. ``(1, 1)`` resizes nothing;
            with ``crop_size`` equal to the image's size the sample is then the whole image.
        flip: probability of a horizontal flip.
        jitter: brightness, contrast, saturation and hue ranges of `v2.ColorJitter`, or None. Hue is 0
            by default: on a CPU it alone costs more than everything else together.

    A window may reach beyond the image. There the image holds the mean colour, the mask 255 and
    ``valid`` False: padding is nothing at all, while void is a label.
    """

    def __init__(
        self,
        crop_size: int | tuple[int, int],
        scale: tuple[float, float] = (0.5, 2.0),
        flip: float = 0.5,
        jitter: tuple[float, float, float, float] | None = (0.3, 0.3, 0.3, 0.0),
    ):
        self.crop_size = (crop_size, crop_size) if isinstance(crop_size, int) else tuple(crop_size)
        if min(self.crop_size) < 1:
            raise ValueError(f"crop_size must be positive, not {crop_size}")
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be a range 0 < low <= high, not {scale}")
        self.scale = scale
        self.flip = flip
        self.jitter = v2.ColorJitter(*jitter) if jitter and any(jitter) else None

    def draw_window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Draw the source window (x0, y0, x1, y1), whole pixels of an image of ``height`` x ``width``."""
        low, high = self.scale
        factor = low + (high - low) * torch.rand(()).item()
        window_h, window_w = (max(1, round(side / factor)) for side in self.crop_size)
        top, left = _draw_offset(height, window_h), _draw_offset(width, window_w)
        return left, top, left + window_w, top + window_h

    def __call__(self, image: torch.Tensor, mask: torch.Tensor) -> dict:
        """``image`` uint8 (3, H, W) and ``mask`` uint8 (H, W), possibly memory-mapped -> a sample.

        Returns a dict of ``image`` uint8 (3, h, w), ``mask`` int64 (h, w), ``valid`` bool (h, w), ``box``
        float32 (4,) and ``flip`` bool, with (h, w) the crop size.
        """
        window = self.draw_window(*mask.shape)
        flip = torch.rand(()).item() < self.flip
        image, mask, valid = cut_window(image, mask, window, self.crop_size)
        if self.jitter is not None:
            image = self.jitter(image)
        if valid is None:
            valid = torch.ones(self.crop_size, dtype=torch.bool)
        else:  # after the jitter: padding has one colour whatever was drawn
            image = torch.where(valid, image, torch.tensor(FILL, dtype=torch.uint8).view(3, 1, 1))
        if flip:
            image, mask, valid = image.flip(-1), mask.flip(-1), valid.flip(-1)
        return {
            "image": image.contiguous(),
            "mask": mask.to(torch.int64),
            "valid": valid,
            "box": torch.tensor(window, dtype=torch.float32),
            "flip": flip,
        }


def _draw_offset(size: int, window: int) -> int:
    """Where a window begins: inside the image if it fits, otherwise anywhere that covers the image."""
    slack = size - window
    low, high = min(slack, 0), max(slack, 0)
    return int(torch.randint(low, high + 1, ()))


def cut_window(
    image: torch.Tensor, mask: torch.Tensor, window: tuple[int, int, int, int], size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Cut ``window`` (x0, y0, x1, y1) and resize it to ``size`` (h, w).

    Only the pixels inside the window are touched, so a memory-mapped image is read no further than that.
    The image is resized bilinearly with antialiasing, mask and validity by nearest pixel.

    Returns:
        image uint8 (3, h, w), mask uint8 (h, w) and valid bool (h, w), or None where all of it is valid.
    """
    height, width = mask.shape
    x0, y0, x1, y1 = window
    rows, columns = slice(max(y0, 0), min(y1, height)), slice(max(x0, 0), min(x1, width))
    image, mask = image[:, rows, columns], mask[rows, columns]
    labels = mask[None]
    padded = mask.shape != (y1 - y0, x1 - x0)
    if padded:
        image, labels = _pad(image, mask, (rows.start - y0, columns.start - x0), (y1 - y0, x1 - x0))
    if labels.shape[1:] != size:
        image = F.resize(image, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
        labels = F.resize(labels, size, interpolation=InterpolationMode.NEAREST_EXACT)
    return image, labels[0], labels[1].bool() if padded else None


def _pad(
    image: torch.Tensor, mask: torch.Tensor, corner: tuple[int, int], size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay image and mask on a canvas of ``size`` with their first pixel at ``corner``.

    Returns the image (3, h, w) and mask and validity stacked (2, h, w), all uint8.
    """
    rows, columns = (slice(start, start + length) for start, length in zip(corner, mask.shape, strict=True))
    # Channels last, as the decoder delivers images: resizing is several times faster on that.
    canvas = torch.tensor(FILL, dtype=torch.uint8).repeat(*size, 1).permute(2, 0, 1)
    canvas[:, rows, columns] = image
    labels = torch.tensor([VOID, 0], dtype=torch.uint8).view(2, 1, 1).repeat(1, *size)
    labels[0, rows, columns] = mask
    labels[1, rows, columns] = 1
    return canvas, labels
