"""Training steps side by side: plain, the naive distillation loop, live and cached teachers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from torch.utils.data import default_collate

from basics.batch import prepare_batch
from basics.timing import PartTimer, Timings, interleave
from benchmarks.naive import NaiveStep
from dataset import SegmentationDataset
from kd.cached_teacher import CachedTeacher, collate_for
from kd.distiller import DistilledStudent, Distiller, LiveTeacher, Recipe, Teacher, TeacherOutput
from kd.teacher_cache import open_teacher_cache
from networks.base import SegmentationModel
from networks.folding import fold_batchnorm
from segdata.transforms import TrainTransform
from student_model import StudentNet
from training.optim import Optimization, make_optimizer, make_scheduler
from zoo import build_model

P = ParamSpec("P")
T = TypeVar("T")

TEACHER = "fcn_resnet50"
PLAIN, NAIVE, LIVE = "plain", "naive distillation", "lean live"
CACHED, CACHED_FEATURES = "cached logits", "cached logits + features"
RECIPES = {
    PLAIN: Recipe({"ce": 1.0}),
    LIVE: Recipe({"ce": 1.0, "kl": 1.0, "cosine": 0.5}, temperature=4.0),
    CACHED: Recipe({"ce": 1.0, "kl": 1.0}, temperature=4.0),
    CACHED_FEATURES: Recipe({"ce": 1.0, "kl": 1.0, "cosine": 0.5}, temperature=4.0),
}


def untimed(name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """In the place of a `PartTimer`."""
    return function(*args, **kwargs)


class Step:
    """One optimizer step as the trainer takes it."""

    def __init__(self, student: StudentNet, recipe: Recipe, teacher: Teacher | None, device: torch.device):
        self.model = DistilledStudent(student, recipe, teacher).to(device).train()
        self.distiller = Distiller(self.model, student, recipe, teacher)
        optimizer = make_optimizer(self.model, "adamw", lr=5e-4, weight_decay=1e-2)
        scheduler = make_scheduler(optimizer, total_steps=100_000, warmup_steps=0, schedule="poly")
        scaler = torch.amp.GradScaler(device.type, enabled=False)
        self.optimization = Optimization(optimizer, scheduler, scaler, device)
        self.device = device

    def __call__(self, batch: dict, timer: PartTimer | None = None) -> None:
        time = timer or untimed
        batch = time("preparation", prepare_batch, batch, self.device)
        losses = self.distiller.losses(batch)
        total = self.distiller.total(losses)
        self.optimization.optimizer.zero_grad(set_to_none=True)
        time("backward", total.backward)
        norm = time("gradient norm", self.optimization.clip, None)
        time("optimizer", self.optimization.step, norm)

    def parts(self, batches: list[dict]) -> dict[str, float]:
        """Share of each part of a step; what the distiller spends beside both networks is the losses."""
        timer, whole = PartTimer(self.device), PartTimer(self.device)
        model, teacher = self.distiller.model, self.distiller.teacher
        self.distiller.model = _TimedModel(model, timer)
        if teacher is not None:
            self.distiller.teacher = _TimedTeacher(teacher, timer)
        try:
            for batch in batches:
                whole("step", self, batch, timer)
        finally:
            self.distiller.model, self.distiller.teacher = model, teacher
        timer.seconds["losses"] = max(whole.seconds["step"] - sum(timer.seconds.values()), 0.0)
        return timer.shares()


class _TimedModel(nn.Module):
    """A distiller's model, its forward pass timed."""

    def __init__(self, model: nn.Module, timer: PartTimer):
        super().__init__()
        self.model, self.timer = model, timer

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.timer("student forward", self.model, images)


class _TimedTeacher:
    """A teacher whose calls are timed."""

    def __init__(self, teacher: Teacher, timer: PartTimer):
        self.stride, self.logit_stride = teacher.stride, teacher.logit_stride
        self.tap_channels, self.tap_strides = teacher.tap_channels, teacher.tap_strides
        self._teacher, self._timer = teacher, timer

    def __call__(self, batch: dict) -> TeacherOutput:
        return self._timer("teacher", self._teacher, batch)


