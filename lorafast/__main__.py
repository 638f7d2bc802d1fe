"""The program: `lorafast`, or `python -m lorafast`."""
from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def start() -> int:
    """Runs the command line. Ctrl-C while its modules are still being imported ends the process with one line, too."""
    heard = signal.getsignal(signal.SIGINT)
    if heard is signal.default_int_handler:     # else whoever started this has it ignored
        signal.signal(signal.SIGINT, _end)
    from .cli import main

    signal.signal(signal.SIGINT, heard)
    return main()


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"lorafast: interrupted\n")
    os._exit(128 + number)      # as shells report it


if __name__ == "__main__":
    sys.exit(start())
