"""Optimizers and learning-rate schedules by name, and the two with the loss scaler as one object."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from basics.errors import choose

SCHEDULES = {
    # The share of the base rate at ``progress`` in 0..1 of the steps after the warm-up.
    "poly": lambda progress: (1 - progress) ** 0.9,  # DeepLab, Chen et al. 2017
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),  # Loshchilov & Hutter 2017
    "step": lambda progress: 0.1 ** ((progress >= 0.6) + (progress >= 0.85)),
}
OPTIMIZERS = ("adamw", "sgd")
WARMUP_START = 0.01


def make_optimizer(
    module: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    backbone: nn.Module | None = None,
    backbone_lr_factor: float = 1.0,
) -> torch.optim.Optimizer:
    """AdamW or SGD (Nesterov momentum 0.9); biases and normalisation weights are not decayed.

    The fused implementation is taken on every device: one kernel instead of one per tensor.

    Args:
        backbone: the part of ``module`` that learns at ``lr * backbone_lr_factor``; the first groups are the others'.

    Raises:
        UserError: ``name`` is not among `OPTIMIZERS`.
    """
    choose(dict.fromkeys(OPTIMIZERS), name, "optimizer")
    pretrained = {id(parameter) for parameter in backbone.parameters()} if backbone else set()
    groups = []
    for in_backbone in (False, True):
        parameters = [p for p in module.parameters() if (id(p) in pretrained) == in_backbone]
        rate = lr * backbone_lr_factor if in_backbone else lr
        groups += [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay, "lr": rate},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "lr": rate},
        ]
    groups = [group for group in groups if group["params"]]
    fused = all(parameter.device.type != "mps" for parameter in module.parameters())  # see `Optimization.step`
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, fused=fused)
    sgd = torch.optim.SGD(groups, lr=lr, momentum=0.9, nesterov=True, fused=fused)
    # PyTorch makes these at the first step and leaves them as memory is where the scaler of fp16 skips that step.
    for parameter in module.parameters():
        sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def learning_rate_factor(step: float, total_steps: int, warmup_steps: int, schedule: str) -> float:
    """Share of the base learning rate at optimizer step ``step`` (0-based) of ``total_steps``.

    Linear warm-up from 1 % over ``warmup_steps``, then the named schedule over what is left.
    """
    shape = choose(SCHEDULES, schedule, "schedule")
    if step < warmup_steps:
        return WARMUP_START + (1 - WARMUP_START) * step / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return shape(min(progress, 1.0))


def make_scheduler(
    optimizer: torch.optim.Optimizer,
    total_steps: int,
    warmup_steps: int,
    schedule: str,
    place: Callable[[int], float] = float,
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule of `learning_rate_factor`, stepped once an optimizer step.

    Args:
        place: where the schedule stands at an optimizer step: by default there, or elsewhere if it follows the time.
    """
    choose(SCHEDULES, schedule, "schedule")
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(place(step), total_steps, warmup_steps, schedule)
    )


class Optimization:
    """Optimizer, learning-rate schedule and fp16 loss scaler, which passes all through where it is not enabled."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LambdaLR,
        scaler: torch.amp.GradScaler,
        device: torch.device,
    ):
        self.optimizer, self.scheduler, self.scaler = optimizer, scheduler, scaler
        self._one = torch.ones((), device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def moments(self) -> list[torch.Tensor]:
        """What the optimizer keeps of the gradients."""
        return [value for state in self.optimizer.state.values() for value in state.values()]

    def clip(self, most: float | None) -> torch.Tensor:
        """The norm of all gradients together, taken off the loss scale; a larger one than ``most`` is cut to that."""
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters]).to(self._one)
        if most is not None:
            nn.utils.clip_grads_with_norm_(parameters, most, norm)
        return norm

    def step(self, norm: torch.Tensor) -> None:
        """A step of optimizer and schedule; the weights stay as they are if the gradients' ``norm`` is not finite.

        That is left to the device, as the loss scaler does it: asking for the norm would wait for a GPU. Apple's fused
        kernels pass ``found_inf`` over; there the norm is asked for.
        """
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
            self.update_scale()
        elif self.optimizer.defaults["fused"]:
            self.optimizer.found_inf = (~norm.isfinite()).to(torch.float32)  # type: ignore[attr-defined]
            self.optimizer.step()
        elif norm.isfinite():
            self.optimizer.step()
        self.scheduler.step()

    def update_scale(self) -> None:
        """Adapt the loss scale after a step, and count the step if it was skipped: the scale shrinks then."""
        scale = self.scaler.scale(self._one)  # as a tensor: get_scale() would wait for the GPU
        self.scaler.update()
        self._skipped += self.scaler.scale(self._one) < scale

    def take_skipped(self) -> int:
        """Steps skipped since the last call; the device is waited for."""
        skipped = int(self._skipped)
        self._skipped.zero_()
        return skipped
