"""Which runs of a plan are done, and training the others: each in a process of its own, some at a time."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from basics.checkpoint import file_sha256
from basics.device import pick_device
from basics.errors import UserError
from basics.machine import available_cores
from basics.signals import StopSignal
from comparison.plan import Plan, Run
from comparison.words import TEACHER_ARGUMENTS
from deploy.teachers import TeacherChoice
from training.arguments import MAY_CHANGE, Arguments, names_of, option_of
from training.recipe import settle
from training.runlog import CONFIG, METRICS, REPORT, read_metrics

SCRIPT = Path(__file__).resolve().parent.parent / "train_kd.py"
LOG = "train.log"  # what a run printed
# May differ from the plan's without making it another run; how long and how often is part of the comparison.
FREE = MAY_CHANGE - names_of("budget")
PACE = frozenset({"workers", "decode_cache", "compile", "device"})  # how many steps fit into a budget of time


@dataclass(frozen=True)
class State:
    """How far a run has come: ``kind`` is done, part or missing."""

    kind: str
    epochs: int = 0

    def __str__(self) -> str:
        return f"{self.epochs} epochs done, goes on" if self.kind == "part" else self.kind


def state_of(run: Run) -> State:
    """What the run's folder says.

    Raises:
        UserError: it holds a run with other arguments than the plan's.
    """
    if not (run.folder / CONFIG).exists():
        return State("missing")
    check_config(run)
    epochs = len(read_metrics(run.folder / METRICS))
    # The report is the last thing that a run writes.
    done = (run.folder / REPORT).exists() and (run.folder / "best.pth").exists()
    return State("done" if done else "part", epochs)


def check_config(run: Run) -> None:
    """Refuse a run folder whose config.json differs from the plan in anything that makes it another run."""
    path = run.folder / CONFIG
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))["arguments"]
        saved = dict(saved)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a run's configuration ({error}): mend or remove it") from error
    free = FREE if run.needs_teacher else FREE | TEACHER_ARGUMENTS
    free -= PACE if run.args.time_budget is not None else frozenset()
    planned, defaults = run.args.as_plain(), Arguments().as_plain()  # of arguments that are younger than the run
    was, now = argparse.Namespace(**defaults | saved), argparse.Namespace(**planned)
    for name, auto in (("amp", "auto"), ("eval_every", None)):
        if getattr(now, name) == auto:  # as the machine chose that trained the run; this one may only score it
            setattr(now, name, getattr(was, name))
    for arguments in (was, now):  # a run keeps what it settled on
        settle(arguments, pick_device(run.args.device))
    changed = [
        f"{option_of(name)} was {getattr(was, name)!r}, is {getattr(now, name)!r} in the plan"
        for name in planned
        if name not in free and getattr(was, name) != getattr(now, name)
    ]
    files = saved.get("weight_files", {})
    roles = {"student": Path(run.args.student_weights)}
    roles |= TeacherChoice.of(run.args).files if run.needs_teacher else {}
    for role, path in roles.items():
        if role in files and path.is_file() and _sha256_of(path, path.stat().st_mtime_ns) != files[role]:
            changed.append(f"the {role}'s {path} has another content now")
    if changed:
        raise UserError(
            f"{run.folder} holds another run than the plan's: {'; '.join(changed)}; "
            "give the plan another name, or remove the folder"
        )


def refuse_mixed(runs: Sequence[Run]) -> None:
    """Refuse finished runs that saw different data, or another teacher of the same name: they are no pairs.

    What a run of old did not write down is not compared.

    Raises:
        UserError: naming two runs and what differs.
    """
    known: dict[tuple, tuple[str, Run]] = {}
    for run in runs:
        saved = json.loads((run.folder / CONFIG).read_text(encoding="utf-8"))["arguments"]
        files, args = saved.get("weight_files", {}), run.args
        facts = {
            ("validation pictures",): saved.get("val_images"),
            ("training pictures", run.group, run.seed, *args.unlabelled): saved.get("images"),
            ("masks", run.group, run.seed): saved.get("masks"),
            ("class weights", args.class_weights, run.group, run.seed): files.get("class weights"),
            ("teachers", args.teacher, args.teacher_weights): files.get("whole teacher"),
        }
        for key, fact in facts.items():
            value, other = known.setdefault(key, (fact, run)) if fact else (fact, run)
            if value != fact:
                raise UserError(
                    f"{other.folder} and {run.folder} were trained with different {key[0]}, and are no pair: they "
                    "changed in between; bring the former ones back, or remove the older of the two folders"
                )


@functools.cache
def _sha256_of(path: Path, modified_ns: int) -> str:
    """Hash of a file as it was modified last: read once, not once a run."""
    return file_sha256(path)


# -- training ------------------------------------------------------------------------------------


class Job:
    """A run under way: what it prints goes to train.log in its folder and, line by line, to our output.

    Attributes:
        slot: its place among the runs that are trained at a time, from 0.
    """

    def __init__(self, run: Run, environment: dict[str, str], slot: int = 0):
        self.run, self.slot = run, slot
        self.last_line = ""
        run.folder.mkdir(parents=True, exist_ok=True)
        self.log = (run.folder / LOG).open("a", encoding="utf-8", buffering=1)
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *run.words],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None  # it is a pipe
        for line in self.process.stdout:
            # Whether the disk is full or our own reader has left: were this one to end, the run would wait for ever.
            with contextlib.suppress(OSError):
                self.log.write(line)
            with contextlib.suppress(OSError):
                print(f"[{self.run.name}] {line}", end="", flush=True)
            self.last_line = line.strip() or self.last_line
        with contextlib.suppress(OSError):
            self.log.close()

    def poll(self) -> int | None:
        """The exit status, once the run has ended and all it printed is read."""
        status = self.process.poll()
        if status is not None:
            self.reader.join()
        return status


def train_missing(plan: Plan, runs: Sequence[Run], jobs: int) -> list[str]:
    """Train what is not done of ``runs``, ``jobs`` at a time; returns a line for each run that failed.

    Raises:
        UserError: a folder holds another run than the plan's; nothing is started then.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, when the runs under way have saved themselves.
    """
    states = {run.name: state_of(run) for run in plan.runs}
    waiting = [run for run in runs if states[run.name].kind != "done"]
    if plan.args.time_budget is not None:  # what is paired shares the machine's pace, which comes and goes
        waiting.sort(key=lambda run: plan.seeds.index(run.seed))
    print(f"{plan.name}: {len(runs) - len(waiting)} of {len(runs)} runs are done, {len(waiting)} to train")
    environment, failures, gpus = _environment(jobs), [], _gpus()
    active: list[Job] = []
    with StopSignal() as stop:
        told = False
        try:
            while active or (waiting and not stop.requested):
                while waiting and len(active) < jobs and not stop.requested:
                    run = waiting.pop(0)
                    print(f"[{run.name}] {run.command}", flush=True)
                    slot = min(set(range(jobs)) - {job.slot for job in active})
                    active.append(Job(run, environment | (_gpu_of(slot, gpus) if jobs > 1 else {}), slot))
                if stop.requested and not told:
                    told = True
                    print("stopping: the runs under way save themselves first", flush=True)
                    if os.name != "nt":  # on Windows Ctrl-C has reached them already, and this would kill them
                        for job in active:
                            job.process.terminate()
                for job in [job for job in active if job.poll() is not None]:
                    active.remove(job)
                    failures += _outcome(job, stop.requested)
                time.sleep(0.1)
        finally:  # a second Ctrl-C
            for job in active:
                job.process.kill()
    if stop.requested:
        print("stopped; the same command goes on")
        raise KeyboardInterrupt
    return failures


def _environment(jobs: int) -> dict[str, str]:
    """The runs' environment: several at a time share the threads and loader processes that one would have."""
    environment = os.environ | {"PYTHONIOENCODING": "utf-8", "PYTHONUNBUFFERED": "1"}  # as `Job` reads them
    if jobs > 1:
        environment["LOCAL_WORLD_SIZE"] = str(jobs)  # by which `loader_processes` divides the cores
        given = environment.get("OMP_NUM_THREADS", "")
        threads = int(given) if given.isdigit() else available_cores()
        environment["OMP_NUM_THREADS"] = str(max(1, threads // jobs))
    return environment


def _gpus() -> list[str]:
    """The GPUs that may be used, as CUDA_VISIBLE_DEVICES calls them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [str(number) for number in range(torch.cuda.device_count())] if given is None else given.split(",")


def _gpu_of(slot: int, gpus: Sequence[str]) -> dict[str, str]:
    """What gives a run the GPU of its slot alone; nothing where there is but one, or none."""
    return {"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} if len(gpus) > 1 else {}


def _outcome(job: Job, stopping: bool) -> list[str]:
    """A line about a run that failed, or none."""
    status = job.process.returncode
    if status == 0 or stopping:
        return []
    reason = job.last_line.removeprefix("error: ") or f"exit status {status}"
    if status < 0:
        reason = f"killed by signal {-status}"
    print(f"[{job.run.name}] failed: {reason}", flush=True)
    return [f"{job.run.name}: {reason} (see {job.run.folder / LOG})"]
