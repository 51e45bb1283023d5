"""What goes wrong in the middle of a run: losses, gradients and weights that are no numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from basics import distributed
from basics.errors import UserError

CHECK_STEPS = 20
MIN_SCALE = 2.0**-10  # 26 skipped steps on end, from the scaler's first 2**16


class LossWatch:
    """Looks at loss and gradients of every step and stops the run at the first that are not finite.

    It is told before the optimizer's step, and looks then. Looking waits for a GPU, so there it is done `CHECK_STEPS`
    steps at a time, and before anything is saved; until then the steps of such gradients change nothing (see
    `training.optim.Optimization.step`).

    Args:
        device: where the losses lie.
        scaler: the run's loss scaler; while it is enabled it skips such steps by itself, and it is
            looked at only for never coming to an end with that.
        last: the checkpoint that holds the last good state, for the message.
    """

    def __init__(self, device: torch.device, scaler: torch.amp.GradScaler, last: Path):
        self.every = 1 if device.type == "cpu" else CHECK_STEPS
        self.scaler, self.last = scaler, last
        self._unseen: list[tuple[torch.Tensor, torch.Tensor, Sequence[str], int]] = []
        self._warned = False

    def add(self, loss: torch.Tensor, norm: torch.Tensor, ids: Sequence[str], epoch: int) -> None:
        """Take in a step's loss, the norm of its gradients and the names of its images."""
        self._unseen.append((loss, norm, ids, epoch))
        if len(self._unseen) >= self.every:
            self.look()

    def _warn(self, unseen: Iterable[tuple[torch.Tensor, torch.Tensor, Sequence[str], int]]) -> None:
        """Name, once, the images of a loss that is no number: the scaler passes over it as over an overflow."""
        for loss, _, ids, epoch in unseen:
            if not self._warned and not loss.isfinite():
                self._warned = True
                print(
                    f"warning: the loss is {loss.item()} in epoch {epoch}, batch of {', '.join(ids)}: under --amp fp16 "
                    "such steps are passed over (skipped_steps counts them); if it comes again, look at these images"
                )

    def look(self) -> None:
        """Look at what has come in since the last time; in a distributed run all ranks must call it.

        Raises:
            UserError: naming epoch and images of the first loss, or gradients, that are not finite.
        """
        unseen, self._unseen = self._unseen, []
        if self.scaler.is_enabled():
            if self.scaler.get_scale() < MIN_SCALE:
                raise UserError(
                    "the loss or its gradients overflow fp16 at every step: use --amp bf16 or off, or lower --lr"
                )
            self._warn(unseen)
            return
        fault = next((entry for entry in unseen if not math.isfinite((entry[0] + entry[1]).item())), None)
        if not distributed.any_rank(fault is not None):
            return
        kept = f"{self.last} holds the last good state" if self.last.exists() else "nothing was saved yet"
        own_loss = fault is not None and not fault[0].isfinite()
        # The ranks share their gradients: the fault of one loss is in all of them.
        if (distributed.any_rank(own_loss) and not own_loss) or fault is None:
            raise UserError(f"the loss of another rank is not a number, see its message; {kept}")
        loss, norm, ids, epoch = fault
        what = f"the loss is {loss.item()}"
        if not own_loss:
            what = f"the norm of the gradients is {norm.item()} (of the loss {loss.item():.3g})"
        raise UserError(
            f"{what} in epoch {epoch}, batch of {', '.join(ids)}; {kept}: lower --lr or look at these images"
        )


def refuse_non_finite(tensors: Iterable[torch.Tensor], last: Path) -> None:
    """Refuse to save a state that a step has already spoilt, though no loss has shown it yet.

    Raises:
        UserError: one of ``tensors`` holds an inf or a nan.
    """
    flags = [tensor.isfinite().all() for tensor in tensors if tensor.is_floating_point()]
    # One look for all: each waits for the device.
    if flags and not torch.stack([flag.to(flags[0].device) for flag in flags]).all():
        kept = f"{last} holds the last good state" if last.exists() else "nothing was saved yet"
        raise UserError(f"the last steps left weights that are not finite, not saved; {kept}: lower --lr")
