"""One training run: the student and all that trains it, scores it, writes it down and brings it back.

`train_kd.py` is the script; this is the loop behind it.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from basics import distributed
from basics.batch import prepare_batch
from basics.checkpoint import file_sha256, load_file, save_atomic
from basics.device import check_amp, exact_dtype, pick_device
from basics.errors import UserError
from basics.files import lock_folder, remove_stale
from basics.signals import Stopped, StopSignal, ignore_stop_signals
from dataset import EpochSampler, build_dataset
from kd.distiller import DistilledStudent, Distiller, LiveTeacher, Recipe, Teacher
from kd.teacher_cache import open_teacher_cache
from networks.base import SegmentationModel
from networks.cost import count_parameters
from networks.folding import fold_batchnorm
from scoring.protocol import Evaluation, evaluate_model
from scoring.tables import lab_score
from segdata.stats import class_weights
from segdata.transforms import TrainTransform
from training.failures import LossWatch, refuse_non_finite
from training.optim import make_optimizer, make_scheduler
from training.report import epoch_line, report_sections
from training.runlog import METRICS, RunLog, read_metrics
from training.state import Progress, fingerprint, part_random_streams, refuse_changes, restore_training, training_state
from zoo import create_model, load_model_state, load_teacher, model_file_dict, teacher_name


@dataclass(frozen=True)
class Stage:
    """A stretch of epochs with one batch size and crop size; the backbone is frozen in the first of two.

    The batch size is that of an optimizer step: in a distributed run the ranks share it.
    """

    batch_size: int
    crop_size: int
    frozen: bool


class Trainer:
    """One run: the student and all that trains it, evaluates it, writes it down and brings it back."""

    def __init__(self, args: argparse.Namespace, recipe: Recipe):
        self.args, self.recipe = args, recipe
        self.start = time.monotonic()
        self.device = pick_device(args.device)
        check_amp(self.device, args.amp)
        self.folder, self.resume_from = self._locate_run()
        self._build_data()
        self._build_models()
        self._build_optimization()
        self.weight_files = self._weight_files()
        self.progress = Progress()
        if self.resume_from:
            self._resume()

    # -- building ------------------------------------------------------------------------------

    def _locate_run(self) -> tuple[Path, Path | None]:
        """The run folder, and the last.pth to go on from (or None)."""
        args = self.args
        if args.resume and args.resume != "auto":
            return args.output_dir / args.name, Path(args.resume)
        folder = args.output_dir / args.name
        last = folder / "last.pth"
        if not args.resume or last.exists():
            return folder, last if args.resume else None
        epochs = len(read_metrics(folder / METRICS))
        if epochs > 1:  # a kill leaves at most one before the first last.pth
            raise UserError(
                f"{folder} holds a run of {epochs} epochs, but not the last.pth to go on from: bring it back, "
                "or name another run with --name"
            )
        return folder, None

    def _open_folder(self) -> None:
        args = self.args
        self.lock = lock_folder(self.folder)
        remove_stale(self.folder)
        own = self.resume_from is not None and self.resume_from.resolve().parent == self.folder.resolve()
        self.log = RunLog(
            self.folder,
            {
                **self.arguments,
                "recipe": dict(self.recipe.weights),
                "processes": distributed.world_size(),
                "weight_files": self.weight_files,
            },
            tensorboard=args.tensorboard,
            wandb=args.wandb,
            resume=args.resume == "auto" or own,  # "auto" also after a kill before the first last.pth
        )
        if not self.is_over():
            self.log.truncate_after(self.progress.epoch)

    def _build_data(self) -> None:
        args = self.args
        with distributed.main_first():  # it fills the decoded cache
            decode_cache = None if args.dry_run else args.decode_cache
            self.train_set = build_dataset(args.dataset, args.data_dir, args.train_split, decode_cache=decode_cache)
        self.val_set = build_dataset(args.dataset, args.data_dir, args.val_split)
        self.train_set.require_masks()
        self.val_set.require_masks()
        self.images = fingerprint(self.train_set.ids)
        seen = distributed.gather((self.images, fingerprint(self.val_set.ids), self.resume_from is None))
        if any(other != seen[0] for other in seen):
            raise UserError("the processes see different files: --data-dir and --output-dir must be shared by all")
        self.sampler = EpochSampler(
            len(self.train_set), args.seed, rank=distributed.rank(), world_size=distributed.world_size()
        )
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
        if stage.batch_size % distributed.world_size():
            raise UserError(
                f"--batch-size {stage.batch_size} is what all {distributed.world_size()} processes share: "
                "give a multiple of their number"
            )
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
            self.student.backbone.requires_grad_(not stage.frozen)
            model = distributed.wrap(self.model, self.device)
            self.distiller.model = torch.compile(model) if self.args.compile else model
            self.train_set.transform = TrainTransform(stage.crop_size, self.args.scale_range)
            self.loader = DataLoader(
                self.train_set,
                batch_size=stage.batch_size // distributed.world_size(),
                sampler=self.sampler,
                drop_last=True,
                num_workers=self.args.workers,
                persistent_workers=self.args.workers > 0,
                pin_memory=self.device.type == "cuda",
                worker_init_fn=ignore_stop_signals if self.args.workers else None,
                generator=torch.Generator(),  # its own: making an iterator leaves the global one alone
            )
        self.model.train()
        if stage.frozen:
            self.student.backbone.eval()  # its BatchNorm keeps the pretrained statistics, too

    def _build_models(self) -> None:
        args, classes = self.args, self.train_set.num_classes
        torch.manual_seed(args.seed)
        teacher = None
        with distributed.main_first():  # it fetches weights and fills the teacher's cache; the other ranks find them
            student = create_model(args.student, classes, args.student_weights).to(self.device)
            if self.recipe.needs_teacher:
                teacher = self._make_teacher()
        # What is saved is the plain network; --qat trains its parameters through a graph that rounds as INT8 does.
        self.plain = distributed.synchronize_batchnorm(student, self.device)
        self.student = self._fake_quantized(self.plain) if args.qat else self.plain
        self.model = DistilledStudent(self.student, self.recipe, teacher).to(self.device)
        # Seeded anew: how many numbers the adapters took must not change the student's dropout.
        torch.manual_seed(args.seed)
        part_random_streams()
        weights = None
        if args.class_weights:
            weights = class_weights(args.class_weights, self.train_set.layout, args.train_split).to(self.device)
        self.distiller = Distiller(self.model, self.student, self.recipe, teacher, weights, amp=args.amp)

    def _fake_quantized(self, student: SegmentationModel) -> SegmentationModel:
        if distributed.world_size() > 1:
            raise UserError("--qat trains in one process, whose ranges are those of all images: leave torchrun out")
        from deploy.quantized import FakeQuantModel

        return FakeQuantModel(student)

    def _make_teacher(self) -> Teacher:
        """The teacher of the command line: run on every batch, or read from its cache."""
        args, data = self.args, copy.copy(self.train_set)
        model = load_teacher(args.teacher, data.num_classes, args.teacher_weights, data.class_names)
        if not args.cache_teacher:
            return LiveTeacher(fold_batchnorm(model).to(self.device), args.amp)
        data.transform = TrainTransform(args.crop_size, args.scale_range)
        cached = open_teacher_cache(
            args.cache_dir,
            model,
            teacher_name(args.teacher, args.teacher_weights),
            data,
            recipe=self.recipe,
            dtype=args.cache_teacher,
            device=self.device,
            batch_size=max(args.batch_size // distributed.world_size(), 1),
            workers=args.workers,
            build=not args.dry_run,
        )
        return cached or LiveTeacher(fold_batchnorm(model).to(self.device), args.amp)

    def _build_optimization(self) -> None:
        args = self.args
        self.optimizer = make_optimizer(
            self.model, args.optimizer, args.lr, args.weight_decay, self.student.backbone, args.backbone_lr_factor
        )
        self.scheduler = make_scheduler(self.optimizer, self.total_steps, self.warmup_steps, args.schedule)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=args.amp == "fp16")
        self.terms = [*self.recipe.weights, "loss"]
        # The last sum counts the steps whose losses are in the others.
        self.loss_sums = torch.zeros(len(self.terms) + 1, dtype=exact_dtype(self.device), device=self.device)
        self.one = torch.ones((), device=self.device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=self.device)
        self.watch = LossWatch(self.device, self.scaler, self.folder / "last.pth")

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

    def _weight_files(self) -> dict[str, str]:
        """The hashes of the files that student and teacher come from."""
        args = self.args
        given = {"student": args.student_weights} | (
            {"teacher": args.teacher_weights} if self.distiller.teacher else {}
        )
        return {role: file_sha256(weights) for role, weights in given.items() if weights not in ("default", "none")}

    def _resume(self) -> None:
        path = self.resume_from
        checkpoint = load_file(path)
        state = checkpoint.get("training")
        if not isinstance(state, dict):
            raise UserError(f"{path} holds a student without its training state: resume from a last.pth")
        refuse_changes(state.get("arguments"), self.arguments, self.args.allow_changed, str(path))
        if state.get("images") != self.images and not self.args.allow_changed:
            raise UserError(
                f"{path} was made with other images in the split {self.args.train_split}: "
                "bring the list back, or pass --allow-changed"
            )
        files = state.get("weight_files")
        teacher = files.get("teacher") if isinstance(files, dict) else None
        if teacher and teacher != self.weight_files.get("teacher") and not self.args.allow_changed:
            raise UserError(
                f"{path} was taught by another network than {self.args.teacher_weights} now holds: "
                "bring that file back, or pass --allow-changed"
            )
        load_model_state(self.plain, checkpoint, path)
        if self.args.qat:
            self.student.load_ranges(checkpoint.get("qat", {}))
        given = [(group["initial_lr"], group["weight_decay"]) for group in self.optimizer.param_groups]
        self.progress = restore_training(state, self.loss_sums, self._parts, str(path), self.device)
        # These are the arguments' (--allow-changed), not the saved state's.
        for index, (rate, decay) in enumerate(given):
            factor = self.scheduler.lr_lambdas[index](self.scheduler.last_epoch)
            self.scheduler.base_lrs[index] = rate
            self.optimizer.param_groups[index] |= {"initial_lr": rate, "weight_decay": decay, "lr": rate * factor}
        steps_changed = [state.get("images") != self.images] + [
            state["arguments"].get(name) != self.arguments[name]
            for name in ("batch_size", "freeze_batch_size", "freeze_epochs")
        ]
        if self.progress.step_in_epoch and any(steps_changed):  # --allow-changed
            print(f"epoch {self.progress.epoch + 1} begins anew: its steps were of another size or other images")
            self.progress.step_in_epoch, self.progress.epoch_s = 0, 0.0
            self.loss_sums.zero_()
        self.start -= self.progress.elapsed_s
        print(f"resumed {path}: {self.progress.epoch} epochs and {self.progress.step_in_epoch} steps done")

    def student_file(self, **info: object) -> dict:
        """The student alone, as a checkpoint that needs no flags to be used."""
        content = model_file_dict(self.args.student, self.plain, self.train_set, info=info)
        return content | ({"qat": self.student.ranges()} if self.args.qat else {})

    def save_last(self) -> None:
        """Write last.pth, once it is sure that the state is worth going back to."""
        last = self.folder / "last.pth"
        self.watch.look()
        self.count_skipped()
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        refuse_non_finite([*self.model.state_dict().values(), *moments], last)
        self.progress.elapsed_s = time.monotonic() - self.start
        state = training_state(self.progress, self.arguments, self.loss_sums, self._parts, self.device)
        state |= {"images": self.images, "weight_files": self.weight_files}
        if distributed.is_main():
            save_atomic(self.student_file() | {"training": state}, last)
        distributed.barrier()  # no rank moves on, or ends, before the file is there

    # -- the loop ------------------------------------------------------------------------------

    def train_step(self, batch: dict) -> torch.Tensor:
        """One optimizer step; returns the losses by term and the total, as one detached vector."""
        batch = prepare_batch(batch, self.device)
        losses = self.distiller.losses(batch)
        # Changed arguments may leave more steps than were planned.
        total = self.distiller.total(losses, min(self.progress.step / self.total_steps, 1.0))
        self.optimizer.zero_grad(set_to_none=True)
        scale = self.scaler.scale(self.one)  # as a tensor: get_scale() would wait for the GPU
        self.scaler.scale(total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.is_enabled():
            self.skipped += self.scaler.scale(self.one) < scale
        self.scheduler.step()
        return torch.stack([*(losses[name] for name in self.recipe.weights), total]).detach()

    def train_epoch(self, stop: StopSignal) -> bool:
        """The rest of the epoch under way; False if it was broken off by a signal or --max-steps."""
        progress, args = self.progress, self.args
        self.enter_stage(self.stage_of(progress.epoch))
        steps = self.steps_in(self.stage)
        start = time.monotonic() - progress.epoch_s
        self.sampler.set_epoch(progress.epoch, start=progress.step_in_epoch * self.loader.batch_size)
        bar = tqdm(
            itertools.islice(self.loader, 0 if self.out_of_steps() else steps - progress.step_in_epoch),
            desc=f"epoch {progress.epoch + 1}/{args.epochs}",
            initial=progress.step_in_epoch,
            total=steps,
            leave=False,
            unit="step",
            disable=None if distributed.is_main() else True,  # None: a bar on terminals, none in log files
        )
        for batch in bar:
            losses = self.train_step(batch)
            counted = torch.cat([losses, losses.new_ones(1)])
            self.loss_sums += torch.where(losses.isfinite().all(), counted, 0)  # fp16 scaling skips the others
            progress.step += 1
            progress.step_in_epoch += 1
            progress.epoch_s = time.monotonic() - start
            if self.watch.add(losses[-1], batch["id"], progress.epoch + 1):
                bar.set_postfix({name: f"{value:.3f}" for name, value in self.mean_losses().items()})
            if stop.poll() or self.out_of_steps():
                break
            if args.save_steps and progress.step % args.save_steps == 0 and progress.step_in_epoch < steps:
                self.save_last()
        self.watch.look()
        return progress.step_in_epoch == steps

    def count_skipped(self) -> None:
        """Bring the count of skipped steps over from the device, which is waited for."""
        self.progress.skipped_steps += int(self.skipped)
        self.skipped.zero_()

    def mean_losses(self) -> dict[str, float]:
        """Mean of each term over the epoch so far, and over the ranks."""
        *sums, count = distributed.add_up(self.loss_sums.clone()).tolist()
        return {name: value / max(count, 1) for name, value in zip(self.terms, sums, strict=True)}

    def evaluate(self, stop: StopSignal) -> Evaluation:
        return evaluate_model(
            self.student,
            self.val_set,
            self.device,
            batch_size=self.args.eval_batch_size,
            workers=self.args.workers,
            amp=self.args.amp,
            stop=stop,
        )

    def keep_best(self, evaluation: Evaluation) -> None:
        """Save the student as best.pth if it scores better than ever before."""
        progress, scores = self.progress, evaluation.scores
        best = self.folder / "best.pth"
        missing = distributed.any_rank(distributed.is_main() and not best.exists())
        if scores.miou > progress.best_miou or missing:
            progress.best_miou, progress.best_epoch, progress.stale_evaluations = (
                scores.miou,
                progress.epoch + 1,
                0,
            )
            info = {"epoch": progress.epoch + 1, "miou": scores.miou, "protocol": evaluation.protocol}
            if distributed.is_main():
                save_atomic(self.student_file(**info), best)
        else:
            progress.stale_evaluations += 1

    def finish_epoch(self, evaluation: Evaluation | None, complete: bool) -> None:
        """Write the epoch's row, keep the best student, and move on to the next epoch."""
        progress, args = self.progress, self.args
        losses = self.mean_losses()
        self.count_skipped()
        progress.elapsed_s = time.monotonic() - self.start
        row = {
            "epoch": progress.epoch + 1,
            "step": progress.step,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": losses["loss"],
            **{f"train_{name}": losses[name] for name in self.recipe.weights},
            "val_loss": evaluation.loss if evaluation else None,
            "val_miou": evaluation.scores.miou if evaluation else None,
            "val_pixel_accuracy": evaluation.scores.pixel_accuracy if evaluation else None,
            "images_per_s": progress.step_in_epoch * self.stage.batch_size / progress.epoch_s,
            "epoch_s": progress.epoch_s,
            "elapsed_s": progress.elapsed_s,
        }
        if self.scaler.is_enabled():
            row["skipped_steps"] = progress.skipped_steps
        if distributed.is_main():
            self.log.log_epoch(row)
            self.log.draw_curves()
            tqdm.write(epoch_line(row, losses, args.epochs, min(self.total_steps, args.max_steps or self.total_steps)))
        if evaluation:
            self.keep_best(evaluation)
        progress.finished_step = progress.step
        if complete:
            progress.epoch += 1
            progress.step_in_epoch, progress.epoch_s = 0, 0.0
            self.loss_sums.zero_()
            if args.save_every and progress.epoch % args.save_every == 0 and distributed.is_main():
                save_atomic(self.student_file(epoch=progress.epoch), self.folder / f"epoch_{progress.epoch}.pth")
        self.save_last()

    def out_of_steps(self) -> bool:
        return self.args.max_steps is not None and self.progress.step >= self.args.max_steps

    def out_of_patience(self) -> bool:
        return 0 < self.args.patience <= self.progress.stale_evaluations

    def is_over(self) -> bool:
        """Nothing is left to train or to score, perhaps since before a resume."""
        ended = self.out_of_steps() and self.progress.finished_step == self.progress.step
        return self.progress.epoch >= self.args.epochs or ended or self.out_of_patience()

    def run(self) -> int:
        """Train to the end, a signal, --max-steps or --patience; returns the exit status."""
        args = self.args
        if distributed.is_main():
            self._open_folder()
        with StopSignal() as stop:
            while not self.is_over():
                try:
                    self.run_epoch(stop)
                except Stopped:
                    return self.interrupted()
        if self.out_of_patience() and self.progress.epoch < args.epochs:
            print(f"no gain in {args.patience} evaluations: stopped early")
        if distributed.is_main():
            self.write_report()
        return 0

    def run_epoch(self, stop: StopSignal) -> None:
        """Train and score an epoch, or what is left of it; raises `Stopped` after a signal, with all saved."""
        progress, args = self.progress, self.args
        complete = self.train_epoch(stop)
        last = progress.epoch + 1 == args.epochs or self.out_of_steps()
        evaluate = last or (progress.epoch + 1) % args.eval_every == 0
        if evaluate or stop.agreed:
            self.save_last()  # scoring may take long: it must not cost the epoch
        if stop.agreed:
            raise Stopped
        self.finish_epoch(self.evaluate(stop) if evaluate else None, complete)

    def interrupted(self) -> int:
        last = self.folder / "last.pth"
        print(f"stopped after step {self.progress.step}; saved {last}. Go on with the same command and --resume auto")
        if distributed.is_main():
            self.log.close()
        return 130

    def write_report(self) -> None:
        progress, parameters = self.progress, count_parameters(self.student)
        score = lab_score(progress.best_miou, parameters)
        protocol = f"{self.val_set.name}/{self.val_set.split}"
        self.log.write_report(report_sections(progress, self.log.rows(), parameters, score, protocol))
        self.log.close()
        print(
            f"best mIoU {100 * progress.best_miou:.2f} % in epoch {progress.best_epoch}, "
            f"lab score {score:.3f}; everything is in {self.folder}"
        )
