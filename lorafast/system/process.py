"""What the system knows about this process."""
from __future__ import annotations

import os


def bytes_read() -> int:
    """Bytes that this process had fetched from disk so far; 0 where the system does not tell."""
    try:
        with open("/proc/self/io") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("read_bytes:"))
    except (OSError, StopIteration):
        return 0


def peak_resident_bytes() -> int:
    """The most that `resident_bytes` has been; 0 where the system does not tell."""
    try:
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 0


def resident_bytes() -> int:
    """Memory of this process that is in RAM, mapped pages included; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
