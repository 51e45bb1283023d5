"""What a training run must remember to go on as if it had never stopped: saved and restored as one object."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch

from basics import distributed
from basics.checkpoint import is_plain
from basics.device import exact_dtype
from basics.errors import UserError
from training.made_from import MadeFrom
from training.optim import Optimization

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
        best_score: best validation score so far, in 0..1 (see `training.goal`); -1 before the first evaluation.
        best_epoch: the (1-based) epoch it was seen in.
        stale_evaluations: evaluations since then.
        skipped_steps: optimizer steps that fp16 loss scaling left out.
        epoch_s: seconds of training in the epoch under way.
        train_s: seconds of training in all, without scoring and saving (see `training.pace`).
        elapsed_s: seconds of work in all, earlier parts of the run included.
        data_s, step_s, scoring_s: of them, those spent waiting for pictures, in training steps, and scoring.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    step: int = 0
    finished_step: int = 0
    best_score: float = -1.0
    best_epoch: int = 0
    stale_evaluations: int = 0
    skipped_steps: int = 0
    epoch_s: float = 0.0
    elapsed_s: float = 0.0
    train_s: float = 0.0
    data_s: float = 0.0
    step_s: float = 0.0
    scoring_s: float = 0.0


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


class Part(Protocol):
    """Something whose state last.pth keeps."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any) -> Any: ...


class LossSums:
    """Sums of the losses of an epoch under way, on the device: looking at them in every step would wait for it.

    Args:
        terms: their names.
    """

    def __init__(self, terms: Sequence[str], device: torch.device):
        self.terms = list(terms)
        # The last sum counts the steps whose losses are in the others.
        self.values = torch.zeros(len(self.terms) + 1, dtype=exact_dtype(device), device=device)

    def add(self, losses: torch.Tensor) -> None:
        """Take in a step's losses (terms,); those of a step that fp16 scaling skips are not finite, and left out."""
        counted = torch.cat([losses, losses.new_ones(1)])
        self.values += torch.where(losses.isfinite().all(), counted, 0)

    def means(self) -> dict[str, float]:
        """Mean of each term over the epoch so far, and over the ranks, all of which must call it; nan of no step."""
        *sums, count = distributed.add_up(self.values.clone()).tolist()
        return {name: value / count if count else math.nan for name, value in zip(self.terms, sums, strict=True)}

    def clear(self) -> None:
        """An epoch ends."""
        self.values.zero_()

    def restore(self, saved: Sequence[torch.Tensor]) -> None:
        """Take over the ranks' values, checked already.

        Only the mean over ranks is ever read: if there are more or fewer now, each goes on from it.
        """
        same = len(saved) == distributed.world_size()
        self.values.copy_(saved[distributed.rank()] if same else torch.stack(list(saved)).mean(0))


