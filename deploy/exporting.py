"""A trained network as a captured program: what every format of exported file starts from."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from basics.errors import UserError, reason_of
from deploy.model_card import ModelCard

LEAST_SIZE, LARGEST_SIZE = 32, 16384  # pixels a side that an exported network takes

Size = tuple[int, int]  # height, width


def parse_size(text: str) -> Size:
    """``256`` or ``HEIGHTxWIDTH`` -> (height, width)."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and LEAST_SIZE <= int(side) <= LARGEST_SIZE for side in sides):
        raise argparse.ArgumentTypeError(
            f"{text!r}: give a side, or HEIGHTxWIDTH, such as 256x384, in pixels from {LEAST_SIZE} to {LARGEST_SIZE}"
        )
    return int(sides[0]), int(sides[-1])


@dataclass(frozen=True)
class ExportOptions:
    """What a format may be asked for.

    Attributes:
        size: height and width of the one picture that the file takes; None for any batch and size.
        opset, ir_version: of ONNX; None for the oldest that the network allows.
        web_runtime: folder or archive of the npm package onnxruntime-web; None has npm fetch it.
    """

    size: Size | None = None
    opset: int | None = None
    ir_version: int | None = None
    web_runtime: Path | None = None


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


def example_images(uint8: bool = False, size: Size | None = None) -> torch.Tensor:
    """Images to trace with: of ``size``, or with sides neither equal nor a power of two, so that none is fixed."""
    shape = (2, 3, 80, 112) if size is None else (1, 3, *size)
    return torch.zeros(shape, dtype=torch.uint8 if uint8 else torch.float32)


def export_program(deployed: Deployed, size: Size | None = None) -> ExportedProgram:
    """Capture on the CPU: with free batch, height and width, or for one picture of ``size``.

    Raises:
        UserError: `torch.export` cannot capture this network.
    """
    name = deployed.card.model
    with quiet():
        try:
            program = torch.export.export(
                deployed.cpu(),
                (example_images(deployed.card.input == "uint8", size),),
                dynamic_shapes=dynamic_shapes() if size is None else None,
                # Padding to a stride gives sizes that the exporter cannot order by itself.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
        except Exception as error:  # a network can fail to be captured in many ways
            reason = reason_of(error)
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


def without_aliases(program: ExportedProgram, *, decompose: bool = False) -> torch.fx.GraphModule:
    """A program of fixed size as a module whose every tensor is computed: no views that only repeat another.

    Converters stumble over them: slices of everything, as padding leaves them where nothing was padded, and `expand`,
    here spelled as a sum with zeros. Assertions on types are taken out, too.

    Args:
        decompose: into ATen's core operators first.
    """
    aten = torch.ops.aten
    graph = (program.run_decompositions({}) if decompose else program).module(check_guards=False)
    assert isinstance(graph, torch.fx.GraphModule)
    for node in list(graph.graph.nodes):
        if node.op != "call_function" or not node.args:
            continue
        if node.target == aten._assert_tensor_metadata.default:
            graph.graph.erase_node(node)
            continue
        source, value = node.args[0], node.meta.get("val")
        if node.target == aten.alias.default or (
            node.target == aten.slice.Tensor and source.meta["val"].shape == value.shape
        ):
            node.replace_all_uses_with(source)
        elif node.target == aten.expand.default:
            with graph.graph.inserting_before(node):
                zeros = graph.graph.call_function(aten.full.default, (list(value.shape), 0.0))
                total = graph.graph.call_function(aten.add.Tensor, (source, zeros))
            node.replace_all_uses_with(total)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' progress notes and warnings about themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "coremltools")]
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
