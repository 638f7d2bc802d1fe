"""What a run does when it is asked to stop, from a terminal, by the system, or because nobody reads what it prints.

SIGINT, SIGTERM and SIGHUP end it after the step under way, with everything saved; the second one acts at once. SIGUSR1
has it save and go on. A signal that the run was started to ignore (nohup) stays ignored. Where the reader of its output
is gone, it ends as on SIGINT.
"""
from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..reporting.log import Log

TO_STOP = [number for name in ("SIGINT", "SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]
TO_SAVE = [number for name in ("SIGUSR1",) if (number := getattr(signal, name, None))]


class Requests:
    """What signals asked of a run.

    stop   the number of the signal that asked it to end; 0: none
    save   whether it is to save as soon as it can
    """

    def __init__(self) -> None:
        self.stop = 0
        self.save = False

    def reader_gone(self) -> None:
        """Nobody reads what is printed any more."""
        self.stop = self.stop or getattr(signal, "SIGPIPE", signal.SIGTERM)


def reason_of(stop: int) -> str:
    """Why the run ends that this signal asked to, in words."""
    name = signal.Signals(stop).name
    return "nobody reads its output any more (SIGPIPE)" if name == "SIGPIPE" else f"stopped by {name}"


@contextmanager
def listening(log: Log) -> Iterator[Requests]:
    """Requests that signals fill while the block runs."""
    requests = Requests()

    def stop(number: int, frame: object) -> None:
        requests.stop = number
        for each in TO_STOP:
            if each in before:
                signal.signal(each, before[each])
        log.stopping()

    def save(number: int, frame: object) -> None:
        requests.save = True

    log.reader_gone = requests.reader_gone
    if log.is_unread:                   # it went while the model was opened (`| head -3`), and is told but once
        requests.reader_gone()
    before: dict[int, Any] = {}
    try:
        for number, handler in [*((number, stop) for number in TO_STOP), *((number, save) for number in TO_SAVE)]:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, handler)
    except ValueError:                  # not in the main thread: whoever runs it handles signals
        pass
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
