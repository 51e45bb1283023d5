"""One training run: the loop, and when it scores, saves and ends.

    trainer = Trainer(args, make_recipe(args))
    status = trainer.run()

What it works with is made by `training.build`; what it must remember is `training.state.RunState`; what it writes down
goes through `training.runlog`.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from basics import distributed
from basics.batch import prepare_batch
from basics.checkpoint import load_file, save_atomic
from basics.device import check_amp, pick_device
from basics.errors import UserError
from basics.files import lock_folder
from basics.memory import explain_memory, is_lost_worker
from basics.progress import ProgressBar
from basics.signals import Stopped, StopSignal
from kd.distiller import Recipe
from networks.working_size import at_working_size
from scoring.memory import memory_advice
from scoring.protocol import Evaluation, evaluate_model, protocol_text, scoring_batch
from training.arguments import Arguments
from training.build import build_models, build_optimization, locate_run, made_from, open_log, written_at
from training.data import build_data, fit_recipe
from training.failures import LossWatch, refuse_non_finite
from training.pace import Pace, epochs_between_validations
from training.recipe import settle
from training.report import best_line, epoch_line, epoch_row, report_sections
from training.runlog import RunLog, import_loggers
from training.stages import Stage, Stages
from training.state import LossSums, Progress, RunState
from training.timeshare import scoring_time, time_line, timed_batches


class Trainer:
    """One run, resumed if its arguments ask for that.

    Attributes:
        student: what is trained and scored; ``models`` has the other networks.
        progress: how far the run has come.
        log: the run folder, in the main process, once the run has begun.

    Raises:
        UserError: whatever keeps the run from starting.
    """

    log: RunLog
    loader: DataLoader

    def __init__(self, args: Arguments, recipe: Recipe):
        self.args, self.folder = args, args.run_folder
        self.start = time.monotonic()
        self.device = pick_device(args.device)
        settle(args, self.device)
        check_amp(self.device, args.amp)
        import_loggers(args.tensorboard, args.wandb)  # what is missing is said before hours of preparation
        self.seen, self.resume_from = written_at(args), locate_run(args)
        self.data = build_data(args, resumed=self.resume_from is not None)
        self.recipe = recipe = fit_recipe(args, recipe, self.data)
        self.stages = Stages(args, len(self.data.train_set))
        args.eval_every = epochs_between_validations(args, self.device, self.stages.images, len(self.data.val_set))
        self.models = build_models(args, recipe, self.data, self.device)
        self.student, self.distiller = self.models.student, self.models.distiller
        self.progress = Progress()
        self.pace = Pace(args, self.stages, self.progress)
        self.optimization = build_optimization(args, self.models.model, self.student, self.pace, self.device)
        self.state = RunState(
            self.progress,
            made_from(args, recipe, self.data, self.models),
            LossSums([*recipe.weights, "loss"], self.device),
            self.models.model.adapters,
            self.optimization,
            self.device,
        )
        self.watch = LossWatch(self.device, self.optimization.scaler, self.folder / "last.pth")
        self.stage: Stage | None = None
        if self.resume_from:
            self._resume(self.resume_from)

    def _resume(self, path: Path) -> None:
        checkpoint = load_file(path)
        saved = checkpoint.get("training")
        if not isinstance(saved, dict):
            raise UserError(f"{path} holds a student without its training state: resume from a last.pth")
        self.state.made_from.refuse_other(checkpoint, path, allow=self.args.allow_changed)
        self.models.load(checkpoint, path)
        self.state.restore(saved, path)
        self.start -= self.progress.elapsed_s
        print(f"resumed {path}: {self.progress.epoch} epochs and {self.progress.step_in_epoch} steps done")

    # -- the loop ------------------------------------------------------------------------------

    def run(self) -> int:
        """Train to the end (see `Pace`), a signal, or --patience; returns the exit status."""
        args = self.args
        if distributed.is_main():
            self.lock = lock_folder(self.folder)  # held as long as this process lives
            self.log = open_log(args, self.recipe, self.data, self.state, self.resume_from, self.seen)
            if not self.is_over():
                self.log.truncate_after(self.progress.epoch)
        with StopSignal() as stop:
            while not self.is_over():
                try:
                    with _losing_workers(stop, self.save_last):
                        self.run_epoch(stop)
                except Stopped:
                    return self.interrupted()
        if self.out_of_patience() and not self.pace.is_over():
            print(f"no gain in {args.patience} evaluations: stopped early")
        if distributed.is_main():
            self.write_report()
        return 0

    def run_epoch(self, stop: StopSignal) -> None:
        """Train and score an epoch, or what is left of it; raises `Stopped` after a signal, with all saved."""
        complete = self.train_epoch(stop)
        evaluate = self.pace.is_last_epoch() or (self.progress.epoch + 1) % (self.args.eval_every or 1) == 0
        if evaluate or stop.agreed:
            self.save_last()  # scoring may take long: it must not cost the epoch
        if stop.agreed:
            raise Stopped
        self.finish_epoch(self.evaluate(stop) if evaluate else None, complete)

    def train_epoch(self, stop: StopSignal) -> bool:
        """The rest of the epoch under way; False if it was broken off by a signal or its `Pace`."""
        progress, args, pace = self.progress, self.args, self.pace
        pace.start()
        stage = self.stages.of(progress.epoch)
        loader, steps = self.enter_stage(stage), self.stages.steps_in(stage)
        start = time.monotonic() - progress.epoch_s
        share = stage.batch_size // distributed.world_size()
        self.data.sampler.set_epoch(progress.epoch, start=progress.step_in_epoch * share)
        bar = ProgressBar(
            itertools.islice(loader, 0 if pace.is_spent() else steps - progress.step_in_epoch),
            desc=f"epoch {pace.epoch_title(progress.epoch + 1)}",
            initial=progress.step_in_epoch,
            total=steps,
            unit="step",
            disable=not distributed.is_main(),
        )
        for batch in timed_batches(bar, progress, self.device):
            self.state.add(self.train_step(batch))
            progress.step += 1
            progress.step_in_epoch += 1
            progress.epoch_s = time.monotonic() - start
            if progress.step % self.watch.every == 0:
                bar.set_postfix({name: f"{value:.3f}" for name, value in self.state.means().items()})
            if stop.poll() or pace.is_spent():
                break
            if args.save_steps and progress.step % args.save_steps == 0 and progress.step_in_epoch < steps:
                self.watch.look()
                start += pace.aside(self.save_last)
        self.watch.look()
        pace.tick()  # what a GPU still had to do
        progress.epoch_s = time.monotonic() - start
        return progress.step_in_epoch == steps

    def enter_stage(self, stage: Stage) -> DataLoader:
        """Set what is trained, and how, for the epoch that begins; returns the stage's loader."""
        if stage != self.stage:
            self.stage = stage
            self.models.enter(stage, self.device, compiled=self.args.compile)
            self.loader = self.data.loader(stage, self.args, self.device, self.distiller)
        self.models.train(stage)
        return self.loader

    def train_step(self, batch: dict) -> torch.Tensor:
        """One optimizer step; returns the losses by term, the total and the norm of its gradients (terms + 2,).

        From here to a loss: `Distiller.losses` (kd/distiller.py) runs the student, asks the teacher, brings both to
        one grid, and calls for each term of the recipe the pure function of that name in `LOSSES` (kd/losses.py).
        """
        optimization = self.optimization
        batch = prepare_batch(batch, self.device)
        losses = self.distiller.losses(batch)
        total = self.distiller.total(losses, self.pace.share)
        optimization.optimizer.zero_grad(set_to_none=True)
        optimization.scaler.scale(total).backward()
        norm = optimization.clip(self.args.clip_norm)
        self.watch.add(total.detach(), norm, batch["id"], self.progress.epoch + 1)  # before weights are spoilt
        self.pace.tick()  # the next step's rate may follow it
        optimization.step(norm)
        self.models.average_in(self.progress.step)
        return torch.stack([*(losses[name] for name in self.recipe.weights), total, norm]).detach()

    # -- scoring and saving --------------------------------------------------------------------

    def evaluate(self, stop: StopSignal) -> Evaluation:
        """Score the student on the validation split; raises `Stopped` after a signal."""
        args, batch_size = self.args, scoring_batch(self.args.eval_batch_size, self.device)
        advice = memory_advice(batch_size, args.eval_tile, "--eval-batch-size", args.input_size)
        with explain_memory(advice), scoring_time(self.progress):
            return evaluate_model(
                at_working_size(self.models.scored, args.input_size),
                self.data.val_set,
                self.device,
                tile=args.eval_tile,
                amp=args.amp,
                stop=stop,
                loader=self.data.val_loader(args, self.device),
            )

    def finish_epoch(self, evaluation: Evaluation | None, complete: bool) -> None:
        """Write the epoch's row, keep the best student, and move on to the next epoch."""
        progress, args, stage = self.progress, self.args, self.stages.of(self.progress.epoch)
        losses = self.state.means()
        progress.skipped_steps += self.optimization.take_skipped()
        progress.elapsed_s = time.monotonic() - self.start
        goal, images = self.data.goal, progress.step_in_epoch * stage.batch_size
        row = epoch_row(progress, losses, evaluation, self.optimization, images, goal)
        if distributed.is_main():
            self.log.log_epoch(row)
            self.log.draw_curves(seldom=True)
            title = self.pace.epoch_title(progress.epoch + 1)
            tqdm.write(epoch_line(row, losses, title, self.pace.expected_steps, self.pace.spent_s, goal))
        if evaluation:
            self.keep_best(evaluation)
        progress.finished_step = progress.step
        if complete:
            progress.epoch += 1
            progress.step_in_epoch, progress.epoch_s = 0, 0.0
            self.state.clear()
            if args.save_every and progress.epoch % args.save_every == 0 and distributed.is_main():
                save_atomic(self.student_file(epoch=progress.epoch), self.folder / f"epoch_{progress.epoch}.pth")
        self.save_last()

    def keep_best(self, evaluation: Evaluation) -> None:
        """Save the student as best.pth if it scores better than ever before."""
        progress, goal = self.progress, self.data.goal
        score, best = goal.of(evaluation.scores), self.folder / "best.pth"
        missing = distributed.any_rank(distributed.is_main() and not best.exists())
        if not score <= progress.best_score or missing:  # a run of old may have kept nan, which nothing exceeds
            progress.best_score, progress.best_epoch, progress.stale_evaluations = score, progress.epoch + 1, 0
            info = {"epoch": progress.epoch + 1, goal.key: score, "protocol": evaluation.protocol + goal.note}
            if distributed.is_main():
                save_atomic(self.student_file(**info), best)
        else:
            progress.stale_evaluations += 1

    def student_file(self, **info: object) -> dict[str, object]:
        """The student alone, as a checkpoint that needs no flags to be used."""
        return self.models.student_file(self.args, self.data, **info)

    def save_last(self) -> None:
        """Write last.pth, once it is sure that the state is worth going back to."""
        last = self.folder / "last.pth"
        self.watch.look()
        self.progress.skipped_steps += self.optimization.take_skipped()
        refuse_non_finite([*self.models.model.state_dict().values(), *self.optimization.moments], last)
        self.progress.elapsed_s = time.monotonic() - self.start
        state = self.state.to_dict() | self.models.trained_weights()  # gathers from all ranks
        if distributed.is_main():
            save_atomic(self.student_file() | {"training": state}, last)
        distributed.barrier()  # no rank moves on, or ends, before the file is there

    # -- the end -------------------------------------------------------------------------------

    def out_of_patience(self) -> bool:
        return 0 < self.args.patience <= self.progress.stale_evaluations

    def is_over(self) -> bool:
        """Nothing is left to train or to score, perhaps since before a resume."""
        return self.pace.is_over() or self.out_of_patience()

    def interrupted(self) -> int:
        """Say that a signal ended the work; returns the exit status."""
        last = self.folder / "last.pth"
        print(f"stopped after step {self.progress.step}; saved {last}. Go on with the same command and --resume auto")
        if distributed.is_main():
            self.log.close()
        return 130

    def write_report(self) -> None:
        """Write report.txt and say where everything is."""
        progress, data = self.progress, self.data
        parameters = sum(parameter.numel() for parameter in self.student.parameters())
        said = protocol_text(self.args.eval_tile, self.args.input_size, amp=self.args.amp)
        protocol = f"{data.val_set.name}/{data.val_set.split}: {said}{data.goal.note}"
        sections = report_sections(progress, self.log.rows(), parameters, data.goal, protocol, data.describe())
        self.log.write_report(sections)
        self.log.close()
        print(f"{best_line(progress, parameters, data.goal)}; everything is in {self.folder}")
        print(time_line(progress, self.args, self.device))


@contextlib.contextmanager
def _losing_workers(stop: StopSignal, save: Callable[[], None]) -> Iterator[None]:
    """After Ctrl-C take a lost loader process for a stop: it reaches them, too, before they have begun to ignore it."""
    try:
        yield
    except RuntimeError as error:
        if not stop.requested or not is_lost_worker(error) or distributed.world_size() > 1:
            raise
        save()
        raise Stopped from error
