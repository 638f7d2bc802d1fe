"""How much memory a process holds, its own and mapped files apart, as Linux counts it."""
from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path


def resident() -> dict[str, int]:
    """Bytes that are in memory now: anonymous (the process's own) and mapped files; and the peak of both so far."""
    status = Path("/proc/self/status").read_text()
    return {name: int(re.search(rf"{key}:\s*(\d+) kB", status)[1]) * 1024
            for name, key in (("anonymous", "RssAnon"), ("mapped", "RssFile"), ("peak_rss", "VmHWM"))}


def watched(work: Callable[[], object]) -> dict[str, int]:
    """The peaks of `resident` while `work` runs, looked at every few milliseconds."""
    peak = resident()
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            for name, value in resident().items():
                peak[name] = max(peak[name], value)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak
