"""How long a run trains, and how far it is: by the steps of its epochs, or by the seconds that its steps may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch

from basics import distributed
from training.arguments import Arguments
from training.stages import Stages
from training.state import Progress

# On a GPU reading sets the pace, and a picture costs about the same to score as to train on.
MOST_SCORED, LEAST_VALIDATIONS = 0.2, 10


def epochs_between_validations(args: Arguments, device: torch.device, images: int, val_images: int) -> int:
    """As asked by --eval-every; otherwise 1, or on a GPU what keeps validation cheap. Clocks have no say in it.

    Args:
        images: of an epoch.
        val_images: of the validation split.
    """
    if args.eval_every is not None:
        return args.eval_every
    if device.type != "cuda" or args.patience:  # which counts validations
        return 1
    cheap = math.ceil(val_images / (MOST_SCORED * images))
    most = cheap if args.time_budget is not None else args.epochs // LEAST_VALIDATIONS
    return max(1, min(cheap, most))


class Pace:
    """Counts the seconds of training and says when it ends: after --epochs, --max-steps or --time-budget.

    With a time budget a run has as many epochs as it manages. Learning rates then follow the share of the time that is
    spent, as they would follow that of the steps of --epochs; so methods of unlike cost all anneal to the end.
    Ranks go by the slowest of their clocks. On a GPU steps are queued: the clock is right to a few of them.

    Args:
        progress: of the run; its ``train_s`` is the clock.
    """

    def __init__(self, args: Arguments, stages: Stages, progress: Progress):
        self.args, self.stages, self.progress = args, stages, progress
        self._since = time.monotonic()

    def start(self) -> None:
        """The clock runs, until the last `tick` before something else is done."""
        self._since = time.monotonic()

    def tick(self) -> None:
        """Count the time since the last call, or since `start`: waiting for data and compiling belong to it."""
        now = time.monotonic()
        self.progress.train_s += now - self._since
        self._since = now
        if self.args.time_budget is not None:
            self.progress.train_s = distributed.largest_over_ranks(self.progress.train_s)
            self._since = time.monotonic()  # the wait for the slowest is counted by that one

    def aside(self, work: Callable[[], object]) -> float:
        """Do what is no training, and is not counted as such; returns the seconds that it took."""
        self.tick()
        began = time.monotonic()
        work()
        self.start()
        return time.monotonic() - began

    @property
    def spent_s(self) -> float:
        """Seconds of training and scoring so far, without what comes once, such as a teacher's cache."""
        return self.progress.train_s + self.progress.scoring_s

    @property
    def share(self) -> float:
        """Of the training that is done, in 0..1; changed arguments may leave more steps than were planned."""
        if self.args.time_budget is None:
            return min(self.progress.step / self.stages.total_steps, 1.0)
        return min(self.progress.train_s / self.args.time_budget, 1.0)

    def schedule_step(self, step: int) -> float:
        """Where a learning-rate schedule over the steps of all epochs stands at the optimizer's ``step``."""
        return step if self.args.time_budget is None else self.share * self.stages.total_steps

    @property
    def expected_steps(self) -> int:
        """Optimizer steps of the whole run, as far as can be told."""
        steps = self.stages.total_steps
        if self.args.time_budget is not None:
            steps = round(self.progress.step / max(self.share, 1e-9))
        return min(steps, self.args.max_steps or steps)

    def epoch_title(self, epoch: int) -> str:
        """Of the (1-based) epoch: 3/60, or 3 where nobody knows how many there will be."""
        return f"{epoch}/{self.args.epochs}" if self.args.time_budget is None else str(epoch)

    def is_spent(self) -> bool:
        """Steps, or time, are used up: no further step, whatever is left of the epoch."""
        args, progress = self.args, self.progress
        out_of_steps = args.max_steps is not None and progress.step >= args.max_steps
        return out_of_steps or (args.time_budget is not None and progress.train_s >= args.time_budget)

    def is_last_epoch(self) -> bool:
        """None comes after the one under way, all of whose steps are done."""
        return self.is_spent() or (self.args.time_budget is None and self.progress.epoch + 1 == self.args.epochs)

    def is_over(self) -> bool:
        """Nothing is left to train or to score, perhaps since before a resume."""
        progress = self.progress
        if self.args.time_budget is None and progress.epoch >= self.args.epochs:
            return True
        return self.is_spent() and progress.finished_step == progress.step
