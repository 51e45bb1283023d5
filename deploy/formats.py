"""The formats of exported files, by name. A new one is a file beside `onnx_format.py` and a row here."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.export import ExportedProgram

from basics.errors import UserError, choose
from basics.files import file_bytes, replacing, replacing_folder
from deploy.coreml_format import CoreMlModel, save_coreml
from deploy.executorch_format import ExecuTorchModel, save_executorch
from deploy.exported import ExportedModel
from deploy.exporting import ExportOptions
from deploy.litert_format import LiteRtModel, save_litert
from deploy.model_card import ModelCard
from deploy.onnx_format import OnnxModel, save_onnx
from deploy.openvino_format import OpenVinoModel, save_openvino
from deploy.pt2_format import Pt2Model, save_pt2
from deploy.web_format import FILES, PAGE, STUDENT, load_web, save_web


@dataclass(frozen=True)
class Format:
    """What there is to know of one format.

    Attributes:
        suffix: of its files; "" for a plain folder.
        engine: what runs them, in words.
        save: writes a captured program and its card to a path; raises `UserError` where it cannot.
        load: the network in a file, on the given device or, if that is not to be had, on the CPU; raises
            `UserError` for a file that is missing, damaged or not of this project.
        cpu_only: whether this project runs them on the CPU alone.
        one_size: whether a file takes pictures of one size, which `ExportOptions.size` must say.
        plain: whether a file takes normalised images and gives logits, and nothing else.
        folder: whether a "file" is a folder.
        files: what may lie in that folder, where its name does not show it to be one of ours.
        from_onnx: whether it is made by way of an ONNX graph, which has versions.
        companions: suffixes of further files with the same stem.
        runs_on: the `sys.platform` that has the runtime; None for all.
        stand_in: what runs and times them here, where the engine is elsewhere.
    """

    suffix: str
    engine: str
    save: Callable[[ExportedProgram, ModelCard, Path, ExportOptions], None]
    load: Callable[[Path, torch.device], ExportedModel]
    cpu_only: bool = True
    one_size: bool = False
    plain: bool = False
    folder: bool = False
    files: tuple[str, ...] = ()
    from_onnx: bool = False
    companions: tuple[str, ...] = ()
    runs_on: str | None = None
    stand_in: str = ""

    @property
    def timed_as(self) -> str:
        """What runs them here, in words."""
        return self.stand_in or self.engine

    @property
    def runs_here(self) -> bool:
        """Whether this system has the runtime."""
        return self.runs_on in (None, sys.platform)

    def beside(self, checkpoint: Path) -> Path:
        """What a checkpoint's file of this format is called if nobody says."""
        return checkpoint.with_suffix(self.suffix) if self.suffix else checkpoint.with_name(f"{checkpoint.stem}_web")


def _on_cpu(model: Callable[[Path], ExportedModel]) -> Callable[[Path, torch.device], ExportedModel]:
    return lambda path, device: model(path)


LEFT_BY_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")  # in folders that were looked at
FORMATS = {
    "onnx": Format(".onnx", "ONNX Runtime", save_onnx, OnnxModel, cpu_only=False, from_onnx=True),
    "pt2": Format(".pt2", "torch.export", save_pt2, _on_cpu(Pt2Model)),
    "openvino": Format(".xml", "OpenVINO", save_openvino, _on_cpu(OpenVinoModel), from_onnx=True, companions=(".bin",)),
    "litert": Format(".tflite", "LiteRT", save_litert, _on_cpu(LiteRtModel), one_size=True),
    "executorch": Format(".pte", "ExecuTorch", save_executorch, _on_cpu(ExecuTorchModel), one_size=True),
    "coreml": Format(
        ".mlpackage", "Core ML", save_coreml, _on_cpu(CoreMlModel), one_size=True, folder=True, runs_on="darwin"
    ),
    "web": Format(
        "",
        "onnxruntime-web",
        save_web,
        _on_cpu(load_web),
        plain=True,
        folder=True,
        files=FILES,
        from_onnx=True,
        stand_in="page, by ONNX Runtime",
    ),
}


