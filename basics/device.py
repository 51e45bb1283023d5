"""Where the numbers are crunched: device choice, autocast, synchronisation."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch

from basics.errors import UserError

AMP_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
AMP_HELP = "mixed precision; auto: bf16 on a GPU that has it, else off"


def add_device_argument(parser: argparse._ActionsContainer) -> None:
    """Add --device, for `pick_device`."""
    parser.add_argument("--device", default="auto", choices=["auto", "cuda", "mps", "cpu"])


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` takes CUDA, else MPS, else the CPU; a named device that is absent is a `UserError`."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, present in available.items() if present)
    if name not in available:
        raise UserError(f"unknown device {name!r}; known: auto, {', '.join(available)}")
    if not available[name]:
        hint = " (on Windows pip's own torch is for the CPU alone: pytorch.org/get-started has the command for CUDA)"
        hint = hint if sys.platform == "win32" and name == "cuda" else ""
        raise UserError(f"--device {name}: this machine or this torch build has none{hint}; use --device auto or cpu")
    return torch.device(name)


def autocast(device: torch.device, amp: str = "off") -> contextlib.AbstractContextManager[object]:
    """An autocast context for ``amp`` in off, bf16, fp16; ``off`` costs nothing."""
    if amp == "off":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=AMP_TYPES[amp])


def exact_dtype(device: torch.device) -> torch.dtype:
    """The widest type of float for sums that lie on ``device``: float64, which MPS lacks."""
    return torch.float32 if device.type == "mps" else torch.float64


@functools.cache
def constant_on(device: torch.device, values: tuple[float, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """``values`` (N,) on ``device``, sent there once: each sending would wait for all that the device has to do."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def synchronize(device: torch.device) -> None:
    """Wait for the device's queue, so that a clock read next means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def tune_kernels() -> None:
    """Let cuDNN try its algorithms once for each new size, and take the fastest: worth it where sizes come again.

    It is left alone where results must be the same at every run.
    """
    torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()


@contextlib.contextmanager
def scoring_kernels() -> Iterator[None]:
    """Inside, cuDNN tries nothing, for pictures have many sizes, and rounds no factor of a float32 convolution to TF32.

    That is what PyTorch lets it do by default; matrix products are exact by default.
    """
    cudnn: Any = torch.backends.cudnn  # PyTorch's types do not know all of its flags
    exact: bool | str
    try:
        owner, flag, exact, before = cudnn, "allow_tf32", False, cudnn.allow_tf32
    except RuntimeError:  # a user's file has set the newer flags, beside which the older ones cannot be read
        owner, flag, exact, before = cudnn.conv, "fp32_precision", "ieee", cudnn.conv.fp32_precision
    benchmark, cudnn.benchmark = cudnn.benchmark, False
    setattr(owner, flag, exact)
    try:
        yield
    finally:
        cudnn.benchmark = benchmark
        setattr(owner, flag, before)


def make_deterministic() -> None:
    """Take deterministic kernels only, wherever PyTorch has one; it names each operation that has none.

    A CPU with a fixed number of threads is deterministic anyway.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    # A debugging aid that costs time; it is a property of the module's class, which mypy does not see.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def settle_amp(device: torch.device, amp: str) -> str:
    """``amp``, looked at by `check_amp`; ``auto`` is bf16 on a GPU that has it, and off everywhere else.

    bf16 has the range of float32 and needs no loss scaling; losses are computed in float32 all the same.
    """
    if amp == "auto":
        has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if has_it else "off"
    check_amp(device, amp)
    return amp


def check_amp(device: torch.device, amp: str) -> None:
    """Refuse mixed precision where it would only cost time.

    A CPU without bf16 instructions emulates them, measured 40 times slower than float32, and fp16 on the
    CPU has neither speed nor range.

    Raises:
        UserError: naming what to use instead.
    """
    if device.type != "cpu" or amp == "off":
        return
    if amp == "fp16":
        raise UserError("--amp fp16 is for GPUs: on the CPU use --amp off (or bf16, where the CPU has it)")
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        raise UserError("--amp bf16: this CPU has no bf16 instructions and would only emulate them; use --amp off")
