"""Losses between the logits of student and teacher on a common grid: pure functions of tensors.

Common to all: ``student`` and ``teacher`` (N, C, h, w), ``valid`` (N, h, w) bool -> scalar. Computed in float32 with
autocast off; gradient to the student alone.

Padding (``valid`` False) is left out, whatever lies under it; void pixels stay in, because the teacher has a word on
them too. No valid position: 0 with zero gradients. Identical logits: 0. Tiling along N, h or w changes nothing (but of
`bpkd`).
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from basics.distributed import shared_count
from kd.loss_tools import (
    channel_divergence,
    class_borders,
    cosine_distance,
    mean_over_images,
    mean_over_positions,
    soft_loss,
    spatial_log_softmax,
    unit,
)

BORDER_PIXELS = 3  # on each side: the 7 x 7 window of BPKD


@soft_loss
def kl(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 * mean over valid positions of sum_c p_t (log p_t - log p_s), p = softmax(z / T) over classes.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.
    Shapes: student and teacher (N, C, h, w), on the coarser of the two logit grids.
    Scale: nats a position, times T^2 so that gradients keep their size when T changes.
    Void and padding: void counts, padding is left out.
    """
    return _kl(student, teacher, valid, temperature)


def _kl(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor, temperature: float) -> torch.Tensor:
    log_s = F.log_softmax(student / temperature, dim=1)
    log_t = F.log_softmax(teacher / temperature, dim=1)
    # Under padding both sides are 0, so that those positions add exactly nothing to the sum.
    total = F.kl_div(log_s, log_t, reduction="sum", log_target=True)
    return temperature**2 * total / shared_count(valid.sum())


@soft_loss
def kl_std(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """`kl` of standardised logits: at each position less their mean over classes, divided by their deviation.

    Source: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024. The student has to find the
    order and the proportions of the teacher's logits, not their range. The deviation is the sample's (C - 1), as in
    the authors' code; they train with 9 times the loss at T = 2.
    Shapes: student and teacher (N, C, h, w), on the coarser of the two logit grids.
    Scale: nats a position, times T^2, whatever the logits' own scale. Of two classes only the sign is left, which has
    no gradient. Logits that are all alike stay as they are.
    Void and padding: void counts, padding is left out.
    """

    def standardised(logits: torch.Tensor) -> torch.Tensor:
        centred = logits - logits.mean(dim=1, keepdim=True)
        return math.sqrt(logits.shape[1] - 1) * unit(centred, dim=1)

    return _kl(standardised(student), standardised(teacher), valid, temperature)


@soft_loss
def cwd(student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """T^2 * mean over class maps of sum_x p_t (log p_t - log p_s), p = softmax(z / T) over an image's positions.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021.
    Shapes: student and teacher (N, C, h, w).
    Scale: nats a class map, mean over classes and over images with a valid position: the paper's own scale
    (lambda = 3 at T = 4 on logits).
    Void and padding: void counts, padding has no probability.
    """
    return channel_divergence(student, teacher, valid, temperature)


@soft_loss
def bpkd(
    student: torch.Tensor, teacher: torch.Tensor, valid: torch.Tensor, temperature: float = 1.0, stride: int = 1
) -> torch.Tensor:
    """`kl` at the borders between the teacher's classes, plus `cwd` everywhere else.

    Source: Liu et al., "BPKD: Boundary Privileged Knowledge Distillation for Semantic Segmentation", WACV 2024, which
    beats CWD in all twelve of its authors' pairs (ADE20K, PSPNet-R18: 33.3 alone, 37.0 with CWD, 38.5 with BPKD).
    A pixel belongs to a border if two classes lie in the 7 x 7 pixels about it. Unlike in the paper the classes are
    the teacher's, because there is no label for an image without a mask; a border is one for all classes; and both
    terms have the weight 1, where the paper gives each its own.
    Shapes: student and teacher (N, C, h, w), ``stride`` pixels a cell: a cell belongs to a border if one within 3
    pixels of it has another class (a window of 7 x 7 cells at stride 1, of 3 x 3 from stride 3 on).
    Scale: nats a position plus nats a class map, each times T^2. Repeating a picture makes new borders where the
    copies meet, mirroring it does not.
    Void and padding: void counts; padding has no class, makes no border and is left out.
    """
    border = class_borders(teacher, valid, window=2 * math.ceil(BORDER_PIXELS / stride) + 1)
    return kl(student, teacher, border, temperature) + cwd(student, teacher, valid & ~border, temperature)


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
