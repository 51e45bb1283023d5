"""Feature maps inside an ONNX file: found by the names that PyTorch's exporters leave on weights and nodes.

Whatever is below a module ``backbone`` or ``encoder`` is the encoder. Its blocks (``backbone.layer1``,
``encoder.features.3``) are told apart by the first name with a digit in it, and a block's output is where its last
weight's result ends up after the activations and additions behind it. Nothing is guessed: in a file without such
names no map is found. Needs the ``onnx`` package.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import onnx

from basics.checkpoint import external_data
from basics.files import file_bytes

MOST_BYTES = (1 << 31) - (1 << 20)  # of a message in protobuf, some of them for the graph

ENCODER = re.compile(r"(?:^|[./])(backbone|encoder)[./](.+)")
# Passed on the way from a block's last weight to its output, and back from the classifier to the map before its ReLU.
ELEMENTWISE = {"Add", "Relu", "Clip", "LeakyRelu", "HardSwish", "Gelu", "BatchNormalization", "Identity", "Dropout"}
BEFORE_CLASSIFIER = {"Relu", "Clip", "LeakyRelu", "HardSwish", "Identity", "Dropout"}


def load(path: Path) -> onnx.ModelProto | None:
    """The file with its weights; None, said aloud, where these are too many to be written anew with other outputs."""
    size = sum(file_bytes(part) for part in (path, *external_data(path)))
    if size < MOST_BYTES:
        return onnx.load(path)
    print(f"{path}: {size / 1e9:.1f} GB are too large to look for feature maps in")
    return None


def block_outputs(model: onnx.ModelProto) -> list[str]:
    """Names of the tensors that leave the encoder's blocks, in the order of the blocks."""
    weights = {tensor.name for tensor in model.graph.initializer}
    blocks, last = {}, {}
    for number, node in enumerate(model.graph.node):
        block = _block([name for name in node.input if name in weights] + [node.name])
        if block is not None:
            blocks[number], last[block] = block, number
    consumers = defaultdict(list)
    for number, node in enumerate(model.graph.node):
        for name in node.input:
            consumers[name].append(number)
    outputs = []
    for block, number in last.items():
        name = model.graph.node[number].output[0]
        while len(consumers[name]) == 1:
            following = consumers[name][0]
            node = model.graph.node[following]
            if node.op_type not in ELEMENTWISE or blocks.get(following, block) != block:
                break
            name = node.output[0]
        outputs.append(name)
    return outputs


def _block(names: list[str]) -> str | None:
    """The encoder block that the first name below ``backbone`` or ``encoder`` belongs to."""
    for name in names:
        found = ENCODER.search(name)
        if found:
            parts = re.split(r"[./]", found[2])
            numbered = next((i for i, part in enumerate(parts) if any(c.isdigit() for c in part)), len(parts) - 1)
            return ".".join(parts[: numbered + 1])
    return None


def before_classifier(model: onnx.ModelProto, num_classes: int) -> str | None:
    """Name of the map that enters the last convolution to ``num_classes`` channels, before its activation."""
    shapes = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    for node in reversed(model.graph.node):
        if node.op_type == "Conv" and node.input[1] in shapes and shapes[node.input[1]][0] == num_classes:
            name = node.input[0]
            while name in producers and producers[name].op_type in BEFORE_CLASSIFIER:
                name = producers[name].input[0]
            return name if name in producers else None
    return None


def with_outputs(model: onnx.ModelProto, names: list[str]) -> bytes:
    """The serialized model, with these tensors among its outputs."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    present = {output.name for output in changed.graph.output}
    missing = [name for name in dict.fromkeys(names) if name not in present]
    changed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in missing)
    return changed.SerializeToString()
