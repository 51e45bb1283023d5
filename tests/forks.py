"""Work in forked processes: they start in milliseconds, where a fresh one imports PyTorch for seconds."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from basics import distributed
from basics.errors import UserError

needs_fork = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process that has used PyTorch")


def fork(work: Callable[[], object], output: Path) -> int:
    """Run ``work`` in a child of its own process group, with its output in a file; returns the child's id.

    It ends as a script does: with the status that ``work`` returns, 2 and one line after a `UserError`,
    1 and a traceback after anything else.
    """
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setpgid(0, 0)
        handle = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, closefd=False)
        status = work() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def wait(child: int, timeout: float) -> int:
    """The child's exit status, negative the signal that ended it; it and its children are killed after ``timeout``."""
    end = time.monotonic() + timeout
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            kill(child)
            pytest.fail(f"a process was still at work after {timeout} s")
        time.sleep(0.01)


def wait_for(path: Path, timeout: float = 60) -> None:
    """Until somebody else has made a file."""
    end = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() > end:
            pytest.fail(f"no {path} after {timeout} s")
        time.sleep(0.01)


def kill(child: int) -> None:
    """SIGKILL to the child and all its children; reap it."""
    try:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        pass


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Ranks:
    """Forked processes that are the ranks of one distributed run on the CPU.

    Args:
        work: what each does, inside `basics.distributed.session`, from its rank; the return value comes
            back from `results`.
        world: how many.
        folder: for their output and results.
        timeout_s: of the session.
    """

    def __init__(self, work: Callable[[int], object], world: int, folder: Path, timeout_s: float = 60):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        port = free_port()

        def member(rank: int) -> None:
            os.environ |= {
                "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            }  # fmt: skip
            with distributed.session("cpu", timeout_s):
                torch.save(work(rank), folder / f"result_{rank}")

        self.children = [fork(lambda rank=rank: member(rank), self.output(rank)) for rank in range(world)]

    def output(self, rank: int) -> Path:
        return self.folder / f"output_{rank}.txt"

    def statuses(self, timeout: float = 120) -> list[int]:
        """Exit status of each rank."""
        try:
            return [wait(child, timeout) for child in self.children]
        finally:
            for child in self.children:
                kill(child)

    def results(self, timeout: float = 120) -> list:
        """What each rank returned; the test fails if one ended otherwise."""
        statuses = self.statuses(timeout)
        if any(statuses):
            pytest.fail("\n".join(self.output(rank).read_text() for rank in range(len(statuses))))
        return [torch.load(self.folder / f"result_{rank}", weights_only=False) for rank in range(len(statuses))]
