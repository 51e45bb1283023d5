"""torch.export's .pt2: written and run by PyTorch, on the CPU."""

from __future__ import annotations

import json
import platform
import zipfile
from pathlib import Path

import torch
from torch.export import ExportedProgram

from basics.errors import UserError, reason_of
from deploy.exported import ExportedModel, fixed_size
from deploy.exporting import ExportOptions, Size, dynamic_shapes, example_images, remove_size_assertions
from deploy.model_card import ModelCard
from deploy.torch_internals import register_int8_operators

CARD_FILE = "card.json"
FLOAT_KERNELS = {f"aten.{name}.default" for name in ("convolution", "conv2d", "linear", "addmm", "mm", "bmm")}


def save_pt2(program: ExportedProgram, card: ModelCard, path: Path, options: ExportOptions) -> None:
    """Write ``program`` to ``path`` for `torch.export.load`, the card as a file inside."""
    torch.export.save(program, path, extra_files={CARD_FILE: json.dumps(card.to_metadata())})


class Pt2Model(ExportedModel):
    """A program of torch.export, run by PyTorch on the CPU; INT8 with oneDNN's integer kernels on x86.

    Elsewhere the graph of an INT8 program runs as written: integers between the layers, float inside them.
    """

    computes_itself = False

    def __init__(self, path: str | Path) -> None:
        program, card = read_pt2(path)
        super().__init__(card, torch.device("cpu"), input_size(program))
        self.program = program.module(check_guards=False)
        if card.precision == "int8" and platform.machine().lower() in ("x86_64", "amd64"):
            from deploy.quantization import lower_to_x86

            shapes = dynamic_shapes() if self.fitted_size is None else ({},)
            self.program = lower_to_x86(self.program, example_images(card.input == "uint8", self.fitted_size), shapes)
            remove_size_assertions(self.program)

    def train(self, mode: bool = True) -> Pt2Model:
        """An exported graph has one mode: eval."""
        self.training = mode
        return self

    def run(self, images: torch.Tensor) -> torch.Tensor:
        return self.program(images.cpu()).to(images.device)

    def integer_layers(self) -> tuple[int, int]:
        names = [str(node.target) for node in self.program.graph.nodes]
        integer = sum("onednn.q" in name and "pointwise" in name for name in names)
        return integer, integer + sum(name in FLOAT_KERNELS for name in names)


def input_size(program: ExportedProgram) -> Size | None:
    """Height and width of the images that ``program`` takes, None if they are free (then they are symbols)."""
    (name,) = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.name == name)
    return fixed_size(node.meta["val"].shape)


def read_pt2(path: str | Path) -> tuple[ExportedProgram, ModelCard]:
    """The program in ``path`` and its card.

    Raises:
        UserError: no such file, damaged, not made by this project, or this PyTorch lacks the operators of INT8.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):  # torch.export would log a traceback before it says so
        raise UserError(f"{path}: not a .pt2 file, or a damaged one")
    missing = None
    try:
        register_int8_operators()
    except UserError as error:  # no obstacle to a file in float32
        missing = error
    extra = {CARD_FILE: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        if missing:
            raise missing from error
        reason = reason_of(error)
        raise UserError(f"{path}: torch.export cannot read it: {reason}") from error
    try:
        metadata = json.loads(extra[CARD_FILE])
    except ValueError:
        metadata = {}
    return program, ModelCard.from_metadata(metadata, str(path))
