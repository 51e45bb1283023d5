"""INT8 by torchao's PT2E: which tensors are quantized, and the graph surgery that training needs.

Everything here works on graphs that `torch.export` captured in eval mode; `deploy/quantized.py` captures
networks and wraps the results. The package torchao is optional: importing this module asks for it.

The scheme is the one that integer kernels of ONNX Runtime and oneDNN expect: activations uint8 with one
scale and zero point, weights int8, symmetric, with one scale an output channel. Quantized are the inputs,
the weights and the outputs (after BatchNorm and ReLU) of convolutions and linear layers, and sums and
concatenations of feature maps. The last layer's output, the logits, stays float.

What goes into hardswish or hardsigmoid has a range that ends where these functions change no more, -3 and 3: a
normalised map reaches far below, and its steps are better spent above.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TypeGuard

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from basics.optional_packages import needing, quiet_tree_log
from deploy import torch_internals
from deploy.graphs import first_result, list_at, node_at, number_at, set_argument, tensor_of

aten = torch.ops.aten
with quiet_tree_log(), needing("torchao.quantization.pt2e", "torchao", "INT8"):
    from torchao.quantization.pt2e import (
        FakeQuantize,
        FusedMovingAvgObsFakeQuantize,
        MovingAverageMinMaxObserver,
        MovingAveragePerChannelMinMaxObserver,
        PerChannelMinMaxObserver,
        disable_observer,
        enable_observer,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
    from torchao.quantization.pt2e.quantizer import QuantizationAnnotation, QuantizationSpec, Quantizer

LAYERS = (
    aten.conv2d.default, aten.conv2d.padding, aten.conv_transpose2d.input, aten.linear.default,
)  # fmt: skip
BATCH_NORM = (aten.batch_norm.default,)
RELU = (aten.relu.default, aten.relu_.default)
SUMS = (aten.add.Tensor, aten.add_.Tensor)
HARDSWISH = (aten.hardswish.default, aten.hardswish_.default)
HARDSIGMOID = (aten.hardsigmoid.default, aten.hardsigmoid_.default)
DROPOUT = (aten.dropout.default, aten.dropout_.default, aten.feature_dropout.default)

# Positions in the arguments of aten.batch_norm and aten.dropout.
BN_VARIANCE, BN_TRAINING, BN_MOMENTUM, BN_EPS, DROPOUT_TRAINING = 4, 5, 6, 7, 2
# Below this scale a tensor counts as constant. A channel of zeros would otherwise get a scale so small that its
# bias, which ONNX Runtime counts in units of input scale times weight scale, leaves 32 bits.
LEAST_SCALE = 2**-12


AVERAGING = 1 / 16  # of a picture's extremes, in the running mean that makes the range of an activation


class BeforeHardswish(MovingAverageMinMaxObserver):
    """The range of what goes into hardswish, which is 0 below -3."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        super().forward(values.clamp(min=-3))
        return values


class BeforeHardsigmoid(MovingAverageMinMaxObserver):
    """The range of what goes into hardsigmoid, which is 0 below -3 and 1 above 3."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        super().forward(values.clamp(-3, 3))
        return values


class TrainedRange(FusedMovingAvgObsFakeQuantize):
    """Fake quantization of activations whose scale in INT8 is the very one it trained with.

    torchao's class computes it anew, by a formula that differs a little from that of the fused step.
    """

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scale, self.zero_point


class TrainedBeforeHardswish(TrainedRange):
    """`TrainedRange` of what goes into hardswish. Neither its value nor its gradient tells what was below -3."""

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return super().forward(X.clamp(min=-3))


class TrainedBeforeHardsigmoid(TrainedRange):
    """`TrainedRange` of what goes into hardsigmoid, which tells as little of what was beyond -3 and 3."""

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return super().forward(X.clamp(-3, 3))


class LayerQuantizer(Quantizer):
    """Annotates a captured graph with the scheme described above.

    Args:
        training: insert fake quantization that learns its ranges in training, rather than observers.
    """

    def __init__(self, *, training: bool):
        super().__init__()
        if training:
            activations = _trained(TrainedRange)
            narrowed = {HARDSWISH: _trained(TrainedBeforeHardswish), HARDSIGMOID: _trained(TrainedBeforeHardsigmoid)}
            # Not the fused step: it gives channels whose weights have one sign a zero point, and integer
            # kernels know none for weights.
            weights = FakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver, eps=LEAST_SCALE)
        else:
            activations = _calibrated(MovingAverageMinMaxObserver)
            narrowed = {HARDSWISH: _calibrated(BeforeHardswish), HARDSIGMOID: _calibrated(BeforeHardsigmoid)}
            weights = PerChannelMinMaxObserver.with_args(eps=LEAST_SCALE)
        self.activations = _activations(activations)
        self.narrowed = {functions: _activations(observer) for functions, observer in narrowed.items()}
        self.weights = {
            axis: QuantizationSpec(torch.int8, weights, -127, 127, torch.per_channel_symmetric, ch_axis=axis)
            for axis in (0, 1)
        }

    def annotate(self, model: GraphModule) -> GraphModule:
        logits = first_result(model)
        for node in model.graph.nodes:
            if node.op != "call_function" or "quantization_annotation" in node.meta:
                continue
            output = None if node is logits else self.activations
            if node.target in LAYERS:
                self._annotate_layer(node, logits)
            elif maps := _joined_maps(node):
                self._annotate(node, dict.fromkeys(maps, self.activations), output)
        return model

    def _annotate_layer(self, layer: Node, logits: Node) -> None:
        axis = 1 if layer.target == aten.conv_transpose2d.input else 0
        self._annotate(layer, {node_at(layer, 0): self.activations, node_at(layer, 1): self.weights[axis]}, None)
        last = layer
        for followers in (BATCH_NORM, RELU):
            users = [user for user in last.users if user.op != "output" and "sym_size" not in str(user.target)]
            if len(users) == 1 and users[0].target in followers:
                last = users[0]
                self._annotate(last, {}, None)
        if last is not logits:
            last.meta["quantization_annotation"].output_qspec = self._output(last)

    def _output(self, layer: Node) -> QuantizationSpec:
        """How a layer's output is rounded, which depends on what follows."""
        users = {user.target for user in layer.users if "sym_size" not in str(user.target)}
        fitting = (spec for functions, spec in self.narrowed.items() if users and users <= set(functions))
        return next(fitting, self.activations)

    @staticmethod
    def _annotate(node: Node, inputs: dict[Node, QuantizationSpec], output: QuantizationSpec | None) -> None:
        node.meta["quantization_annotation"] = QuantizationAnnotation(inputs, output, _annotated=True)

    def validate(self, model: GraphModule) -> None:
        """Every node may be annotated or not: nothing to check."""


