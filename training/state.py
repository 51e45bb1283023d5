"""What a training run must remember to go on as if it had never stopped, and the signals that make it stop."""

from __future__ import annotations

import hashlib
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import torch

from basics import distributed
from basics.checkpoint import is_plain
from basics.errors import UserError

# Arguments that may differ when a run is resumed: where and how it runs, not what is computed.
FREE_ARGUMENTS = {
    "allow_changed", "cache_dir", "compile", "data_dir", "decode_cache", "device", "dist_timeout", "dry_run",
    "eval_batch_size", "eval_every", "max_steps", "name", "output_dir", "patience", "resume", "save_every",
    "save_steps", "tensorboard", "wandb", "workers",
}  # fmt: skip

# What each optimizer keeps for a parameter.
MOMENTS = {torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}, torch.optim.SGD: {"momentum_buffer"}}


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        epoch: epochs completed.
        step_in_epoch: optimizer steps done in the epoch under way.
        step: optimizer steps done in all.
        finished_step: of them, those that the last row of metrics.csv knows.
        best_miou: best validation mIoU so far, in 0..1; -1 before the first evaluation.
        best_epoch: the (1-based) epoch it was seen in.
        stale_evaluations: evaluations since then.
        skipped_steps: optimizer steps that fp16 loss scaling left out.
        epoch_s: seconds of training in the epoch under way.
        elapsed_s: seconds of work in all, earlier parts of the run included.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    finished_step: int = 0
    best_miou: float = -1.0
    best_epoch: int = 0
    stale_evaluations: int = 0
    skipped_steps: int = 0
    epoch_s: float = 0.0
    elapsed_s: float = 0.0


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """The state of torch's random number generators that this process draws from: the CPU's and the device's."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_rng_state(states: Sequence[Mapping[str, torch.Tensor]], device: torch.device) -> None:
    """Put back this rank's `rng_state`, as far as it was saved on such a device.

    ``states`` has one for each rank of the run that saved them; more ranks than then draw anew.
    """
    mine = states[distributed.rank() % len(states)]
    torch.set_rng_state(mine["cpu"])
    if device.type == "cuda" and "cuda" in mine:
        torch.cuda.set_rng_state(mine["cuda"], device)
    if device.type == "mps" and "mps" in mine:
        torch.mps.set_rng_state(mine["mps"])
    if distributed.rank() >= len(states):
        part_random_streams()


def part_random_streams() -> None:
    """Let each rank draw its own numbers from here on (dropout); the main rank's stay as they are."""
    if distributed.rank() > 0:
        torch.manual_seed(torch.randint(2**62, ()).item() + distributed.rank())


def fingerprint(ids: Sequence[str]) -> str:
    """A short name for a list of images, to notice that a split has changed."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def training_state(
    progress: Progress,
    arguments: Mapping[str, object],
    loss_sums: torch.Tensor,
    parts: Mapping[str, object],
    device: torch.device,
) -> dict[str, object]:
    """The plain dict under ``training`` in last.pth; ``parts`` are the things with a ``state_dict()``.

    In a distributed run all ranks must call it: it gathers their random states.
    """
    return {
        "progress": asdict(progress),
        "arguments": dict(arguments),
        "loss_sums": distributed.gather(loss_sums.cpu()),
        "rng": distributed.gather(rng_state(device)),
        **{name: part.state_dict() for name, part in parts.items()},
    }


def restore_training(
    state: Mapping[str, object],
    loss_sums: torch.Tensor,
    parts: Mapping[str, object],
    where: str,
    device: torch.device,
) -> Progress:
    """Load `training_state` into ``loss_sums`` and ``parts``; returns the progress.

    Raises:
        UserError: the state is damaged, or of a run that was set up otherwise; nothing is loaded then.
    """
    try:
        progress = Progress(**state["progress"])
        _check_progress(progress)
        sums = state["loss_sums"]
        _check_like(sums, [loss_sums] * len(sums), "loss_sums")
        for name, part in parts.items():
            if isinstance(part, torch.optim.Optimizer):
                _check_optimizer(state[name], part)
            else:
                _check_like(state[name], part.state_dict(), name)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        # Only the mean over ranks is ever read: if there are more or fewer now, each goes on from it.
        same = len(sums) == distributed.world_size()
        loss_sums.copy_(sums[distributed.rank()] if same else sum(sums) / len(sums))
        restore_rng_state(state["rng"], device)
        return progress
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{where}: its training state does not fit this run ({error})") from error


def _check_progress(progress: Progress) -> None:
    for field in fields(Progress):
        value = getattr(progress, field.name)
        kinds = (int,) if isinstance(field.default, int) else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or value < min(field.default, 0):
            raise ValueError(f"{field.name} is {reprlib.repr(value)}")


def _check_optimizer(saved: Mapping, optimizer: torch.optim.Optimizer) -> None:
    """Same groups, and for each parameter that has been trained the optimizer's moments in its own shape."""
    _check_like(saved["param_groups"], optimizer.state_dict()["param_groups"], "optimizer")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, moments in saved["state"].items():
        if index not in range(len(parameters)) or moments.keys() != MOMENTS[type(optimizer)]:
            raise ValueError(f"optimizer: parameter {reprlib.repr(index)} is unknown or has other moments")
        for name, value in moments.items():
            _check_like(value, torch.empty(()) if name == "step" else parameters[index], f"optimizer: {name}")


def _check_like(saved: object, own: object, where: str) -> None:
    """A `ValueError` unless ``saved`` is built as ``own``: keys, lengths, kinds of values, shapes of tensors.

    Tensors must be finite floats on the CPU. Walks as deep as ``own`` goes, however deep ``saved`` is.
    """
    if isinstance(own, torch.Tensor):
        alike = isinstance(saved, torch.Tensor) and saved.shape == own.shape and is_plain(saved)
        alike = alike and saved.is_floating_point() and bool(saved.isfinite().all())
    elif isinstance(own, Mapping):
        alike = isinstance(saved, Mapping) and saved.keys() == own.keys()
    elif isinstance(own, list | tuple):
        alike = isinstance(saved, list | tuple) and len(saved) == len(own)
    elif isinstance(own, float | int) and not isinstance(own, bool):
        alike = isinstance(saved, float | int)
    else:
        alike = type(saved) is type(own)
    if not alike:
        raise ValueError(f"{where} is of another kind or size")
    if isinstance(own, Mapping):
        for key in own:
            _check_like(saved[key], own[key], f"{where}/{key}")
    elif isinstance(own, list | tuple):
        for index, (one, other) in enumerate(zip(saved, own, strict=True)):
            _check_like(one, other, f"{where}/{index}")


def _same_argument(saved: object, now: object) -> bool:
    return not isinstance(saved, torch.Tensor) and saved == now  # a tensor's comparison is no yes or no


def refuse_changes(saved: object, now: Mapping[str, object], allow: bool, where: str) -> None:
    """Name the arguments that differ from the saved run's and would make the rest of it another run.

    Raises:
        UserError: some differ and ``allow`` is false, or ``saved`` holds no arguments at all.
    """
    if not isinstance(saved, Mapping):
        raise UserError(f"{where}: damaged: the arguments of its run are missing")
    changed = [
        f"--{name.replace('_', '-')} was {reprlib.repr(saved.get(name))}, is {now[name]!r}"
        for name in now
        if name not in FREE_ARGUMENTS and not _same_argument(saved.get(name), now[name])
    ]
    if changed and not allow:
        raise UserError(
            f"{where} was made with other arguments: {'; '.join(changed)}; resume with the same ones, "
            "or pass --allow-changed"
        )
