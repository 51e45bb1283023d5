"""Errors a user can cause, and the one place where they become one line and an exit status."""

from __future__ import annotations

import argparse
import difflib
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
DISTRIBUTED = "train_kd.py"  # the one script that torchrun may start


class UserError(Exception):
    """Something the user can put right. The message is one line: what is wrong, where, and what to do."""


def choose(registry: Mapping[str, T], name: str, what: str) -> T:
    """Return ``registry[name]``; an unknown name is a `UserError` that lists the known ones."""
    if name in registry:
        return registry[name]
    close = difflib.get_close_matches(name, registry, n=1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise UserError(f"unknown {what} {name!r}{hint}; known: {', '.join(sorted(registry))}")


def reason_of(error: BaseException) -> str:
    """What an exception says, in a line: its first one, and the next where that only announces it by a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]) or type(error).__name__


def run_cli(main: Callable[[Any], object], get_args_parser: Callable[[], argparse.ArgumentParser]) -> NoReturn:
    """Parse the command line, run ``main(args)`` and turn a `UserError` into one line on stderr.

    Exit status: 0 when ``main`` returns None or 0, its own status when it returns another int,
    2 after a `UserError` (as argparse itself does) or a path that the system refuses, 130 after Ctrl-C.
    """
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, Path(os.devnull).open("r" if name == "stdin" else "w"))  # noqa: SIM115, for good
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that cannot show a sign gets it spelled out
            stream.reconfigure(errors="backslashreplace")
    args = get_args_parser().parse_args()
    try:
        _refuse_torchrun(Path(sys.argv[0]).name)
        status = main(args)
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `| head` closed the pipe: not an error of ours
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # a path that cannot be looked at: too long, or in a folder that is closed to us
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    finally:
        _end_loader_processes()
    sys.exit(status if isinstance(status, int) else 0)


def _refuse_torchrun(script: str) -> None:
    """Processes that know nothing of each other would each do all of it, into the same files."""
    several = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    if several and script != DISTRIBUTED:
        raise UserError(f"{script} is one process: leave torchrun out, which is for {DISTRIBUTED}")


def _end_loader_processes() -> None:
    """End those that an error has left behind.

    They ignore SIGTERM (see `basics.signals.ignore_stop_signals`), by which Python would end them: it would wait for
    ever.
    """
    children = multiprocessing.active_children()
    if children and hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would make an error of their end
    for child in children:
        child.kill()
