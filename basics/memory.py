"""Memory: how much of it is left, and what to say when it runs out."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from basics.errors import UserError

# Pieces of what PyTorch and the system say when memory runs out; few of them have an exception class.
NO_MEMORY = (
    *("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "bad_alloc"),
    "paging file",  # of Windows: "is too small for this operation to complete"
    # On a nearly full card; cuDNN 9 says CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED.
    *("cublas_status_alloc_failed", "cudnn_status_alloc_failed", "allocation_failed", "unable to find an engine"),
)
NO_SHARED_MEMORY = ("shared memory", "shared file mapping", "bus error", "shm_open", "/dev/shm")
KILLED_WORKER = ("exited unexpectedly", "is killed by signal")


@contextlib.contextmanager
def explain_memory(advice: str) -> Iterator[None]:
    """Turn running out of memory inside the block into one line that says what to do.

    Args:
        advice: such as ``lower --batch-size``.

    Raises:
        UserError: memory of the device, of the machine or of /dev/shm ran out.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        text = str(error)
        short = (text.splitlines() or [""])[0][:160]
        if any(piece in text.lower() for piece in NO_SHARED_MEMORY):
            raise UserError(
                f"the loader processes ran out of shared memory ({short}): lower --workers or --batch-size, "
                "or enlarge /dev/shm (docker run --shm-size)"
            ) from error
        if is_lost_worker(error):
            raise UserError(
                f"a loader process was killed, most often because memory ran out ({short}): lower --workers"
            ) from error
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if out_of_memory or any(piece in text.lower() for piece in NO_MEMORY):
            raise UserError(f"out of memory ({short}): {advice}") from error
        raise


def is_lost_worker(error: BaseException) -> bool:
    """Whether a loader process has ended that should not have."""
    return isinstance(error, RuntimeError) and any(piece in str(error) for piece in KILLED_WORKER)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process can still get there, or on a GPU have in all; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        entries = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free.append(1024 * int(entries["MemAvailable"].split()[0]))
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))  # of a container
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        # Files that were read stay in memory until it is wanted.
        stat = Path("/sys/fs/cgroup/memory.stat").read_text() if Path("/sys/fs/cgroup/memory.stat").exists() else ""
        cached = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
        free.append(int(limit.read_text()) - int(used.read_text()) + cached)
    return min(free, default=None)


class LiveBytes(TorchDispatchMode):
    """Counts, in its block, the bytes of all tensors that operations make, from their making to their end.

    It counts the same on the device ``meta``, where nothing is computed and nothing stored. What single operations
    take for themselves is not seen.

    Attributes:
        peak: the most there ever were at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._users: Counter[int] = Counter()  # tensors by the storage that they share

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                place, size = storage._cdata, storage.nbytes()
                if not self._users[place]:
                    self._live += size
                    self.peak = max(self.peak, self._live)
                self._users[place] += 1
                weakref.finalize(tensor, self._end, place, size)
        return result

    def _end(self, place: int, size: int) -> None:
        self._users[place] -= 1
        if not self._users[place]:
            self._live -= size
