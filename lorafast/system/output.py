"""Streams that a long run can print to whatever becomes of them: a full disk loses a line, and a reader that is gone is
told."""
from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import TextIO

from ..words import visible

GONE = (errno.EPIPE, errno.EIO)
"""Errors of a pipe without a reader and of a terminal that was hung up."""


class Unfailing:
    """sys.stdout or sys.stderr, by that name, as a file object whose `write` and `flush` never raise OSError.

    gone  is called, once, when nobody can read the stream any more; what is written from then on goes nowhere
    """

    def __init__(self, name: str, gone: Callable[[], None] = lambda: None) -> None:
        self.name, self.gone = name, gone

    @property
    def stream(self) -> TextIO:
        return getattr(sys, self.name)

    def write(self, text: str) -> int:
        self._attempt(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(lambda: self.stream.flush())

    def __getattr__(self, name: str) -> object:     # encoding, isatty, fileno
        return getattr(self.stream, name)

    def _attempt(self, write: Callable[[], object]) -> None:
        try:
            write()
        except OSError as error:
            is_gone = error.errno in GONE
            discard(self.stream, for_good=is_gone)
            if is_gone:
                self.gone()


def discard(stream: TextIO, for_good: bool) -> None:
    """Throws away what the stream still holds and could not write; for good: and all that will be written to it."""
    number = stream.fileno()
    own, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, number)
        stream.flush()
        if not for_good:
            os.dup2(own, number)
    finally:
        os.close(own)
        os.close(nowhere)


def open_standard_streams() -> None:
    """Gives a process that was started without stdout or stderr (`>&-`) ones that go nowhere, and lets both write any
    text.

    A path may hold bytes that are not text, and generated text may not fit the terminal's encoding.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            # File descriptors are given out from the lowest on: the next file opened must not become stdout.
            setattr(sys, name, open(os.devnull, "w"))
        elif hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def show(line: str) -> None:
    """Prints a line about files, which may come from strangers."""
    print(visible(line))
