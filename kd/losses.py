"""Every loss by name, the hard and the logit losses themselves, and the published mixes.

    from kd.losses import LOSSES, PRESETS
    LOSSES["kl"].fn(student_logits, teacher_logits, valid, temperature=4.0)

A loss is a pure function of tensors; `LOSSES` says of which kind it is:

- ``hard``: fn(logits (N, C, H, W), mask (N, H, W) int64, class_weights=None). `VOID` (void and padding alike) is
  left out; without a labelled pixel the loss is 0 with zero gradients.
- ``logits``: fn(student (N, C, h, w), teacher (N, C, h, w), valid (N, h, w) bool), plus ``temperature`` where
  ``uses_temperature``. Padding (valid False) is left out whatever lies under it; void pixels stay in, because the
  teacher has a word on them too. Without a valid position the loss is 0 with zero gradients.
- ``features``: as ``logits``, for feature maps: see `kd.feature_losses`.

All compute in float32 whatever comes in, send a gradient to the student alone, are 0 for a student equal to the
teacher, and do not change when a batch is tiled along N, H or W. In a distributed run the mean over ranks of a
loss, and of its gradient, is that of the whole batch (see `basics.distributed`); all ranks must call it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.nn import functional as F

from basics.batch import VOID
from basics.distributed import add_up, shared_count, sum_over_ranks
from kd import feature_losses
from kd.loss_tools import (
    cosine_distance,
    mean_over_images,
    mean_over_positions,
    soft_loss,
    spatial_log_softmax,
    unit,
    wide,
)

# ---- hard losses: student and ground truth ----


def ce(logits: torch.Tensor, mask: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean cross-entropy over labelled pixels; with weights sum(w_y * ce) / sum(w_y), as PyTorch has it.

    Shapes: logits (N, C, H, W), already upsampled to the mask's size; mask (N, H, W) int64 with 0..C-1 or 255;
    class_weights (C,) or None.
    Scale: nats a pixel.
    Void and padding: both are 255 in the mask and left out.
    """
    logits, class_weights = _prepare_hard(logits, mask, class_weights)
    # Summed apart: on a GPU the sum inside cross_entropy adds in any order (--deterministic).
    pixels = F.cross_entropy(logits, mask, weight=class_weights, ignore_index=VOID, reduction="none")
    return pixels.sum() / _labelled_weight(mask, class_weights)


def focal(
    logits: torch.Tensor, mask: torch.Tensor, class_weights: torch.Tensor | None = None, gamma: float = 2.0
) -> torch.Tensor:
    """Mean over labelled pixels of -(1 - p_y)^gamma log p_y; with weights, the weighted mean as in `ce`.

    Source: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, in its softmax form; the paper's
    alpha_t are the class weights.
    Shapes, void and padding: as `ce`.
    Scale: at most that of `ce`. Divided by the (weighted) number of labelled pixels, not of hard ones.
    """
    logits, class_weights = _prepare_hard(logits, mask, class_weights)
    cross_entropy = F.cross_entropy(logits, mask, ignore_index=VOID, reduction="none")  # 0 at void
    loss = (-torch.expm1(-cross_entropy)) ** gamma * cross_entropy
    if class_weights is not None:
        loss = loss * class_weights[mask.where(mask != VOID, 0)]
    return loss.sum() / _labelled_weight(mask, class_weights)


