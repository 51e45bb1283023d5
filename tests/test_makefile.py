"""`make demo` and `make test` as they stand: every command they would run is one the scripts accept."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def make(*args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    # Within `make test` the outer make's flags must not reach this one.
    environment = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    return subprocess.run(["make", *args], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder with what make reads in a fresh clone."""
    for name in ("Makefile", "requirements.txt", "requirements-extra.txt"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def dry_run(target: str, folder: Path) -> str:
    """What ``make target`` would run in ``folder``, one command a line."""
    done = make("-n", target, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.replace("\\\n", " ")


def test_demo_commands_are_accepted(clone):
    commands = re.findall(r"^\S*python (\w+)\.py (.*)$", dry_run("demo", clone), re.MULTILINE)
    assert [script for script, _ in commands] == ["train_kd"] * 3 + ["evaluate", "visualize"]
    parsed = {}
    for script, arguments in commands:
        module = importlib.import_module(script)
        args = module.get_args_parser().parse_args(shlex.split(arguments))
        assert args.dataset == "demo"
        if script == "train_kd":
            module.check_arguments(args)
            parsed[args.name] = (args, module.make_recipe(args))
    teacher, baseline, distilled = (parsed[f"demo_{name}"] for name in ("teacher", "labels", "unlabelled"))
    assert not teacher[1].needs_teacher and not baseline[1].needs_teacher and distilled[1].needs_teacher
    assert teacher[0].train_split != baseline[0].train_split, "the teacher must not have seen the student's pictures"
    # The comparison is fair: one student, one budget, one seed; only the teacher's terms are added.
    differing = {key for key, value in vars(baseline[0]).items() if value != getattr(distilled[0], key)}
    assert differing == {"name", "unlabelled", "alpha", "temperature", "teacher", "cache_teacher"}


def test_the_page_on_the_demo_spells_out_the_same_commands(clone):
    """For those without make: the same arguments, but for what an interrupted or repeated demo needs."""
    made = re.findall(r"^\S*python (\w+\.py .*)$", dry_run("demo", clone), re.MULTILINE)
    text = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8").partition("is:\n\n```sh\n")[2].partition("```")[0]
    spelled = re.findall(r"^python (\w+\.py .*)$", text, re.MULTILINE)
    assert len(spelled) == len(made) == 5

    def understood(command: str) -> tuple[str, dict]:
        script, *arguments = shlex.split(command)
        module = importlib.import_module(script.removesuffix(".py"))
        args = vars(module.get_args_parser().parse_args(arguments))
        return script, {key: value for key, value in args.items() if key not in ("resume", "csv", "data_dir")}

    for ours, theirs in zip(spelled, made, strict=True):
        assert understood(ours) == understood(theirs)


def test_environment_is_made_first_and_only_once(clone):
    commands = dry_run("test", clone)
    assert commands.index("-m venv") < commands.index("-r requirements.txt") < commands.index("-m pytest")
    venv = clone / ".venv"
    venv.mkdir()
    for stamp in ("made", "core-installed", "all-installed"):
        (venv / stamp).touch()
    for target in ("test", "demo", "lint"):
        assert "pip" not in dry_run(target, clone)


def test_an_old_python_is_a_clear_error(clone):
    """Against a stand-in that, like an old interpreter, ends the version check with status 1."""
    old = clone / "python3.9"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make("demo", f"PYTHON={old}", cwd=clone)
    assert done.returncode != 0
    assert "error: Python >= 3.10 is needed" in done.stderr
    assert not (clone / ".venv").exists()


def test_ci_runs_the_documented_command():
    text = (ROOT / ".ci" / "run").read_text()
    assert "set -euo pipefail" in text and re.search(r"^make test$", text, re.MULTILINE)
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_a_commit_is_checked_by_the_commands_of_make_lint(clone):
    for stamp in ("made", "core-installed", "all-installed"):
        (clone / ".venv").mkdir(exist_ok=True)
        (clone / ".venv" / stamp).touch()
    hooks = re.findall(r"^ +entry: (.+)$", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE)
    assert hooks == dry_run("lint", clone).splitlines()


def test_core_requirements_are_the_seven():
    names = [re.split(r"[>=<]", line)[0] for line in (ROOT / "requirements.txt").read_text().split()]
    assert names == ["torch", "torchvision", "torchmetrics", "numpy", "matplotlib", "tqdm", "pillow"]


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-extra.txt"])
def test_what_is_installed_meets_the_requirements(file):
    """pip itself says whether this environment satisfies the file; nothing is fetched."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps", "-q"]
    done = subprocess.run(
        [*command, "-r", str(ROOT / file)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PIP_FIND_LINKS": ""},
    )
    assert done.returncode == 0, done.stderr
