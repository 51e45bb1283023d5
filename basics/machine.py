"""What the program runs on: hardware and libraries by name, processor cores, the commit of its code."""

from __future__ import annotations

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
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_commit(folder: Path) -> str | None:
    """The commit checked out around ``folder``, "+changes" when the tree differs; None without git."""
    command = shlex.split("git describe --always --abbrev=40 --exclude=* --dirty=+changes")
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
