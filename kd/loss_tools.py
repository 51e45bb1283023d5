"""What the distillation losses share: masking, float32, cosine distance, means over positions and images."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Concatenate, ParamSpec

import torch
from torch.nn import functional as F

from basics.distributed import shared_count

P = ParamSpec("P")
SoftLoss = Callable[Concatenate[torch.Tensor, torch.Tensor, torch.Tensor, P], torch.Tensor]
Dims = int | tuple[int, ...]

# A vector whose root mean square lies below this has no direction: dividing by its norm would blow up the gradient.
EPS = 1e-6


def wide(x: torch.Tensor) -> torch.Tensor:
    """float32 at least: half types are widened, float64 stays (so that gradients can be checked)."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def soft_loss(fn: SoftLoss[P]) -> SoftLoss[P]:
    """Turn ``fn(student, teacher, valid, ...)`` into a loss that keeps the rules common to all soft losses.

    The two maps arrive in ``fn`` in float32 with autocast off, the teacher detached, and both 0 wherever
    ``valid`` (N, h, w) is False: no finite number under padding reaches value or gradient.

    Raises:
        ValueError: the two maps do not share batch and grid, or ``valid`` is not a bool tensor on that grid.
    """

    @functools.wraps(fn)
    def loss(
        student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor, *args: P.args, **kwargs: P.kwargs
    ) -> torch.Tensor:
        grid = (student.shape[0], *student.shape[2:])
        if grid != (teacher.shape[0], *teacher.shape[2:]) or grid != valid.shape or valid.dtype != torch.bool:
            raise ValueError(
                f"{fn.__name__}: student {tuple(student.shape)}, teacher {tuple(teacher.shape)} and valid "
                f"{tuple(valid.shape)} {valid.dtype} must be (N, D, h, w), (N, D', h, w) and (N, h, w) bool"
            )
        inside = valid[:, None]
        with torch.autocast(student.device.type, enabled=False):
            # A product, not masked_fill: a quarter of the time on a CPU, and these maps are large.
            student = wide(student * inside.to(student.dtype))
            teacher = wide(teacher.detach() * inside.to(teacher.dtype))
            return fn(student, teacher, valid, *args, **kwargs)

    return loss


def mean_over_positions(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of finite ``values`` (N, h, w) over the valid positions of the whole batch; 0 where there are none."""
    return (values * valid).sum() / shared_count(valid.sum())


def mean_over_images(values: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean of finite ``values`` (N,) over the images that have a valid position; 0 where there are none."""
    seen = valid.flatten(1).any(dim=1)
    return (values * seen).sum() / shared_count(seen.sum())


def unit(x: torch.Tensor, dim: Dims, eps: float = EPS) -> torch.Tensor:
    """``x`` divided by its Euclidean norm over ``dim``; left as it is where its root mean square is below ``eps``."""
    # Written out: several times faster on a CPU than linalg.vector_norm over a dimension that is not the last.
    norm, _ = _safe_root(x.square().sum(dim, keepdim=True), _count(x, dim), eps)
    return x / norm


def cosine_distance(x: torch.Tensor, y: torch.Tensor, dim: Dims) -> torch.Tensor:
    """Half the squared distance of the unit vectors along ``dim``: 1 - cos, in [0, 2].

    A zero vector stays zero instead of becoming a unit vector: two of them are at distance 0 (identity stays
    free of charge), one is at 1/2 from any other vector and gets a bounded gradient.
    """
    count = _count(x, dim)
    return distance_of_sums(x.square().sum(dim), y.square().sum(dim), (x * y).sum(dim), count)


def distance_of_sums(
    squares_x: torch.Tensor, squares_y: torch.Tensor, products: torch.Tensor, count: torch.Tensor | int
) -> torch.Tensor:
    """`cosine_distance` from the sums of x^2, y^2 and x y over ``count`` numbers."""
    norm_x, live_x = _safe_root(squares_x, count, EPS)
    norm_y, live_y = _safe_root(squares_y, count, EPS)
    return (live_x.to(products.dtype) + live_y.to(products.dtype)) / 2 - products / (norm_x * norm_y)


def channel_divergence(
    student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor, temperature: float
) -> torch.Tensor:
    """T^2 * mean over maps and images of sum_x p_t (log p_t - log p_s), p = softmax(f / T) over an image's positions.

    Images without a valid position are left out of the mean.
    """
    log_s = spatial_log_softmax(student / temperature, valid)
    log_t = spatial_log_softmax(teacher / temperature, valid)
    divergence = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=2).mean(dim=1)  # (N,)
    return temperature**2 * mean_over_images(divergence, valid)


def class_borders(logits: torch.Tensor, valid: torch.Tensor, window: int) -> torch.Tensor:
    """Valid cells with two classes within ``window`` x ``window`` cells about them: (N, C, h, w) -> bool (N, h, w).

    The class of a cell is its largest logit; cells that are not valid have none, and make no border.
    """
    labels = logits.detach().argmax(dim=1, keepdim=True).to(logits.dtype)  # small whole numbers, exact
    hidden = ~valid[:, None]
    highest = F.max_pool2d(labels.masked_fill(hidden, -1), window, 1, window // 2)
    lowest = -F.max_pool2d((-labels).masked_fill(hidden, -logits.shape[1]), window, 1, window // 2)
    return ((highest > lowest) & ~hidden)[:, 0]


def spatial_log_softmax(maps: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Log of each map's softmax over the valid positions: (N, C, h, w) -> (N, C, h*w), 0 where not valid."""
    # The lowest number instead of -inf: an image without a valid position must not divide 0 by 0.
    hidden = ~valid[:, None]
    log_p = F.log_softmax(maps.masked_fill(hidden, torch.finfo(maps.dtype).min).flatten(2), dim=2)
    return log_p.masked_fill(hidden.flatten(2), 0)


def _count(x: torch.Tensor, dim: Dims) -> int:
    """How many numbers a vector along ``dim`` has."""
    return math.prod(x.shape[d] for d in ((dim,) if isinstance(dim, int) else dim))


def _safe_root(squares: torch.Tensor, count: torch.Tensor | int, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Norm from the sum of ``count`` squares, or 1 where the root mean square is at most ``eps``; where it is not."""
    live = squares > count * eps**2
    return torch.where(live, squares, 1.0).sqrt(), live
