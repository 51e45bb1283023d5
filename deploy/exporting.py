"""A trained network as a captured program: what every format of exported file starts from."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from basics.errors import UserError
from deploy.model_card import ModelCard

LEAST_SIZE, LARGEST_SIZE = 32, 16384  # pixels a side that an exported network takes


class Deployed(nn.Module):
    """A network with its normalisation and its decision inside, as far as the card asks for them.

    Takes images (N, 3, H, W), float32 normalised or uint8 RGB; gives logits (N, C, H, W) float32 or the
    most likely class (N, H, W) uint8.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: nn.Module, card: ModelCard) -> None:
        super().__init__()
        self.model = model.eval()
        self.card = card
        # Not made inside `forward`: a captured graph would detach them in place, which its INT8 form cannot do.
        for name, values in (("mean", card.mean), ("std", card.std)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1), persistent=False)
        self.eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.card.input == "uint8":
            images = (images.to(torch.float32) - self.mean) / self.std
        logits = self.model(images)
        return logits.argmax(1).to(torch.uint8) if self.card.output == "mask" else logits


def dynamic_shapes() -> tuple[dict]:
    """Free batch, height and width, for `torch.export`.

    The sides are `DYNAMIC`, not named: of a named one the exporter must be able to write down every condition, and
    on SegFormer's it fails.
    """
    return (
        {
            0: Dim("batch", min=1, max=1024),
            2: Dim.DYNAMIC(min=LEAST_SIZE, max=LARGEST_SIZE),
            3: Dim.DYNAMIC(min=LEAST_SIZE, max=LARGEST_SIZE),
        },
    )


def example_images(uint8: bool = False) -> torch.Tensor:
    """Images to trace with: sides that are neither equal nor a power of two, so that nothing is taken as fixed."""
    return torch.zeros(2, 3, 80, 112, dtype=torch.uint8 if uint8 else torch.float32)


def export_program(deployed: Deployed) -> ExportedProgram:
    """Capture on the CPU with free batch, height and width.

    Raises:
        UserError: `torch.export` cannot capture this network.
    """
    name = deployed.card.model
    with quiet():
        try:
            program = torch.export.export(
                deployed.cpu(),
                (example_images(deployed.card.input == "uint8"),),
                dynamic_shapes=dynamic_shapes(),
                # Padding to a stride gives sizes that the exporter cannot order by itself.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except Exception as error:  # a network can fail to be captured in many ways
            reason = str(error).strip().partition("\n")[0]
            raise UserError(f"torch.export cannot capture a {name}, so it cannot be exported: {reason}") from error
    remove_size_assertions(program.graph_module)
    return program


def remove_size_assertions(graph: torch.fx.GraphModule) -> None:
    """Take out the exporter's assertions on sizes.

    Some are about the memory layout of the example alone (that cropping the padding changed nothing) and
    would refuse other sizes. That all sizes are right is for the check of the written file to find out.
    """
    for node in list(graph.graph.nodes):
        if node.target == torch.ops.aten._assert_scalar.default:
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' progress notes and warnings about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
