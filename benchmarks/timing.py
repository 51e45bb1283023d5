"""Interleaved timing: every round runs each variant once, so that what disturbs the machine disturbs all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from basics.device import synchronize


@dataclass(frozen=True)
class Timings:
    """Seconds of each round by variant."""

    seconds: Mapping[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, other: str) -> float:
        """Median over rounds of ``name`` / ``other``, both from the same round."""
        pairs = zip(self.seconds[name], self.seconds[other], strict=True)
        return statistics.median(one / two for one, two in pairs)

    def as_dict(self) -> dict[str, dict[str, float | list[float]]]:
        return {
            name: {"median_s": self.median(name), "rounds_s": [round(value, 6) for value in values]}
            for name, values in self.seconds.items()
        }


def interleave(
    variants: Mapping[str, Callable[[int], object]], rounds: int, warmup: int, device: torch.device
) -> Timings:
    """Call every variant with the round's number, ``warmup`` rounds untimed, then ``rounds`` timed ones.

    The order turns with every round: none always runs in the wake of the same neighbour.
    """
    names = list(variants)
    seconds = {name: [] for name in names}
    for number in range(warmup + rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            synchronize(device)
            start = time.perf_counter()
            variants[name](number)
            synchronize(device)
            if number >= warmup:
                seconds[name].append(time.perf_counter() - start)
    return Timings(seconds)


class PartTimer:
    """Seconds spent in named parts of a step, waiting for the device at each border."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, function: Callable, *args, **kwargs):
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
