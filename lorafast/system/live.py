"""How far a long piece of work has come, in a line of the terminal that the next one replaces. A log gets none of
it."""
from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

Show = Callable[[str], None]
"""Shows a line in the place of the last one; an empty text takes it away."""


def show_live(text: str) -> None:
    """Shows on stderr as much of the text as a line holds; nothing where that is no terminal."""
    if sys.stderr.isatty():
        try:
            width = os.get_terminal_size(sys.stderr.fileno()).columns
        except (OSError, ValueError):
            width = 80
        print(f"\r{text[:width - 1]}\x1b[K", end="", file=sys.stderr, flush=True)


class Meter:
    """The share of some work that is done, and the time it will still take.

        with Meter("merging", n_bytes, show_live) as meter:
            meter.advance(len(part))
    """

    FIRST, INTERVAL = 1.0, 0.2
    """Seconds until something is shown, so that short work shows nothing, and from then on between two lines."""

    def __init__(self, what: str, total: int, show: Show) -> None:
        self.what, self.total, self.show = what, total, show
        self.done = 0
        self.began = time.monotonic()
        self.next = self.began + self.FIRST

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.next > self.began + self.FIRST:
            self.show("")

    def advance(self, n: int) -> None:
        """Counts `n` more of `total` as done."""
        self.done += n
        now = time.monotonic()
        if now >= self.next:
            self.next = now + self.INTERVAL
            left = (now - self.began) * max(0, self.total - self.done) / max(1, self.done)
            self.show(f"{self.what}: {min(1.0, self.done / max(1, self.total)):.0%}, {clock(left)} left")


def clock(seconds: float) -> str:
    """`0:07`, `12:30` or `1:02:03`."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def silent(text: str) -> None:
    """Shows nothing."""
