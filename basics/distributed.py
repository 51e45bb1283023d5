"""Several processes as one run: ``torchrun --nproc_per_node N train_kd.py ...``, one process a GPU.

Every rank holds the whole model and takes its share of each batch. What a step computes is what one process
would compute with the whole batch, to rounding:

- BatchNorm takes its statistics over the batches of all ranks (`synchronize_batchnorm`).
- DistributedDataParallel averages the gradients of the ranks. A loss is a sum divided by a count, and the
  ranks' counts differ (void, padding): it divides by `shared_count`, so that the average is the whole
  batch's gradient.
- Dropout draws other numbers: it alone is not that of one process.

In a process that runs alone every function here passes through what it is given.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import FunctionCtx
from torch.nn.parallel import DistributedDataParallel

from basics.device import pick_device
from basics.errors import UserError

M = TypeVar("M", bound=nn.Module)

TIMEOUT_S = 600.0
MAIN_FIRST_TIMEOUT = timedelta(days=2)  # the main rank may be filling a cache
# What PyTorch's backends say when another process is gone or silent; they share no exception class.
PEER_TROUBLE = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe|timed? ?out|store", re.IGNORECASE)


class _Control:
    """Gloo groups beside the one for tensors: they carry flags and Python objects and do not wait for a GPU."""

    group: dist.ProcessGroup | None = None
    patient: dist.ProcessGroup | None = None  # a closed connection is noticed at once all the same


def world_size() -> int:
    """Number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """True in the one process that writes files, logs and progress bars."""
    return rank() == 0


# -- joining and leaving ---------------------------------------------------------------------------


@contextlib.contextmanager
def session(device: str = "auto", timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """Belong to the run that torchrun started this process for, as long as the block lasts.

    Ranks other than 0 print nothing inside. Without torchrun: nothing happens.

    Args:
        device: as for `basics.device.pick_device`; on CUDA each rank takes the GPU of its local rank.
        timeout_s: how long a rank waits for the others before it gives up.

    Raises:
        UserError: there are fewer GPUs than processes, or another process ended or fell silent.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield
        return
    backend = _choose_backend(device)
    number = int(os.environ.get("RANK", "0"))
    started = time.monotonic()
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        _Control.group = _gloo_group(timedelta(seconds=timeout_s))
        _Control.patient = _gloo_group(MAIN_FIRST_TIMEOUT)
        with contextlib.ExitStack() as stack:
            if number > 0:
                nowhere = stack.enter_context(open(os.devnull, "w"))  # noqa: PTH123
                stack.enter_context(contextlib.redirect_stdout(nowhere))
            yield
        dist.destroy_process_group()
    except UserError as error:
        raise UserError(f"rank {number}: {error}") from error
    except RuntimeError as error:
        if not PEER_TROUBLE.search(str(error)):
            raise
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"rank {number}: another process of this run ended or did not answer for {timeout_s:g} s "
            f"({reason}), {time.monotonic() - started:.0f} s after the start; its own message says why. "
            "Go on with the same command and --resume auto"
        ) from error
    finally:
        _Control.group = _Control.patient = None


def _gloo_group(timeout: timedelta) -> dist.ProcessGroup:
    """A group of all ranks."""
    group = dist.new_group(backend="gloo", timeout=timeout)
    assert isinstance(group, dist.ProcessGroup)  # a rank outside a group would get a number
    return group


def _choose_backend(device: str) -> str:
    """nccl or gloo; on CUDA this rank's GPU becomes the current one."""
    kind = pick_device(device).type
    if kind == "cpu":
        return "gloo"
    if kind != "cuda":
        raise UserError(f"several processes cannot share {kind}: run one, or pass --device cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= torch.cuda.device_count():
        raise UserError(
            f"local rank {local}: this machine has {torch.cuda.device_count()} GPUs; lower --nproc_per_node"
        )
    torch.cuda.set_device(local)
    return "nccl"


# -- words between ranks ---------------------------------------------------------------------------


def any_rank(flag: bool) -> bool:
    """True in every rank if ``flag`` is true in one; all ranks must call it."""
    if world_size() == 1:
        return flag
    value = torch.tensor(int(flag))
    dist.all_reduce(value, op=dist.ReduceOp.MAX, group=_Control.group)
    return bool(value.item())


def largest_over_ranks(value: float) -> float:
    """The largest of the ranks' values, in every rank; all ranks must call it."""
    if world_size() == 1:
        return value
    shared = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX, group=_Control.group)
    return shared.item()


def gather(value: object) -> list:
    """The ranks' values in the order of the ranks, in every rank; all ranks must call it."""
    if world_size() == 1:
        return [value]
    values: list[object] = [None] * world_size()
    dist.all_gather_object(values, value, group=_Control.group)
    return values


def barrier() -> None:
    """Wait until every rank is here."""
    if world_size() > 1:
        dist.barrier(group=_Control.group)


@contextlib.contextmanager
def main_first() -> Iterator[None]:
    """The main rank runs the block alone, then the others do: they find the files that it has fetched or made."""
    if world_size() == 1:
        yield
        return
    if is_main():
        yield
        dist.barrier(group=_Control.patient)
    else:
        dist.barrier(group=_Control.patient)
        yield


# -- sums over ranks -------------------------------------------------------------------------------


def add_up(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of the ranks' tensors, in place and without a gradient."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def mean_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Mean of the ranks' tensors, without a gradient; all ranks must call it."""
    return add_up(tensor.clone()) / world_size()


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of the ranks' tensors, through which gradients flow back into every rank."""
    return _SumOverRanks.apply(tensor) if world_size() > 1 else tensor


def shared_count(count: torch.Tensor, least: float = 1) -> torch.Tensor:
    """What a loss divides its sum by: ``count`` (at least ``least``), or the mean count of the ranks.

    With local sums S_r and counts n_r, the mean over ranks of S_r / (sum n / W) is sum S / sum n: value
    and gradient of the whole batch, which the mean of the S_r / n_r is not.
    """
    if world_size() == 1:
        return count.clamp(min=least)
    return add_up(count.clone()).clamp(min=least) / world_size()


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, tensor: torch.Tensor) -> torch.Tensor:
        return add_up(tensor.detach().clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: torch.Tensor) -> torch.Tensor:
        return add_up(gradient.clone(memory_format=torch.contiguous_format))


# -- the model -------------------------------------------------------------------------------------


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """A `kd.distiller.DistilledStudent` whose gradients are averaged over the ranks; as it is, in a process alone.

    What is trained is fixed here: wrap anew after changing ``requires_grad``.
    """
    if world_size() == 1:
        return model
    gpu = [torch.cuda.current_device()] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=gpu, find_unused_parameters=_has_idle_parameters(model, device))


