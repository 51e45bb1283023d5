"""Long work in a log: a line now and then; on a terminal: tqdm's bar."""

from __future__ import annotations

import io
import sys

import pytest

from basics import progress
from basics.progress import ProgressBar


class Clock:
    """Counts the calls, each ten seconds after the other."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 10
        return self.now


@pytest.fixture(autouse=True)
def ten_seconds_a_look(monkeypatch) -> None:
    monkeypatch.setattr(progress, "time", Clock())


def test_a_log_gets_a_line_every_five_minutes(capsys):
    """It began at 10 s and looks at the clock once an item, at 20, 30, ...: the 30th is the first after 300 s."""
    assert list(ProgressBar(range(70), desc="teacher cache", unit="img")) == list(range(70))
    first, second, *rest = capsys.readouterr().err.splitlines()
    assert first == "teacher cache: 30 img in 0:05:10, of 70; 0:06:53 left"  # 40 more at 310 / 30 s
    assert second == "teacher cache: 60 img in 0:10:20, of 70; 0:01:43 left" and not rest  # 10 more at 620 / 60


def test_what_was_done_before_says_nothing_of_the_speed(capsys):
    with ProgressBar(total=100, initial=50, desc="cache", unit="img") as bar:
        for _ in range(30):
            bar.update()
    assert capsys.readouterr().err == "cache: 80 img in 0:05:10, of 100; 0:03:27 left\n"  # 20 more at 310 / 30 s


def test_short_work_and_what_is_to_be_quiet_say_nothing(capsys):
    list(ProgressBar(range(20), desc="a", unit="img"))
    list(ProgressBar(range(200), desc="b", unit="img", disable=True))
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    list(ProgressBar(range(3), desc="reading", unit="img", file=sys.stderr))
    assert "reading: " in sys.stderr.getvalue() and "3/3" not in sys.stderr.getvalue().splitlines()[-1]
