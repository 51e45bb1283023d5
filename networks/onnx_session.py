"""ONNX Runtime sessions: one way to open a file, and a look at what the runtime makes of it."""

from __future__ import annotations

import platform
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from basics.checkpoint import external_data, refuse_pointer
from basics.errors import UserError, reason_of
from basics.optional_packages import need

if TYPE_CHECKING:  # an optional package
    from onnxruntime import InferenceSession

# Kernels that multiply integers, after ONNX Runtime has optimised a graph.
INTEGER_KERNELS = ("QLinearConv", "QLinearMatMul", "MatMulIntegerToFloat", "QGemm", "ConvInteger", "MatMulInteger")
CUDA = "CUDAExecutionProvider"
LAYER_KERNELS = (*INTEGER_KERNELS, "Conv", "FusedConv", "ConvTranspose", "MatMul", "FusedMatMul", "Gemm", "FusedGemm")


def open_session(
    path: str | Path,
    content: bytes | None = None,
    *,
    device: str = "cpu",
    share_cores: bool = False,
    optimized: Path | None = None,
) -> InferenceSession:
    """An ONNX Runtime session for a file, or for the changed ``content`` of it.

    Args:
        path: the file.
        content: run this in place of what is in the file.
        device: PyTorch's word; ``cuda`` takes ONNX Runtime's CUDA kernels where this build has them.
        share_cores: leave the cores to others within a run, too, as beside a training and its loaders. Otherwise ONNX
            Runtime's threads wait for each other awake, but only within a run: threads that wait for the next picture
            take the cores from PyTorch, which resizes this one's logits.
        optimized: where to write the graph as the runtime will execute it.

    Raises:
        UserError: onnxruntime is not installed, or the file is missing or damaged.
    """
    onnxruntime = need("onnxruntime", "onnxruntime", f"{path}: an ONNX file")
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    for part in (Path(path), *external_data(Path(path))):
        refuse_pointer(part)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors come as exceptions; warnings are about what the user cannot influence
    options.intra_op_num_threads = torch.get_num_threads()
    if share_cores:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    exact = int8_overflows()
    options.add_session_config_entry("session.x64quantprecision", "1" if exact else "0")
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda" and CUDA in onnxruntime.get_available_providers():
        card = torch.cuda.current_device() if torch.cuda.is_available() else 0  # of this rank
        # Its default tries all algorithms of a convolution for each size of picture.
        providers.insert(0, (CUDA, {"device_id": card, "cudnn_conv_algo_search": "HEURISTIC"}))
    try:
        try:
            return onnxruntime.InferenceSession(content or str(path), options, providers=providers)
        except Exception:
            if not exact:
                raise
            # It cannot turn the weights of every file into unsigned ones: then as it runs that file by itself.
            options.add_session_config_entry("session.x64quantprecision", "0")
            return onnxruntime.InferenceSession(content or str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's own classes share no base
        reason = reason_of(error)[:200]
        raise UserError(f"{path}: not an ONNX file that ONNX Runtime can run: {reason}") from error


def int8_overflows() -> bool:
    """Whether ONNX Runtime's kernels for uint8 activations and int8 weights add in 16 bits here, which overflows.

    So they do on x86 without VNNI's instructions. The runtime can take uint8 weights with a zero point of 128 instead
    (``session.x64quantprecision``): right everywhere, but slower where there is no need. An older
    PyTorch does not say what the processor has: then it counts as one without.
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return not any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni"))


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
