"""Memory: how much of it is left, and what to say when it runs out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from basics.errors import UserError

# Pieces of what PyTorch and the system say when memory runs out; few of them have an exception class.
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory", "bad_alloc")
NO_SHARED_MEMORY = ("shared memory", "bus error", "shm_open", "/dev/shm")
KILLED_WORKER = ("exited unexpectedly", "is killed by signal")


@contextlib.contextmanager
def explain_memory(advice: str) -> Iterator[None]:
    """Turn running out of memory inside the block into one line that says what to lower.

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
        if any(piece in text for piece in KILLED_WORKER):
            raise UserError(
                f"a loader process was killed, most often because memory ran out ({short}): lower --workers"
            ) from error
        out_of_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if out_of_memory or any(piece in text.lower() for piece in NO_MEMORY):
            raise UserError(f"out of memory ({short}): lower {advice}") from error
        raise


def free_memory(device: torch.device) -> int | None:
    """Bytes that a process can still get there; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = []
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        entries = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free.append(1024 * int(entries["MemAvailable"].split()[0]))
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))  # of a container
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free.append(int(limit.read_text()) - int(used.read_text()))
    return min(free, default=None)