class RunState:
    """All that a run must remember beside its student, to go on as if it had never stopped.

    Attributes:
        progress: how far it has come.
        losses, norms: of the epoch under way: the losses by term and in all, and the norm of the gradients.
        made_from: what it is made from.
    """

    def __init__(
        self,
        progress: Progress,
        made_from: MadeFrom,
        losses: LossSums,
        adapters: torch.nn.Module,
        optimization: Optimization,
        device: torch.device,
    ):
        self.progress = progress
        self.made_from, self.losses, self.device = made_from, losses, device
        self.norms = LossSums(["grad_norm"], device)
        self.adapters, self.optimization = adapters, optimization

    def add(self, step: torch.Tensor) -> None:
        """Take in a step's losses and, last, the norm of its gradients, which fp16 scaling may leave infinite alone."""
        self.losses.add(step[:-1])
        self.norms.add(step[-1:])

    def means(self) -> dict[str, float]:
        """Of all of them over the epoch so far; see `LossSums.means`."""
        return self.losses.means() | self.norms.means()

    def clear(self) -> None:
        """An epoch ends."""
        self.losses.clear()
        self.norms.clear()

    @property
    def parts(self) -> dict[str, Part]:
        """What keeps its own state, by its name in last.pth."""
        optimization = self.optimization
        return {
            "adapters": self.adapters,
            "optimizer": optimization.optimizer,
            "scheduler": optimization.scheduler,
            "scaler": optimization.scaler,
        }

    def to_dict(self) -> dict[str, object]:
        """The plain dict under ``training`` in last.pth.

        In a distributed run all ranks must call it: it gathers their random states.
        """
        return {
            "progress": asdict(self.progress),
            "loss_sums": distributed.gather(self.losses.values.cpu()),
            "norm_sums": distributed.gather(self.norms.values.cpu()),
            "rng": distributed.gather(rng_state(self.device)),
            **{name: part.state_dict() for name, part in self.parts.items()},
            **self.made_from.kept(),
        }

    def restore(self, saved: Mapping[str, Any], path: Path) -> None:
        """Take over `to_dict`; learning rates and weight decay stay those of the arguments (--allow-changed).

        Raises:
            UserError: the state is damaged, or of a run that was set up otherwise; nothing is loaded then.
        """
        groups, scheduler = self.optimization.optimizer.param_groups, self.optimization.scheduler
        given = [(group["initial_lr"], group["weight_decay"]) for group in groups]
        try:
            vars(self.progress).update(vars(self._load(saved)))  # in place: others have it
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError, ArithmeticError) as error:
            raise UserError(f"{path}: its training state does not fit this run ({error})") from error
        groups = self.optimization.optimizer.param_groups  # loading has made new ones
        for index, (rate, decay) in enumerate(given):
            factor = scheduler.lr_lambdas[index](scheduler.last_epoch)
            scheduler.base_lrs[index] = rate
            groups[index] |= {"initial_lr": rate, "weight_decay": decay, "lr": rate * factor}
        progress = self.progress
        if progress.step_in_epoch and self.made_from.other_steps(saved):
            print(f"epoch {progress.epoch + 1} begins anew: its steps were of another size or other images")
            progress.step_in_epoch, progress.epoch_s = 0, 0.0
            self.clear()

    def _load(self, saved: Mapping[str, Any]) -> Progress:
        """Look at all of it first, then load; any error of Python's means that it does not fit."""
        kept = dict(saved["progress"])
        if "best_miou" in kept:  # as files of old call it
            kept["best_score"] = kept.pop("best_miou")
        progress = Progress(**kept)
        _check_progress(progress)
        sums = {"loss_sums": self.losses, "norm_sums": self.norms}
        sums = {name: own for name, own in sums.items() if name in saved or name == "loss_sums"}  # older: no norms
        for name, own in sums.items():
            _check_like(saved[name], [own.values] * len(saved[name]), name)
        for name, part in self.parts.items():
            if isinstance(part, torch.optim.Optimizer):
                _check_optimizer(saved[name], part)
            else:
                _check_like(saved[name], part.state_dict(), name)
        for name, part in self.parts.items():
            state = on_this_device(saved[name], part) if isinstance(part, torch.optim.Optimizer) else saved[name]
            part.load_state_dict(state)
        for name, own in sums.items():
            own.restore(saved[name])
        restore_rng_state(saved["rng"], self.device)
        return progress


def on_this_device(saved: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state, from wherever it was, fused or not: that decides where PyTorch lets counts of steps lie."""
    fused = optimizer.defaults["fused"]
    return {**saved, "param_groups": [group | {"fused": fused} for group in saved["param_groups"]]}


def _check_progress(progress: Progress) -> None:
    for field in fields(Progress):
        value, default = getattr(progress, field.name), getattr(Progress, field.name)
        kinds = int if isinstance(default, int) else int | float
        if not isinstance(value, kinds) or isinstance(value, bool) or value < min(default, 0):
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


def _check_like(saved: Any, own: object, where: str) -> None:
    """A `ValueError` unless ``saved`` is built as ``own``: keys, lengths, kinds of values, shapes of tensors.

    Tensors must be finite, on the CPU, and floats where ``own`` are (BatchNorm counts its batches). Walks as deep as
    ``own`` goes, however deep ``saved`` is.
    """
    if isinstance(own, torch.Tensor):
        alike = isinstance(saved, torch.Tensor) and saved.shape == own.shape and is_plain(saved)
        alike = alike and saved.is_floating_point() == own.is_floating_point() and bool(saved.isfinite().all())
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
