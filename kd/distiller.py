"""A student, its adapters and a frozen teacher -> a dict of named losses.

The student and its adapters are one module, `DistilledStudent`: what the optimizer trains. The teacher stands
aside, behind one small interface (`LiveTeacher`, or `kd.teacher_cache.CachedTeacher`), and is never part of any
state_dict. `Distiller` brings both sides to common grids and computes what the recipe asks for, nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from basics.batch import VOID
from basics.device import autocast
from basics.errors import UserError, choose
from basics.grids import adaptive_average, common_stride, to_stride, upsample_logits, valid_cells
from kd.loss_tools import wide
from kd.losses import LOSSES, adaptive_weights


def pixels_together(data: torch.Tensor | nn.Module):
    """``data`` in memory with a pixel's channels side by side, where PyTorch's convolutions are faster for it.

    On a CPU that is 4 to 8 % of a student's step, and 9 % of FCN-ResNet50's forward pass. Values stay the same.
    """
    module = isinstance(data, nn.Module)
    device = next(data.parameters(), torch.empty(0)).device if module else data.device
    if device.type == "mps":  # its kernels want the plain layout
        return data
    layout = torch.channels_last
    return data.to(memory_format=layout) if module else data.contiguous(memory_format=layout)


# A teacher runs so many images at a time on a CPU: the maps of more do not fit its caches (8 % of the time of
# FCN-ResNet50).
CPU_IMAGES = 2


@dataclass(frozen=True)
class Recipe:
    """Which losses make up the total, with which weights.

    Attributes:
        weights: weight by loss name, as in `kd.losses.LOSSES`; terms of weight 0 are left out.
        temperature: the T of every loss that softens logits.
        adaptive: shift weight from the soft and feature terms to the hard ones (see `adaptive_weights`).
    """

    weights: Mapping[str, float]
    temperature: float = 1.0
    adaptive: bool = False

    def __post_init__(self):
        for name, weight in self.weights.items():
            choose(LOSSES, name, "loss")
            if not math.isfinite(weight) or weight < 0:
                raise UserError(f"the weight of loss {name!r} must be finite and >= 0, not {weight}")
        if not self.temperature > 0:
            raise UserError(f"--temperature must be > 0, not {self.temperature}")
        object.__setattr__(self, "weights", {name: w for name, w in self.weights.items() if w != 0})
        if not self.names("hard"):
            raise UserError("no hard loss is left: give at least one of ce, focal, dice a weight above 0")

    def names(self, *kinds: str) -> list[str]:
        """Names of the terms of these kinds (hard, logits, features), in the recipe's order."""
        return [name for name in self.weights if LOSSES[name].kind in kinds]

    @property
    def needs_teacher(self) -> bool:
        return bool(self.names("logits", "features"))

    @property
    def taps(self) -> list[str]:
        """The feature maps that the recipe's feature losses look at."""
        return sorted({tap for name in self.names("features") for tap in LOSSES[name].taps})


@dataclass(frozen=True)
class TeacherOutput:
    """The teacher's word on one batch.

    Attributes:
        logits: (N, C, h, w) at the teacher's logit stride.
        taps: feature maps by tap name, at the teacher's tap strides.
    """

    logits: torch.Tensor
    taps: dict[str, torch.Tensor] = field(default_factory=dict)


class Teacher(Protocol):
    """What the distiller needs to know of a teacher, live or cached."""

    stride: int
    logit_stride: int
    tap_channels: dict[str, int]
    tap_strides: dict[str, int]

    def __call__(self, batch: dict) -> TeacherOutput:
        """``batch`` is a prepared batch whose images are padded to a multiple of the stride."""


