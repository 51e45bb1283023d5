"""From a full image and its mask to a training sample: crop first, then convert.

The usual pipeline resizes the whole picture and throws most of it away. Here the crop's window is chosen
first, in whole pixels of the original; only that window is cut, resized and flipped, in uint8. The colour jitter
is drawn here and done on the device, for the whole batch.
The window and the flip are therefore the *exact* affine map from the sample back to the image, which is
what lets cached teacher outputs be cropped with it.
"""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from basics.batch import MEAN, VOID
from basics.grids import working_shape

FILL = tuple(round(255 * channel) for channel in MEAN)  # normalises to about 0, as zero padding would


def full_sample(image: torch.Tensor, mask: torch.Tensor) -> dict:
    """The whole image at native size as a sample: every pixel valid, the box the image's own frame."""
    height, width = image.shape[1:]
    return {
        "image": image.contiguous(),
        "mask": mask.clone(),  # that of a cache is a view of its file
        "valid": torch.ones(height, width, dtype=torch.bool),
        "box": torch.tensor([0, 0, width, height], dtype=torch.float32),
        "flip": False,
    }


def to_working_size(image: torch.Tensor, mask: torch.Tensor, input_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """``image`` uint8 (3, H, W) and ``mask`` uint8 (H, W) at ``input_size`` on the longer side; 0: as they are."""
    height, width = mask.shape
    shape = working_shape(height, width, input_size)
    if shape == (height, width):
        return image, mask
    window = (0, 0, width, height)
    return cut_image(image, window, shape), cut_mask(mask, window, shape)[0]


def to_original(box: torch.Tensor, shape: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """A ``box`` (4,) in pixels of a picture at ``shape`` (H, W), in those of the original at ``size`` (H, W)."""
    across, down = size[1] / shape[1], size[0] / shape[0]
    return box * torch.tensor([across, down, across, down])


class TrainTransform:
    """Random scale, random crop, flip and colour jitter; drawn from torch's global CPU generator.

    Args:
        crop_size: side of the square sample in pixels, or (height, width).
        scale: the image is magnified by a factor drawn uniformly from this range, i.e. a window of
            ``round(crop / factor)`` original pixels becomes the sample. ``(1, 1)`` resizes nothing;
            with ``crop_size`` equal to the image's size the sample is then the whole image.
        flip: probability of a horizontal flip.
        jitter: how far brightness, contrast and saturation may be off 1, or None. Only drawn here; it is done
            for the whole batch on the device (`basics.batch.jitter_colours`).

    A window may reach beyond the image. There the image holds the mean colour, the mask 255 and
    ``valid`` False: padding is nothing at all, while void is a label.
    """

    def __init__(
        self,
        crop_size: int | tuple[int, int],
        scale: tuple[float, float] = (0.5, 2.0),
        flip: float = 0.5,
        jitter: tuple[float, float, float] | None = (0.3, 0.3, 0.3),
    ):
        height, width = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        self.crop_size = height, width
        if min(self.crop_size) < 1:
            raise ValueError(f"crop_size must be positive, not {crop_size}")
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be a range 0 < low <= high, not {scale}")
        self.scale = scale
        self.flip = flip
        self.jitter = jitter

    def draw_window(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Draw the source window (x0, y0, x1, y1), whole pixels of an image of ``height`` x ``width``."""
        low, high = self.scale
        factor = low + (high - low) * torch.rand(()).item()
        window_h, window_w = (max(1, round(side / factor)) for side in self.crop_size)
        top, left = _draw_offset(height, window_h), _draw_offset(width, window_w)
        return left, top, left + window_w, top + window_h

    def __call__(self, image: torch.Tensor, mask: torch.Tensor) -> dict:
        """``image`` uint8 (3, H, W) and ``mask`` uint8 (H, W), possibly memory-mapped -> a sample.

        Returns a dict of ``image`` uint8 (3, h, w), ``mask`` uint8 (h, w), ``valid`` bool (h, w), ``box``
        float32 (4,), ``flip`` bool and ``jitter`` float32 (3,), with (h, w) the crop size.
        """
        window = self.draw_window(*mask.shape)
        flip = torch.rand(()).item() < self.flip
        image = cut_image(image, window, self.crop_size)
        mask, valid = cut_mask(mask, window, self.crop_size)
        if flip:
            image, mask, valid = image.flip(-1), mask.flip(-1), valid.flip(-1)
        sample = {
            "image": image.clone(memory_format=torch.contiguous_format),
            "mask": mask.clone(memory_format=torch.contiguous_format),  # the caller's own, and no view of a file
            "valid": valid,
            "box": torch.tensor(window, dtype=torch.float32),
            "flip": flip,
        }
        if self.jitter is not None:
            sample["jitter"] = 1 + torch.tensor(self.jitter) * (2 * torch.rand(3) - 1)
        return sample


def _draw_offset(size: int, window: int) -> int:
    """Where a window begins: inside the image if it fits, otherwise anywhere that covers the image."""
    slack = size - window
    low, high = min(slack, 0), max(slack, 0)
    return int(torch.randint(low, high + 1, ()))


def cut_image(image: torch.Tensor, window: tuple[int, int, int, int], size: tuple[int, int]) -> torch.Tensor:
    """Cut ``window`` (x0, y0, x1, y1) and resize it to ``size`` (h, w), bilinearly with antialiasing.

    Only the pixels inside the window are touched, so a memory-mapped image is read no further than that.
    Beyond the image lies the mean colour. Returns uint8 (3, h, w).
    """
    height, width = image.shape[1:]
    x0, y0, x1, y1 = window
    image = image[:, max(y0, 0) : min(y1, height), max(x0, 0) : min(x1, width)]
    if image.shape[1:] != (y1 - y0, x1 - x0):
        # Channels last, as the decoder delivers images: resizing is several times faster on that.
        canvas = torch.tensor(FILL, dtype=torch.uint8).repeat(y1 - y0, x1 - x0, 1).permute(2, 0, 1)
        top, left = max(-y0, 0), max(-x0, 0)
        canvas[:, top : top + image.shape[1], left : left + image.shape[2]] = image
        image = canvas
    if image.shape[1:] != size:
        image = F.resize(image, size, interpolation=InterpolationMode.BILINEAR, antialias=True)
    return image


def cut_mask(
    mask: torch.Tensor, window: tuple[int, int, int, int], size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut ``window`` (x0, y0, x1, y1) and resize it to ``size`` (h, w): each pixel takes the one under its centre.

    In whole numbers and by two look-ups in NumPy, which is exact, and five times faster than resizing.
    Beyond the mask lies 255. Returns the mask uint8 (h, w) and bool (h, w), True inside.
    """
    x0, y0, x1, y1 = window
    rows, columns = _pixels_under_centres(y0, y1, size[0]), _pixels_under_centres(x0, x1, size[1])
    height, width = mask.shape
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    cut = mask.numpy()[rows.clip(0, height - 1)][:, columns.clip(0, width - 1)]
    cut[~inside] = VOID
    return torch.from_numpy(cut), torch.from_numpy(inside)


def _pixels_under_centres(low: int, high: int, size: int) -> np.ndarray:
    """Which of the pixels ``low``..``high`` - 1 lies under the centre of each of ``size`` pixels spread over them."""
    return low + (2 * np.arange(size) + 1) * (high - low) // (2 * size)
