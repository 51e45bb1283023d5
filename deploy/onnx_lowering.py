"""An ONNX graph in words that old runtimes know.

PyTorch's exporter writes opset 18 at the oldest. What our networks take of it has an older counterpart, and
`lower_opset` puts that in its place; onnx's checker then has the last word.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from basics.errors import UserError, reason_of

if TYPE_CHECKING:
    import onnx_ir

EXPORTER_OPSET = 18  # the oldest that PyTorch's exporter writes
OLDEST_OPSET = 13  # QuantizeLinear by channel; ReduceSum, Squeeze and Unsqueeze with axes as an input


def spell_out_hard_sigmoid(model: onnx_ir.Model) -> None:
    """Replace HardSigmoid(x) by its definition, alpha * clip(x + beta / alpha, 0, 1 / alpha).

    OpenCV takes HardSigmoid with the Mul of a squeeze-and-excite block after it for a HardSwish, and runs something
    else. Written like this ONNX Runtime is as fast.
    """
    for node in list(model.graph):
        if node.op_type == "HardSigmoid":
            alpha, beta = (_attribute(node, name, default) for name, default in (("alpha", 0.2), ("beta", 0.5)))
            _replace(model, node, _clipped(model, node, alpha, beta))


def lower_opset(model: onnx_ir.Model, opset: int) -> None:
    """Bring a graph of opset 18 to an older one, as far as is known here; what is not stays as it was."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in list(model.graph):
        match node.op_type:
            case "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceL2" | "ReduceProd" if opset < 18:
                _axes_as_attribute(node)
            case "Resize" | "Pad" | "Split" if opset < 18:
                for name in ("antialias", "keep_aspect_ratio_policy", "num_outputs"):
                    node.attributes.pop(name, None)
                if node.op_type == "Pad" and len(node.inputs) == 4 and node.inputs[3] is None:
                    node.resize_inputs(3)
            case "HardSwish" if opset < 14:
                gate = _clipped(model, node, 1 / 6, 0.5)
                _replace(model, node, [*gate, _node("Mul", [node.inputs[0], gate[-1].outputs[0]])])
            case "Reshape" if opset < 14:
                node.attributes.pop("allowzero", None)
            case "Shape" if opset < 15 and "start" in node.attributes:
                _slice_of_shape(model, node)
    model.opset_imports[""] = opset
    RemoveUnusedNodesPass()(model)  # with the constants that have become attributes


def check_opset(content: bytes, opset: int, network: str) -> None:
    """A `UserError` if the serialised graph says something that its opset does not know."""
    import onnx

    try:
        onnx.checker.check_model(content, full_check=True)
    except Exception as error:  # onnx has a class for every stage
        reason = next((line for line in str(error).splitlines() if "No Op registered" in line or "Node" in line), "")
        reason = (reason or reason_of(error))[:160]
        raise UserError(
            f"--opset {opset}: a {network} has operators that ONNX did not know then ({reason}); "
            f"the default, opset {EXPORTER_OPSET}, is the oldest that PyTorch writes"
        ) from error


def _node(operator: str, inputs: list, **attributes: Any) -> onnx_ir.Node:
    import onnx_ir

    return onnx_ir.node(operator, inputs, attributes=attributes or None)


def _constant(model: onnx_ir.Model, like: onnx_ir.Value, name: str, value: Any) -> onnx_ir.Value:
    """A constant of the graph, of the type of ``like`` if it is a number."""
    import onnx_ir

    array = np.array(value, like.dtype.numpy() if isinstance(value, float) and like.dtype else None)
    name = f"{like.name}_{name}"
    tensor = onnx_ir.tensor(array, name=name)
    constant = onnx_ir.Value(
        name=name, const_value=tensor, type=onnx_ir.TensorType(tensor.dtype), shape=onnx_ir.Shape(array.shape)
    )
    model.graph.initializers[name] = constant
    return constant


def _clipped(model: onnx_ir.Model, node: onnx_ir.Node, alpha: float, beta: float) -> list[onnx_ir.Node]:
    """The nodes of alpha * clip(x + beta / alpha, 0, 1 / alpha), x being the input of ``node``."""
    like = node.outputs[0]
    shift, low, high, scale = (
        _constant(model, like, name, float(value))
        for name, value in (("shift", beta / alpha), ("low", 0), ("high", 1 / alpha), ("scale", alpha))
    )
    shifted = _node("Add", [node.inputs[0], shift])
    clipped = _node("Clip", [shifted.outputs[0], low, high])
    return [shifted, clipped, _node("Mul", [clipped.outputs[0], scale])]


def _replace(model: onnx_ir.Model, node: onnx_ir.Node, others: list[onnx_ir.Node]) -> None:
    """Put ``others`` in the place of ``node``; the last one gives its output."""
    import onnx_ir

    (old,), (new,) = node.outputs, others[-1].outputs
    for number, other in enumerate(others):
        other.name = f"{node.name}_part{number}"
        other.outputs[0].name = f"{old.name}_part{number}"
    new.type, new.shape = old.type, old.shape
    onnx_ir.convenience.replace_nodes_and_values(model.graph, node, [node], others, [old], [new])


def _attribute(node: onnx_ir.Node, name: str, default: float) -> float:
    return node.attributes[name].as_float() if name in node.attributes else default


def _axes_as_attribute(node: onnx_ir.Node) -> None:
    """Opset 18 made the axes of reductions an input."""
    import onnx_ir

    axes = node.inputs[1] if len(node.inputs) > 1 else None
    if axes is not None and axes.const_value is not None:
        node.attributes.add(onnx_ir.AttrInt64s("axes", axes.const_value.numpy().tolist()))
        node.resize_inputs(1)
        node.attributes.pop("noop_with_empty_axes", None)


def _slice_of_shape(model: onnx_ir.Model, node: onnx_ir.Node) -> None:
    """Opset 15 gave Shape a start and an end."""
    start = node.attributes["start"].as_int()
    end = node.attributes["end"].as_int() if "end" in node.attributes else np.iinfo(np.int64).max
    whole = _node("Shape", [node.inputs[0]])
    bounds = [_constant(model, node.outputs[0], name, [value]) for name, value in (("start", start), ("end", end))]
    _replace(model, node, [whole, _node("Slice", [whole.outputs[0], *bounds])])
