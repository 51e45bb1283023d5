"""All that this project takes from private modules of PyTorch. INT8 files for torch.export (.pt2) rest on it.

There is no public way yet to have an exported graph run with oneDNN's integer kernels. What is private may move with
any release: then every function here raises one `UserError`, and all but INT8 .pt2 files goes on working.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch.fx import GraphModule

from basics.errors import UserError

KNOWN_TO_WORK = "2.14"


@contextlib.contextmanager
def _explain_move() -> Iterator[None]:
    """Turn a private name that is not where it was into one line that says what to do."""
    try:
        yield
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"INT8 .pt2 files rest on private parts of PyTorch, and PyTorch {torch.__version__} has them elsewhere "
            f"({error}): use the .onnx file, or PyTorch {KNOWN_TO_WORK}, which is known to work"
        ) from error


def register_int8_operators() -> None:
    """Make the operators of INT8 graphs known, without which `torch.export.load` cannot read such a graph."""
    with _explain_move():
        import torch.ao.quantization.fx._decomposed  # noqa: F401


def split_composites(program: torch.export.ExportedProgram) -> GraphModule:
    """The program's graph with composite operators, and these alone, split into their parts."""
    with _explain_move():
        from torch._export.utils import _is_cia_op
    decompositions = torch.export.default_decompositions()
    for operator in list(decompositions):
        if not _is_cia_op(operator):
            del decompositions[operator]
    return program.run_decompositions(decompositions).module(check_guards=False)


def freeze(graph: GraphModule, example: torch.Tensor) -> None:
    """Run, in place, the passes that torch.compile's backend has registered for inference; fold what is constant."""
    with _explain_move():
        # Registers the passes when imported, and one with torch.compile, hence not at the top.
        import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401
        from torch._inductor.constant_folding import constant_fold
        from torch._inductor.fx_passes.freezing_patterns import freezing_passes
    freezing_passes(graph, (example,))
    constant_fold(graph)
