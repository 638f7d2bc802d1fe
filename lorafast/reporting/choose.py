"""Which log a run has: it depends on what is asked for, and on where its output goes."""
from __future__ import annotations

import os
import sys

from .log import Log, PipeLog


def open_log(form: str = "auto", *, llama_finetune: bool = True, quiet: bool = False) -> Log:
    """The log of that form. "auto": live lines where stdout is a terminal that can move its cursor; else the lines of
    llama-finetune if the run is one of that program, and plain rows if not.
    """
    if quiet:
        return Log()
    if form == "llama":
        return PipeLog()
    live = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    if form == "auto" and llama_finetune and not live:
        return PipeLog()
    from .terminal import PlainLog, TerminalLog

    return TerminalLog() if live and form == "auto" else PlainLog()
