"""A network from a user's own file: ``my_file.py:build``.

``build`` is a function (or class) that gives an ``nn.Module``. A student's is called with ``num_classes`` if it takes
that; a teacher's only where it has no default, which is the number of its own classes. The module maps images
(N, 3, H, W) to logits (N, C, h, w) at full size or at a stride: as a tensor, as ``out``, ``logits`` or ``main`` of a
dict or an object, or as the first one of a tuple. All else is optional, attributes of the module:

    class_names     list of names, of a teacher that speaks of its own classes
    mean, std       three numbers each: the normalisation it wants of values in 0..1 (default: ImageNet's); buffers of
                    that name are the network's own affair
    bgr             True: it wants blue first
    stride          images are padded to a multiple of it (default: 32)
    backbone        the part that --freeze-epochs and --backbone-lr-factor are about (or ``encoder``)
    forward_taps    a method: images -> (logits, maps by name: low, mid, high, decoder), for feature losses

The file may import what lies beside it (``models/``, ``utils.py``), whatever rooms and modules there are elsewhere by
that name: while it is imported and built, its folder comes first. It should import all it needs at its top.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import logging
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from basics.checkpoint import file_sha256
from basics.errors import UserError, reason_of
from networks.base import TAPS
from networks.class_names import numbered_names
from networks.foreign import PROBE, Call, ForeignModel, noise, smallest_batch, watch
from networks.logits import fault_of_decisions, fault_of_logits
from networks.normalisation import Normalisation
from networks.output_names import MAIN, by_preference

SPEC = re.compile(r".+\.py:[A-Za-z_]\w*")
# Not imported anew for a file that has something of that name beside it: they have parts that cannot be there twice.
NEVER_ANEW = sys.stdlib_module_names | {"torch", "torchvision", "numpy", "PIL"}
STRIDE = 32
ROOT = Path(__file__).resolve().parent.parent  # of this project
# What the modules of this project begin with: a user's file may lie among them.
OURS = {
    *("basics", "kd", "networks", "segdata", "datachecks", "datalayouts", "scoring", "deploy", "training"),
    *("comparison", "benchmarks", "tests", "student_model", "dataset", "zoo", "train_kd", "evaluate", "test_teacher"),
    *("visualize", "count_parameters", "predict", "export", "quantize", "compare", "bench", "__main__"),
}
PRIVATE = "user_file_"  # what the user's own module is called in `sys.modules`


def is_spec(name: str) -> bool:
    """Whether a model's name is of the form FILE.py:FUNCTION."""
    return SPEC.fullmatch(name) is not None


def file_of(spec: str) -> Path:
    """The file of FILE.py:FUNCTION."""
    return Path(spec.rpartition(":")[0]).expanduser()


def refuse_foreign(spec: str, sha256: str) -> None:
    """A checkpoint names ``spec``: what it names may be run only if it lies below the current folder.

    Otherwise any file of weights could have any code on this machine run. That the file has changed is said.

    Raises:
        UserError: it lies elsewhere.
    """
    file = file_of(spec).resolve()
    if Path.cwd().resolve() not in file.parents:
        raise UserError(
            f"this checkpoint's network is built by {spec}, and a file that a checkpoint names is run only if it lies "
            f"below the current folder: start from {file.parent}, or bring it here"
        )
    if file.is_file() and file_sha256(file) != sha256:
        print(f"{spec}: the file has changed since the checkpoint was written")


