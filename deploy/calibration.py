"""INT8 after training: ranges from pictures, biases put right, and what rounding would spoil left in float.

    int8 = quantize_calibrated(student, batches)

Three steps, each of which networks with hardswish and depthwise convolutions need:

- The range of what goes into hardswish or hardsigmoid ends where these change no more (`deploy.quantization`).
- Rounded weights move the mean of a layer's output. Its bias takes the difference back (Nagel 2019, "Data-free
  quantization through weight equalization and bias correction", with the mean taken over pictures).
- A feature map has one scale for all its channels, and where these differ much, 256 steps are too few. Each map is
  rounded by itself, and where that alone changes more than `MOST_CHANGED` of the decisions, it stays float, and the
  layers that it joins with it. In MobileNetV3 these are maps of the first blocks.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

from basics.errors import UserError
from basics.grids import pad_to_stride
from basics.progress import ProgressBar
from deploy.graphs import node_at, set_argument, tensor_of
from deploy.quantization import LAYERS, aten, convert_calibrated, prepare_calibration
from deploy.quantized import GraphModel, capture
from networks.base import SegmentationModel

MOST_CHANGED = 0.002  # share of decisions
MEAN_IMAGES, DECISION_IMAGES = 16, 8  # to correct biases with, and to see the effect of one rounding with


@torch.no_grad()
def quantize_calibrated(model: SegmentationModel, batches: Iterable[torch.Tensor]) -> GraphModel:
    """Post-training quantization: the INT8 form of ``model``, which stays as it is.

    Args:
        model: a trained network.
        batches: normalised images (N, 3, H, W) of any size, as the network will see them in use; the
            ranges of its activations are taken from them.

    Raises:
        UserError: the network cannot be captured, or there were no images.
    """
    graph = prepare_calibration(capture(model))
    device = next(model.parameters()).device
    kept: list[torch.Tensor] = []
    draw = random.Random(0)
    for seen, images in enumerate(batches):
        images = pad_to_stride(images.to(device), model.stride)
        graph(images)
        # Each with the same chance, however many there are: neighbours in a data set may be alike.
        place = seen if seen < MEAN_IMAGES else draw.randint(0, seen)
        kept[place : place + 1] = [images] if place < MEAN_IMAGES else kept[place : place + 1]
    if not kept:
        raise UserError("calibration needs at least one image")
    spoilt = harmful_roundings(graph, kept[:DECISION_IMAGES])
    correct_biases(graph, kept)
    leave_float(graph, spoilt)
    return GraphModel(model, convert_calibrated(graph)).to("cpu").eval()


class Rounding(Interpreter):
    """Runs a calibrated graph with the values of some of its observers rounded, and no observer taking notes.

    Args:
        graph: of `prepare_calibration`, after calibration.
        rounded: names of observers, as the graph's nodes call them.
    """

    def __init__(self, graph: GraphModule, rounded: Collection[str] = ()) -> None:
        super().__init__(graph)
        self.rounded = rounded

    def call_module(self, target: Any, args: tuple, kwargs: dict) -> Any:
        observer = self.fetch_attr(target)
        if not is_observer(observer):
            return super().call_module(target, args, kwargs)
        return round_by(observer, args[0]) if target in self.rounded else args[0]


class LayerShifts(Rounding):
    """Runs a graph in float and sums up by how much the rounding of weights moves the mean output of each layer.

    Attributes:
        shifts: (channels,) by layer, summed over the runs.
    """

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.shifts: dict[Node, torch.Tensor] = {}

    def run_node(self, node: Node) -> Any:
        if node.target in LAYERS and (observer := observer_of(self.module, node_at(node, 1))):
            inputs, weight = self.env[node_at(node, 0)], self.env[node_at(node, 1)]
            error = node.target(inputs, round_by(observer, weight) - weight, None, *node.args[3:])
            channels = error.ndim - 1 if node.target == aten.linear.default else 1
            mean = error.mean([axis for axis in range(error.ndim) if axis != channels])
            self.shifts[node] = self.shifts.get(node, 0) + mean
        return super().run_node(node)


def correct_biases(graph: GraphModule, batches: Collection[torch.Tensor]) -> None:
    """Take from each layer's bias, in place, what rounding its weights adds to the mean of its output."""
    layers = LayerShifts(graph)
    for images in batches:
        layers.run(images)
    for number, (node, shift) in enumerate(layers.shifts.items()):
        bias = node.args[2] if len(node.args) > 2 else None
        old = tensor_of(graph, bias) if isinstance(bias, Node) else torch.zeros_like(shift)
        # A tensor of its own: the old one may be the network's.
        graph.register_buffer(f"corrected_bias_{number}", old - shift / len(batches))
        with graph.graph.inserting_before(node):
            set_argument(node, 2, graph.graph.get_attr(f"corrected_bias_{number}"))
    graph.recompile()


def harmful_roundings(graph: GraphModule, batches: Collection[torch.Tensor]) -> set[str]:
    """Observers of feature maps whose rounding, and no other, changes more than `MOST_CHANGED` of the decisions."""
    expected = [Rounding(graph).run(images)[0].argmax(1) for images in batches]
    pixels = sum(mask.numel() for mask in expected)
    harmful = set()
    names = {str(node.target) for node, observer in observed(graph) if not is_of_weights(observer)}
    for name in ProgressBar(sorted(names), desc="what INT8 would spoil", unit="map"):
        rounding = Rounding(graph, {name})
        pairs = zip(batches, expected, strict=True)
        changed = sum(int((rounding.run(images)[0].argmax(1) != mask).sum()) for images, mask in pairs)
        if changed > MOST_CHANGED * pixels:
            harmful.add(name)
    return harmful


def leave_float(graph: GraphModule, names: Collection[str]) -> None:
    """Take observers out of a calibrated graph, in place: what they watched is not rounded."""
    for node, _ in list(observed(graph)):
        if node.target in names:
            node.replace_all_uses_with(node_at(node, 0))
            graph.graph.erase_node(node)
    graph.recompile()


def is_observer(module: nn.Module) -> bool:
    return hasattr(module, "calculate_qparams")


def observed(graph: GraphModule) -> Iterator[tuple[Node, nn.Module]]:
    """The nodes that hand a value to an observer, and these."""
    for node in graph.graph.nodes:
        if observer := observer_of(graph, node):
            yield node, observer


def observer_of(graph: nn.Module, node: Node) -> nn.Module | None:
    """The observer that ``node`` calls, if it does."""
    if node.op != "call_module":
        return None
    module = graph.get_submodule(str(node.target))
    return module if is_observer(module) else None


def is_of_weights(observer: Any) -> bool:
    return observer.dtype == torch.int8


def round_by(observer: Any, values: torch.Tensor) -> torch.Tensor:
    """``values`` as INT8 will have them with the range that the observer found."""
    scale, zero_point = (value.to(values.device) for value in observer.calculate_qparams())
    limits = observer.quant_min, observer.quant_max
    if is_of_weights(observer):
        return torch.fake_quantize_per_channel_affine(values, scale, zero_point.int(), observer.ch_axis, *limits)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero_point.int(), *limits)
