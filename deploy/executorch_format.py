"""ExecuTorch (.pte): lowered to XNNPACK, run by ExecuTorch's own runtime on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.export import ExportedProgram

from basics.errors import UserError, reason_of
from basics.optional_packages import need
from deploy.exported import ExportedModel, fixed_size
from deploy.exporting import ExportOptions, quiet
from deploy.model_card import ModelCard

CARD_METHOD = "card"  # a method without arguments that returns a constant: ExecuTorch's way to keep metadata


def save_executorch(program: ExportedProgram, card: ModelCard, path: Path, options: ExportOptions) -> None:
    """Write ``path``; what XNNPACK has kernels for runs there.

    Raises:
        UserError: executorch is not installed, or cannot take the graph.
    """
    exir = need("executorch.exir", "executorch", "ExecuTorch export")
    partitioner = need("executorch.backends.xnnpack.partition.xnnpack_partitioner", "executorch", "ExecuTorch export")
    with quiet():
        try:
            lowered = exir.to_edge_transform_and_lower(
                program,
                partitioner=[partitioner.XnnpackPartitioner()],
                constant_methods={CARD_METHOD: json.dumps(card.to_metadata())},
            )
            content = lowered.to_executorch().buffer
        except Exception as error:  # every stage has its own
            reason = reason_of(error)
            raise UserError(f"ExecuTorch cannot take a {card.model}: {reason}") from error
    path.write_bytes(content)


class ExecuTorchModel(ExportedModel):
    """A .pte file, run by ExecuTorch's Python runtime with XNNPACK, by as many threads as it chooses."""

    def __init__(self, path: Path) -> None:
        runtime = need("executorch.runtime", "executorch", str(path))
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        try:
            program = runtime.Runtime.get().load_program(path)
            methods = program.method_names
            metadata = json.loads(program.load_method(CARD_METHOD).execute([])[0]) if CARD_METHOD in methods else {}
            method = program.load_method("forward")
        except Exception as error:  # a damaged file fails in many ways
            raise UserError(f"{path}: ExecuTorch cannot read it: {str(error).strip()[:200]}") from error
        card = ModelCard.from_metadata(metadata, str(path))
        super().__init__(card, torch.device("cpu"), fixed_size(method.metadata.input_tensor_meta(0).sizes()))
        self.program, self.method = program, method  # the method is nothing without its program

    def run(self, images: torch.Tensor) -> torch.Tensor:
        return self.method.execute([images.cpu().contiguous()])[0].clone().to(images.device)