def load(spec: str, num_classes: int | None = None, *, own: bool = False, trained: bool = False) -> UserModel:
    """The network of ``FILE.py:FUNCTION``; what was found of it is printed.

    Args:
        num_classes: what the function is told, if it wants to know.
        own: it is told only if it must be: its default is the number of its own classes.
        trained: its weights must be in it: building it twice must give the same network.

    Raises:
        UserError: no such file or function, it fails, what it gives is no segmentation network, or an untrained one.
    """
    file, function = file_of(spec), spec.rpartition(":")[2]
    if not file.is_file():
        raise UserError(f"{spec}: no file {file}; paths are looked up from {Path.cwd()}")
    folder = file.resolve().parent
    with own_imports(folder) as before:
        module = _import(file, spec)
        build = getattr(module, function, None)
        if not callable(build):
            there = [name for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_"]
            raise UserError(f"{spec}: no function {function!r} there; there are: {', '.join(there) or 'none'}")
        network = _call(build, num_classes, spec, folder, own=own)
        if not isinstance(network, nn.Module):
            raise UserError(f"{spec}: gave a {type(network).__name__}, not an nn.Module")
        model = UserModel(network, spec)
        if trained:
            with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
                torch.manual_seed(torch.initial_seed() + 1)
                _refuse_untrained(model, UserModel(_call(build, num_classes, spec, folder, own=own), spec))
        imported = _imported(folder, before)
    model.model_args = {"sha256": file_sha256(file)}
    if imported:
        model.made_of = {"imported": imported}
    if not model.normalisation.is_imagenets:
        model.made_of = {**model.made_of, "normalisation": model.normalisation.as_plain()}
    taps = ", ".join(f"{tap} ({channels})" for tap, channels in model.tap_channels.items()) or "none"
    print(f"{spec}: {model.num_classes} classes, logits at stride {model.logit_stride}, feature maps: {taps}")
    return model


@contextlib.contextmanager
def own_imports(folder: Path) -> Iterator[Collection[str]]:
    """Imports in here look into ``folder`` first; afterwards every module is again what it was outside.

    Yields the names of the modules that were there before.

    What is imported from the folder is kept out of `sys.modules`, so that two files may each have their ``models/``
    and neither hides a room of this project.
    """
    names = {path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir()} - NEVER_ANEW
    hidden = {name: module for name, module in sys.modules.items() if _hides(name, module, names, folder)}
    before = sys.modules.keys() - hidden.keys()
    for name in hidden:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield before
    finally:
        sys.path.remove(str(folder))
        for name in [*_users_own(folder, before), *(name for name in hidden if name in sys.modules)]:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)
        importlib.invalidate_caches()


def _users_own(folder: Path, before: Collection[str]) -> list[str]:
    """The modules below ``folder`` that were imported since ``before``, those of this project apart."""
    new = {name: module for name, module in sys.modules.items() if name not in before and not name.startswith(PRIVATE)}
    return [
        name
        for name, module in new.items()
        if _lies_in(module, folder) and not (folder == ROOT and name.partition(".")[0] in OURS)
    ]


def _imported(folder: Path, before: Collection[str]) -> dict[str, str]:
    """Hashes of the user's files that were imported since ``before``, by their way from ``folder``."""
    origins = (getattr(sys.modules[name], "__file__", None) for name in _users_own(folder, before))
    files = sorted({Path(origin).resolve() for origin in origins if isinstance(origin, str)})
    return {file.relative_to(folder).as_posix(): file_sha256(file) for file in files if file.is_file()}


def _hides(name: str, module: ModuleType, names: set[str], folder: Path) -> bool:
    """Whether a loaded module would be found instead of one of these ``names`` in ``folder``."""
    return name.partition(".")[0] in names and not _lies_in(module, folder)


def _lies_in(module: object, folder: Path) -> bool:
    """Whether it is a file below ``folder``, and none of Python's, its libraries' or this project's that lie there."""
    origin = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), None)
    path = Path(origin).resolve() if isinstance(origin, str) else Path()
    if folder not in path.parents or "site-packages" in path.relative_to(folder).parts:
        return False
    others = (Path(place).resolve() for place in (sys.prefix, sys.base_prefix, ROOT))
    return not any(folder in other.parents and other in path.parents for other in others)


def _import(file: Path, spec: str) -> ModuleType:
    name = f"{PRIVATE}{abs(hash(str(file.resolve())))}"
    found = importlib.util.spec_from_file_location(name, file.resolve())
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickle look there
    try:
        with _muted():
            found.loader.exec_module(module)
    except SystemExit as error:
        del sys.modules[name]
        raise UserError(
            f"{spec}: {file.name} ends the program while it is imported: put what reads a command line or trains under "
            '`if __name__ == "__main__":`'
        ) from error
    except Exception as error:
        del sys.modules[name]
        raise UserError(f"{spec}: cannot be imported: {_where(error, file.resolve().parent)}") from error
    return module


