"""Where errors become one line and an exit status."""

import argparse
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from basics.errors import UserError, run_cli

ROOT = Path(__file__).resolve().parent.parent


def test_a_path_that_the_system_refuses_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as stopped:
        run_cli(lambda args: Path("x" * 5000).stat(), argparse.ArgumentParser)
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: xxx") and "too long" in line


@pytest.mark.parametrize(
    ("world", "script", "code"), [("2", "evaluate", 2), ("2", "train_kd", 0), ("1", "evaluate", 0)]
)
def test_torchrun_is_for_training_alone(monkeypatch, capsys, world, script, code):
    """Each of its processes would score everything, into the same file."""
    monkeypatch.setattr(sys, "argv", [f"/somewhere/{script}.py"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(SystemExit) as stopped:
        run_cli(lambda args: None, argparse.ArgumentParser)
    assert stopped.value.code == code
    assert capsys.readouterr().err == (
        "error: evaluate.py is one process: leave torchrun out, which is for train_kd.py\n" if code else ""
    )


def test_a_console_that_cannot_show_a_sign_gets_it_spelled_out(monkeypatch):
    """As on Windows, where redirected output has the system's code page."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(sys, "argv", ["script"])

    def main(args):
        print("é, данные")
        raise UserError("absent: данные/лист.txt")

    with pytest.raises(SystemExit) as stopped:
        run_cli(main, argparse.ArgumentParser)
    assert stopped.value.code == 2
    for stream, start in ((out, "é, "), (err, "error: absent: ")):
        stream.flush()
        text = stream.buffer.getvalue().decode("cp1252")
        assert text.startswith(start + r"\u0434\u0430") and text.endswith("\n")


@pytest.mark.parametrize("script", sorted(ROOT.glob("*.py")), ids=lambda path: path.stem)
def test_ctrl_c_during_imports_is_a_line(script, tmp_path):
    """Importing torch takes seconds, in which people change their mind."""
    if "run_cli(" not in script.read_text(encoding="utf-8"):
        pytest.skip("no script")
    for package in ("torch", "numpy", "tqdm", "matplotlib", "PIL"):
        (tmp_path / f"{package}.py").write_text("raise KeyboardInterrupt")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(
        [sys.executable, script, "--help"], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.stderr == "interrupted\n" and ended.returncode != 0
