"""Whether what a network says are logits: outputs that are something else would teach something else, silently."""

from __future__ import annotations

import torch

SLACK = 1e-3  # of probabilities that were averaged, or stored as float16


def fault_of_logits(outputs: torch.Tensor) -> str:
    """What ``outputs`` (N, C, h, w) of a real batch are instead of logits, and the remedy; empty if they may be some.

    Log-probabilities are logits as good as any: their softmax gives the probabilities. Probabilities are not: a
    softmax on top of them makes every class about as likely as the others.
    """
    outputs = outputs.float()
    if not outputs.isfinite().all():
        return "not finite: look at its weights, or at these images"
    low, high = outputs.min().item(), outputs.max().item()
    if outputs.shape[1] > 1 and low >= 0 < high:
        remedy = "pass a network that ends before its softmax or sigmoid (export it without)"
        if (outputs.sum(1) - 1).abs().max() <= SLACK:
            return f"probabilities already, which sum to 1 over the classes, not logits: {remedy}"
        if high <= 1 + SLACK:
            return f"probabilities already, all of them between 0 and 1, not logits: {remedy}"
    return ""


def fault_of_decisions(outputs: torch.Tensor) -> str:
    """What ``outputs`` are that have no channel a class, and the remedy; empty for (N, C, h, w) of at least two."""
    if outputs.ndim == 4 and outputs.shape[1] > 1:
        return ""
    values = outputs.float()
    if values.ndim in (3, 4) and bool((values == values.round()).all()):
        return "class numbers already (an argmax inside), not logits: pass a network that ends before it"
    if values.ndim == 4:
        return (
            "of one channel, the score of a single class by a sigmoid; networks here tell at least two apart: give it "
            "two, torch.cat([torch.zeros_like(z), z], 1)"
        )
    return ""
