"""Tensors from files and libraries put into models: strict, with one clear error, and said aloud when partial.

A weights' file is a checkpoint of this project, or any dict of tensors (.safetensors, too), of the whole network or
of its backbone alone, as torchvision and smp name their tensors. These may lie deeper in the dict (``state_dict``,
``model_state``, ``ema``) and have any prefix (``model.``, ``net.``, ``module.``): where the network's own names are
found, there it is. What was unwrapped is printed; a file that holds several networks is refused.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from basics.checkpoint import is_plain, load_file
from basics.errors import UserError, reason_of
from networks.base import SegmentationModel
from networks.class_names import named_classes

StateDict = dict[str, torch.Tensor]
T = TypeVar("T")
M = TypeVar("M", bound=SegmentationModel)

# What our `backbone.` is called in other people's files, "" for a file of the backbone alone.
BACKBONE_PREFIXES = ("backbone.", "encoder.", "features.", "")
# Heads of classification networks: never wanted, never missed.
CLASSIFICATION_HEADS = ("fc.", "classifier.", "head.")
# Running averages of a network's weights, in a file beside the weights themselves or instead of them.
AVERAGES = re.compile(r"(^|[._])(ema|swa|shadow|averaged?)([._]|$)")
# Below this share of its tensors a part of a network counts as not there at all.
LEAST_SHARE = 0.5
# What a network of a library or of a user's file is called inside our model of it, whatever it is wrapped in.
WRAPPERS = ("network.module.", "network._orig_mod.", "network.")
DEEPEST = 3  # dicts within dicts that are looked into
NETWORK_TIMEOUT_S = 20


class ClassCountError(UserError):
    """The weights are for another number of classes, or for other ones; all else fits.

    Attributes:
        classes: how many they are for; None where it is not the number that differs.
    """

    def __init__(self, message: str, classes: int | None = None) -> None:
        super().__init__(message)
        self.classes = classes


BACKBONE = "backbone."  # of the networks in our own table


@dataclass(frozen=True)
class WeightsFile:
    """The content of a weights' file.

    Attributes:
        origin: what to call it in messages.
        state_dict: its tensors; those of a foreign file by their way through its dicts, joined by dots.
        checkpoint: the whole dict if it is a checkpoint of this project.
        class_names: of the classes it was made for, where it names them.
        sections: the dicts in a foreign file, as beginnings of names: ``state_dict.``.
    """

    origin: str
    state_dict: StateDict
    checkpoint: dict | None = None
    class_names: list[str] | None = None
    sections: frozenset[str] = frozenset()


def read_weights(path: str | Path) -> WeightsFile:
    """Read ``path`` (see the module's docstring); anything else in it is a `UserError`."""
    content = load_file(path)
    if "format" in content and "model" in content and isinstance(content.get("state_dict"), Mapping):
        state = {_plain_name(str(name)): value for name, value in content["state_dict"].items()}
        return WeightsFile(str(path), state, content, named_classes(content))
    tensors: StateDict = {}
    sections: set[str] = set()
    _collect(content, "", tensors, sections)
    if not tensors:
        raise UserError(
            f"{path}: neither a checkpoint of this project nor a state_dict: no tensors in it, "
            f"but {first_names([str(key) for key in content]) or 'nothing at all'}"
        )
    return WeightsFile(str(path), tensors, None, named_classes(content), frozenset(sections))


def _collect(content: Mapping, path: str, tensors: StateDict, sections: set[str]) -> None:
    """Put all tensors of ``content`` into ``tensors``, and the ways to the dicts that they lie in into ``sections``."""
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            tensors[path + _plain_name(str(key))] = value
        elif isinstance(value, Mapping) and path.count(".") < DEEPEST:
            sections.add(f"{path}{key}.")
            _collect(value, f"{path}{key}.", tensors, sections)


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


# -- where in a file a network is ------------------------------------------------------------------


def unwrap(model: SegmentationModel, file: WeightsFile) -> StateDict:
    """The tensors of ``file`` by the names that ``model`` has for them, where most of those are found in it.

    Otherwise all of them as they are: of a backbone, or of another network. What was taken off is printed.

    Raises:
        UserError: the file holds several such networks.
    """
    if file.checkpoint is not None:  # of ours, by our names
        return file.state_dict
    own = _counted(model.state_dict())
    wrapper = next((wrapper for wrapper in WRAPPERS if all(name.startswith(wrapper) for name in own)), "")
    own = [name.removeprefix(wrapper) for name in own]
    spelled = [*own, *("encoder." + name.removeprefix("backbone.") for name in own if name.startswith("backbone."))]
    prefix, averages = _find_prefix(spelled, file.state_dict, file.origin, least=LEAST_SHARE * len(own))
    state = {name: value for name, value in file.state_dict.items() if not name.startswith(tuple(averages))}
    section = max((section for section in file.sections if prefix.startswith(section)), key=len, default="")
    done = [f"unwrapped `{section[:-1]}`"] if section else []
    done += [f"prefix `{prefix.removeprefix(section)}` removed"] if prefix != section else []
    done += [f"left aside: the average under `{average[:-1]}`" for average in averages]
    if prefix:  # without one it is strict: all in the file must be the network's
        beside = [name for name in state if name.startswith(section) and not name.startswith(prefix)]
        parts = dict.fromkeys(name.removeprefix(section).partition(".")[0] for name in beside)
        done += [f"left aside: {first_names(parts)}"] if parts else []
    if done:
        print(f"{file.origin}: {'; '.join(done)}")
    return {wrapper + name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _find_prefix(names: Collection[str], tensors: StateDict, origin: str, least: float) -> tuple[str, list[str]]:
    """With which prefix most of ``names`` are found among ``tensors``, and with which ones an average of that network.

    "" where fewer than ``least`` are found. The weights themselves come before an average of them; of several
    networks the one without a prefix, or with one of `BACKBONE_PREFIXES`, is taken.

    Raises:
        UserError: there are several with prefixes of their own, and they are not the same tensors.
    """
    wanted, found = set(names), Counter[str]()
    for name in tensors:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in wanted:
                found["".join(f"{part}." for part in parts[:depth])] += 1
    most = max(found.values(), default=0)
    if most < max(least, 1):
        return "", []
    copies = [prefix for prefix, count in found.items() if 2 * count > most]
    averages = [prefix for prefix in copies if AVERAGES.search(prefix)]
    plain = [prefix for prefix in copies if prefix not in averages] or averages
    usual = [prefix for prefix in BACKBONE_PREFIXES if prefix in plain]
    chosen = usual[0] if usual else plain[0]
    others = [] if usual else [prefix for prefix in plain[1:] if not _same(tensors, chosen, prefix)]
    if others:
        listed = " and ".join(f"`{prefix}`" for prefix in (chosen, *others))
        raise UserError(
            f"{origin}: holds such a network {1 + len(others)} times, under {listed}: save the tensors of the one that "
            "is meant alone, and pass that file"
        )
    return chosen, [prefix for prefix in averages if prefix != chosen]


def _same(tensors: StateDict, prefix: str, other: str) -> bool:
    """Whether what is found under both prefixes is the same."""
    one, two = (
        {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
        for start in (prefix, other)
    )
    shared = one.keys() & two.keys()
    return all(one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in shared)


def _counted(state: Collection[str]) -> list[str]:
    """The names that a file must have; old ones lack BatchNorm's counters."""
    return [name for name in state if not name.endswith("num_batches_tracked")]


# -- into a model ----------------------------------------------------------------------------------


def is_whole(model: SegmentationModel, state: StateDict) -> bool:
    """Whether ``state`` holds more of ``model`` than its backbone: most of what comes behind that."""
    state = _own_names(state)
    behind = [name for name in _counted(model.state_dict()) if not name.startswith(BACKBONE)]
    return sum(name in state for name in behind) > LEAST_SHARE * len(behind)


def load_whole(model: SegmentationModel, state: StateDict, origin: str) -> None:
    """Load all of ``model``, strictly. torchvision's auxiliary heads are left out, smp's names understood.

    Raises:
        ClassCountError: the weights are for another number of classes, all else fits.
        UserError: tensors are missing, left over, of another shape or damaged.
    """
    check_tensors(state, origin)
    state, own = _own_names(state), model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    surplus = [name for name in state if name not in own]
    unlike = [name for name in own if name in state and state[name].shape != own[name].shape]
    if not missing and not surplus and unlike:
        counts = {_other_class_count(own[name], state[name], model.num_classes) for name in unlike}
        if len(counts) == 1 and (count := counts.pop()) is not None:
            raise ClassCountError(f"{origin}: made for {count} classes, needed are {model.num_classes}", count)
    faults = [
        f"{len(names)} {what} ({first_names(names)})"
        for names, what in ((missing, "tensors missing"), (surplus, "unknown"), (unlike, "of another shape"))
        if names
    ]
    if faults:
        raise UserError(f"{origin}: these are not this model's weights: {', '.join(faults)}")
    model.load_state_dict(state, strict=False)  # strict but for num_batches_tracked, which old files lack


def load_teacher_file(model: SegmentationModel, name: str, file: WeightsFile) -> None:
    """Load all of the row ``name`` of the zoo from ``file``, as `load_whole`; a backbone alone is refused as such."""
    state = unwrap(model, file)
    if not is_whole(model, state):
        raise UserError(
            f"{file.origin}: no weights of a whole {name}, but at most of its backbone: no teacher yet; it holds "
            f"{first_names(state)}, a {name} {first_names(model.state_dict())}"
        )
    load_whole(model, state, file.origin)


def build_counted(build: Callable[[int | None], M], count: int | None, load: Callable[[M], None], *, fixed: bool) -> M:
    """``build(count)`` with the weights that ``load`` brings; built anew where these are for another number of classes.

    Args:
        fixed: it is not built anew: the count is known.

    Raises:
        UserError: as `load_whole`, or it cannot be built for so many classes.
    """
    model = build(count)
    try:
        load(model)
    except ClassCountError as error:
        if fixed or error.classes is None:
            raise
        model = build(error.classes)
        load(model)
    return model


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
    """Load what ``state`` holds of ``model.backbone``, under whatever prefix; print what was loaded and what was not.

    A partial file is accepted from half of the backbone's tensors on; the rest stays random.

    Raises:
        UserError: too little in common, tensors of another shape, or of a deeper network.
    """
    own = model.backbone.state_dict()
    counted = _counted(own)
    prefix, averages = _find_prefix(counted, state, origin, least=1)
    inner = {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix) and not name.startswith(tuple(averages))
    }
    found = [name for name in own if name in inner]
    missing = [name for name in counted if name not in inner]
    share = 1 - len(missing) / len(counted)
    if share < LEAST_SHARE:
        raise UserError(
            f"{origin}: holds {len(counted) - len(missing)} of the {len(counted)} tensors of this model's backbone "
            f"({first_names(counted)}), its own are {first_names(state)}; pass weights of the same architecture, "
            "or `none`"
        )
    check_tensors({name: inner[name] for name in found}, origin)
    unlike = [name for name in found if inner[name].shape != own[name].shape]
    if unlike:
        raise UserError(
            f"{origin}: another architecture: {len(unlike)} tensors of another shape ({first_names(unlike)})"
        )
    spare = model.spare_backbone_keys + (() if prefix.endswith(BACKBONE_PREFIXES[:-1]) else CLASSIFICATION_HEADS)
    unknown = [name for name in inner if name not in own and not name.startswith(spare)]
    if unknown:
        raise UserError(
            f"{origin}: another architecture: {len(unknown)} tensors this model does not know ({first_names(unknown)})"
        )
    # By way of the model: some of smp's encoders have a load_state_dict of their own, with other arguments.
    model.load_state_dict({BACKBONE + name: inner[name] for name in found}, strict=False)
    where = "" if prefix in BACKBONE_PREFIXES else f", there under `{prefix[:-1]}`"
    print(f"backbone: {len(counted) - len(missing)} of {len(counted)} tensors from {origin}{where}")
    if missing:
        layers = dict.fromkeys(name.rpartition(".")[0] for name in missing)
        print(f"backbone: not in that file and left random: {', '.join(layers)}")


def first_names(names: Iterable[str]) -> str:
    """The first two, to tell a file or a network by."""
    names = list(names)
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
        reason = reason_of(error)
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
