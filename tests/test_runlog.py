"""The run folder: exact numbers back from the CSV, resume without lost or doubled rows, whole files only."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
import types
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from basics import files as atomic
from basics.errors import UserError
from basics.machine import git_commit
from training.curves import draw_curves
from training.goal import MIOU
from training.report import best_line, epoch_line, report_sections
from training.runlog import RunLog, read_metrics
from training.state import Progress

CONFIG = {"alpha": 1.0, "seed": 7, "device": "cpu", "data_dir": Path("data"), "loss": ["cwd=3"], "name": None}


def row(epoch: int, **more) -> dict:
    return {"epoch": epoch, "train_loss": 1 / (epoch + 2), "lr": 0.1**epoch, **more}


def scored(epoch: int) -> dict:
    return row(epoch, val_loss=2 / 3 / epoch, val_miou=0.1 * epoch, val_pixel_accuracy=0.5)


def test_metrics_come_back_exactly(tmp_path):
    values = [1 / 3, 1e-300, -0.0, math.inf, -math.inf, 5e-324, 1.7976931348623157e308, 123456789.123456789]
    log = RunLog(tmp_path, CONFIG)
    for epoch, value in enumerate(values, start=1):
        log.log_epoch({"epoch": epoch, "value": value, "count": 2**60 + epoch, "empty": None, "text": "a,b"})
    log.log_epoch({"epoch": 99, "value": math.nan})
    back = read_metrics(tmp_path / "metrics.csv")
    assert [math.copysign(1, line["value"]) for line in back[:-1]] == [math.copysign(1, v) for v in values]
    assert [line["value"] for line in back[:-1]] == values
    assert [line["count"] for line in back[:-1]] == [2**60 + epoch for epoch in range(1, 9)]
    assert back[0]["empty"] is None and back[0]["text"] == "a,b"
    assert math.isnan(back[-1]["value"]) and back[-1]["count"] is None


def test_numbers_of_torch_and_numpy_become_plain(tmp_path):
    log = RunLog(tmp_path, CONFIG)
    log.log_epoch({"epoch": numpy.int64(1), "a": torch.tensor(0.5), "b": numpy.float32(0.25), "c": torch.tensor(3)})
    assert (tmp_path / "metrics.csv").read_text() == "epoch,a,b,c\n1,0.5,0.25,3\n"


def test_columns_that_come_and_go(tmp_path):
    """Validation every second epoch: the first row lacks its columns, the header gets them all the same."""
    log = RunLog(tmp_path, CONFIG)
    for epoch in (1, 2, 3):
        log.log_epoch(row(epoch) if epoch % 2 else scored(epoch))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["epoch", "train_loss", "lr", "val_loss", "val_miou", "val_pixel_accuracy"]
    assert [line["val_miou"] for line in table] == ["", "0.2", ""]
    assert log.rows() == read_metrics(tmp_path / "metrics.csv")


def test_resume_gives_the_file_of_an_unbroken_run(tmp_path):
    whole = RunLog(tmp_path / "whole", CONFIG)
    for epoch in range(1, 7):
        whole.log_epoch(scored(epoch) if epoch % 3 == 0 else row(epoch))

    broken = RunLog(tmp_path / "broken", CONFIG)
    for epoch in range(1, 6):  # the checkpoint is that of epoch 3: epochs 4 and 5 are done again
        broken.log_epoch(scored(epoch) if epoch % 3 == 0 else row(epoch))
    resumed = RunLog(tmp_path / "broken", CONFIG, resume=True)
    resumed.truncate_after(9)  # nothing to drop
    resumed.truncate_after(3)
    assert [line["epoch"] for line in read_metrics(tmp_path / "broken" / "metrics.csv")] == [1, 2, 3]
    for epoch in range(4, 7):
        resumed.log_epoch(scored(epoch) if epoch % 3 == 0 else row(epoch))
    assert (tmp_path / "broken/metrics.csv").read_bytes() == (tmp_path / "whole/metrics.csv").read_bytes()

    config = json.loads((tmp_path / "broken/config.json").read_text())
    assert len(config["starts"]) == 2 and config["seed"] == 7


def test_truncate_to_nothing(tmp_path):
    log = RunLog(tmp_path, CONFIG)
    log.log_epoch(scored(1))
    log.truncate_after(0)
    assert log.rows() == read_metrics(tmp_path / "metrics.csv") == []
    RunLog(tmp_path, CONFIG).log_epoch(row(1))


def test_an_epoch_is_never_logged_twice(tmp_path):
    log = RunLog(tmp_path, CONFIG)
    log.log_epoch(row(1))
    with pytest.raises(ValueError, match="already logged"):
        log.log_epoch(row(1))
    assert len(read_metrics(tmp_path / "metrics.csv")) == 1


def test_a_new_run_refuses_the_folder_of_another(tmp_path):
    RunLog(tmp_path, CONFIG).log_epoch(row(1))
    with pytest.raises(UserError, match="--resume auto"):
        RunLog(tmp_path, CONFIG)
    assert len(read_metrics(tmp_path / "metrics.csv")) == 1


@pytest.mark.parametrize(
    "content", ["no,table\n1,2\n", 'epoch,a\n1,"2\n', "epoch,a\n1,2,3\n", "epoch\none\n", "\x00", ""]
)
def test_a_broken_metrics_file_is_one_error(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.csv"):
        RunLog(tmp_path, CONFIG, resume=True)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"starts": 3}', ""])
def test_a_broken_config_is_one_error(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        RunLog(tmp_path, CONFIG, resume=True)


def test_config_holds_what_a_rerun_needs(tmp_path):
    RunLog(tmp_path, CONFIG)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["arguments"] == CONFIG | {"data_dir": "data"}
    (start,) = config["starts"]
    assert start["versions"]["torch"] == torch.__version__
    assert start["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert start["command"] and start["platform"] and "threads" in start["device"]


def test_git_commit(tmp_path):
    assert git_commit(tmp_path) is None
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    assert git_commit(tmp_path) is None, "a repository without a commit"
    (tmp_path / "file").write_text("1")
    subprocess.run([*git, "add", "file"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-q", "-m", "one"], cwd=tmp_path, check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True).stdout.strip()
    assert git_commit(tmp_path) == head
    subprocess.run([*git, "tag", "v1"], cwd=tmp_path, check=True)
    assert git_commit(tmp_path) == head, "a tag does not stand in for the commit"
    (tmp_path / "file").write_text("2")
    assert git_commit(tmp_path) == f"{head}+changes"


def test_report(tmp_path):
    log = RunLog(tmp_path, CONFIG)
    log.log_epoch(scored(1))
    log.write_report({"best mIoU": 0.512345678, "parameters": 468_000, "timings": {"total": "1h 03m", "ok": True}})
    text = (tmp_path / "report.txt").read_text()
    lines = {line.split("  ")[0]: line.split()[-1] for line in text.splitlines() if "  " in line}
    assert lines["best mIoU"] == "0.512346" and lines["parameters"] == "468000" and lines["total"] == "03m"
    assert lines["alpha"] == "1" and lines["loss"] == "cwd=3" and lines["name"] == "-"
    assert "\nTimings\n-------\n" in text and torch.__version__ in text


@pytest.mark.parametrize(
    "rows",
    [
        [row(1)],
        [row(1), scored(2)],
        [scored(e) for e in range(1, 50)],
        [row(1, val_miou=math.nan, val_loss=None)],
    ],
    ids=["no validation", "two epochs", "many epochs", "nan"],
)
def test_curves(tmp_path, rows):
    log = RunLog(tmp_path, CONFIG)
    log.draw_curves()
    assert not (tmp_path / "curves.png").exists(), "nothing to draw yet"
    for line in rows:
        log.log_epoch(line)
    log.draw_curves()
    with Image.open(tmp_path / "curves.png") as image:
        image.load()
        assert image.width > image.height > 300


def test_curves_that_are_drawn_seldom_are_whole_in_the_end(tmp_path):
    log, picture = RunLog(tmp_path, CONFIG), tmp_path / "curves.png"
    drawn = []
    for epoch in range(1, 4):
        log.log_epoch(scored(epoch))
        log.draw_curves(seldom=True)
        drawn.append(picture.read_bytes())
    assert drawn[0] == drawn[1] == drawn[2], "soon after another"
    log.close()
    assert picture.read_bytes() != drawn[0]
    draw_curves(log.rows(), tmp_path / "whole.png", title=tmp_path.name)
    assert picture.read_bytes() == (tmp_path / "whole.png").read_bytes()


def test_tensorboard_round_trip(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path, CONFIG, tensorboard=True)
    for epoch in (1, 2, 3):
        log.log_epoch(scored(epoch))
    log.close()
    log = RunLog(tmp_path, CONFIG, tensorboard=True, resume=True)
    log.truncate_after(2)
    log.log_epoch(scored(3) | {"val_miou": 0.75})
    log.close()
    log.close()  # harmless
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, round(event.value, 6)) for event in events.Scalars("val_miou")] == [
        (1, 0.1),
        (2, 0.2),
        (3, 0.75),
    ]


@pytest.mark.parametrize("package", ["tensorboard", "wandb"])
def test_an_absent_package_is_a_clear_error(tmp_path, monkeypatch, package):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"--{package} needs the package {package}: pip install {package}"):
        RunLog(tmp_path, CONFIG, **{package: True})
    assert list(tmp_path.iterdir()) == [], "nothing is written before the check"


def test_wandb_run_goes_on_after_resume(tmp_path, monkeypatch):
    """Against a stand-in for the package: the same id at both starts, an epoch a step."""
    calls = []

    class Run:
        def log(self, numbers, step):
            calls.append((step, numbers["train_loss"]))

        def finish(self):
            calls.append("finish")

    fake = types.SimpleNamespace(init=lambda **options: calls.append(options["id"]) or Run())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for epoch in (1, 2):
        log = RunLog(tmp_path, CONFIG, wandb=True, resume=epoch == 2)
        log.log_epoch(row(epoch))
        log.close()
    first, second = calls[:3], calls[3:]
    assert first[0] == second[0]
    assert first[1:] == [(1, 1 / 3), "finish"] and second[1:] == [(2, 1 / 4), "finish"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    atomic.write_text(path, "old")
    with pytest.raises(RuntimeError), atomic.replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_a_full_disk_is_one_error_and_costs_nothing(tmp_path, monkeypatch):
    log = RunLog(tmp_path, CONFIG)
    log.log_epoch(row(1))
    before = (tmp_path / "metrics.csv").read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"metrics\.csv: No space left on device.*untouched"):
        log.log_epoch(row(2))
    assert (tmp_path / "metrics.csv").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "metrics.csv"]


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        RunLog(tmp_path / "file" / "run", CONFIG)


@pytest.mark.slow
def test_a_kill_at_any_instant_leaves_a_whole_file(tmp_path):
    """A process that logs without pause is killed; what it leaves must read back, epoch by epoch."""
    code = (
        "import sys; from training.runlog import RunLog\n"
        "log = RunLog(sys.argv[1], {'device': 'cpu'}, resume=True)\n"
        "start = log.rows()[-1]['epoch'] if log.rows() else 0\n"
        "print('ready', flush=True)\n"
        "for epoch in range(start + 1, start + 10**6): log.log_epoch({'epoch': epoch, 'loss': 1 / epoch})\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)],
            stdout=subprocess.PIPE,
            env=environment,
            cwd=Path(__file__).parent.parent,
        )
        process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
        process.kill()
        process.communicate()
        rows = read_metrics(tmp_path / "metrics.csv")
        assert [line["epoch"] for line in rows] == list(range(1, len(rows) + 1))
        assert all(line["loss"] == 1 / line["epoch"] for line in rows)
    assert rows


def test_what_is_left_is_told_by_training_and_scoring_alone():
    """An hour for a teacher's cache comes once."""
    told = {"elapsed_s": 3660.0, "step": 10, "val_loss": None, "lr": 1e-3, "images_per_s": 1.0, "epoch_s": 60.0}
    line = epoch_line(told, {"loss": 1.0}, "1/2", total_steps=20, spent_s=60.0)
    assert "elapsed 1:01:00 left 0:01:00" in line


def test_a_run_without_a_scored_epoch_has_no_best_one():
    assert best_line(Progress(step=3), 1_000_000, MIOU) == "no epoch has been scored, so there is no best mIoU"
    scores = report_sections(Progress(step=3), [], 1_000_000, MIOU, "a protocol", {})["scores"]
    assert [scores[name] for name in ("best mIoU %", "score (best)")] == [None, None]
