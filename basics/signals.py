"""Being asked to stop: SIGINT and SIGTERM as a wish that work under way can look at."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType

from basics import distributed


class Stopped(Exception):
    """Work was broken off because the run was asked to stop."""


class StopSignal:
    """While active, SIGINT and SIGTERM set ``requested`` instead of ending the process; a second Ctrl-C ends it.

    Schedulers of clusters send SIGTERM before they take a machine away; Ctrl-C sends SIGINT. In a distributed
    run each rank has its own ``requested``; `poll` makes them agree.
    """

    def __init__(self) -> None:
        self.requested = False
        self.agreed = False
        self._since = 0.0
        self._previous: dict[int, signal._HANDLER] = {}

    def poll(self) -> bool:
        """True, in every rank, from when one of them was asked to stop; all ranks must call it."""
        self.agreed = self.agreed or distributed.any_rank(self.requested)
        return self.agreed

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Launchers pass Ctrl-C on to processes that the terminal has told already: that is no second one.
        if self.requested and number == signal.SIGINT and time.monotonic() - self._since > 1:
            raise KeyboardInterrupt
        if not self.requested:
            self._since = time.monotonic()
        self.requested = True


def ignore_stop_signals(worker_id: int = 0) -> None:
    """A ``worker_init_fn``: loader workers leave Ctrl-C and SIGTERM, sent to the whole group, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
