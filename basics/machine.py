"""What the program runs on: hardware and libraries by name, processor cores, the commit of its code."""

from __future__ import annotations

import math
import multiprocessing
import os
import platform
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy
import torch
import torchvision

from basics.device import pick_device


def describe_start(device: str = "auto") -> dict[str, object]:
    """When, with what and on what a run was started; plain values for config.json."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "git commit": git_commit(Path(__file__).parent),
        "platform": platform.platform(),
        "device": device_name(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "numpy": numpy.__version__,
        },
    }


def device_name(device: str = "auto") -> str:
    """The hardware behind ``device`` (auto, cuda, mps, cpu): the GPU's name, or the CPU's and its threads."""
    kind = pick_device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_name()
    return f"{'MPS on ' if kind == 'mps' else ''}{cpu_name()}, {torch.get_num_threads()} threads"


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def available_cores() -> int:
    """Processor cores that this process may use, which in a container or on a cluster are not all."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(cores, _cpu_quota())))


def _cpu_quota(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores' worth of time that a container is given (docker run --cpus 4); infinite without a limit."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:  # the first version of cgroups
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return float(quota) / float(period) if quota.strip() not in ("max", "-1") else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


WORKERS_HELP = (
    "loader processes, a number or auto: on a GPU one for each core but one, at most 16 (4 on macOS and Windows, where "
    "each has to import all anew), shared by the processes of torchrun; on the CPU, whose cores the training itself "
    "wants, a quarter of them, from 1 to 4; does not change the result"
)


def loader_processes(asked: int | None, device: torch.device) -> int:
    """How many processes read pictures beside a network on ``device``: as many as ``asked``, or as `WORKERS_HELP` says.

    A process that trains on the CPU gains little from them: what they save it they take from its threads.
    """
    if asked is not None:
        return asked
    cores = available_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of torchrun and compare.py
    if device.type == "cpu":
        return min(max(cores // 4, 1), 4)
    return min(max(cores - 1, 1), 16 if multiprocessing.get_start_method() == "fork" else 4)


def number_or_auto(text: str) -> int | None:
    """A type for argparse; ``auto`` gives None."""
    return None if text == "auto" else int(text)


def git_commit(folder: Path) -> str | None:
    """The commit checked out around ``folder``, "+changes" when the tree differs; None without git."""
    command = shlex.split("git describe --always --abbrev=40 --exclude=* --dirty=+changes")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
