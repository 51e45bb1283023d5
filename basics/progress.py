"""Progress bars for long work; where no terminal shows them, a line now and then, so that a log has a sign of life."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

from tqdm import tqdm

from basics.text import clock

EVERY_S = 300.0  # between two lines where there is no terminal


class ProgressBar(tqdm):
    """tqdm's bar, with its arguments, on stderr; gone when it ends.

    Args:
        disable: say nothing at all.
    """

    def __init__(
        self, iterable: Iterable | None = None, *, desc: str, unit: str, disable: bool = False, **options: Any
    ) -> None:
        self._logs = not disable and not sys.stderr.isatty()
        super().__init__(iterable, desc=desc, unit=unit, disable=disable or self._logs, leave=False, **options)
        self._what, self._unit, self._before = desc, unit.strip(), self.n
        self._began = self._told = time.monotonic()

    def __iter__(self) -> Iterator:
        for item in super().__iter__():
            yield item
            if self._logs:
                self.update()

    def update(self, n: float | None = 1) -> bool | None:
        """As tqdm's."""
        if not self._logs:
            return super().update(n)
        self.n += n or 0
        if time.monotonic() - self._told >= EVERY_S:
            self._told = time.monotonic()
            print(self._line(), file=sys.stderr, flush=True)
        return None

    def _line(self) -> str:
        seconds, new = self._told - self._began, self.n - self._before
        line = f"{self._what}: {self.n:,} {self._unit} in {clock(seconds)}"
        if not self.total or not new:
            return line
        return f"{line}, of {self.total:,}; {clock(seconds / new * (self.total - self.n))} left"
