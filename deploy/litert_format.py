"""LiteRT (.tflite): written by litert-torch, run by ai-edge-litert on the CPU."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import torch
from torch.export import ExportedProgram

from basics.errors import UserError, reason_of
from basics.optional_packages import need
from deploy.exported import ExportedModel, fixed_size
from deploy.exporting import ExportOptions, example_images, quiet, without_aliases
from deploy.model_card import ModelCard

CARD_FILE = "card.json"


def save_litert(program: ExportedProgram, card: ModelCard, path: Path, options: ExportOptions) -> None:
    """Write ``path``: input and output as in all formats, (1, 3, H, W).

    The card is a ZIP archive behind the network, where LiteRT's own metadata keep their files, too.

    Raises:
        UserError: litert-torch is not installed, or cannot take the graph.
    """
    litert_torch = need("litert_torch", "litert-torch", "LiteRT export (in an environment of its own, docs/formats.md)")
    with quiet():
        try:
            example = example_images(card.input == "uint8", options.size)
            litert_torch.convert(without_aliases(program), (example,)).export(str(path))
        except Exception as error:  # the converter has an exception class for every stage
            reason = reason_of(error)
            raise UserError(f"litert-torch cannot convert a {card.model}: {reason}") from error
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(CARD_FILE, json.dumps(card.to_metadata()))


class LiteRtModel(ExportedModel):
    """A .tflite file, run by LiteRT's interpreter with XNNPACK, by as many threads as PyTorch has."""

    def __init__(self, path: Path) -> None:
        interpreters = need("ai_edge_litert.interpreter", "ai-edge-litert", str(path))
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        metadata = {}
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if CARD_FILE in archive.namelist():
                    metadata = json.loads(archive.read(CARD_FILE))
        card = ModelCard.from_metadata(metadata, str(path))
        with quiet():
            try:
                interpreter = interpreters.Interpreter(str(path), num_threads=torch.get_num_threads())
                interpreter.allocate_tensors()
            except Exception as error:  # a damaged file fails in many ways
                raise UserError(f"{path}: LiteRT cannot run it: {str(error).strip()[:200]}") from error
        (images,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
        super().__init__(card, torch.device("cpu"), fixed_size(images["shape"].tolist()))
        self.interpreter, self.input, self.output = interpreter, images["index"], result["index"]

    def run(self, images: torch.Tensor) -> torch.Tensor:
        self.interpreter.set_tensor(self.input, images.cpu().numpy())
        self.interpreter.invoke()
        return torch.from_numpy(self.interpreter.get_tensor(self.output)).to(images.device)
