"""Shared by all tests: one thread, a way to run the scripts as a user does, a small demo data set."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from basics.errors import run_cli
from networks.base import SegmentationModel

ROOT = Path(__file__).resolve().parent.parent
RunScript = Callable[..., subprocess.CompletedProcess]

# Tensors are tiny here: more threads only wait for each other, and would change the order of sums.
torch.set_num_threads(1)


# The same random inputs at every run; HYPOTHESIS_PROFILE=explore draws new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_runtest_teardown() -> None:
    """--deterministic, which a test may have given a script in this process, is not for the next one."""
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def run_script(monkeypatch, capsys) -> RunScript:
    """``run_script("evaluate.py", "--device", "cpu", ...)`` -> `CompletedProcess` with text output.

    As ``python evaluate.py ...`` does it, but in this process: each new one would import torch for seconds.
    ``check=False`` lets it end with a non-zero status.
    """

    def run(script: str, *args: object, check: bool = True):
        command = [script, *map(str, args)]
        module = importlib.import_module(script.removesuffix(".py"))
        monkeypatch.setattr(sys, "argv", command)
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run_cli(module.main, module.get_args_parser)
        done = subprocess.CompletedProcess(command, end.value.code, *capsys.readouterr())
        if check and done.returncode != 0:
            pytest.fail(f"{' '.join(command)}\nexit status {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    return run


@pytest.fixture(scope="session")
def demo_data(tmp_path_factory) -> Path:
    """A ``--data-dir`` that holds a small demo data set: 16 training and 6 validation pictures."""
    from datalayouts.demo import make_demo

    root = tmp_path_factory.mktemp("data")
    make_demo(root / "demo", num_train=16, num_val=6)
    return root


@pytest.fixture(scope="session")
def demo_checkpoint(demo_data, tmp_path_factory) -> Callable[..., Path]:
    """``demo_checkpoint("compact", seed=0)`` -> model file of an untrained network for the demo classes."""
    from basics.checkpoint import save_atomic
    from dataset import build_dataset
    from zoo import create_model, model_file_dict

    dataset = build_dataset("demo", demo_data, "val")
    folder = tmp_path_factory.mktemp("runs")

    def make(name: str, seed: int = 0) -> Path:
        path = folder / f"{name}_{seed}" / "best.pth"
        if not path.exists():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = create_model(name, dataset.num_classes, "none")
            save_atomic(model_file_dict(name, model, dataset), path)
        return path

    return make


@pytest.fixture(scope="session")
def network() -> SegmentationModel:
    """The network of `tests.small.small_checkpoint`, straight from its class; in eval mode."""
    from tests.small import SmallStudent, small_checkpoint

    model = SmallStudent(3)
    model.load_state_dict(small_checkpoint()["state_dict"])
    return model.eval()


def assert_one_line_error(done: subprocess.CompletedProcess, *words: str) -> None:
    """The script ended as after a `UserError`: status 2, one ``error:`` line with ``words``, no traceback."""
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if "error: " in line]
    assert len(lines) == 1, done.stderr
    for word in words:
        assert word in lines[0], lines[0]
