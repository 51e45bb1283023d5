"""Kills, signals and full disks: whatever ends a run, it resumes to the same end and no file is ever unreadable.

KILLS=100 in the environment makes the random test longer.
"""

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from basics.checkpoint import load_file
from basics.errors import UserError
from basics.files import lock_folder
from tests import forks
from tests.conftest import ROOT
from tests.test_train import arguments, assert_same_run, rows
from tests.tiny import tiny_in_zoo  # noqa: F401 (a fixture)
from train_kd import main
from training.runlog import read_metrics
from training.trainer import Trainer
from zoo import load_checkpoint_model

pytestmark = forks.needs_fork
KILLS = int(os.environ.get("KILLS", "20"))
STEPS = 4  # an epoch


@pytest.fixture(scope="module")
def tiny_run(demo_data):
    """``tiny_run(output_dir, "--more")`` -> arguments of a tiny run that saves at every step and resumes by itself."""

    def make(output_dir, *more):
        saving = ["--save-steps", "1", "--save-every", "1", "--resume", "auto"]
        return arguments(demo_data, output_dir, "--student", "tiny", *saving, *more)

    return make


@pytest.fixture(scope="module")
def whole_run(tiny_run, tmp_path_factory):
    """The folder of a run that nothing disturbs."""
    output = tmp_path_factory.mktemp("whole")
    child = forks.fork(lambda: main(tiny_run(output)), output / "whole.txt")
    assert forks.wait(child, 120) == 0, (output / "whole.txt").read_text()
    return output / "run"


def assert_readable(folder: Path) -> None:
    """Every file of the run folder is whole, temporary ones of a killed process apart."""
    for path in folder.iterdir():
        if path.name.startswith("."):
            continue
        if path.suffix == ".pth":
            load_checkpoint_model(path)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".csv":
            epochs = [row["epoch"] for row in read_metrics(path)]
            assert epochs == list(range(1, len(epochs) + 1)), f"a row is lost or doubled: {epochs}"
        else:
            assert path.name == "report.txt" and path.read_text().endswith("\n"), path


def assert_same_end(whole: Path, folder: Path) -> None:
    """The run is complete and equal to the undisturbed one, bit for bit, best and kept students included."""
    assert_same_run(whole, folder)
    one, two = (load_file(place / "last.pth")["training"]["progress"] for place in (whole, folder))
    kept = [key for key in one if key.startswith(("best", "stale"))]
    assert len(kept) == 3 and all(one[key] == two[key] for key in kept)
    assert {path.name for path in folder.iterdir()} == {path.name for path in whole.iterdir()}
    for name in ("best.pth", "epoch_1.pth", "epoch_2.pth"):
        one, two = load_file(whole / name), load_file(folder / name)
        assert one["info"] == two["info"], name
        assert all(torch.equal(one["state_dict"][key], two["state_dict"][key]) for key in one["state_dict"]), name


def die_at_write(number: int, moment: str) -> None:
    """Let this process be killed within its ``number``-th write: half way, or just before or after the rename."""
    writes, fsync, rename = 0, os.fsync, Path.replace

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def counting_fsync(handle):
        nonlocal writes
        if os.fstat(handle).st_size and not os.path.isdir(f"/proc/self/fd/{handle}"):  # noqa: PTH112
            writes += 1
            if writes == number and moment == "half":
                os.ftruncate(handle, os.fstat(handle).st_size // 2)
                die()
        fsync(handle)

    def deadly_rename(self, target):
        if writes == number and moment == "before":
            die()
        renamed = rename(self, target)
        if writes == number and moment == "after":
            die()
        return renamed

    os.fsync, Path.replace = counting_fsync, deadly_rename


def test_a_run_survives_kills_at_random_instants(tiny_run, whole_run, tmp_path):
    """Half of the kills at a random time, half within a random write; every run that ends is as undisturbed."""
    chance = random.Random(0)
    seconds = read_metrics(whole_run / "metrics.csv")[-1]["elapsed_s"]
    killed, finished, attempt = 0, 0, 0
    while killed < KILLS or attempt:
        output, timed = tmp_path / f"run_{finished}", chance.random() < 0.5
        write, moment = chance.randint(1, 8), chance.choice(["half", "before", "after"])

        def work(output=output, write=write, moment=moment, armed=killed < KILLS and not timed):
            if armed:
                die_at_write(write, moment)
            return main(tiny_run(output))

        child = forks.fork(work, tmp_path / f"output_{finished}.txt")
        if timed and killed < KILLS:
            time.sleep(chance.uniform(0, 2 * seconds))
            os.kill(child, signal.SIGKILL)
        status = forks.wait(child, 120)
        assert status in (0, -signal.SIGKILL), (tmp_path / f"output_{finished}.txt").read_text()
        killed += status != 0
        attempt += 1
        folder = output / "run"
        if folder.exists():
            assert_readable(folder)
        if status == 0:
            assert_same_end(whole_run, folder)
            finished, attempt = finished + 1, 0
    print(f"{killed} kills survived in {finished} runs")
    assert killed >= KILLS and finished >= 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_within_the_step(number, tiny_run, whole_run, tmp_path, monkeypatch):
    step = Trainer.train_step

    def step_and_signal(self, batch):
        if self.progress.step == 5:
            os.kill(os.getpid(), number)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step_and_signal)
        child = forks.fork(lambda: main(tiny_run(tmp_path, "--save-steps", "0")), tmp_path / "output.txt")
        assert forks.wait(child, 60) == 130
    last = tmp_path / "run" / "last.pth"
    assert load_file(last)["training"]["progress"]["step"] == 6
    message = (tmp_path / "output.txt").read_text()
    assert f"stopped after step 6; saved {last}" in message and "--resume auto" in message
    assert main(tiny_run(tmp_path)) == 0
    assert_same_run(whole_run, tmp_path / "run")


