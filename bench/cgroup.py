"""A memory cgroup for one program, where this process may make one (root; version 1 or 2)."""
from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorafast.system.cgroups import groups_around

FILES = {"cgroup": ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.max_usage_in_bytes"),
         "cgroup2": ("memory.max", "memory.current", "memory.peak")}
"""Limit, use and highest use, by version; the last one of version 2 is of Linux 5.19."""
NO_SWAP = {"cgroup": {"memory.swappiness": 0}, "cgroup2": {"memory.swap.max": 0}}


class Cgroup:
    """A group of `limit` bytes and no swap. Raises OSError where none can be made."""

    def __init__(self, limit: int) -> None:
        type, parent = parent_group()
        self.limit_file, self.usage_file, self.peak_file = FILES[type]
        self.folder = parent / f"lorafast-bench-{os.getpid()}"
        self.folder.mkdir()
        try:
            self._write(self.limit_file, limit)
            for name, value in NO_SWAP[type].items():
                if (self.folder / name).exists():       # not where the system counts no swap
                    self._write(name, value)
        except OSError:
            self.folder.rmdir()
            raise

    def _write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))

    def enter(self) -> None:
        """Puts the calling process in; for a child before it becomes another program."""
        self._write("cgroup.procs", os.getpid())

    @property
    def usage(self) -> int:
        """Bytes, the system's cache included."""
        return int((self.folder / self.usage_file).read_text())

    @property
    def peak(self) -> int:
        try:
            return int((self.folder / self.peak_file).read_text())
        except OSError:
            return 0

    def remove(self) -> None:
        self.folder.rmdir()


def parent_group(root: Path = Path("/")) -> tuple[str, Path]:
    """Version ("cgroup" or "cgroup2") and folder of the nearest group around this process below which one can be
    limited.

    OSError if there is none. root: the folder that holds proc and sys.
    """
    for type, folders in groups_around("memory", root):
        if type == "cgroup":
            return type, folders[0]
        # Below a group that hands memory down. This process's own cannot: it has processes, unless it is the root.
        for folder in filter(_hands_down_memory, folders):
            return type, folder
    raise OSError(0, "no group hands the memory controller down")


def _hands_down_memory(folder: Path) -> bool:
    try:
        return "memory" in (folder / "cgroup.subtree_control").read_text().split()
    except OSError:
        return False


@contextmanager
def cgroup_of(limit: int | None) -> Iterator[Cgroup | None]:
    """A cgroup of that many bytes; None where there is no limit or no cgroup can be made."""
    cgroup = None
    if limit:
        try:
            cgroup = Cgroup(limit)
        except OSError as error:
            print(f"no memory cgroup ({error.strerror}): measured by --mem-limit alone", file=sys.stderr)
    try:
        yield cgroup
    finally:
        if cgroup:
            cgroup.remove()
