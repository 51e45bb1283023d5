"""Exported files (.onnx, .pt2) as modules like every network here: normalised images in, logits out."""

from __future__ import annotations

import json
import platform
import zipfile
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from basics.batch import MEAN, STD
from basics.errors import UserError
from deploy.exporting import CARD_FILE, dynamic_shapes, example_images, remove_size_assertions
from deploy.model_card import ModelCard
from networks.onnx_session import open_session


class ExportedModel(nn.Module):
    """A file of export.py or quantize.py; `load_exported` picks the kind.

    `forward` takes images (N, 3, H, W) float32, normalised by ImageNet's statistics, and gives logits
    (N, C, H, W) float32, whatever the file itself takes and gives: raw RGB is recovered exactly, and a
    mask becomes logits of 1 at its class and 0 elsewhere.
    """

    def __init__(self, card: ModelCard) -> None:
        super().__init__()
        self.card = card

    def run(self, images: torch.Tensor) -> torch.Tensor:
        """The file's own input to the file's own output."""
        raise NotImplementedError

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # The file's mean and std may be others than those the caller normalised with.
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
        if self.card.input == "uint8":
            images = (images * std + mean).mul_(255).round_().clamp_(0, 255).to(torch.uint8)
        elif (tuple(self.card.mean), tuple(self.card.std)) != (MEAN, STD):
            own_mean, own_std = (
                torch.tensor(v, device=images.device).view(3, 1, 1) for v in (self.card.mean, self.card.std)
            )
            images = (images * std + mean - own_mean) / own_std
        result = self.run(images)
        if self.card.output == "mask":
            result = F.one_hot(result.long(), len(self.card.class_names)).movedim(-1, 1)
        return result.float()


class OnnxModel(ExportedModel):
    """An ONNX file, run by ONNX Runtime."""

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        session = open_session(path, device=device)
        super().__init__(ModelCard.from_metadata(session.get_modelmeta().custom_metadata_map, str(path)))
        self.session = session
        self.input_name = session.get_inputs()[0].name

    def run(self, images: torch.Tensor) -> torch.Tensor:
        (result,) = self.session.run(None, {self.input_name: images.cpu().numpy()})
        return torch.from_numpy(result).to(images.device)


class Pt2Model(ExportedModel):
    """A program of torch.export, run by PyTorch on the CPU; INT8 with oneDNN's integer kernels on x86.

    Elsewhere the graph of an INT8 program runs as written: integers between the layers, float inside them.
    """

    def __init__(self, path: str | Path) -> None:
        program, card = read_pt2(path)
        super().__init__(card)
        self.program = program.module(check_guards=False)
        self.integer_kernels = 0
        if card.precision == "int8" and platform.machine().lower() in ("x86_64", "amd64"):
            from deploy.quantization import lower_to_x86

            self.program = lower_to_x86(self.program, example_images(card.input == "uint8"), dynamic_shapes())
            remove_size_assertions(self.program)
            names = [str(node.target) for node in self.program.graph.nodes]
            self.integer_kernels = sum("onednn.q" in name and "pointwise" in name for name in names)

    def train(self, mode: bool = True) -> Pt2Model:
        """An exported graph has one mode: eval."""
        self.training = mode
        return self

    def run(self, images: torch.Tensor) -> torch.Tensor:
        return self.program(images.cpu()).to(images.device)


def read_pt2(path: str | Path) -> tuple[torch.export.ExportedProgram, ModelCard]:
    """The program in ``path`` and its card.

    Raises:
        UserError: no such file, damaged, not made by this project, or torchao is missing for an INT8 file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):  # torch.export would log a traceback before it says so
        raise UserError(f"{path}: not a .pt2 file, or a damaged one")
    # Registers the operators of INT8 graphs.
    import torch.ao.quantization.fx._decomposed

    extra = {CARD_FILE: ""}
    try:
        program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: torch.export cannot read it: {reason}") from error
    try:
        metadata = json.loads(extra[CARD_FILE])
    except ValueError:
        metadata = {}
    return program, ModelCard.from_metadata(metadata, str(path))


def load_exported(path: str | Path, device: torch.device | str = "cpu") -> ExportedModel:
    """The network in a ``.onnx`` or ``.pt2`` file, in eval mode."""
    kinds = {".onnx": lambda: OnnxModel(path, torch.device(device).type), ".pt2": lambda: Pt2Model(path)}
    return kinds[Path(path).suffix]().eval()