def _calibrated(observer: type[MovingAverageMinMaxObserver]) -> Callable:
    return observer.with_args(averaging_constant=AVERAGING, eps=LEAST_SCALE)


def _trained(rounding: type[TrainedRange]) -> Callable:
    return rounding.with_args(observer=MovingAverageMinMaxObserver, eps=LEAST_SCALE)


def _activations(observer: Callable) -> QuantizationSpec:
    return QuantizationSpec(torch.uint8, observer, 0, 255, torch.per_tensor_affine)


def _joined_maps(node: Node) -> list[Node]:
    """What a sum or a concatenation joins, if feature maps are all that it joins; empty for any other node."""
    values: Sequence[Argument] = ()
    if node.target in SUMS:
        values = node.args[:2]
    elif node.target == aten.cat.default:
        values = list_at(node, 0)
    maps = [value for value in values if _is_feature_map(value)]
    return maps if len(maps) == len(values) else []


def _is_feature_map(value: object) -> TypeGuard[Node]:
    """A float tensor (N, C, H, W) that the graph computes: no parameter, no number."""
    if not isinstance(value, Node) or value.op != "call_function":
        return False
    example = value.meta.get("val")
    return isinstance(example, torch.Tensor) and example.is_floating_point() and example.ndim == 4


def batch_norms(graph: GraphModule) -> Iterator[Node]:
    """The graph's BatchNorm nodes."""
    return (node for node in graph.graph.nodes if node.target in BATCH_NORM)


# -- training ------------------------------------------------------------------------------------


def prepare_training(captured: GraphModule) -> GraphModule:
    """Conv + BatchNorm joined as they will be in INT8, with fake quantization; in eval mode.

    Switch modes with `set_training`, and make INT8 of the result with `convert_trained`.
    """
    settings = {
        node_at(node, BN_VARIANCE).target: (number_at(node, BN_MOMENTUM), number_at(node, BN_EPS))
        for node in batch_norms(captured)
    }
    _move_size_queries(captured)
    prepared = prepare_qat_pt2e(captured, LayerQuantizer(training=True))
    # torchao writes its own momentum and eps into every BatchNorm that it joins to a convolution. With
    # MobileNetV3's eps of 1e-3 that is another function.
    for node in batch_norms(prepared):
        momentum, eps = settings[node_at(node, BN_VARIANCE).target]
        set_argument(node, BN_MOMENTUM, momentum)
        _set_eps(prepared, node, eps)
    set_training(prepared, False)
    return prepared


def set_training(prepared: GraphModule, mode: bool) -> None:
    """Switch BatchNorm, dropout and the observers of a prepared graph between training and eval.

    In place of torchao's own switch, which replaces whole nodes and so resets eps, momentum and the
    dropout rate to library defaults. Here one flag of each node changes.
    """
    for node in prepared.graph.nodes:
        if node.target in BATCH_NORM:
            set_argument(node, BN_TRAINING, mode)
        elif node.target in DROPOUT:
            set_argument(node, DROPOUT_TRAINING, mode)
    prepared.recompile()
    prepared.apply(enable_observer if mode else disable_observer)


