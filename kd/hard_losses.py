"""Losses between the student's logits and the ground truth: pure functions of tensors.

Common to all: ``logits`` (N, C, H, W), ``mask`` (N, H, W) int64, ``class_weights`` (C,) or None -> scalar, computed in
float32. `VOID` (void and padding alike) is left out; without a labelled pixel the loss is 0 with zero gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from basics.batch import VOID
from basics.distributed import add_up, shared_count, sum_over_ranks
from basics.grids import upsampling_matrix
from kd.loss_tools import wide


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


def upsampled_ce(
    logits: torch.Tensor, stride: int, mask: torch.Tensor, class_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """`ce` of strided ``logits`` (N, C, h, w) enlarged to the mask's size, image by image, with its gradient at once.

    What is as large as the pictures is made for one image at a time, used up in place and never kept: on a CPU it stays
    in the caches, which halves the time of loss and enlargement, forward and backward. Value and gradient are those of
    `ce` after `basics.grids.upsample_logits`, to rounding.
    """
    logits = wide(logits)
    class_weights = None if class_weights is None else class_weights.to(logits)
    total = _UpsampledCrossEntropy.apply(logits, stride, mask, class_weights)
    return total / _labelled_weight(mask, class_weights)


class _UpsampledCrossEntropy(torch.autograd.Function):
    """The sum over labelled pixels of weight * cross-entropy."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, logits: torch.Tensor, stride: int, mask: torch.Tensor, class_weights: torch.Tensor | None
    ) -> torch.Tensor:
        rows, columns = (
            upsampling_matrix(cells, stride, size, logits.dtype, logits.device)
            for cells, size in zip(logits.shape[-2:], mask.shape[-2:], strict=True)
        )
        gradient, total = torch.empty_like(logits), logits.new_zeros(())
        for image, truth, slope in zip(logits, mask, gradient, strict=True):
            labelled = truth != VOID
            target = truth.where(labelled, 0)[None]  # (1, H, W)
            weight = labelled.to(logits.dtype) if class_weights is None else class_weights[target[0]] * labelled
            log_p = (rows @ image @ columns.T).log_softmax(0)  # (C, H, W)
            total -= (log_p.gather(0, target)[0] * weight).sum()
            # d/dz of -log p_y is p - 1 at y and p elsewhere; from the pixels back to the cells by the same matrices.
            at_pixels = log_p.exp_().scatter_add_(0, target, weight.new_full((), -1.0).expand_as(target)).mul_(weight)
            torch.matmul(rows.T @ at_pixels, columns, out=slope)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return grad_output * gradient, None, None, None


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
    # Counted in whole numbers, and without selecting the labelled ones: a GPU would have to say first how many.
    pixels = labelled.new_zeros(logits.shape[1], dtype=torch.int64)  # (C,), equals sum y^2
    pixels = add_up(pixels.index_add(0, truth.flatten(), labelled.flatten().to(torch.int64)))
    hits = probabilities.gather(1, truth[:, None]).flatten()
    overlap = hits.new_zeros(len(pixels)).index_add(0, truth.flatten(), hits)  # (C,), sum p y
    overlap, squares = sum_over_ranks(torch.stack([overlap, probabilities.square().sum(dim=(0, 2, 3))]))
    # The clamp touches classes without a pixel only, where 0 / 0 would be nan even under a weight of 0.
    score = 2 * overlap / (squares + pixels).clamp(min=1)
    weights = (pixels > 0).to(score.dtype)
    if class_weights is not None:
        weights = weights * class_weights
    return (weights * (1 - score)).sum() / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def _prepare_hard(
    logits: torch.Tensor, mask: torch.Tensor, class_weights: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
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
