"""Whole training loops side by side, loader and all: ours, torchvision's reference and Hugging Face's Trainer.

All train the same student on as many pictures of one split, batch after batch of the same size, plainly (cross-entropy)
and with a teacher (cross-entropy + T^2 KL of the logits), with as many loader processes each. The other two are written
as their authors write them: `references/segmentation/train.py` of torchvision, and the guide to knowledge distillation
in the documentation of transformers, whose `compute_loss` asks the teacher for every batch.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from basics.batch import VOID
from basics.checkpoint import save_atomic
from basics.device import synchronize
from basics.machine import loader_processes
from basics.signals import StopSignal
from benchmarks.naive import NaiveDataset
from dataset import SegmentationDataset
from student_model import StudentNet
from training.arguments import Arguments, get_args_parser
from training.recipe import make_recipe
from training.trainer import Trainer
from zoo import build_model, model_file_dict

OURS, TORCHVISION, HUGGING_FACE = "ours", "torchvision's reference loop", "Hugging Face's Trainer"
PLAIN, LIVE, CACHED = "plain", "distillation", "distillation, cached teacher"
TEMPERATURE = 4.0
WARMUP_STEPS = {"cpu": 2, "cuda": 64, "mps": 4}  # on a GPU more than loader processes fetch ahead


class StepClock:
    """Seconds a step, from the end of the warm-up to the last step; the device is waited for at these two alone.

    Args:
        steps: that are timed.
    """

    def __init__(self, steps: int, device: torch.device):
        self.warmup, self.device, self.done = WARMUP_STEPS[device.type], device, 0
        self.steps = self.warmup + steps
        self.marks: list[float] = []

    def tick(self) -> None:
        """A step is done."""
        self.done += 1
        if self.done in (self.warmup, self.steps):
            synchronize(self.device)
            self.marks.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        begin, end = self.marks
        return (end - begin) / (self.steps - self.warmup)


class OtherPictures(torch.utils.data.Dataset):
    """The usual pipeline (see `benchmarks.naive.NaiveDataset`) as a data set that comes round as often as needed."""

    def __init__(self, dataset: SegmentationDataset, crop_size: int, length: int):
        self.pictures, self.count, self.length = NaiveDataset(dataset, crop_size), len(dataset), length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pixels, mask = self.pictures[index % self.count]
        return {"pixel_values": pixels, "labels": mask}


class WithLoss(nn.Module):
    """Student and teacher as both other loops want them: images and labels in, loss and logits out."""

    def __init__(self, student: nn.Module, teacher: nn.Module | None):
        super().__init__()
        self.student = student
        self.teacher = [teacher]  # out of sight of parameters()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.student(pixel_values)  # (N, C, H, W), at full size as torchvision's models give them
        loss = F.cross_entropy(logits, labels, ignore_index=VOID)
        teacher = self.teacher[0]
        if teacher is not None:
            with torch.no_grad():
                told = teacher(pixel_values)
            log_s, p_t = F.log_softmax(logits / TEMPERATURE, 1), F.softmax(told / TEMPERATURE, 1)
            loss = loss + TEMPERATURE**2 * F.kl_div(log_s, p_t, reduction="none").sum(1).mean()
        return {"loss": loss, "logits": logits}


# -- the loops ---------------------------------------------------------------------------------------


def torchvision_loop(model: WithLoss, data: OtherPictures, batch_size: int, workers: int, clock: StepClock) -> None:
    """`train_one_epoch` of torchvision's references/segmentation, which looks at the loss of every step."""
    loader = DataLoader(data, batch_size=batch_size, shuffle=True, num_workers=workers, drop_last=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    scheduler = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=clock.steps, power=0.9)
    model.train()
    for batch in loader:
        images, target = batch["pixel_values"].to(clock.device), batch["labels"].to(clock.device)
        loss = model(images, target)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        loss.item()  # for its log
        clock.tick()


def hugging_face_loop(
    model: WithLoss, data: OtherPictures, batch_size: int, workers: int, clock: StepClock, folder: Path
) -> None:
    """transformers' Trainer, its logging and saving off."""
    from transformers import Trainer as HuggingFaceTrainer
    from transformers import TrainerCallback, TrainingArguments

    class Ticking(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            clock.tick()

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch_size,
        max_steps=clock.steps,
        learning_rate=5e-4,
        dataloader_num_workers=workers,
        dataloader_drop_last=True,
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=clock.device.type == "cpu",
    )
    HuggingFaceTrainer(model, arguments, train_dataset=data, callbacks=[Ticking()]).train()


def our_loop(args: Arguments, clock: StepClock) -> float:
    """An epoch of `training.trainer.Trainer`; returns the share of the timed steps spent waiting for pictures."""
    before = [0.0, 0.0]  # waiting and steps of the warm-up

    class Ticking(Trainer):
        def train_step(self, batch: dict) -> torch.Tensor:
            losses = super().train_step(batch)
            clock.tick()
            if clock.done == clock.warmup:
                before[:] = self.progress.data_s, self.progress.step_s
            return losses

    trainer = Ticking(args, make_recipe(args))
    with StopSignal() as stop:
        trainer.train_epoch(stop)
    if stop.requested:  # it has ended early: there is nothing to measure
        raise KeyboardInterrupt
    waited, stepped = trainer.progress.data_s - before[0], trainer.progress.step_s - before[1]
    return waited / (waited + stepped)


def missing_packages() -> list[str]:
    """What Hugging Face's Trainer needs and is not there."""
    return [name for name in ("transformers", "accelerate") if importlib.util.find_spec(name) is None]


# -- side by side ------------------------------------------------------------------------------------


