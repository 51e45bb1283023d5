"""Programs started from a notebook, whose environment names a way of drawing that may not be installed here."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.test_imports import ROOT


def python(*arguments, backend):
    environment = os.environ | {"MPLBACKEND": backend, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("script", ["predict", "train_kd"])
def test_a_script_needs_no_backend(script):
    done = python(ROOT / f"{script}.py", "--help", backend="module://no_such_package.backend_inline")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("backend", "kept"), [("module://no_such.b", None), ("module://json.tool", 1), ("agg", 1)])
def test_a_backend_that_is_there_is_left_alone(backend, kept):
    done = python("-c", "import basics, os; print(os.environ.get('MPLBACKEND'))", backend=backend)
    assert done.stdout.strip() == (backend if kept else "None")