def dice(logits: torch.Tensor, mask: torch.Tensor, class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """1 - mean over the classes present in the mask of 2 sum(p y) / (sum p^2 + sum y^2).

    Source: Milletari et al., "V-Net", 3DV 2016, for each class; p = softmax, y = one-hot truth.
    Shapes: as `ce`. The sums run over the labelled pixels of the whole batch, not image by image: a class that
    covers a few pixels of one image does not weigh as much as a whole image of it.
    Scale: in [0, 1]; no smoothing constant, so that the value does not depend on the image's size. With class
    weights the mean over classes is weighted.
    Void and padding: both are 255 in the mask and left out; a class without a labelled pixel is left out.
    """
    logits, class_weights = _prepare_hard(logits, mask, class_weights)
    labelled = mask != VOID
    truth = mask.where(labelled, 0)
    probabilities = logits.softmax(dim=1) * labelled[:, None]
    pixels = add_up(torch.bincount(mask[labelled], minlength=logits.shape[1]))  # (C,), equals sum y^2
    hits = probabilities.gather(1, truth[:, None]).flatten()
    overlap = hits.new_zeros(len(pixels)).index_add(0, truth.flatten(), hits)  # (C,), sum p y
    overlap, squares = sum_over_ranks(torch.stack([overlap, probabilities.square().sum(dim=(0, 2, 3))]))
    # The clamp touches classes without a pixel only, where 0 / 0 would be nan even under a weight of 0.
    score = 2 * overlap / (squares + pixels).clamp(min=1)
    weights = (pixels > 0).to(score.dtype)
    if class_weights is not None:
        weights = weights * class_weights
    return (weights * (1 - score)).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def _prepare_hard(logits, mask, class_weights):
    """Widen ``logits``, bring the weights to their type and device, and refuse shapes that do not belong together."""
    if (logits.shape[0], *logits.shape[2:]) != mask.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and mask {tuple(mask.shape)} must be (N, C, H, W), (N, H, W)")
    logits = wide(logits)
    return logits, None if class_weights is None else class_weights.to(logits)


def _labelled_weight(mask: torch.Tensor, class_weights: torch.Tensor | None) -> torch.Tensor:
    """Number of labelled pixels, or the sum of their classes' weights; never 0, so that it can divide."""
    labelled = mask != VOID
    if class_weights is None:
        return shared_count(labelled.sum())
    total = (class_weights[mask.where(labelled, 0)] * labelled).sum()
    return shared_count(total, least=torch.finfo(total.dtype).tiny)


# ---- logit losses: student and teacher ----


@soft_loss
def kl(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 * mean over valid positions of sum_c p_t (log p_t - log p_s), p = softmax(z / T) over classes.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    Shapes: student and teacher (N, C, h, w), on the coarser of the two logit grids.
    Scale: nats a position, times T^2 so that gradients keep their size when T changes.
    Void and padding: void counts, padding is left out.
    """
    log_s = F.log_softmax(student / temperature, dim=1)
    log_t = F.log_softmax(teacher / temperature, dim=1)
    # Under padding both sides are 0, so that those positions add exactly nothing to the sum.
    total = F.kl_div(log_s, log_t, reduction="sum", log_target=True)
    return temperature**2 * total / shared_count(valid.sum())


@soft_loss
def cwd(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 * mean over class maps of sum_x p_t (log p_t - log p_s), p = softmax(z / T) over an image's positions.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021.
    Shapes: student and teacher (N, C, h, w).
    Scale: nats a class map, mean over classes and over images with a valid position: the paper's own scale
    (lambda = 3 at T = 4 on logits).
    Void and padding: void counts, padding has no probability.
    """
    log_s = spatial_log_softmax(student / temperature, valid)
    log_t = spatial_log_softmax(teacher / temperature, valid)
    divergence = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum(dim=2).mean(dim=1)  # (N,)
    return temperature**2 * mean_over_images(divergence, valid)


@soft_loss
def dist(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """(1 - Pearson over classes, mean over positions) + (1 - Pearson over positions, mean over class maps).

    Source: Huang et al., "Knowledge Distillation from a Stronger Teacher", NeurIPS 2022: inter-class and
    intra-class relation of p = softmax(z), both with weight 1 and tau = 1 as in the authors' segmentation code.
    Shapes: student and teacher (N, C, h, w).
    Scale: in [0, 4]. The second term correlates each class map within its image, then takes the mean over classes
    and over images with a valid position (the authors' code pools the positions of the batch). A constant vector
    has no correlation: two of them count 0, one counts 1/2.
    Void and padding: void counts, padding is left out of means and sums.
    """
    p_s, p_t = student.softmax(dim=1), teacher.softmax(dim=1)
    inter = cosine_distance(p_s - p_s.mean(dim=1, keepdim=True), p_t - p_t.mean(dim=1, keepdim=True), dim=1)

    inside = valid[:, None].to(p_s.dtype)
    count = inside.sum(dim=(2, 3), keepdim=True).clamp(min=1)

    def centred(p: torch.Tensor) -> torch.Tensor:
        return (p - (p * inside).sum(dim=(2, 3), keepdim=True) / count) * inside

    intra = cosine_distance(centred(p_s), centred(p_t), dim=(2, 3))  # (N, C)
    return mean_over_positions(inter, valid) + mean_over_images(intra.mean(dim=1), valid)


@soft_loss
def icsd(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Mean over classes i of ||r_i^s - r_i^t||^2, r_i the unit row (KL(p_i || p_j))_j of the similarity matrix.

    p_i is the softmax of class map i over an image's positions.

    Source: Mansourian et al., "AICSD: Adaptive Inter-Class Similarity Distillation for Semantic Segmentation",
    2024 (arXiv 2308.04243). Rows are normalised as in the authors' code; unlike there (upper triangle mirrored,
    probabilities in the place of log-probabilities) the matrix is the paper's: every KL(p_i || p_j) as it stands.
    Shapes: student and teacher (N, C, h, w).
    Scale: squared distance of unit rows, in [0, 2], mean over classes and over images with a valid position
    (a mean over the C^2 entries would be C times less). Rows below 1e-4 nats are taken as zero.
    Void and padding: void counts, padding has no probability.
    """

    def unit_rows(maps: torch.Tensor) -> torch.Tensor:
        log_p = spatial_log_softmax(maps, valid)  # (N, C, P), 0 under padding
        cross = log_p.exp() @ log_p.transpose(1, 2)  # (N, C, C): sum_x p_i log p_j; padding adds 1 * 0
        divergence = cross.diagonal(dim1=1, dim2=2)[:, :, None] - cross
        return unit(divergence, dim=2, eps=1e-4)

    squared = (unit_rows(student) - unit_rows(teacher)).square().sum(dim=2)  # (N, C)
    return mean_over_images(squared.mean(dim=1), valid)


def adaptive_weights(progress: float) -> tuple[float, float]:
    """Factors of the hard and of the distillation terms at ``progress`` in 0..1: (progress, 1 - progress).

    Source: adaptive loss weighting of AICSD (see `icsd`): alpha = epoch / epochs grows, so that the student first
    follows the teacher and in the end the labels, where the teacher's mistakes would hold it back. Here all
    distillation terms fade; in a remark in the authors' script `icsd` grows with the cross-entropy.

    Raises:
        ValueError: ``progress`` lies outside 0..1.
    """
    if not 0 <= progress <= 1:
        raise ValueError(f"progress must lie in 0..1, not {progress}")
    return progress, 1 - progress


# ---- the registry ----


@dataclass(frozen=True)
class LossSpec:
    """One row of `LOSSES`.

    Attributes:
        fn: the loss; its arguments follow from ``kind`` (see the module docstring).
        kind: ``hard``, ``logits`` or ``features``.
        source: the paper, in a few words.
        taps: the feature maps it looks at; their losses are averaged.
        adapter: the student's map passes through a trained 1x1 convolution to the teacher's channels.
        max_grid: maps are first averaged to at most this many cells a side; None leaves them.
        uses_temperature: ``fn`` takes ``temperature``.
    """

    fn: Callable[..., torch.Tensor]
    kind: Literal["hard", "logits", "features"]
    source: str
    taps: tuple[str, ...] = ()
    adapter: bool = False
    max_grid: int | None = None
    uses_temperature: bool = False


ENCODER_TAPS = ("low", "mid", "high")

LOSSES: dict[str, LossSpec] = {
    "ce": LossSpec(ce, "hard", "cross-entropy"),
    "focal": LossSpec(focal, "hard", "Lin 2017"),
    "dice": LossSpec(dice, "hard", "Milletari 2016"),
    "kl": LossSpec(kl, "logits", "Hinton 2015", uses_temperature=True),
    "cwd": LossSpec(cwd, "logits", "Shu 2021", uses_temperature=True),
    "dist": LossSpec(dist, "logits", "Huang 2022"),
    "icsd": LossSpec(icsd, "logits", "Mansourian 2024"),
    "cosine": LossSpec(feature_losses.cosine, "features", "Romero 2015", taps=ENCODER_TAPS, adapter=True),
    "pixelwise": LossSpec(feature_losses.pixelwise, "features", "Mansourian 2023", taps=("decoder",), adapter=True),
    # 16 cells a side: a matrix of 256 x 256 cosines an image.
    "pairwise": LossSpec(feature_losses.pairwise, "features", "Liu 2019", taps=("high",), max_grid=16),
    "at": LossSpec(feature_losses.at, "features", "Zagoruyko 2017", taps=ENCODER_TAPS),
    "csd": LossSpec(feature_losses.csd, "features", "Jenssen 2006", taps=ENCODER_TAPS, adapter=True),
}


# ---- published mixes ----

# The lambdas of the PA/PI recipe (Mansourian 2023) in our scales: command-line name -> (loss, factor).
# pa: the authors' mean over pairs and images is ours. pi: their maps are unit vectors along the height and their
# mean runs over all positions, so that a column's squared distance is divided by the height of the decoder's map,
# 129 for the authors' crops of 513; ours is the squared distance of unit vectors itself.
PAPER_LAMBDAS: dict[str, tuple[str, float]] = {"pa_lambda": ("pairwise", 1.0), "pi_lambda": ("pixelwise", 1 / 129)}


@dataclass(frozen=True)
class Preset:
    """A published mix of losses, as plain data.

    Attributes:
        source: the paper, in a few words.
        hard: weights of the hard terms.
        alpha: weight of `kl`.
        beta: weight of `cosine`.
        other: weights of further terms.
        temperature: the T of the terms that use one.
        adaptive: shift weight from teacher to labels during training (see `adaptive_weights`).
    """

    source: str
    hard: Mapping[str, float] = field(default_factory=lambda: {"ce": 1.0})
    alpha: float = 0.0
    beta: float = 0.0
    other: Mapping[str, float] = field(default_factory=dict)
    temperature: float = 1.0
    adaptive: bool = False

    @property
    def weights(self) -> dict[str, float]:
        """All weights by loss name, zeros included."""
        return {**self.hard, "kl": self.alpha, "cosine": self.beta, **self.other}


PRESETS: dict[str, Preset] = {
    "response": Preset("Hinton 2015", alpha=1.0, temperature=4.0),
    "feature": Preset("Romero 2015", beta=1.0),
    # The recipe's own weights: its three terms are scale-free.
    "hdl": Preset("hybrid loss, UNet to FastLiteSSNet", hard={"ce": 0.5, "dice": 0.2}, other={"csd": 0.3}),
    # --pa_lambda 1 --pi_lambda 100, the authors' command line.
    "papi": Preset(
        "Mansourian 2023",
        other={
            loss: factor * value for (loss, factor), value in zip(PAPER_LAMBDAS.values(), (1.0, 100.0), strict=True)
        },
    ),
    # The authors' command line, --pi_lambda 10 --pa_lambda 9500 --ALW. Their pi is a KL averaged over classes too:
    # 10 / 21 of ours on VOC. Their pa multiplies another icsd (see there): with a VOC teacher's logits and students
    # from good to untrained, 9500 times theirs comes to 0.2 to 0.6, and 1 times ours to 0.2 to 0.45.
    "aicsd": Preset("Mansourian 2024", alpha=10 / 21, other={"icsd": 1.0}, adaptive=True),
    # The authors' scale is ours: lambda 3, T 4 on logits.
    "cwd": Preset("Shu 2021", other={"cwd": 3.0}, temperature=4.0),
    # lambda = beta = gamma = 1 in the authors' segmentation code.
    "dist": Preset("Huang 2022", other={"dist": 1.0}),
}
