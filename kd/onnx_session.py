"""ONNX Runtime sessions: one way to open a file, and a look at what the runtime makes of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from types import ModuleType

from kd.errors import UserError

# Kernels that multiply integers, after ONNX Runtime has optimised a graph.
INTEGER_KERNELS = ("QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "QGemm", "ConvInteger", "MatMulInteger")
LAYER_KERNELS = (*INTEGER_KERNELS, "Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm")


def import_onnxruntime() -> ModuleType:
    """The package, or a `UserError` that says how to install it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            "ONNX files need the package onnxruntime: pip install onnxruntime (see requirements-extra.txt)"
        ) from error
    return onnxruntime


def open_session(path: str | Path, *, device: str = "cpu", threads: int = 0, optimized: Path | None = None):
    """Open an ONNX file.

    Args:
        path: the file.
        device: ``cuda`` takes ONNX Runtime's CUDA kernels where this build has them, else the CPU's.
        threads: of one operator; 0 leaves it to the runtime.
        optimized: where to write the graph as the runtime will execute it.

    Raises:
        UserError: onnxruntime is not installed, or the file is missing or damaged.
    """
    onnxruntime = import_onnxruntime()
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions, warnings are about what the user cannot influence
    options.intra_op_num_threads = threads
    # Idle threads that spin would take the cores from PyTorch, which works before and after the session.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    wanted = (["CUDAExecutionProvider"] if device == "cuda" else []) + ["CPUExecutionProvider"]
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the runtime has an exception class of its own for every stage
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: ONNX Runtime cannot read it: {reason}") from error


def executed_operators(path: str | Path) -> Counter[str]:
    """How many of each operator ONNX Runtime executes for ``path``, fusions included (needs onnx)."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, optimized=optimized)
        graph = onnx.load(optimized).graph
    return Counter(node.op_type for node in graph.node)


def integer_layers(operators: Counter[str]) -> tuple[int, int]:
    """Of `executed_operators`: layers run with integer arithmetic, and all convolutions and matrix products."""
    return sum(operators[name] for name in INTEGER_KERNELS), sum(operators[name] for name in LAYER_KERNELS)
