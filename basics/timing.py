"""Timing: the device's queue waited for at each reading of the clock, variants run in turn.

In turn, so that whatever else the machine does in the meantime falls on all variants alike.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import torch

from basics.device import synchronize

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Timings:
    """Seconds of each round by variant."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """Median over rounds of ``name`` / ``other``, both from the same round."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return statistics.median(one / two for one, two in pairs)

    def as_dict(self) -> dict[str, dict[str, float | list[float]]]:
        """By variant ``median_s`` and ``rounds_s``, for JSON."""
        return {
            name: {"median_s": self.median(name), "rounds_s": [round(value, 6) for value in values]}
            for name, values in self.seconds.items()
        }


def interleave(
    variants: Mapping[str, Callable[[int], object]],
    rounds: int,
    warmup: int,
    device: torch.device,
    limit_s: float = float("inf"),
    ahead: int = 0,
) -> Timings:
    """Call every variant with the round's number, ``warmup`` rounds untimed, then ``rounds`` timed ones.

    The order is drawn anew for every round: none always runs in the wake of the same neighbour. Warm-up and timed
    rounds each end early after ``limit_s`` seconds, with at least one timed round made.

    Args:
        ahead: untimed calls of a variant before each timed one. Short calls want some: for milliseconds the threads
            of the runtime before them still spin, and the caches hold its weights.
    """
    names = list(variants)
    number = 0

    def run(rounds: int) -> dict[str, list[float]]:
        nonlocal number
        seconds: dict[str, list[float]] = {name: [] for name in names}
        began = time.perf_counter()
        for _ in range(rounds):
            for name in random.Random(number).sample(names, len(names)):
                for _ in range(ahead):
                    variants[name](number)
                synchronize(device)
                start = time.perf_counter()
                variants[name](number)
                synchronize(device)
                seconds[name].append(time.perf_counter() - start)
            number += 1
            if time.perf_counter() - began >= limit_s:
                break
        return seconds

    run(warmup)
    return Timings(run(rounds))


class PartTimer:
    """Seconds spent in named parts of a step, waiting for the device at each border."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call ``function`` and add its time to the part ``name``."""
        synchronize(self.device)
        start = time.perf_counter()
        result = function(*args, **kwargs)
        synchronize(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result

    def shares(self) -> dict[str, float]:
        """Each part's share of all."""
        total = sum(self.seconds.values())
        return {name: value / total for name, value in self.seconds.items()}
