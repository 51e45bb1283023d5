"""Where the time of a run goes: waiting for pictures, training steps, scoring; and what to change about it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator

import torch

from basics.machine import available_cores, loader_processes
from basics.text import clock
from training.arguments import Arguments
from training.state import Progress

MUCH_WAITING, MUCH_SCORING = 0.1, 0.3  # shares of the time from which on something is said


def timed_batches(batches: Iterable[dict], progress: Progress, device: torch.device) -> Iterator[dict]:
    """The ``batches``; adds the time they take to come to ``data_s``, and the time between them to ``step_s``.

    A GPU is never waited for. While it still has steps to do, waiting for pictures costs nothing: that time counts as
    the steps'.
    """
    source = iter(batches)
    last_step: torch.cuda.Event | None = None
    while True:
        start = time.monotonic()
        batch = next(source, None)
        now = time.monotonic()
        if last_step is not None and not last_step.query():
            progress.step_s += now - start
        else:
            progress.data_s += now - start
        if batch is None:
            return
        try:
            yield batch
        finally:
            progress.step_s += time.monotonic() - now
        if device.type == "cuda":
            last_step = torch.cuda.Event()
            last_step.record()


@contextlib.contextmanager
def scoring_time(progress: Progress) -> Iterator[None]:
    """Add the time of the block to ``scoring_s``."""
    start = time.monotonic()
    try:
        yield
    finally:
        progress.scoring_s += time.monotonic() - start


def time_shares(progress: Progress) -> dict[str, float]:
    """Shares of the whole time, in 0..1; what is left over is the start, and saving."""
    parts = {"pictures": progress.data_s, "training steps": progress.step_s, "scoring": progress.scoring_s}
    whole = max(progress.elapsed_s, sum(parts.values()), 1e-9)
    shares = {name: seconds / whole for name, seconds in parts.items()}
    return shares | {"all else": max(1 - sum(shares.values()), 0.0)}


def time_line(progress: Progress, args: Arguments, device: torch.device) -> str:
    """Where the time went, in a line, and what to change if too much of it was spent on other things than training."""
    shares = time_shares(progress)
    names = {"pictures": "waiting for pictures"}
    line = ", ".join(f"{100 * share:.0f} % {names.get(name, name)}" for name, share in shares.items())
    advice = []
    if shares["pictures"] >= MUCH_WAITING:
        advice.append(_faster_pictures(args, device))
    if shares["scoring"] >= MUCH_SCORING:
        advice.append(f"less scoring: --eval-every {2 * (args.eval_every or 1)}")
    return f"time {clock(progress.elapsed_s)}: {line}" + "".join(f"; {each}" for each in advice)


def _faster_pictures(args: Arguments, device: torch.device) -> str:
    workers = loader_processes(args.workers, device)
    ways = [] if args.decode_cache else ["--decode-cache"]
    if (more := min(2 * workers or 1, available_cores())) > workers:
        ways.insert(0, f"--workers {more}")
    return f"faster pictures: {' or '.join(ways) or 'smaller ones on the disk'}"
