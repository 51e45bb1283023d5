"""Tensors from files and libraries put into models: strict, with one clear error, and said aloud when partial.

A weights' file is a checkpoint of this project, or a state_dict (bare, or under ``state_dict`` or
``model``), of the whole network or of its backbone alone, as torchvision and smp name their tensors.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from basics.checkpoint import is_plain, load_file
from basics.errors import UserError
from networks.base import SegmentationModel

StateDict = dict[str, torch.Tensor]
T = TypeVar("T")

# What our `backbone.` is called in other people's files, "" for a file of the backbone alone.
BACKBONE_PREFIXES = ("backbone.", "encoder.", "features.", "")
# Heads of classification networks: never wanted, never missed.
CLASSIFICATION_HEADS = ("fc.", "classifier.", "head.")
# Below this share of its tensors a backbone counts as not loaded at all.
LEAST_SHARE = 0.5
NETWORK_TIMEOUT_S = 20


class ClassCountError(UserError):
    """The weights are for another number of classes; all else fits."""


@dataclass(frozen=True)
class WeightsFile:
    """The content of a weights' file: its tensors, and the whole dict if it is a checkpoint of this project."""

    origin: str
    state_dict: StateDict
    checkpoint: dict | None = None


def read_weights(path: str | Path) -> WeightsFile:
    """Read ``path`` (see the module's docstring); anything else in it is a `UserError`."""
    content = load_file(path)
    checkpoint = content if "format" in content and "model" in content else None
    state = content
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content.get(key), Mapping):
            state = content[key]
            break
    check_tensors(state, str(path))
    return WeightsFile(str(path), {_plain_name(name): value for name, value in state.items()}, checkpoint)


def check_tensors(state: Mapping, origin: str) -> None:
    """A `UserError` unless ``state`` maps names to plain tensors of finite real numbers, and has some."""
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{origin}: neither a checkpoint of this project nor a state_dict")
    for name, value in state.items():
        if not isinstance(name, str) or not is_plain(value):
            raise UserError(f"{origin}: damaged: {str(name)[:80]!r} is no plain tensor of real numbers")
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{origin}: {name[:80]!r} holds numbers that are not finite: such weights are of no use")


def _plain_name(name: str) -> str:
    """Without what DistributedDataParallel and torch.compile put in front."""
    return name.replace("_orig_mod.", "").removeprefix("module.")


def is_whole(model: SegmentationModel, state: StateDict) -> bool:
    """Whether ``state`` holds more of ``model`` than its backbone."""
    state = _own_names(state)
    return any(name in state for name in model.state_dict() if not name.startswith(model.backbone_prefix))


def load_whole(model: SegmentationModel, state: StateDict, origin: str) -> None:
    """Load all of ``model``, strictly. torchvision's auxiliary heads are left out, smp's names understood.

    Raises:
        ClassCountError: the weights are for another number of classes, all else fits.
        UserError: tensors are missing, left over or of another shape.
    """
    state, own = _own_names(state), model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    surplus = [name for name in state if name not in own]
    unlike = [name for name in own if name in state and state[name].shape != own[name].shape]
    if not missing and not surplus and unlike:
        counts = {_other_class_count(own[name], state[name], model.num_classes) for name in unlike}
        if len(counts) == 1 and None not in counts:
            raise ClassCountError(f"{origin}: made for {counts.pop()} classes, needed are {model.num_classes}")
    faults = [
        f"{len(names)} {what} ({_first(names)})"
        for names, what in ((missing, "tensors missing"), (surplus, "unknown"), (unlike, "of another shape"))
        if names
    ]
    if faults:
        raise UserError(f"{origin}: these are not this model's weights: {', '.join(faults)}")
    model.load_state_dict(state, strict=False)  # strict but for num_batches_tracked, which old files lack


def _own_names(state: StateDict) -> StateDict:
    """``state`` without auxiliary heads, smp's ``encoder.`` renamed to our ``backbone.``."""
    return {
        ("backbone." + name.removeprefix("encoder.") if name.startswith("encoder.") else name): value
        for name, value in state.items()
        if not name.startswith("aux_classifier.")
    }


def _other_class_count(own: torch.Tensor, other: torch.Tensor, num_classes: int) -> int | None:
    """The class count ``other`` was made for, if that is all it differs in."""
    same = own.ndim == other.ndim > 0 and own.shape[0] == num_classes and own.shape[1:] == other.shape[1:]
    return other.shape[0] if same else None


def load_backbone(model: SegmentationModel, state: StateDict, origin: str) -> None:
    """Load what ``state`` holds of ``model.backbone`` and print what was loaded and what was not.

    A partial file is accepted from half of the backbone's tensors on; the rest stays random.

    Raises:
        UserError: too little in common, tensors of another shape, or of a deeper network.
    """
    own = model.backbone.state_dict()
    prefix = max(BACKBONE_PREFIXES, key=lambda prefix: sum(prefix + name in state for name in own))
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    found = [name for name in own if name in inner]
    counted = [name for name in own if not name.endswith("num_batches_tracked")]
    missing = [name for name in counted if name not in inner]
    share = 1 - len(missing) / len(counted)
    if share < LEAST_SHARE:
        raise UserError(
            f"{origin}: holds {len(counted) - len(missing)} of the {len(counted)} tensors of this model's backbone; "
            "pass weights of the same architecture, or `none`"
        )
    unlike = [name for name in found if inner[name].shape != own[name].shape]
    if unlike:
        raise UserError(f"{origin}: another architecture: {len(unlike)} tensors of another shape ({_first(unlike)})")
    spare = model.spare_backbone_keys + (CLASSIFICATION_HEADS if prefix == "" else ())
    unknown = [name for name in inner if name not in own and not name.startswith(spare)]
    if unknown:
        raise UserError(
            f"{origin}: another architecture: {len(unknown)} tensors this model does not know ({_first(unknown)})"
        )
    # By way of the model: some of smp's encoders have a load_state_dict of their own, with other arguments.
    model.load_state_dict({model.backbone_prefix + name: inner[name] for name in found}, strict=False)
    print(f"backbone: {len(counted) - len(missing)} of {len(counted)} tensors from {origin}")
    if missing:
        layers = dict.fromkeys(name.rpartition(".")[0] for name in missing)
        print(f"backbone: not in that file and left random: {', '.join(layers)}")


def _first(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")


def fetch(what: str, download: Callable[[], T], option: str) -> T:
    """``download()``; if it fails, a `UserError` that names ``what`` and the ways on, ``option``.

    No server is waited for longer than `NETWORK_TIMEOUT_S` without a sign of life.
    """
    try:
        with _socket_timeout(NETWORK_TIMEOUT_S):
            return download()
    except UserError:
        raise
    except Exception as error:  # each library and transport has its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"cannot download {what} ({reason}); {option}") from error


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torch.hub sets no timeout of its own, and a silent server would be waited for without end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