def bench_steps(
    dataset: SegmentationDataset,
    folder: Path,
    device: torch.device,
    *,
    crop_size: int,
    batch_size: int,
    rounds: int,
    cheap_rounds: int,
) -> dict[str, Any]:
    """Time the variants on crops of ``dataset``; the teacher's cache is made in ``folder``.

    Args:
        rounds: rounds of all variants.
        cheap_rounds: further rounds of those without a live teacher, whose ratios are close to 1.

    Returns:
        ``steps`` (seconds by variant), ``ratios``, ``shares`` of the parts by variant, and the cache's ``manifest``
        without the list of images.
    """
    data = copy.copy(dataset)
    data.transform = TrainTransform(crop_size)
    count = max(len(data) // batch_size, 1)
    samples = [[data[(batch * batch_size + n) % len(data), n] for n in range(batch_size)] for batch in range(count)]
    torch.manual_seed(0)
    teacher = build_model(TEACHER, data.num_classes)
    live = LiveTeacher(fold_batchnorm(teacher).to(device))  # folded on the CPU, as in training
    teacher.to(device)
    # The second reads the first's file.
    cached = {name: _open_cache(folder, teacher, data, name, device) for name in (CACHED_FEATURES, CACHED)}
    teachers: dict[str, Teacher | None] = {PLAIN: None, LIVE: live, **cached}
    steps = {name: Step(_student(data, device), RECIPES[name], teachers[name], device) for name in teachers}
    naive = NaiveStep(_student(data, device).train())
    batches = {name: [_collate(step, each, device) for each in samples] for name, step in steps.items()}

    def stepping(name: str) -> Callable[[int], object]:
        return lambda n: steps[name](batches[name][n % count])

    variants = {name: stepping(name) for name in steps}
    variants[NAIVE] = lambda n: naive(prepare_batch(batches[PLAIN][n % count], device))
    cheap = {name: variants[name] for name in (PLAIN, CACHED, CACHED_FEATURES)}
    near = interleave(cheap, cheap_rounds, 3, device)
    far = interleave(variants, rounds, 1, device)
    manifest = {key: value for key, value in cached[CACHED_FEATURES].manifest.items() if key != "made_from"}
    return {
        "steps": _seconds(near, far),
        "ratios": {
            "cached logits / plain": near.ratio(CACHED, PLAIN),
            "cached logits + features / plain": near.ratio(CACHED_FEATURES, PLAIN),
            "naive / cached logits": far.ratio(NAIVE, CACHED),
            "naive / cached logits + features": far.ratio(NAIVE, CACHED_FEATURES),
            "naive / lean live": far.ratio(NAIVE, LIVE),
        },
        "shares": {name: step.parts(batches[name][:3]) for name, step in steps.items()},
        "cache": manifest,
    }


def _collate(step: Step, samples: list[dict], device: torch.device) -> dict:
    """A batch; what a cache says of it comes along where loader processes have cores of their own to cut it out."""
    if device.type == "cpu":
        return default_collate(samples)
    return collate_for(step.distiller.teacher, step.distiller.stride)(samples)


def _open_cache(
    folder: Path, teacher: SegmentationModel, data: SegmentationDataset, variant: str, device: torch.device
) -> CachedTeacher:
    cached = open_teacher_cache(folder, teacher, TEACHER, data, recipe=RECIPES[variant], device=device)
    assert cached is not None  # it is built where there is none
    return cached


def _student(data: SegmentationDataset, device: torch.device) -> StudentNet:
    """The same untrained student for every variant."""
    torch.manual_seed(1)
    return StudentNet(data.num_classes).to(device)


def _seconds(near: Timings, far: Timings) -> Mapping[str, Any]:
    """By variant, in the order of the table; from the cheap rounds where there are some."""
    order = (PLAIN, CACHED, CACHED_FEATURES, LIVE, NAIVE)
    times = far.as_dict() | near.as_dict()
    return {name: times[name] for name in order}