def _has_idle_parameters(model: nn.Module, device: torch.device) -> bool:
    """Whether ``model`` has layers that none of its outputs depends on, but a feature loss might: DDP must know."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    logits, adapted = model(torch.zeros(1, 3, 64, 64, device=device, dtype=next(model.parameters()).dtype))
    for module, mode in modes.items():
        module.training = mode
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # A frozen backbone's maps may reach a feature loss as they are.
    outputs = [output.sum() for output in (logits, *adapted.values()) if output.requires_grad]
    return any(gradient is None for gradient in torch.autograd.grad(outputs, trained, allow_unused=True))


def synchronize_batchnorm(model: M, device: torch.device) -> M:
    """Let every BatchNorm below ``model`` take its statistics over all ranks; same parameters, same state_dict.

    That is PyTorch's own, and timm's with the activation inside, which `nn.SyncBatchNorm` would leave out. Layers of
    other kinds are named, for they keep the statistics of their process.
    """
    if world_size() == 1:
        return model
    timm = sys.modules.get("timm.layers")  # whoever has such layers has imported it
    others = set()
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            kind, has_activation = type(layer), timm is not None and type(layer) is timm.BatchNormAct2d
            if not isinstance(layer, nn.modules.batchnorm._BatchNorm):
                continue
            if device.type == "cuda" and (has_activation or kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
                convert = timm.convert_sync_batchnorm if timm else nn.SyncBatchNorm.convert_sync_batchnorm
                parent.add_module(name, convert(layer))
            elif device.type != "cuda" and (has_activation or kind is nn.BatchNorm2d) and _is_whole(layer):
                layer.__class__ = SyncedBatchNormAct if has_activation else SyncedBatchNorm  # behaviour, no state
            else:
                others.add(kind.__name__)
    if others:
        print(f"remark: layers of the kind {', '.join(sorted(others))} take their statistics in each process by itself")
    return model


def _is_whole(layer: nn.modules.batchnorm._BatchNorm) -> bool:
    """Whether it has scale and shift, and running statistics."""
    return layer.affine and layer.track_running_stats


class SyncedBatchNorm(nn.BatchNorm2d):
    """BatchNorm over the batches of all ranks in plain operations: `nn.SyncBatchNorm` runs on GPUs only."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """``images`` (N, C, H, W), this rank's share -> normalised alike."""
        if not self.training:
            return super().forward(images)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        given = images.dtype
        images = images.to(torch.promote_types(given, torch.float32))  # autocast hands over half types
        dims = (0, 2, 3)
        count = add_up(torch.tensor(float(images.numel() // images.shape[1]), device=images.device))
        mean = sum_over_ranks(images.sum(dims)) / count
        centred = images - mean[:, None, None]
        var = sum_over_ranks(centred.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = self.momentum if self.momentum is not None else 1 / self.num_batches_tracked.item()
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * count / (count - 1), momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(given)


class SyncedBatchNormAct(SyncedBatchNorm):
    """The same for timm's ``BatchNormAct2d``, which has dropout and an activation inside."""

    drop: nn.Module
    act: nn.Module

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.act(self.drop(super().forward(images)))
