"""The formats of exported files, by suffix. A new one is a file beside `onnx_format.py` and a row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.export import ExportedProgram

from basics.files import replacing
from deploy.exported import ExportedModel
from deploy.model_card import ModelCard
from deploy.onnx_format import OnnxModel, save_onnx
from deploy.pt2_format import Pt2Model, save_pt2


@dataclass(frozen=True)
class Format:
    """What there is to know of the files with one suffix.

    Attributes:
        engine: what runs them, in words.
        save: writes a captured program and its card to a path; raises `UserError` where it cannot.
        load: the network in a file, on the given device or, if that is not to be had, on the CPU; raises
            `UserError` for a file that is missing, damaged or not of this project.
        cpu_only: whether this project runs them on the CPU alone.
    """

    engine: str
    save: Callable[[ExportedProgram, ModelCard, Path], None]
    load: Callable[[Path, torch.device], ExportedModel]
    cpu_only: bool = False


FORMATS = {
    ".onnx": Format("ONNX Runtime", save_onnx, OnnxModel),
    ".pt2": Format("torch.export", save_pt2, lambda path, device: Pt2Model(path), cpu_only=True),
}


def write_exported(program: ExportedProgram, card: ModelCard, path: Path, check: Callable[[Path], object]) -> None:
    """Write ``path``, in the format of its suffix, if the file passes ``check``.

    Args:
        check: is given the file under a temporary name; raises `UserError` where it is no good.
    """
    with replacing(path) as temporary:
        FORMATS[path.suffix].save(program, card, temporary)
        check(temporary)


def load_exported(path: str | Path, device: torch.device | str = "cpu") -> ExportedModel:
    """The network in an exported file, in eval mode."""
    path = Path(path)
    return FORMATS[path.suffix].load(path, torch.device(device)).eval()
