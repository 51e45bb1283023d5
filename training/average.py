"""The student whose weights are the mean of those that training passes through: steadier than the last of them."""

from __future__ import annotations

import copy
import itertools

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from networks.base import SegmentationModel


class AveragedStudent:
    """A copy of the student, never trained itself: mean <- d * mean + (1 - d) * weights after each step.

    d is ``decay``, but at most (1 + n) / (10 + n) after n steps, so that the first weights are soon forgotten.
    BatchNorm's statistics are averaged like weights. Source: Polyak and Juditsky, "Acceleration of Stochastic
    Approximation by Averaging", 1992, with the exponential mean and the warm-up of TensorFlow's
    ExponentialMovingAverage.

    Attributes:
        model: the copy, in eval mode.
    """

    def __init__(self, student: SegmentationModel, decay: float):
        self.model = copy.deepcopy(student).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, student: SegmentationModel, step: int) -> None:
        """Take in the weights of ``student`` after the optimizer's ``step``, counted from 0."""
        means, weights = [], []
        # Not by names: a tensor may have several of them, and is averaged once.
        own, others = (itertools.chain(each.parameters(), each.buffers()) for each in (self.model, student))
        for mean, weight in zip(own, others, strict=True):
            if mean.is_floating_point():
                means.append(mean)
                weights.append(weight)
            else:  # the number of batches that BatchNorm has seen
                mean.copy_(weight)
        get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))(means, weights, step)
