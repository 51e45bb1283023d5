"""What is left to the machine: loader processes from the cores that are really there, and where the time went."""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
import torch

from basics import machine
from basics.checkpoint import load_file
from basics.device import scoring_kernels, settle_amp, tune_kernels
from basics.errors import UserError
from basics.machine import available_cores, loader_processes
from scoring.protocol import scoring_batch
from tests.conftest import ROOT, assert_one_line_error
from tests.test_train import arguments, assert_same_run
from train_kd import get_args_parser, main
from training import timeshare
from training.arguments import Arguments
from training.pace import epochs_between_validations
from training.state import Progress
from training.timeshare import scoring_time, time_line, time_shares, timed_batches

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("cores", "ranks", "cpu", "gpu"),
    [
        (1, 1, 1, 1),
        (2, 1, 1, 1),
        (4, 1, 1, 3),
        (8, 1, 2, 7),
        (16, 1, 4, 15),
        (64, 1, 4, 16),
        (64, 8, 2, 7),
        (4, 8, 1, 1),
    ],
)
def test_processes_by_cores(cores, ranks, cpu, gpu, monkeypatch):
    monkeypatch.setattr(machine, "available_cores", lambda: cores)
    monkeypatch.setattr(machine.multiprocessing, "get_start_method", lambda: "fork")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert (loader_processes(None, CPU), loader_processes(None, GPU)) == (cpu, gpu)
    assert loader_processes(0, GPU) == 0 and loader_processes(5, CPU) == 5
    monkeypatch.setattr(machine.multiprocessing, "get_start_method", lambda: "spawn")
    assert loader_processes(None, GPU) == min(gpu, 4) and loader_processes(16, GPU) == 16


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu.max": "max 100000\n"}, float("inf")),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ({"cpu.max": "?"}, float("inf")),
        ({}, float("inf")),
    ],
)
def test_the_quota_of_a_container(files, cores, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine._cpu_quota(tmp_path) == cores


@pytest.mark.parametrize(("quota", "cores"), [(0.5, 1), (1.9, 1), (float("inf"), None)])
def test_a_container_has_whole_cores_and_one_at_least(quota, cores, monkeypatch):
    everywhere = available_cores()
    monkeypatch.setattr(machine, "_cpu_quota", lambda: quota)
    assert available_cores() == (cores or everywhere)


def test_workers_are_a_number_or_auto(run_script):
    parse = get_args_parser().parse_args
    assert parse([]).workers is None and parse(["--workers", "auto"]).workers is None
    assert parse(["--workers", "3"]).workers == 3
    assert_one_line_error(run_script("train_kd.py", "--workers", "some", check=False), "--workers")


def test_the_number_of_processes_changes_nothing_not_even_on_resume(demo_data, tmp_path):
    """Two epochs without one; one epoch with two processes, stopped within the second, and on with as many as suit."""
    assert main(arguments(demo_data, tmp_path / "whole")) == 0
    parts = tmp_path / "parts"
    assert main(arguments(demo_data, parts, "--workers", "2", "--max-steps", "6")) == 0
    assert main(arguments(demo_data, parts, "--workers", "auto", "--resume", "auto")) == 0
    assert_same_run(tmp_path / "whole" / "run", parts / "run")


# -- where the time goes -----------------------------------------------------------------------------


class Watch:
    """A clock that tests set."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def watch(monkeypatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr(timeshare, "time", watch)
    return watch


def test_waiting_and_working_are_told_apart(watch):
    progress = Progress()

    def slow():
        for n in range(3):
            watch.pass_by(5)
            yield {"n": n}

    for batch in timed_batches(slow(), progress, CPU):
        watch.pass_by(2)
        if batch["n"] == 1:
            break  # its step counts, the third batch is never asked for
    with scoring_time(progress):
        watch.pass_by(3)
    assert (progress.data_s, progress.step_s, progress.scoring_s) == (10, 4, 3)


def test_all_batches_come_through():
    assert list(timed_batches(iter([{"a": 1}, {"b": 2}]), Progress(), CPU)) == [{"a": 1}, {"b": 2}]
    assert list(timed_batches([], Progress(), CPU)) == []


class Clockwork:
    """A GPU whose steps are still under way when the first two batches come."""

    busy = itertools.chain([True, False], itertools.repeat(False))

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return not next(self.busy)


def test_waiting_beside_a_busy_gpu_is_no_waiting(monkeypatch, watch):
    monkeypatch.setattr(torch.cuda, "Event", Clockwork)
    progress = Progress()

    def slow():
        yield {}
        watch.pass_by(5)  # the GPU has the first step to do
        yield {}
        watch.pass_by(2)  # it has nothing to do
        yield {}

    for _ in timed_batches(slow(), progress, GPU):
        watch.pass_by(1)
    assert (progress.data_s, progress.step_s) == (2, 8)


def test_shares_are_of_all_the_time_and_the_line_says_what_to_change(monkeypatch):
    monkeypatch.setattr("training.timeshare.available_cores", lambda: 4)
    progress = Progress(elapsed_s=200, data_s=76, step_s=80, scoring_s=24)
    assert time_shares(progress) == pytest.approx(
        {"pictures": 0.38, "training steps": 0.4, "scoring": 0.12, "all else": 0.1}
    )
    args = Arguments()
    args.workers = 2
    line = time_line(progress, args, CPU)
    assert line.endswith(
        "38 % waiting for pictures, 40 % training steps, 12 % scoring, 10 % all else; "
        "faster pictures: --workers 4 or --decode-cache"
    )
    args.workers, args.decode_cache = 4, "x"
    assert time_line(progress, args, CPU).endswith("faster pictures: smaller ones on the disk")
    args.eval_every = 2
    scored = time_line(Progress(elapsed_s=100, data_s=9, step_s=20, scoring_s=60), args, CPU)
    assert scored.endswith("all else; less scoring: --eval-every 4") and "faster" not in scored
    well = time_line(Progress(elapsed_s=100, data_s=9, step_s=80, scoring_s=10), args, CPU)
    assert well.endswith("1 % all else")


@pytest.mark.parametrize(
    ("device", "images", "val_images", "given", "expected"),
    [
        (CPU, 1464, 1449, {}, 1),
        (GPU, 1464, 1449, {"epochs": 60}, 5),  # 1,449 scored beside 7,320 trained on: a fifth
        (GPU, 1464, 1449, {"epochs": 30}, 3),  # ten validations
        (GPU, 1464, 1449, {"epochs": 6}, 1),
        (GPU, 10582, 1449, {"epochs": 60}, 1),
        (GPU, 100, 1449, {"time_budget": 600.0}, 73),  # of as many epochs as there will be
        (GPU, 1464, 1449, {"epochs": 60, "patience": 10}, 1),
        (GPU, 1464, 1449, {"epochs": 60, "eval_every": 2}, 2),
    ],
)
def test_a_gpu_validates_as_often_as_it_is_cheap(device, images, val_images, given, expected):
    args = Arguments()
    for name, value in given.items():
        setattr(args, name, value)
    assert epochs_between_validations(args, device, images, val_images) == expected


def test_a_run_ends_with_that_line(demo_data, tmp_path, capsys):
    assert main(arguments(demo_data, tmp_path, "--epochs", "1")) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("time ") and "% training steps" in last


# -- what a GPU wants --------------------------------------------------------------------------------


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, "bf16"), (False, "off")])
def test_auto_is_bf16_where_the_gpu_has_it(has_bf16, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    assert settle_amp(GPU, "auto") == expected
    assert settle_amp(CPU, "auto") == "off" and settle_amp(GPU, "off") == "off" and settle_amp(GPU, "fp16") == "fp16"
    with pytest.raises(UserError, match="--amp fp16 is for GPUs"):
        settle_amp(CPU, "fp16")


def test_on_the_cpu_auto_is_what_was_there_before(demo_data, tmp_path):
    """A run keeps what auto came to, so that one of --amp off goes on without the flag, and the other way round."""
    assert main(arguments(demo_data, tmp_path, "--amp", "off", "--epochs", "1")) == 0
    before = load_file(tmp_path / "run" / "last.pth")["training"]["arguments"]
    args = arguments(demo_data, tmp_path, "--resume", "auto", "--epochs", "1")
    assert (before["amp"], args.amp) == ("off", "auto")
    assert main(args) == 0
    assert (scoring_batch(None, CPU), scoring_batch(None, GPU), scoring_batch(3, GPU)) == (1, 4, 3)


def test_kernels_are_tuned_for_crops_alone(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    tune_kernels()
    assert torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    with pytest.raises(ZeroDivisionError), scoring_kernels():
        assert not torch.backends.cudnn.benchmark and not torch.backends.cudnn.allow_tf32
        raise ZeroDivisionError
    assert torch.backends.cudnn.benchmark and torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    tune_kernels()
    assert not torch.backends.cudnn.benchmark


def test_scoring_after_somebody_set_the_newer_flags():
    """Then PyTorch refuses to tell the older ones; in a process of its own, for it does so ever after."""
    code = (
        "import torch; conv = torch.backends.cudnn.conv; conv.fp32_precision = 'ieee'\n"
        "from basics.device import scoring_kernels\n"
        "with scoring_kernels(): print(conv.fp32_precision)\n"
        "print(conv.fp32_precision)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split() == ["ieee", "ieee"], done.stderr
