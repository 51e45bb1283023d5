"""Universal segmentation networks score queries: from a class and a mask for each query to a score for each pixel."""

from __future__ import annotations

import torch

LEAST = 1e-8  # of a pixel's probability: what no query claims has a logarithm, too


def pixel_scores(class_logits: torch.Tensor, mask_logits: torch.Tensor) -> torch.Tensor:
    """Sum over queries of class probability times mask probability, as the authors decide by (Cheng et al., 2021).

    Args:
        class_logits: (N, Q, C + 1), the last one for "no object".
        mask_logits: (N, Q, h, w).

    Returns:
        (N, C, h, w) float32, non-negative.
    """
    with torch.autocast(class_logits.device.type, enabled=False):
        classes = class_logits.float().softmax(dim=-1)[..., :-1]
        return torch.einsum("nqc,nqhw->nchw", classes, mask_logits.float().sigmoid())


def as_log_probabilities(scores: torch.Tensor) -> torch.Tensor:
    """Non-negative ``scores`` (N, C, h, w), normalised over the classes: logits whose softmax at T = 1 they are."""
    shares = scores / scores.sum(dim=1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    return shares.clamp(min=LEAST).log()