def place_of(args: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The arguments of train_kd.py that name the data of `bench.choose_pictures`."""
    if not args.dataset:
        return {"dataset": "folder", "data_dir": folder / "pictures"}
    classes = {} if args.classes is None else {"classes": args.classes}
    return {"dataset": args.dataset, "data_dir": args.data_dir, **classes}


def bench_loops(
    dataset: SegmentationDataset,
    place: Mapping[str, object],
    folder: Path,
    device: torch.device,
    teacher: str,
    *,
    crop_size: int,
    batch_size: int,
    steps: int,
    rounds: int,
) -> dict[str, Any]:
    """Time all loops, interleaved, in a fresh process's state each: new student, new loader processes.

    Args:
        place: the arguments of train_kd.py that name the data of ``dataset``.
        folder: for the teacher's file, its cache and the loops' own files.
        teacher: its name in the zoo; its weights are random.
        steps: of each loop in each round that are timed, after a warm-up.

    Returns:
        images a second and, of ours, the share of waiting, by loop; the ratios; what is left out.
    """
    workers, absent = loader_processes(None, device), missing_packages()
    network = _make_teacher(teacher, dataset, folder).to(device)
    common: dict[str, object] = {
        **place, "labels": len(dataset), "val_split": "train", "student_weights": "none", "crop_size": crop_size,
        "batch_size": batch_size, "epoch_images": StepClock(steps, device).steps * batch_size, "epochs": 1,
        "workers": workers, "amp": "off", "device": device.type, "output_dir": folder, "name": "run",
    }  # fmt: skip
    ours = _by_kind(common, teacher, folder)
    data = OtherPictures(dataset, crop_size, StepClock(steps, device).steps * batch_size)
    waiting: dict[str, list[float]] = {}

    def run_ours(kind: str, clock: StepClock) -> None:
        waiting.setdefault(kind, []).append(our_loop(ours[kind], clock))

    def run_other(loop: str, kind: str, clock: StepClock) -> None:
        torch.manual_seed(1)
        student = StudentNet(dataset.num_classes).to(device)
        model = WithLoss(student, network if kind == LIVE else None)
        if loop == TORCHVISION:
            torchvision_loop(model, data, batch_size, workers, clock)
        else:
            hugging_face_loop(model, data, batch_size, workers, clock, folder)

    variants: dict[tuple[str, str], Callable[[StepClock], None]] = {}
    variants |= {(OURS, kind): functools.partial(run_ours, kind) for kind in ours}
    for loop in (TORCHVISION, *([] if absent else [HUGGING_FACE])):
        variants |= {(loop, kind): functools.partial(run_other, loop, kind) for kind in (PLAIN, LIVE)}
    seconds = _interleaved(variants, rounds, steps, device)
    return {
        "images_per_s": {
            f"{kind}: {loop}": batch_size / statistics.median(seconds[loop, kind]) for loop, kind in variants
        },
        "waiting": {kind: statistics.median(shares) for kind, shares in waiting.items()},
        "workers": workers,
        "ratios": _ratios(seconds),
        "left_out": f"{HUGGING_FACE}: pip install {' '.join(absent)}" if absent else "",
    }


def _interleaved(
    variants: Mapping[tuple[str, str], Callable[[StepClock], None]], rounds: int, steps: int, device: torch.device
) -> dict[tuple[str, str], list[float]]:
    """Seconds a step of each variant, round by round."""
    seconds: dict[tuple[str, str], list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            clock = StepClock(steps, device)
            with contextlib.redirect_stdout(io.StringIO()):  # what our runs say of data and cache
                run(clock)
            seconds[name].append(clock.seconds)
    return seconds


def _make_teacher(name: str, dataset: SegmentationDataset, folder: Path) -> nn.Module:
    """A frozen network of random weights, also as a file in ``folder``."""
    torch.manual_seed(0)
    network = build_model(name, dataset.num_classes).eval().requires_grad_(False)
    save_atomic(model_file_dict(name, network, dataset), folder / "teacher.pth")
    return network


def _by_kind(common: Mapping[str, object], teacher: str, folder: Path) -> dict[str, Arguments]:
    """The arguments of our runs by kind; the teacher's file and its cache lie in ``folder``."""
    taught = {"alpha": 1, "temperature": TEMPERATURE, "teacher": teacher, "teacher_weights": folder / "teacher.pth"}
    cached = taught | {"cache_teacher": "fp16", "cache_dir": folder / "cache"}
    kinds: dict[str, Mapping[str, object]] = {PLAIN: {}, LIVE: taught, CACHED: cached}
    words = {
        kind: [
            word for name, value in {**common, **more}.items() for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        for kind, more in kinds.items()
    }
    return {kind: get_args_parser().parse_args(each) for kind, each in words.items()}


def _ratios(seconds: Mapping[tuple[str, str], list[float]]) -> dict[str, float]:
    """Medians of ratios within a round, of seconds a step."""
    pairs = {
        "loop, live / plain": ((OURS, LIVE), (OURS, PLAIN)),
        "loop, cached / plain": ((OURS, CACHED), (OURS, PLAIN)),
        "torchvision's loop / ours, plain": ((TORCHVISION, PLAIN), (OURS, PLAIN)),
        "torchvision's loop / ours, live": ((TORCHVISION, LIVE), (OURS, LIVE)),
        "torchvision's loop / ours, cached": ((TORCHVISION, LIVE), (OURS, CACHED)),
        "Hugging Face's Trainer / ours, plain": ((HUGGING_FACE, PLAIN), (OURS, PLAIN)),
        "Hugging Face's Trainer / ours, live": ((HUGGING_FACE, LIVE), (OURS, LIVE)),
        "Hugging Face's Trainer / ours, cached": ((HUGGING_FACE, LIVE), (OURS, CACHED)),
    }
    return {
        name: statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))
        for name, (one, other) in pairs.items()
        if one in seconds
    }