def format_of(path: Path) -> Format | None:
    """The format of a file by its suffix, or of a folder by the page in it; None if it is none of ours."""
    if (path / PAGE).is_file():
        return FORMATS["web"]
    return next((known for known in FORMATS.values() if known.suffix and known.suffix == path.suffix.lower()), None)


def refuse_networks(inputs: Sequence[str]) -> None:
    """A `UserError` for a network among the pictures, where it would be passed over and another one take its place."""
    for text in inputs:
        path = Path(text)
        suffix = path.suffix.lower()
        kind = format_of(path) if path.is_file() and suffix != ".xml" else None  # VOC's outlines end in .xml, too
        if kind or (path / STUDENT).is_file() or suffix in (".pth", ".pt", ".safetensors"):
            raise UserError(f"{text} is a network, not a picture: --checkpoint {text}")


def require_format(path: Path) -> Format:
    """As `format_of`; a `UserError` where it is none of ours."""
    found = format_of(path)
    if found is None:
        raise UserError(f"{path}: no exported file, by its name: they end in {_suffixes()}")
    return found


def _suffixes() -> str:
    return ", ".join(known.suffix for known in FORMATS.values() if known.suffix)


def choose_format(name: str | None, output: Path | None) -> Format:
    """The format of --format ``name``, or else of the suffix of --output; ONNX where neither is given.

    Raises:
        UserError: there is none of that name or suffix, or they contradict each other.
    """
    suffixes = _suffixes()
    if name is None:
        found = FORMATS["onnx"] if output is None else format_of(output)
        if found is None:
            raise UserError(f"--output {output}: the name must end in one of {suffixes}, or --format say what it is")
        return found
    found = choose(FORMATS, name, "--format")
    if output is not None and output.suffix != found.suffix and found.suffix:
        raise UserError(f"--output {output}: a file of --format {name} ends in {found.suffix}")
    if output is not None and not found.suffix and output.suffix and format_of(output) not in (None, found):
        raise UserError(f"--output {output}: --format {name} writes a folder, whose name has none of {suffixes}")
    if output is not None:
        _require_own_folder(output, found)
    return found


def _require_own_folder(path: Path, kind: Format) -> None:
    """A `UserError` if the folder of a page would take the place of one with other files in it."""
    if not kind.files or not path.exists():
        return
    there = sorted(file.name for file in path.iterdir()) if path.is_dir() else []
    others = [name for name in there if name not in kind.files and name not in LEFT_BY_SYSTEMS]
    if others or not path.name:
        held = f"holds other files ({others[0]}), which would be lost" if others else "is the current folder"
        raise UserError(f"--output {path}: the folder {held}: name a new one, such as {path / 'page'}")


@contextlib.contextmanager
def writing_exported(
    program: ExportedProgram,
    card: ModelCard,
    path: Path,
    check: Callable[[Path], object],
    kind: Format | None = None,
    options: ExportOptions | None = None,
) -> Iterator[None]:
    """Write ``path`` under a temporary name; it gets its own when the block ends, if it passes ``check`` before.

    Args:
        check: is given the file under a temporary name; raises `UserError` where it is no good.
        kind: the format; None for that of the suffix.
        options: what the format is asked for.
    """
    kind = kind or require_format(path)
    _require_own_folder(path, kind)
    options = options or ExportOptions()
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context((replacing_folder if kind.folder else replacing)(path))
        # They get their names before the file itself does, which is nothing without them.
        for suffix in kind.companions:
            companion = stack.enter_context(replacing(path.with_suffix(suffix)))
            assert companion == temporary.with_suffix(suffix)
        kind.save(program, card, temporary, options)
        check(temporary)
        yield


def load_exported(path: str | Path, device: torch.device | str = "cpu") -> ExportedModel:
    """The network in an exported file, in eval mode."""
    path = Path(path)
    return require_format(path).load(path, torch.device(device)).eval()


def stored_bytes(path: Path) -> int:
    """Bytes of a network's file, with all that belongs to it."""
    kind = format_of(path)
    companions = kind.companions if kind else ()
    parts = path.rglob("*") if path.is_dir() else (path, *(path.with_suffix(suffix) for suffix in companions))
    return sum(file_bytes(part) for part in parts if part.is_file())
