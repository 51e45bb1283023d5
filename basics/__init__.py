"""What every room stands on: errors, files, devices, processes, batches, grids. Knows nothing of the others."""

from __future__ import annotations

import importlib.util
import os
import sys
from types import TracebackType

NOTEBOOK = "module://"  # as matplotlib's backends that are modules of their own begin


def _forget_a_notebooks_backend() -> None:
    """Programs started from a notebook inherit its way of drawing, which matplotlib looks for, and may not find.

    Every figure here goes straight into a file, and needs none.
    """
    backend = os.environ.get("MPLBACKEND", "")
    if backend.startswith(NOTEBOOK):
        package = backend.removeprefix(NOTEBOOK).partition(".")[0]
        if importlib.util.find_spec(package) is None:
            del os.environ["MPLBACKEND"]


def _end_quietly(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C while a script still imports torch, which takes seconds; later `basics.errors.run_cli` sees to it."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        _excepthook(kind, error, trace)


_forget_a_notebooks_backend()
_excepthook, sys.excepthook = sys.excepthook, _end_quietly
