"""Do the same to many files at once, with threads: decoding happens in C and lets Python go."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from basics.machine import available_cores
from basics.progress import ProgressBar

T = TypeVar("T")
R = TypeVar("R")


def map_in_order(function: Callable[[T], R], items: Iterable[T], desc: str, total: int) -> Iterator[R]:
    """Yield ``function(item)`` in order, with a progress bar and a bounded number of results in memory."""
    workers = min(16, available_cores())
    with (
        ThreadPoolExecutor(workers) as pool,
        ProgressBar(total=total, desc=desc, unit="img") as bar,
    ):
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= 4 * workers:
                    yield waiting.popleft().result()
                    bar.update()
            while waiting:
                yield waiting.popleft().result()
                bar.update()
        finally:
            for future in waiting:
                future.cancel()
