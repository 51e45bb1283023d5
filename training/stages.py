"""Which epochs are trained how: batch size, crop size, frozen backbone; and how many steps that makes."""

from __future__ import annotations

from dataclasses import dataclass

from basics import distributed
from basics.errors import UserError
from training.arguments import Arguments


@dataclass(frozen=True)
class Stage:
    """A stretch of epochs with one batch size and crop size; the backbone is frozen in the first of two.

    The batch size is that of an optimizer step: in a distributed run the ranks share it.
    """

    batch_size: int
    crop_size: int
    frozen: bool


class Stages:
    """The stages of a run.

    Attributes:
        images: of an epoch.
        total_steps: optimizer steps of all epochs.
        warmup_steps: those among them in which the learning rate rises.

    Raises:
        UserError: a batch size that the processes cannot share, or larger than the split.
    """

    def __init__(self, args: Arguments, images: int):
        self.args, self.images = args, args.epoch_images or images
        first = self.steps_in(self.of(0))
        self.total_steps = sum(self.steps_in(self.of(epoch)) for epoch in range(args.epochs))
        self.warmup_steps = round(args.warmup_epochs * first)

    def of(self, epoch: int) -> Stage:
        """The stage of an epoch, counted from 0."""
        args = self.args
        if epoch < args.freeze_epochs:
            batch_size, crop_size = args.freeze_batch_size, args.freeze_crop_size
            return Stage(batch_size or args.batch_size, crop_size or args.crop_size, frozen=True)
        return Stage(args.batch_size, args.crop_size, frozen=False)

    def steps_in(self, stage: Stage) -> int:
        """Optimizer steps an epoch; what is left over of the split is seen in another epoch's order."""
        of_freeze = stage.frozen and self.args.freeze_batch_size
        option = f"--{'freeze-' if of_freeze else ''}batch-size"
        flag = f"{option} {stage.batch_size}"
        if stage.batch_size % distributed.world_size():
            raise UserError(
                f"{flag} is what all {distributed.world_size()} processes share: give a multiple of their number"
            )
        steps = self.images // stage.batch_size
        if steps == 0:
            count = f"{self.images} image{'s' * (self.images != 1)}"
            raise UserError(
                f"{flag}: an epoch of {self.args.train_split} has only {count}: give {option} {self.images}, or less"
            )
        return steps
