"""Reading and changing the nodes of a captured graph.

A node's arguments may be anything: the types of torch.fx say so. What stands at which place of ATen's operators is
known, though; the functions here say what it is, and an argument of another kind is a fault of ours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import Argument


def node_at(node: Node, position: int) -> Node:
    """The argument at ``position``: a tensor, that is, the node it comes from."""
    argument = node.args[position]
    assert isinstance(argument, Node), f"argument {position} of {node.format_node()}"
    return argument


def number_at(node: Node, position: int) -> float:
    """The argument at ``position``: a number."""
    argument = node.args[position]
    assert isinstance(argument, int | float), f"argument {position} of {node.format_node()}"
    return argument


def list_at(node: Node, position: int) -> Sequence[Argument]:
    """The argument at ``position``: a list or a tuple."""
    argument = node.args[position]
    assert isinstance(argument, Sequence), f"argument {position} of {node.format_node()}"
    return argument


def set_argument(node: Node, position: int, value: Argument) -> None:
    """Put ``value`` into the place of a positional argument."""
    node.args = (*node.args[:position], value, *node.args[position + 1 :])


def first_result(graph: GraphModule) -> Node:
    """The node whose value is the first that the graph returns."""
    output = next(node for node in reversed(graph.graph.nodes) if node.op == "output")
    result = list_at(output, 0)[0]
    assert isinstance(result, Node)
    return result


def tensor_of(graph: GraphModule, node: Node) -> torch.Tensor:
    """The parameter or buffer behind a get_attr node, detached."""
    module, _, name = str(node.target).rpartition(".")
    value = getattr(graph.get_submodule(module), name)
    assert isinstance(value, torch.Tensor)
    return value.detach()