def test_a_signal_while_scoring_costs_nothing(tiny_run, whole_run, tmp_path, monkeypatch):
    from scoring import protocol

    prepare = protocol.prepare_batch

    def prepare_and_signal(batch, device):
        os.kill(os.getpid(), signal.SIGTERM)
        return prepare(batch, device)

    with monkeypatch.context() as patch:
        patch.setattr(protocol, "prepare_batch", prepare_and_signal)
        child = forks.fork(lambda: main(tiny_run(tmp_path, "--save-steps", "0")), tmp_path / "output.txt")
        assert forks.wait(child, 60) == 130
    progress = load_file(tmp_path / "run" / "last.pth")["training"]["progress"]
    assert (progress["step_in_epoch"], progress["epoch"]) == (STEPS, 0)
    assert not (tmp_path / "run" / "metrics.csv").exists()
    assert main(tiny_run(tmp_path)) == 0
    assert_same_run(whole_run, tmp_path / "run")


def test_ctrl_c_while_loader_processes_start_is_no_lack_of_memory(tiny_run, whole_run, tmp_path, monkeypatch):
    """It reaches them, too, and they do not ignore it yet: the loader says that they were lost."""
    step = Trainer.train_step

    def lose_a_worker(self, batch):
        if self.progress.step == 2:
            os.kill(os.getpid(), signal.SIGINT)
            raise RuntimeError("DataLoader worker (pid(s) 1, 2) exited unexpectedly")
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", lose_a_worker)
        child = forks.fork(lambda: main(tiny_run(tmp_path, "--save-steps", "0")), tmp_path / "output.txt")
        assert forks.wait(child, 60) == 130
    assert "stopped after step 2; saved" in (tmp_path / "output.txt").read_text()
    assert main(tiny_run(tmp_path)) == 0
    assert_same_run(whole_run, tmp_path / "run")


def test_an_impatient_second_ctrl_c_ends_the_run(tiny_run, tmp_path, monkeypatch):
    step = Trainer.train_step

    def hanging_step(self, batch):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # at once: the launcher's copy of the same Ctrl-C
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch)

    def work():
        try:
            main(tiny_run(tmp_path))
        except KeyboardInterrupt:
            return 77

    monkeypatch.setattr(Trainer, "train_step", hanging_step)
    assert forks.wait(forks.fork(work, tmp_path / "output.txt"), 60) == 77


@pytest.mark.slow
def test_the_script_stops_at_sigterm_with_loader_workers(demo_data, tmp_path):
    """A process as a scheduler sees it: SIGTERM to the whole group, workers included; then on to the end."""
    command = [
        sys.executable, "train_kd.py", "--dataset", "demo", "--data-dir", str(demo_data), "--student", "compact",
        "--student-weights", "none", "--crop-size", "64", "--batch-size", "4", "--epochs", "300", "--workers", "2",
        "--eval-every", "300", "--save-steps", "1", "--device", "cpu", "--output-dir", str(tmp_path), "--name", "run",
    ]  # fmt: skip
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        end = time.monotonic() + 120
        while not (tmp_path / "run" / "last.pth").exists() and time.monotonic() < end:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "stopped after step" in out and "Traceback" not in err
    assert_readable(tmp_path / "run")


# -- full disks ------------------------------------------------------------------------------------


def fill_disk_by_limit() -> None:
    """No file may grow beyond a few kB any more."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def fill_disk_at_flush() -> None:
    """What a disk reports that is full only when the data reach it."""

    def fsync(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    os.fsync = fsync


@pytest.mark.parametrize("fill_disk", [fill_disk_by_limit, fill_disk_at_flush])
def test_a_full_disk_leaves_the_previous_checkpoint(fill_disk, tiny_run, whole_run, tmp_path, monkeypatch):
    step = Trainer.train_step

    def step_on_a_full_disk(self, batch):
        if self.progress.step == 2:
            fill_disk()
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step_on_a_full_disk)
        output = tmp_path / "output.txt"
        assert forks.wait(forks.fork(lambda: main(tiny_run(tmp_path)), output), 60) == 2
    last = tmp_path / "run" / "last.pth"
    assert f"cannot write {last}" in output.read_text() and "untouched" in output.read_text()
    assert "Traceback" not in output.read_text()
    assert load_file(last)["training"]["progress"]["step"] == 2
    assert not list((tmp_path / "run").glob(".*tmp*"))
    assert main(tiny_run(tmp_path)) == 0  # with space again, it goes on
    assert_same_run(whole_run, tmp_path / "run")


# -- one folder, one process -----------------------------------------------------------------------


def test_what_a_killed_process_left_is_cleaned_up(tiny_run, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".last.tmp.pth", ".epoch_7.tmp.pth", ".curves.tmp.png"):
        (folder / name).write_bytes(b"half a file")
    assert main(tiny_run(tmp_path, "--max-steps", "1")) == 0
    assert not list(folder.glob(".*tmp*"))


def test_two_processes_do_not_share_a_folder(tiny_run, tmp_path):
    def hold():
        lock = lock_folder(tmp_path / "run")
        (tmp_path / "ready").touch()
        time.sleep(60)
        return lock

    child = forks.fork(hold, tmp_path / "output.txt")
    forks.wait_for(tmp_path / "ready")
    with pytest.raises(UserError, match="another process is at work"):
        main(tiny_run(tmp_path))
    assert not (tmp_path / "run" / "config.json").exists()
    forks.kill(child)
    assert main(tiny_run(tmp_path, "--max-steps", "1")) == 0  # the lock went with its owner
    assert len(rows(tmp_path / "run")) == 1
