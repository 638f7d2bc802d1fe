"""Which log a run has: it depends on where its output goes."""
from __future__ import annotations

import os
import sys

from .log import Log, PipeLog


def open_log() -> Log:
    """TerminalLog where stdout is a terminal that can move its cursor, else PipeLog."""
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return PipeLog()
    from .terminal import TerminalLog

    return TerminalLog()
