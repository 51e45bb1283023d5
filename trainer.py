"""One training run: the student and all that trains it, scores it, writes it down and brings it back.

`train_kd.py` is the script; this is the loop behind it.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from dataset import EpochSampler, build_dataset
from evaluate import Evaluation, evaluate_model, lab_score
from kd.batch import prepare_batch
from kd.checkpoint import load_file, save_atomic
from kd.device import check_amp, pick_device
from kd.distiller import DistilledStudent, Distiller, LiveTeacher, Recipe
from kd.errors import UserError
from kd.optim import make_optimizer, make_scheduler
from kd.runlog import RunLog
from kd.train_state import (
    Progress,
    StopSignal,
    ignore_stop_signals,
    refuse_changes,
    restore_training,
    training_state,
)
from models.cost import count_parameters
from segdata.transforms import TrainTransform
from zoo import create_model, load_model_state, load_teacher, model_file_dict

FINITE_CHECK_STEPS = 20


@dataclass(frozen=True)
class Stage:
    """A stretch of epochs with one batch size and crop size; the backbone is frozen in the first of two."""

    batch_size: int
    crop_size: int
    frozen: bool


class Trainer:
    """One run: the student and all that trains it, evaluates it, writes it down and brings it back."""

    def __init__(self, args: argparse.Namespace, recipe: Recipe):
        self.args, self.recipe = args, recipe
        self.device = pick_device(args.device)
        check_amp(self.device, args.amp)
        self.folder, self.resume_from = self._locate_run()
        self._build_data()
        self._build_models()
        self._build_optimization()
        self.progress = Progress()
        if self.resume_from:
            self._resume()
        self.log = RunLog(
            self.folder,
            {**self.arguments, "recipe": dict(self.recipe.weights)},
            tensorboard=args.tensorboard,
            wandb=args.wandb,
            resume=self.resume_from is not None,
        )
        self.log.truncate_after(self.progress.epoch)

    # -- building ------------------------------------------------------------------------------

    def _locate_run(self) -> tuple[Path, Path | None]:
        """The run folder, and the last.pth to go on from (or None)."""
        args = self.args
        if args.resume and args.resume != "auto":
            return args.output_dir / args.name, Path(args.resume)
        folder = args.output_dir / args.name
        last = folder / "last.pth"
        return folder, last if args.resume and last.exists() else None

    def _build_data(self) -> None:
        args = self.args
        self.train_set = build_dataset(args.dataset, args.data_dir, args.train_split)
        self.val_set = build_dataset(args.dataset, args.data_dir, args.val_split)
        self.sampler = EpochSampler(len(self.train_set), args.seed)
        self.stage = self.loader = None
        first = self.steps_in(self.stage_of(0))
        self.total_steps = sum(self.steps_in(self.stage_of(epoch)) for epoch in range(args.epochs))
        self.warmup_steps = round(args.warmup_epochs * first)

    def stage_of(self, epoch: int) -> Stage:
        args = self.args
        if epoch < args.freeze_epochs:
            batch_size, crop_size = args.freeze_batch_size, args.freeze_crop_size
            return Stage(batch_size or args.batch_size, crop_size or args.crop_size, frozen=True)
        return Stage(args.batch_size, args.crop_size, frozen=False)

    def steps_in(self, stage: Stage) -> int:
        """Optimizer steps an epoch; what is left over of the split is seen in another epoch's order."""
        steps = len(self.train_set) // stage.batch_size
        if steps == 0:
            raise UserError(
                f"--batch-size {stage.batch_size}: the split {self.args.train_split} has only "
                f"{len(self.train_set)} images"
            )
        return steps

    def enter_stage(self, stage: Stage) -> None:
        """Set the loader, and what is trained, for the epoch that begins."""
        if stage != self.stage:
            self.stage = stage
            self.train_set.transform = TrainTransform(stage.crop_size)
            self.loader = DataLoader(
                self.train_set,
                batch_size=stage.batch_size,
                sampler=self.sampler,
                drop_last=True,
                num_workers=self.args.workers,
                persistent_workers=self.args.workers > 0,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=ignore_stop_signals if self.args.workers else None,
                generator=torch.Generator(),  # its own: making an iterator leaves the global one alone
            )
        self.model.train()
        self.student.backbone.requires_grad_(not stage.frozen)
        if stage.frozen:
            self.student.backbone.eval()  # its BatchNorm keeps the pretrained statistics, too

    def _build_models(self) -> None:
        args, classes = self.args, self.train_set.num_classes
        torch.manual_seed(args.seed)
        self.student = create_model(args.student, classes, args.student_weights).to(self.device)
        teacher = None
        if self.recipe.needs_teacher:
            model = load_teacher(args.teacher, classes, args.teacher_weights, self.train_set.class_names)
            teacher = LiveTeacher(model.to(self.device), args.amp)
        self.model = DistilledStudent(self.student, self.recipe, teacher).to(self.device)
        # Seeded anew: how many numbers the adapters took must not change the student's dropout.
        torch.manual_seed(args.seed)
        model = torch.compile(self.model) if args.compile else self.model
        self.distiller = Distiller(model, self.student, self.recipe, teacher, amp=args.amp)

    def _build_optimization(self) -> None:
        args = self.args
        self.optimizer = make_optimizer(self.model, args.optimizer, args.lr, args.weight_decay)
        self.scheduler = make_scheduler(self.optimizer, self.total_steps, self.warmup_steps, args.schedule)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.amp == "fp16")
        self.terms = [*self.recipe.weights, "loss"]
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        self.loss_sums = torch.zeros(len(self.terms), dtype=exact, device=self.device)

    # -- saving and resuming -------------------------------------------------------------------

    @property
    def arguments(self) -> dict[str, object]:
        return {key: str(value) if isinstance(value, Path) else value for key, value in vars(self.args).items()}

    @property
    def _parts(self) -> dict[str, object]:
        return {
            "adapters": self.model.adapters,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }

    def _resume(self) -> None:
        path = self.resume_from
        checkpoint = load_file(path)
        if "training" not in checkpoint:
            raise UserError(f"{path} holds a student without its training state: resume from a last.pth")
        state = checkpoint["training"]
        refuse_changes(state.get("arguments", {}), self.arguments, self.args.allow_changed, str(path))
        load_model_state(self.student, checkpoint, path)
        self.progress = restore_training(state, self.loss_sums, self._parts, str(path))
        print(f"resumed {path}: {self.progress.epoch} epochs and {self.progress.step_in_epoch} steps done")

    def student_file(self, **info: object) -> dict:
        """The student alone, as a checkpoint that needs no flags to be used."""
        return model_file_dict(self.args.student, self.student, self.train_set, info=info)

    def save_last(self) -> None:
        state = training_state(self.progress, self.arguments, self.loss_sums, self._parts)
        save_atomic(self.student_file() | {"training": state}, self.folder / "last.pth")

    # -- the loop ------------------------------------------------------------------------------

    def train_step(self, batch: dict) -> torch.Tensor:
        """One optimizer step; returns the losses by term and the total, as one detached vector."""
        batch = prepare_batch(batch, self.device)
        losses = self.distiller.losses(batch)
        total = self.distiller.total(losses, self.progress.step / self.total_steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return torch.stack([*(losses[name] for name in self.recipe.weights), total]).detach()

    def train_epoch(self, stop: StopSignal) -> bool:
        """The rest of the epoch under way; False if it was broken off by a signal or --max-steps."""
        progress, args = self.progress, self.args
        self.enter_stage(self.stage_of(progress.epoch))
        steps = self.steps_in(self.stage)
        self.sampler.set_epoch(progress.epoch, start=progress.step_in_epoch * self.stage.batch_size)
        bar = tqdm(
            self.loader,
            desc=f"epoch {progress.epoch + 1}/{args.epochs}",
            initial=progress.step_in_epoch,
            total=steps,
            leave=False,
            unit="step",
        )
        unchecked = []
        for batch in bar:
            losses = self.train_step(batch)
            self.loss_sums += losses
            progress.step += 1
            progress.step_in_epoch += 1
            unchecked.append((losses[-1], batch["id"]))
            # Looking at a loss waits for the GPU: do it now and then, not at every step.
            if len(unchecked) == FINITE_CHECK_STEPS or self.device.type == "cpu":
                self.check_finite(unchecked)
                bar.set_postfix({name: f"{value:.3f}" for name, value in self.mean_losses().items()})
                unchecked = []
            done = progress.step_in_epoch == steps
            if args.save_steps and progress.step % args.save_steps == 0 and not done:
                self.save_last()
            if not done and (stop.requested or progress.step == args.max_steps):
                return False
        self.check_finite(unchecked)
        return True

    def check_finite(self, totals: list[tuple[torch.Tensor, list[str]]]) -> None:
        """Stop at the first loss that is not a number (fp16 loss scaling skips such steps by itself)."""
        if self.scaler.is_enabled():
            return
        for total, ids in totals:
            if not math.isfinite(total.item()):
                raise UserError(
                    f"the loss is {total.item()} in epoch {self.progress.epoch + 1}, batch of {', '.join(ids)}; "
                    f"{self.folder / 'last.pth'} holds the last good state: lower --lr or look at these images"
                )

    def mean_losses(self) -> dict[str, float]:
        """Mean of each term over the epoch so far."""
        means = self.loss_sums / max(self.progress.step_in_epoch, 1)
        return dict(zip(self.terms, means.tolist(), strict=True))

    def evaluate(self) -> Evaluation:
        return evaluate_model(
            self.student,
            self.val_set,
            self.device,
            batch_size=self.args.eval_batch_size,
            workers=self.args.workers,
            amp=self.args.amp,
        )

    def keep_best(self, evaluation: Evaluation) -> None:
        """Save the student as best.pth if it scores better than ever before."""
        progress, scores = self.progress, evaluation.scores
        if scores.miou > progress.best_miou or not (self.folder / "best.pth").exists():
            progress.best_miou, progress.best_epoch, progress.stale_evaluations = (
                scores.miou,
                progress.epoch + 1,
                0,
            )
            info = {"epoch": progress.epoch + 1, "miou": scores.miou, "protocol": evaluation.protocol}
            save_atomic(self.student_file(**info), self.folder / "best.pth")
        else:
            progress.stale_evaluations += 1

    def finish_epoch(self, epoch_s: float, images: int, evaluation: Evaluation | None, complete: bool) -> None:
        """Write the epoch's row, keep the best student, and move on to the next epoch."""
        progress, args = self.progress, self.args
        losses = self.mean_losses()
        row = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": losses["loss"],
            **{f"train_{name}": losses[name] for name in self.recipe.weights},
            "val_loss": evaluation.loss if evaluation else None,
            "val_miou": evaluation.scores.miou if evaluation else None,
            "val_pixel_accuracy": evaluation.scores.pixel_accuracy if evaluation else None,
            "images_per_s": images / epoch_s,
            "epoch_s": epoch_s,
            "elapsed_s": progress.elapsed_s,
        }
        self.log.log_epoch(row)
        self.log.draw_curves()
        tqdm.write(self.epoch_line(row, losses))
        if evaluation:
            self.keep_best(evaluation)
        if complete:
            progress.epoch += 1
            progress.step_in_epoch = 0
            self.loss_sums.zero_()
        if args.save_every and complete and progress.epoch % args.save_every == 0:
            save_atomic(self.student_file(epoch=progress.epoch), self.folder / f"epoch_{progress.epoch}.pth")
        self.save_last()

    def epoch_line(self, row: dict, losses: dict[str, float]) -> str:
        left = row["elapsed_s"] / row["step"] * (self.total_steps - row["step"])
        terms = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
        val = ""
        if row["val_miou"] is not None:
            val = (
                f" | val loss {row['val_loss']:.4f} mIoU {100 * row['val_miou']:.2f} % "
                f"pixel acc {100 * row['val_pixel_accuracy']:.2f} %"
            )
        return (
            f"epoch {row['epoch']}/{self.args.epochs} | {terms}{val} | lr {row['lr']:.2e} | "
            f"{row['images_per_s']:.1f} images/s | epoch {clock(row['epoch_s'])} "
            f"elapsed {clock(row['elapsed_s'])} left {clock(left)}"
        )

    def run(self) -> int:
        """Train to the end, a signal, --max-steps or --patience; returns the exit status."""
        progress, args = self.progress, self.args
        before = progress.elapsed_s
        start = time.monotonic()
        with StopSignal() as stop:
            while progress.epoch < args.epochs:
                epoch_start, first_step = time.monotonic(), progress.step
                complete = self.train_epoch(stop)
                progress.elapsed_s = before + time.monotonic() - start
                if stop.requested and not complete:
                    self.save_last()
                    return self.interrupted()
                last = progress.epoch + 1 == args.epochs or progress.step == args.max_steps
                evaluate = last or (progress.epoch + 1) % args.eval_every == 0
                train_s = time.monotonic() - epoch_start
                images = (progress.step - first_step) * self.stage.batch_size
                evaluation = self.evaluate() if evaluate else None
                progress.elapsed_s = before + time.monotonic() - start
                self.finish_epoch(train_s, images, evaluation, complete)
                if progress.step == args.max_steps:
                    break
                if args.patience and progress.stale_evaluations >= args.patience:
                    print(f"no gain in {args.patience} evaluations: stopped early")
                    break
                if stop.requested and progress.epoch < args.epochs:
                    return self.interrupted()
        self.write_report()
        return 0

    def interrupted(self) -> int:
        last = self.folder / "last.pth"
        print(f"stopped after step {self.progress.step}; saved {last}. Go on with the same command and --resume auto")
        self.log.close()
        return 130

    def write_report(self) -> None:
        progress, rows = self.progress, self.log.rows()
        parameters = count_parameters(self.student)
        final = rows[-1]
        self.log.write_report(
            {
                "scores": {
                    "best mIoU %": 100 * progress.best_miou,
                    "best epoch": progress.best_epoch,
                    "final mIoU %": 100 * final["val_miou"] if final["val_miou"] is not None else None,
                    "final pixel accuracy %": 100 * (final["val_pixel_accuracy"] or math.nan),
                    "student parameters": parameters,
                    "lab score (best)": lab_score(progress.best_miou, parameters),
                    "protocol": f"{self.val_set.name}/{self.val_set.split}",
                },
                "timings": {
                    "elapsed": clock(progress.elapsed_s),
                    "optimizer steps": progress.step,
                    "mean images/s": sum(row["images_per_s"] for row in rows) / len(rows),
                },
            }
        )
        self.log.close()
        print(
            f"best mIoU {100 * progress.best_miou:.2f} % in epoch {progress.best_epoch}, "
            f"lab score {lab_score(progress.best_miou, parameters):.3f}; everything is in {self.folder}"
        )


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