class LiveTeacher:
    """A frozen `SegmentationModel`, run on every batch: eval mode, no gradient, never trained, never saved."""

    def __init__(self, model: nn.Module, amp: str = "off"):
        self.model = pixels_together(model.eval().requires_grad_(False))
        self.amp = amp
        self.stride, self.logit_stride = model.stride, model.logit_stride
        self.tap_channels, self.tap_strides = model.tap_channels, model.tap_strides

    @torch.no_grad()
    def __call__(self, batch: dict) -> TeacherOutput:
        # Re-asserted at every call: nothing outside can leave the teacher's BatchNorm or dropout in training mode.
        self.model.eval()
        images = pixels_together(batch["image"])
        parts = images.split(CPU_IMAGES) if images.device.type == "cpu" else [images]
        with autocast(images.device, self.amp):
            outputs = [self.model.forward_taps(part) for part in parts]
        if len(outputs) == 1:
            return TeacherOutput(*outputs[0])
        logits, taps = zip(*outputs, strict=True)
        return TeacherOutput(torch.cat(logits), {tap: torch.cat([part[tap] for part in taps]) for tap in taps[0]})


class DistilledStudent(nn.Module):
    """The student and the 1x1 adapters that lift its feature maps to the teacher's channels.

    Args:
        student: any `SegmentationModel`.
        recipe: decides which adapters there are: one for each tap of each feature loss that wants them.
        teacher: gives channels and strides; None where the recipe has hard terms only.

    Raises:
        UserError: student or teacher lacks a feature map that the recipe needs.
    """

    def __init__(self, student: nn.Module, recipe: Recipe, teacher: Teacher | None = None):
        super().__init__()
        self.student = student
        self.adapters = nn.ModuleDict()
        self.feature_terms = []
        if teacher is None:
            return
        for name in recipe.names("features"):
            for tap in LOSSES[name].taps:
                for role, model in (("student", student), ("teacher", teacher)):
                    if tap not in model.tap_channels:
                        known = ", ".join(model.tap_channels) or "none"
                        raise UserError(
                            f"loss {name!r} needs the feature map {tap!r}, which this {role} lacks (it has: {known})"
                        )
                self.feature_terms.append((name, tap))
                if LOSSES[name].adapter:
                    self.adapters[f"{name}_{tap}"] = nn.Conv2d(
                        student.tap_channels[tap], teacher.tap_channels[tap], kernel_size=1
                    )
        self.teacher_strides = dict(teacher.tap_strides)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """``images`` (N, 3, H, W) -> strided logits, and by ``term_tap`` the adapted map on the common grid."""
        logits, taps = self.student.forward_taps(images)
        adapted = {}
        for name, tap in self.feature_terms:
            stride = self.student.tap_strides[tap]
            target = common_stride(stride, self.teacher_strides[tap])
            # Average first: a 1x1 convolution commutes with it, and the coarser grid is cheaper.
            feature_map = to_stride(taps[tap], stride, target)
            key = f"{name}_{tap}"
            adapted[key] = self.adapters[key](feature_map) if key in self.adapters else feature_map
        return logits, adapted