def convert_trained(prepared: GraphModule) -> GraphModule:
    """The INT8 graph of a prepared one, which stays as it is: BatchNorm folded, weights stored as int8."""
    graph = copy.deepcopy(prepared)
    set_training(graph, False)
    # torchao's own folding assumes its own eps, and takes minutes where this takes a moment.
    for number, node in enumerate(list(batch_norms(graph))):
        if _variance_sum(node) is not None:
            _fold(graph, node, f"folded_{number}")
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return _only_used_tensors(convert_pt2e(graph))


def _fold(graph: GraphModule, batch_norm: Node, name: str) -> None:
    """Replace `conv(x, quantize(w * s)) / s (+ bias) -> BatchNorm` by `conv(x, quantize(folded), bias)`.

    s = gamma / sqrt(variance + eps), so the folded weights are the very ones that were trained.
    """
    gamma, beta, mean, variance = (tensor_of(graph, node_at(batch_norm, position)) for position in range(1, 5))
    factor = gamma / torch.sqrt(variance + number_at(batch_norm, BN_EPS))
    before = node_at(batch_norm, 0)
    bias: torch.Tensor | float = 0.0
    if before.target == aten.add.Tensor:  # the convolution's own bias, reshaped
        bias = tensor_of(graph, node_at(node_at(before, 1), 0))
        before = node_at(before, 0)
    layer = node_at(before, 0)  # before: the division by s
    scaled = node_at(node_at(layer, 1), 0)  # layer's argument 1: the fake quantization
    weight = tensor_of(graph, node_at(scaled, 0))
    shape = [1] * weight.ndim
    shape[1 if layer.target == aten.conv_transpose2d.input else 0] = -1
    graph.register_buffer(f"{name}_weight", weight * factor.reshape(shape))
    graph.register_buffer(f"{name}_bias", beta + (bias - mean) * factor)
    with graph.graph.inserting_before(scaled):
        scaled.replace_all_uses_with(graph.graph.get_attr(f"{name}_weight"))
    with graph.graph.inserting_before(layer):
        set_argument(layer, 2, graph.graph.get_attr(f"{name}_bias"))
    batch_norm.replace_all_uses_with(layer)


def _variance_sum(batch_norm: Node) -> Node | None:
    """The node `variance + eps` by which a joined convolution is scaled; None if it is not joined."""
    users = node_at(batch_norm, BN_VARIANCE).users
    return next((user for user in users if user.target == aten.add.Tensor), None)


def _set_eps(graph: GraphModule, batch_norm: Node, eps: float) -> None:
    set_argument(batch_norm, BN_EPS, eps)
    total = _variance_sum(batch_norm)
    if total is not None:
        set_argument(total, 1, eps)


def _move_size_queries(captured: GraphModule) -> None:
    """Ask BatchNorm's output for its size rather than the convolution's, which is the same.

    torchao joins a convolution to its BatchNorm only if nothing else uses the convolution's output.
    """
    for node in batch_norms(captured):
        convolution = node_at(node, 0)
        last = node
        for user in list(convolution.users):
            if "sym_size" in str(user.target):
                user.replace_input_with(convolution, node)
                last.append(user)
                last = user
    captured.graph.lint()
    captured.recompile()


# -- after training ------------------------------------------------------------------------------


def prepare_calibration(captured: GraphModule) -> GraphModule:
    """BatchNorm folded, observers inserted: run images through it, then `convert_calibrated`."""
    _move_size_queries(captured)
    return prepare_pt2e(captured, LayerQuantizer(training=False))


def convert_calibrated(prepared: GraphModule) -> GraphModule:
    """The INT8 graph of a calibrated one (which is used up)."""
    return _only_used_tensors(convert_pt2e(prepared))


def _only_used_tensors(converted: GraphModule) -> GraphModule:
    """Without the float weights, which torchao leaves behind and export would take along."""
    return GraphModule(converted, converted.graph)


# -- running -------------------------------------------------------------------------------------


def lower_to_x86(graph: GraphModule, example: torch.Tensor, dynamic_shapes: object) -> GraphModule:
    """An INT8 graph with oneDNN's integer kernels for its convolutions; runs on x86 CPUs alone.

    torchao's own `lower_pt2e_quantized_to_x86` fixes the sizes to the example's; these are its passes,
    with dynamic sizes.
    """
    with torch.no_grad():
        exported = torch.export.export(
            graph, (example,), dynamic_shapes=dynamic_shapes, prefer_deferred_runtime_asserts_over_guards=True
        )
        lowered = torch_internals.split_composites(exported)
        torch_internals.freeze(lowered, example)
    # Anew, without the check that inputs have the example's size.
    return GraphModule(lowered, lowered.graph)
