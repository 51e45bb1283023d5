"""What a training run must remember to go on as if it had never stopped, and the signals that make it stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from kd.errors import UserError

# Arguments that may differ when a run is resumed: where and how it runs, not what is computed.
FREE_ARGUMENTS = {
    "allow_changed", "compile", "data_dir", "decode_cache", "device", "eval_batch_size", "eval_every", "max_steps",
    "name", "output_dir", "patience", "resume", "save_every", "save_steps", "tensorboard", "wandb", "workers",
}  # fmt: skip


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: epochs completed.
        step_in_epoch: optimizer steps done in the epoch under way.
        step: optimizer steps done in all.
        best_miou: best validation mIoU so far, in 0..1; -1 before the first evaluation.
        best_epoch: the (1-based) epoch it was seen in.
        stale_evaluations: evaluations since then.
        skipped_steps: optimizer steps that fp16 loss scaling left out.
        elapsed_s: seconds of work in all, earlier parts of the run included.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    best_miou: float = -1.0
    best_epoch: int = 0
    stale_evaluations: int = 0
    skipped_steps: int = 0
    elapsed_s: float = 0.0


def rng_state() -> dict[str, object]:
    """The state of every torch random number generator (CPU, each CUDA device, MPS)."""
    state: dict[str, object] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_rng_state(state: Mapping[str, object]) -> None:
    """Put `rng_state` back, as far as this machine has the devices."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def training_state(
    progress: Progress, arguments: Mapping[str, object], loss_sums: torch.Tensor, parts: Mapping[str, object]
) -> dict[str, object]:
    """The plain dict under ``training`` in last.pth; ``parts`` are the things with a ``state_dict()``."""
    return {
        "progress": asdict(progress),
        "arguments": dict(arguments),
        "loss_sums": loss_sums.cpu(),
        "rng": rng_state(),
        **{name: part.state_dict() for name, part in parts.items()},
    }


def restore_training(
    state: Mapping[str, object], loss_sums: torch.Tensor, parts: Mapping[str, object], where: str
) -> Progress:
    """Load `training_state` into ``loss_sums`` and ``parts``; returns the progress.

    Raises:
        UserError: the state is of a run that was set up otherwise.
    """
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        loss_sums.copy_(state["loss_sums"])
        restore_rng_state(state["rng"])
        return Progress(**state["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise UserError(f"{where}: its training state does not fit this run ({error})") from error


def refuse_changes(saved: Mapping[str, object], now: Mapping[str, object], allow: bool, where: str) -> None:
    """Name the arguments that differ from the saved run's and would make the rest of it another run.

    Raises:
        UserError: some differ and ``allow`` is false.
    """
    changed = [
        f"--{name.replace('_', '-')} was {saved.get(name)!r}, is {now[name]!r}"
        for name in now
        if name not in FREE_ARGUMENTS and saved.get(name) != now[name]
    ]
    if changed and not allow:
        raise UserError(
            f"{where} was made with other arguments: {'; '.join(changed)}; resume with the same ones, "
            "or pass --allow-changed"
        )


class StopSignal:
    """While active, SIGINT and SIGTERM set ``requested`` instead of ending the process; a second SIGINT ends it.

    Schedulers of clusters send SIGTERM before they take a machine away; Ctrl-C sends SIGINT.
    """

    def __init__(self):
        self.requested = False
        self._previous = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number, frame) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


def ignore_stop_signals(worker_id: int = 0) -> None:
    """A ``worker_init_fn``: loader workers leave Ctrl-C and SIGTERM, sent to the whole group, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