class Distiller:
    """Computes the recipe's losses for one batch.

    Args:
        model: a `DistilledStudent`, possibly wrapped (DistributedDataParallel, torch.compile).
        student: the bare student, for its strides.
        recipe: the losses and weights.
        teacher: a live or cached teacher; required exactly if the recipe needs one.
        class_weights: (C,) weights of the hard losses, or None.
        amp: autocast mode of the student's forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        student: nn.Module,
        recipe: Recipe,
        teacher: Teacher | None = None,
        class_weights: torch.Tensor | None = None,
        amp: str = "off",
    ):
        if recipe.needs_teacher != (teacher is not None):
            raise ValueError("a teacher is given exactly when the recipe has soft or feature terms")
        self.model, self.student, self.recipe, self.teacher = model, student, recipe, teacher
        self.class_weights = class_weights
        self.amp = amp
        self.stride = common_stride(student.stride, teacher.stride) if teacher else student.stride

    def losses(self, batch: dict) -> dict[str, torch.Tensor]:
        """Unweighted losses by name for a prepared batch (see `basics.batch.prepare_batch`)."""
        batch = pad_batch(batch, self.stride)
        images, mask, valid = batch["image"], batch["mask"], batch["valid"]
        images = pixels_together(images)
        with autocast(images.device, self.amp):
            logits, adapted = self.model(images)
        logits = logits.float().contiguous()  # in the plain layout, as the teacher's, and faster at full size
        full = upsample_logits(logits, self.student.logit_stride, mask.shape[-2:])
        losses = {
            name: LOSSES[name].fn(full, mask, class_weights=self.class_weights) for name in self.recipe.names("hard")
        }
        if self.teacher is None:
            return losses
        told = self.teacher(batch)
        for name in self.recipe.names("logits"):
            losses[name] = self._logit_loss(name, logits, told.logits, valid)
        for name in self.recipe.names("features"):
            taps = LOSSES[name].taps
            losses[name] = sum(
                self._feature_loss(name, adapted[f"{name}_{tap}"], told.taps[tap], tap, valid) for tap in taps
            ) / len(taps)
        return losses

    def total(self, losses: Mapping[str, torch.Tensor], progress: float = 0.0) -> torch.Tensor:
        """Weighted sum of ``losses``; ``progress`` in 0..1 is the share of training done (adaptive recipes)."""
        hard_factor, soft_factor = adaptive_weights(progress) if self.recipe.adaptive else (1.0, 1.0)
        return sum(
            weight * (hard_factor if LOSSES[name].kind == "hard" else soft_factor) * losses[name]
            for name, weight in self.recipe.weights.items()
        )

    def _logit_loss(self, name, student_logits, teacher_logits, valid) -> torch.Tensor:
        spec = LOSSES[name]
        target = common_stride(self.student.logit_stride, self.teacher.logit_stride)
        student_logits = to_stride(student_logits, self.student.logit_stride, target)
        teacher_logits = to_stride(teacher_logits.float().contiguous(), self.teacher.logit_stride, target)
        options = {"temperature": self.recipe.temperature} if spec.uses_temperature else {}
        return self._on_bounded_grid(spec, student_logits, teacher_logits, valid_cells(valid, target), **options)

    def _feature_loss(self, name, student_map, teacher_map, tap, valid) -> torch.Tensor:
        spec = LOSSES[name]
        stride = self.teacher.tap_strides[tap]
        target = common_stride(self.student.tap_strides[tap], stride)
        # Element by element with the student's map: with two layouts that takes several times as long.
        teacher_map = pixels_together(to_stride(teacher_map, stride, target))
        return self._on_bounded_grid(spec, student_map, teacher_map, valid_cells(valid, target))

    @staticmethod
    def _on_bounded_grid(spec, student_map, teacher_map, valid, **options) -> torch.Tensor:
        """Average both maps to at most ``max_grid`` cells a side, for losses that compare every pair of cells."""
        height, width = valid.shape[-2:]
        if spec.max_grid and max(height, width) > spec.max_grid:
            size = (min(height, spec.max_grid), min(width, spec.max_grid))
            student_map = adaptive_average(wide(student_map), size)
            teacher_map = adaptive_average(wide(teacher_map), size)
            valid = adaptive_average((~valid)[:, None].float(), size)[:, 0] == 0
        return spec.fn(student_map, teacher_map, valid, **options)


def pad_batch(batch: dict, stride: int) -> dict:
    """Pad a prepared batch on the right and bottom to a multiple of ``stride``.

    Student and teacher then see the same pixels whatever their own strides are. What is added is
    padding: images 0 (the mean colour), mask 255, valid False; the box grows by what it stands for.
    """
    height, width = batch["image"].shape[-2:]
    pad = (0, -width % stride, 0, -height % stride)
    if not any(pad):
        return batch
    padded = {
        "image": F.pad(batch["image"], pad),
        "mask": F.pad(batch["mask"], pad, value=VOID),
        "valid": F.pad(batch["valid"], pad, value=False),
    }
    if "box" in batch:
        x0, y0, x1, y1 = batch["box"].unbind(1)
        right, bottom = (x1 - x0) / width * pad[1], (y1 - y0) / height * pad[3]
        flip = batch["flip"]  # the right of a flipped crop is the left of its window
        grown = (torch.where(flip, x0 - right, x0), y0, torch.where(flip, x1, x1 + right), y1 + bottom)
        padded["box"] = torch.stack(grown, dim=1)
    return batch | padded
