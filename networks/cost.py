"""What a model costs: parameters, multiply-accumulates, latency."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from basics.timing import interleave
from networks.onnx_teacher import OnnxTeacher


def count_parameters(module: nn.Module) -> int | None:
    """Number of parameters, trained or frozen; None for an ONNX file that nobody can look into."""
    if isinstance(module, OnnxTeacher):
        return module.count_weights()
    return sum(parameter.numel() for parameter in module.parameters())


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Top-level child -> number of parameters; children without any are left out."""
    counts = {name: count_parameters(child) for name, child in model.named_children()}
    own = sum(parameter.numel() for parameter in model.parameters(recurse=False))
    return {name: count for name, count in (counts | {"(own)": own}).items() if count}


def count_macs(model: nn.Module, size: int) -> int:
    """Multiply-accumulates of convolutions and matrix products for one ``size`` x ``size`` image.

    Resizing, normalisation and activations are not counted, as usual. Nothing is computed: the
    shapes alone are propagated, on PyTorch's meta device, through ``model`` as it is (use eval mode). A
    network that looks at the values on its way (those that score queries) is run, where it lies.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    try:
        return _count(lambda: functional_call(model, shapes, (torch.zeros(1, 3, size, size, device="meta"),)))
    except (RuntimeError, NotImplementedError):
        frozen = copy.deepcopy(model).requires_grad_(False)  # the counter stumbles over what has a gradient
        images = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)
        return _count(lambda: frozen(images))


@torch.no_grad()
def _count(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2  # PyTorch counts a multiplication and an addition as two


def file_megabytes(model: nn.Module) -> float:
    """Size of the weights in a float32 file, buffers included, in MB of 10^6 bytes."""
    return (
        sum(tensor.numel() * (4 if tensor.is_floating_point() else 8) for tensor in model.state_dict().values()) / 1e6
    )


@torch.inference_mode()
def measure_latencies(
    models: Sequence[nn.Module],
    size: int,
    device: torch.device,
    *,
    warmup: int = 5,
    repeats: int = 30,
    limit_s: float = 10,
) -> list[float]:
    """Median milliseconds for one ``size`` x ``size`` image, float32, eval mode, after ``warmup`` runs, all in turn.

    The device's queue is waited for before each reading of the clock. Warming up and measuring each end early after
    ``limit_s`` seconds a network, so that big networks on a small machine come to an end, too.
    """
    for model in models:
        model.to(device).eval()
    image = torch.randn(1, 3, size, size, device=device)
    # `model=model`: a lambda sees a loop's variable as it is when called.
    variants = {str(number): lambda _, model=model: model(image) for number, model in enumerate(models)}
    timings = interleave(variants, repeats, warmup, device, limit_s * len(models))
    return [1000 * timings.median(number) for number in variants]
