"""How far long work has come: shown on a terminal only, not at once, and taken away in the end."""
import io
import sys

import pytest

from lorafast.system import live
from lorafast.system.live import Meter, clock, show_live


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """The clock, to be set."""
    time = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: time[0])
    return time


def test_meter(now):
    shown = []
    with Meter("merging", 1000, shown.append) as meter:
        for seconds, n in ((0.5, 100), (0.6, 150), (0.1, 10), (0.9, 240)):
            now[0] += seconds
            meter.advance(n)
    assert shown == ["merging: 25%, 0:03 left", "merging: 50%, 0:02 left", ""]


def test_short_work_shows_nothing_and_a_wrong_total_does_no_harm(now):
    shown = []
    with Meter("x", 10, shown.append) as meter:
        meter.advance(10)
    assert shown == []
    with pytest.raises(KeyboardInterrupt), Meter("x", 0, shown.append) as meter:
        now[0] += 5
        meter.advance(7)
        raise KeyboardInterrupt
    assert shown == ["x: 100%, 0:00 left", ""]


def test_clock():
    assert [clock(seconds) for seconds in (0, 7.4, 750, 3723)] == ["0:00", "0:07", "12:30", "1:02:03"]


@pytest.mark.parametrize("is_terminal, wanted", [(False, ""), (True, "\r" + "a" * 79 + "\x1b[K\r\x1b[K")])
def test_only_a_terminal_is_shown_anything(monkeypatch, is_terminal, wanted):
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal
    monkeypatch.setattr(sys, "stderr", stream)
    show_live("a" * 200)
    show_live("")
    assert stream.getvalue() == wanted
