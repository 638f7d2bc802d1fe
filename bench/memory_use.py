"""How much memory a process holds, its own and mapped files apart, as Linux counts it."""
from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

KINDS = {"anonymous": "RssAnon", "mapped": "RssFile", "peak_rss": "VmHWM", "swap": "VmSwap"}


def resident(pid: int | str = "self") -> dict[str, int]:
    """Bytes that are in memory now: anonymous (the process's own) and mapped files; the peak of both so far; and bytes
    that are in swap. Raises OSError or TypeError for a process that has ended.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    return {name: int(re.search(rf"{key}:\s*(\d+) kB", status)[1]) * 1024 for name, key in KINDS.items()}


def resident_libraries(pid: int, model: Path) -> int:
    """Bytes of mapped files that are not the model. Takes longer than `resident`."""
    nbytes, counts = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        key, *rest = line.split(maxsplit=5)
        if not key.endswith(":"):                       # a new mapping: addresses, rights, offset, device, inode, path
            counts = len(rest) == 5 and rest[4].startswith("/") and rest[4] != str(model)
        elif counts and key == "Rss:":
            nbytes += int(rest[0]) * 1024
    return nbytes


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
