"""A student, its adapters and a frozen teacher -> a dict of named losses.

The student and its adapters are one module, `DistilledStudent`: what the optimizer trains. The teacher stands
aside, behind one small interface (`LiveTeacher`, or `kd.cached_teacher.CachedTeacher`), and is never part of any
state_dict. `Distiller` brings both sides to common grids and computes what the recipe asks for, nothing else.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation.fcn import FCNHead

from basics import distributed
from basics.batch import VOID
from basics.device import autocast, constant_on
from basics.errors import UserError
from basics.grids import adaptive_average, common_stride, to_stride, upsample_logits, valid_cells
from kd.hard_losses import ce, upsampled_ce
from kd.loss_tools import wide
from kd.losses import LossSpec, Recipe, adaptive_weights, loss_of
from kd.maps import Grids, require_maps
from networks.logits import fault_of_logits

# A teacher runs so many images at a time on a CPU: the maps of more do not fit its caches (8 % of the time of
# FCN-ResNet50).
CPU_IMAGES = 2
OWN = ""  # in the place of a tap: the student's own logits, not those of an auxiliary head


class Network(Grids, Protocol):
    """A module that distillation can look into, as a student or a teacher: any `networks.base.SegmentationModel`."""

    num_classes: int

    def forward_taps(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """``images`` (N, 3, H, W) -> strided logits and feature maps by tap name."""


@dataclass(frozen=True)
class TeacherOutput:
    """The teacher's word on one batch.

    Attributes:
        logits: (N, K, h, w) at the teacher's logit stride, of the student's classes in their order.
        taps: feature maps by tap name, at the teacher's tap strides.
        classes: which of the student's classes the K are; None: all.
        speaks: bool (N, h, w), False where losses on logits must not listen; None: nowhere.
    """

    logits: torch.Tensor
    taps: dict[str, torch.Tensor] = field(default_factory=dict)
    classes: tuple[int, ...] | None = None
    speaks: torch.Tensor | None = None


class Teacher(Grids, Protocol):
    """What the distiller needs to know of a teacher, live or cached."""

    def __call__(self, batch: dict) -> TeacherOutput:
        """``batch`` is a prepared batch whose images are padded to a multiple of the stride."""


class FirstWord:
    """Looks at a teacher's first logits of real images: what is not finite, or probabilities already, is refused.

    Once, for looking waits for the device.
    """

    def __init__(self, teacher: str):
        self.teacher = teacher
        self.seen = False

    def look(self, logits: torch.Tensor, ids: Iterable[str] = ()) -> None:
        """A `UserError` that names the teacher, and the images ``ids``, if (N, C, h, w) are no logits."""
        if self.seen:
            return
        if fault := fault_of_logits(logits):
            images = ", ".join(ids)
            where = f" of the images {images}" if images else ""
            raise UserError(f"what the teacher {self.teacher} says{where} is {fault}")
        self.seen = True


class LiveTeacher:
    """A frozen network, run on every batch: eval mode, no gradient, never trained, never saved.

    Args:
        name: what to call it in messages.
        compiled: by `torch.compile`, for each size of batches anew.

    Raises:
        UserError: on the first batch, if its outputs are no logits.
    """

    def __init__(self, model: Network, amp: str = "off", name: str = "network", *, compiled: bool = False):
        assert isinstance(model, nn.Module)
        self.first_word = FirstWord(name)
        self.model = model.eval().requires_grad_(False)
        if likes_pixels_together(next(model.parameters(), torch.empty(0)).device, amp):
            self.model.to(memory_format=torch.channels_last)
        self.amp = amp
        self.forward_taps = (
            torch.compile(self.model.forward_taps, dynamic=False) if compiled else self.model.forward_taps
        )
        self.stride, self.logit_stride = model.stride, model.logit_stride
        self.tap_channels, self.tap_strides = model.tap_channels, model.tap_strides

    @torch.no_grad()
    def __call__(self, batch: dict) -> TeacherOutput:
        # Re-asserted at every call: nothing outside can leave the teacher's BatchNorm or dropout in training mode.
        self.model.eval()
        images = pixels_together(batch["image"], self.amp)
        parts = images.split(CPU_IMAGES) if images.device.type == "cpu" else [images]
        with autocast(images.device, self.amp):
            outputs = [self.forward_taps(part) for part in parts]
        # Of images that are not finite it is not the teacher's fault, and the loss tells.
        if not self.first_word.seen and parts[0].isfinite().all():
            self.first_word.look(outputs[0][0], batch.get("id", ())[: len(parts[0])])
        if len(outputs) == 1:
            return TeacherOutput(*outputs[0])
        logits, taps = zip(*outputs, strict=True)
        return TeacherOutput(torch.cat(logits), {tap: torch.cat([part[tap] for part in taps]) for tap in taps[0]})


class DistilledStudent(nn.Module):
    """The student, the 1x1 adapters that lift its feature maps to the teacher's channels, and its auxiliary heads.

    A head is that of torchvision's FCN (3x3 convolution to a quarter of the channels, BatchNorm, ReLU, dropout, 1x1),
    whose training recipe gives it the weight 0.5 (Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017, has 0.4).

    Args:
        student: the network to train.
        recipe: decides which adapters there are: one for each tap of each feature loss that wants them; and which
            heads: one for each tap that a hard term or one on logits names.
        teacher: gives channels and strides; None where the recipe has hard terms only.

    Raises:
        UserError: student or teacher lacks a feature map that the recipe needs.
    """

    def __init__(self, student: Network, recipe: Recipe, teacher: Teacher | None = None):
        super().__init__()
        self.student = student
        self.adapters = nn.ModuleDict()
        self.feature_terms: list[tuple[str, str]] = []
        self.heads = recipe.heads
        require_maps(student, recipe, teacher)
        for tap in self.heads:
            self.adapters[head_name(tap)] = FCNHead(student.tap_channels[tap], student.num_classes)
        if teacher is None:
            return
        for name in recipe.names("features"):
            for tap in loss_of(name).taps:
                self.feature_terms.append((name, tap))
                if loss_of(name).adapter:
                    self.adapters[f"{name}_{tap}"] = nn.Conv2d(
                        student.tap_channels[tap], teacher.tap_channels[tap], kernel_size=1
                    )
        self.teacher_strides = dict(teacher.tap_strides)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """``images`` (N, 3, H, W) -> strided logits, and by name what adapters and heads make of the feature maps.

        By ``term_tap`` the adapted map on the common grid, by ``head_tap`` logits at the stride of the map.
        """
        logits, taps = self.student.forward_taps(images)
        adapted = {head_name(tap): self.adapters[head_name(tap)](taps[tap]) for tap in self.heads}
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

    A hard loss is the mean over labelled pixels, times the share of the batch's images that are labelled: one labelled
    image among many weighs what it would in plain training.

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
        student: Network,
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
        images = pixels_together(images, self.amp)
        with autocast(images.device, self.amp):
            logits, adapted = self.model(images)
        # In the plain layout, as the teacher's, and faster at full size.
        said = {OWN: (logits.float().contiguous(), self.student.logit_stride)}
        for tap in self.recipe.heads:
            said[tap] = adapted[head_name(tap)].float().contiguous(), self.student.tap_strides[tap]
        losses = self._hard_losses(said, mask, batch.get("labelled"))
        if self.teacher is None:
            return losses
        told = self.teacher(batch)
        for name in self.recipe.names("logits"):
            losses[name] = _mean(self._logit_loss(name, *said[tap], told, valid) for tap in loss_of(name).taps or [OWN])
        for name in self.recipe.names("features"):
            taps = loss_of(name).taps
            by_tap = (self._feature_loss(name, adapted[f"{name}_{tap}"], told.taps[tap], tap, valid) for tap in taps)
            losses[name] = _mean(by_tap)
        return losses

    def total(self, losses: Mapping[str, torch.Tensor], progress: float = 0.0) -> torch.Tensor:
        """Weighted sum of ``losses``; ``progress`` in 0..1 is the share of training done (adaptive recipes)."""
        hard_factor, soft_factor = adaptive_weights(progress) if self.recipe.adaptive else (1.0, 1.0)
        return _sum(
            weight * (hard_factor if loss_of(name).kind == "hard" else soft_factor) * losses[name]
            for name, weight in self.recipe.weights.items()
        )

    def _hard_losses(
        self, said: Mapping[str, tuple[torch.Tensor, int]], mask: torch.Tensor, labelled: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """``said``: logits and their stride of the student itself (`OWN`) and of its heads, by their taps."""
        places = {name: loss_of(name).taps or (OWN,) for name in self.recipe.names("hard")}
        if not places:
            return {}
        weights, size = self.class_weights, mask.shape[-2:]
        # The usual step, faster on a CPU, where the logits are coarser than the mask.
        coarse = all(stride > 1 for _, stride in said.values())
        if mask.device.type == "cpu" and coarse and all(loss_of(name).fn is ce for name in places):
            losses = {
                name: _mean(upsampled_ce(*said[tap], mask, weights) for tap in taps) for name, taps in places.items()
            }
        else:
            full = {tap: upsample_logits(*said[tap], size) for tap in dict.fromkeys(sum(places.values(), ()))}
            losses = {
                name: _mean(loss_of(name).fn(full[tap], mask, class_weights=weights) for tap in taps)
                for name, taps in places.items()
            }
        if labelled is None:
            return losses
        share = distributed.mean_over_ranks(labelled.to(said[OWN][0]).mean())
        return {name: share * loss for name, loss in losses.items()}

    def _logit_loss(
        self, name: str, student_logits: torch.Tensor, own_stride: int, told: TeacherOutput, valid: torch.Tensor
    ) -> torch.Tensor:
        assert self.teacher is not None
        spec, stride = loss_of(name), self.teacher.logit_stride
        target = common_stride(own_stride, stride)
        student_logits = to_stride(student_logits, own_stride, target)
        if told.classes is not None:  # the teacher has no word on the others: compared is what both can say
            known = constant_on(student_logits.device, told.classes, torch.int64)
            student_logits = student_logits.index_select(1, known)
        teacher_logits = to_stride(told.logits.float().contiguous(), stride, target)
        heard = valid_cells(valid, target)
        if told.speaks is not None:
            heard = heard & valid_cells(told.speaks, target // stride)
        return _on_bounded_grid(spec, student_logits, teacher_logits, heard, **self._options(spec, target))

    def _feature_loss(
        self, name: str, student_map: torch.Tensor, teacher_map: torch.Tensor, tap: str, valid: torch.Tensor
    ) -> torch.Tensor:
        assert self.teacher is not None
        spec = loss_of(name)
        stride = self.teacher.tap_strides[tap]
        target = common_stride(self.student.tap_strides[tap], stride)
        # Element by element with the student's map: with two layouts that takes several times as long.
        teacher_map = to_stride(teacher_map, stride, target)
        if student_map.is_contiguous(memory_format=torch.channels_last):
            teacher_map = teacher_map.contiguous(memory_format=torch.channels_last)
        return _on_bounded_grid(
            spec, student_map, teacher_map, valid_cells(valid, target), **self._options(spec, target)
        )

    def _options(self, spec: LossSpec, stride: int) -> dict[str, float]:
        """What else the loss takes, on a grid of ``stride`` pixels a cell."""
        options = {"temperature": self.recipe.temperature} if spec.uses_temperature else {}
        return options | ({"stride": stride} if spec.uses_stride else {})


def _on_bounded_grid(
    spec: LossSpec, student_map: torch.Tensor, teacher_map: torch.Tensor, valid: torch.Tensor, **options: float
) -> torch.Tensor:
    """The loss of two maps; one that compares every pair of cells has them averaged to ``max_grid`` a side first."""
    height, width = valid.shape[-2:]
    if spec.max_grid and max(height, width) > spec.max_grid:
        size = (min(height, spec.max_grid), min(width, spec.max_grid))
        student_map = adaptive_average(wide(student_map), size)
        teacher_map = adaptive_average(wide(teacher_map), size)
        valid = adaptive_average((~valid)[:, None].float(), size)[:, 0] == 0
    return spec.fn(student_map, teacher_map, valid, **options)


def head_name(tap: str) -> str:
    """What the auxiliary head on a feature map is called among the adapters."""
    return f"head_{tap}"


def _mean(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """Of one term at least."""
    terms = list(terms)
    return _sum(terms) / len(terms)


def _sum(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """Of one term at least; the builtin would have it that the sum may be the number 0."""
    return functools.reduce(operator.add, terms)


def likes_pixels_together(device: torch.device, amp: str) -> bool:
    """Whether PyTorch's convolutions are faster there with a pixel's channels side by side in memory.

    On a CPU that is 4 to 8 % of a student's step, and 9 % of FCN-ResNet50's forward pass. Tensor cores of NVIDIA's GPUs
    want it in half precision; in float32 it takes depthwise convolutions to slower kernels. Those of MPS want the plain
    layout.
    """
    return device.type == "cpu" or (device.type == "cuda" and amp != "off")


def pixels_together(images: torch.Tensor, amp: str) -> torch.Tensor:
    """``images`` (N, 3, H, W), the same values, in the memory layout that suits their device and ``amp``."""
    if not likes_pixels_together(images.device, amp):
        return images
    return images.contiguous(memory_format=torch.channels_last)


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
