"""Whether an exported file does what the network does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from basics.batch import normalize
from basics.errors import UserError
from deploy.exporting import Deployed
from deploy.formats import load_exported
from deploy.model_card import ModelCard

# (images, height, width): one and more, odd and even, wide and tall.
CHECK_SIZES = ((1, 256, 256), (2, 97, 131), (1, 33, 255), (3, 180, 64), (1, 321, 240))
FIXED_PICTURES = 3  # of a file that takes one size
TELLING_SIZE = (97, 131)  # of a telling picture where any size will do: it takes time
# What a step towards it may change, the most steps, and the patches down and across.
GREY_LEVELS_A_STEP, MOST_STEPS, PATCHES = 32.0, 40, (3, 4)
LARGEST_SHARE = 0.6  # of a telling picture's pixels that may be of one class: well below any agreement asked for


@dataclass(frozen=True)
class Difference:
    """A file against its network at one size; ``delta`` is the largest difference of a logit.

    ``is_telling``: on a `telling_picture`, most of which lies near the borders between classes.
    """

    images: int
    height: int
    width: int
    delta: float
    agreement: float
    is_telling: bool = False

    def __str__(self) -> str:
        size = f"{self.images} x {self.height}x{self.width}"
        return f"{size:>14}  max |delta logit| {self.delta:.2e}  argmax agreement {100 * self.agreement:.3f} %"


def smooth_pictures(images: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Blurred random colours and a little noise, uint8 (N, 3, H, W): nearer to photographs than noise is."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(images, 3, height // 24 + 3, width // 24 + 3, generator=generator) * 255
    fine = F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False)
    return (fine + 8 * torch.randn(fine.shape, generator=generator)).clamp(0, 255).to(torch.uint8)


def telling_picture(network: nn.Module, card: ModelCard, size: tuple[int, int]) -> torch.Tensor:
    """A picture, uint8 (1, 3, H, W), that ``network`` decides in several ways.

    Of made-up pictures a student may say background everywhere, and then a file that says background, or takes blue
    for red, agrees. So a smooth one is drawn towards a patchwork of the classes that come next, until it shows.

    Args:
        network: float32; its gradient leads the way.
    """
    picture = smooth_pictures(1, *size).float().requires_grad_()
    optimizer = torch.optim.Adam([picture], lr=GREY_LEVELS_A_STEP)

    def logits() -> torch.Tensor:
        return network(normalize(picture.clone(), card.mean, card.std))

    likely = logits().detach().mean((0, 2, 3)).argsort(descending=True)[1:5]
    patches = likely.repeat(math.prod(PATCHES))[: math.prod(PATCHES)].view(1, 1, *PATCHES)
    target = F.interpolate(patches.float(), size=size)[:, 0].long()
    for _ in range(MOST_STEPS):
        decided = logits()
        if decided.argmax(1).flatten().bincount().max() <= LARGEST_SHARE * target.numel():
            break
        (picture.grad,) = torch.autograd.grad(F.cross_entropy(decided, target), picture)
        optimizer.step()
        with torch.no_grad():
            picture.clamp_(0, 255)
    return picture.detach().round().to(torch.uint8)


def compare(
    deployed: Deployed, path: Path, network: nn.Module, sizes: Sequence[tuple[int, int, int]] = CHECK_SIZES
) -> list[Difference]:
    """Run the network and the file ``path`` on the same pictures: of several sizes, or several of its one size.

    Args:
        network: float32, the checkpoint's, for a `telling_picture`.

    Raises:
        UserError: the file cannot be read, or gives another shape.
    """
    exported = load_exported(path)
    differences = []
    if exported.fitted_size is not None:
        sizes = FIXED_PICTURES * [(1, *exported.fitted_size)]
    telling = telling_picture(network, deployed.card, exported.fitted_size or TELLING_SIZE)
    made = [smooth_pictures(images, height, width, seed) for seed, (images, height, width) in enumerate(sizes)]
    for pictures in (*made, telling):
        images, _, height, width = pictures.shape
        given = pictures
        if deployed.card.input == "normalized":
            given = normalize(pictures, deployed.card.mean, deployed.card.std)
        with torch.inference_mode():
            expected, got = deployed(given), exported.run(given)
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise UserError(
                f"the exported file gives {tuple(got.shape)} {got.dtype}, the network {tuple(expected.shape)} "
                f"{expected.dtype}: not written"
            )
        masks = [result if deployed.card.output == "mask" else result.max(1)[1] for result in (expected, got)]
        delta = 0.0 if deployed.card.output == "mask" else (expected - got).abs().max().item()
        agreement = (masks[0] == masks[1]).float().mean().item()
        differences.append(Difference(images, height, width, delta, agreement, pictures is telling))
    return differences


def require_agreement(
    differences: Sequence[Difference],
    least: float,
    most_delta: float | None = None,
    *,
    least_telling: float | None = None,
) -> None:
    """A `UserError` unless at every size the masks agree and the logits are near enough.

    Args:
        differences: of `compare`.
        least: share of equally decided pixels, in 0..1.
        most_delta: largest difference of a logit; None where logits are rounded.
        least_telling: the share on a telling picture, where it may be less.
    """
    for difference in differences:
        share = least_telling if difference.is_telling and least_telling is not None else least
        if not difference.agreement >= share or (most_delta is not None and not difference.delta <= most_delta):
            raise UserError(f"the exported file and the network differ, file not written: {difference}")