@contextlib.contextmanager
def _muted() -> Iterator[None]:
    """What is said on stderr in here comes out at the end; nothing if it ends the program: argparse tells its usage."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            yield
    except SystemExit:
        said.truncate(0)
        raise
    finally:
        sys.stderr.write(said.getvalue())
        for logger in (logging.root, *logging.root.manager.loggerDict.values()):
            for handler in getattr(logger, "handlers", ()):
                if isinstance(handler, logging.StreamHandler) and handler.stream is said:
                    handler.setStream(sys.stderr)  # of logging.basicConfig() in the file


def _call(build: Callable[..., Any], num_classes: int | None, spec: str, folder: Path, *, own: bool) -> Any:
    """``build()``, with ``num_classes`` if it takes that; with ``own``, only if it has no default."""
    parameter = inspect.signature(build).parameters.get("num_classes")
    must = parameter is not None and parameter.default is inspect.Parameter.empty
    options = {}
    if parameter is not None and num_classes is not None and (must or not own):
        options["num_classes"] = num_classes
    elif must:
        raise UserError(f"{spec}: wants to be told num_classes, and nobody here knows it: give it a default")
    try:
        return build(**options)
    except UserError:
        raise
    except SystemExit as error:
        raise UserError(f"{spec}: ends the program: it must return the network, and read no command line") from error
    except Exception as error:
        raise UserError(f"{spec}: fails: {_where(error, folder)}") from error


def _where(error: Exception, folder: Path) -> str:
    """The error in a line, with the last place in the user's own files."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if folder in Path(frame.filename).resolve().parents
    ]
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {reason_of(error)}{place}"


class UserModel(ForeignModel):
    """The module of a user's file, as ``network``.

    Raises:
        UserError: it fails on an image, or gives nothing that logits are found in.
    """

    def __init__(self, network: nn.Module, spec: str) -> None:
        super().__init__(_normalisation(network, spec), _class_names(network, spec))
        self.network, self.spec = network, spec
        stride = getattr(network, "stride", STRIDE)
        self.stride = stride if isinstance(stride, int) else STRIDE
        size = tuple(-(-side // self.stride) * self.stride for side in PROBE)
        self.probe_size = (size[0], size[1])
        try:
            (logits, taps), calls = self.probe(tells=True)
            if fault := fault_of_decisions(logits) or fault_of_logits(logits):
                raise UserError(f"{spec}: its output is {fault}")
        except UserError:
            raise
        except Exception as error:
            kind, reason = type(error).__name__, reason_of(error)
            raise UserError(
                f"{spec}: fails on {size[0]}x{size[1]} pixels: {kind}: {reason}; images are padded to multiples of "
                f"{self.stride}: give the network `stride`, a number that its sides must be multiples of, if it needs "
                "another (one that takes a single size can be a teacher as an ONNX file)"
            ) from error
        try:
            self.announce(logits, taps, self.probe_size)
        except ValueError as error:
            raise UserError(f"{spec}: gives {error}") from error
        self.min_train_batch = smallest_batch(calls)
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise UserError(f"{spec}: {len(self.class_names)} class names, but logits of {self.num_classes} classes")

    def probe(self, *, tells: bool = False) -> tuple[tuple[torch.Tensor, dict[str, torch.Tensor]], list[Call]]:
        """Logits and taps of an image of noise, and the modules that ran."""
        return watch(self.network, lambda: self._run(noise(self.probe_size), tells=tells))

    @property
    def backbone(self) -> nn.Module:  # type: ignore[override]
        """Its ``backbone`` or ``encoder``; an empty module if it has neither."""
        found = (getattr(self.network, name, None) for name in ("backbone", "encoder"))
        return next((module for module in found if isinstance(module, nn.Module)), nn.Identity())

    def _run(self, images: torch.Tensor, *, tells: bool = False) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """``images`` in the network's own statistics -> logits and taps; ``tells``: where it found them is printed."""
        if hasattr(self.network, "forward_taps"):
            logits, taps = cast(Callable, self.network.forward_taps)(images)
            return logits, {tap: taps[tap] for tap in TAPS if tap in taps}
        output = self.network(images)
        name, logits = _find_logits(output, self.spec)
        others = [other for other, _ in _maps(output) if other != name]
        if tells and others:
            print(f"{self.spec}: the logits are its output {name}, not {', '.join(others)}")
        return logits, {}

    def _forward_padded(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self._run(self.own_input(images))


def _refuse_untrained(model: UserModel, again: UserModel) -> None:
    """A `UserError` if ``again``, the same network built from other random numbers, speaks of other classes."""
    own, others = (dict(each.network.named_parameters()) for each in (model, again))
    random = [name for name, value in own.items() if not torch.equal(value, others.get(name, value))]
    if random and not torch.allclose(model.probe()[0][0], again.probe()[0][0], rtol=1e-3, atol=1e-4):
        raise UserError(
            f"{model.spec}: is not trained: each time that it is built its {random[0]} is another: load weights in it, "
            "or pass --teacher-weights PATH"
        )


def _class_names(network: nn.Module, spec: str) -> list[str] | None:
    """What the module calls its classes: a list of any kind, or names by number; None if it does not say.

    Raises:
        UserError: it is something else.
    """
    said = getattr(network, "class_names", None)
    if said is None:
        return None
    names = numbered_names(said) if isinstance(said, Mapping) else said
    if isinstance(names, str) or not isinstance(names, Iterable) or None in (names := list(names)):
        raise UserError(f"{spec}: its class_names must be a list of names, one a class, not {said!r}")
    return [str(name) for name in names]


def _normalisation(network: nn.Module, spec: str) -> Normalisation:
    """What the module says of itself, in numbers of any kind; a buffer is used by itself, and a method is none.

    Raises:
        UserError: what is called ``mean`` or ``std`` are not three numbers of values in 0..1.
    """
    own: dict[str, Any] = {}
    for key in ("mean", "std"):
        value = getattr(network, key, None)
        if any(value is inner for inner in (*network.buffers(recurse=False), *network.parameters(recurse=False))):
            print(
                f"warning: {spec}: its buffer {key!r} is left to the network itself, which is given images normalised "
                "as for ImageNet; if forward() normalises them again, return it within a module that says mean = "
                "[0, 0, 0] and std = [1, 1, 1] (docs/teachers.md)"
            )
        elif value is not None and not callable(value):
            own[key] = value
    try:
        return Normalisation.of(
            own.get("mean", Normalisation.mean),
            own.get("std", Normalisation.std),
            getattr(network, "bgr", False) is True,
        )
    except ValueError as error:
        raise UserError(f"{spec}: its {error}") from error


def _find_logits(output: Any, spec: str) -> tuple[str, torch.Tensor]:
    """The logits in whatever a network gives, and where they were.

    Raises:
        UserError: there is no tensor (N, C, h, w) in it.
    """
    maps = dict(_maps(output))
    if maps:
        name = next(iter(maps)) if isinstance(output, tuple | list) else by_preference(maps)[0]
        return name, maps[name]
    shape = f" of shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else ""
    if shape and (fault := fault_of_decisions(cast(torch.Tensor, output))):
        raise UserError(f"{spec}: its output is {fault}")
    raise UserError(f"{spec}: gives a {type(output).__name__}{shape}, in which no logits (N, C, h, w) are found")


def _maps(output: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors (N, C, h, w) in whatever a network gives, by name or place."""
    if isinstance(output, torch.Tensor):
        found: list[tuple[str, Any]] = [("itself", output)]
    elif isinstance(output, Mapping):
        found = [(str(key), value) for key, value in output.items()]
    elif isinstance(output, tuple | list):
        found = [(f"number {place}", value) for place, value in enumerate(output)]
    else:
        found = [(name, getattr(output, name)) for name in MAIN if hasattr(output, name)]
    return [(name, value) for name, value in found if isinstance(value, torch.Tensor) and value.ndim == 4]
