"""How much memory a run may take: what --mem-limit says, or what there is."""
from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import UsageError
from ..system.cgroups import groups_around
from ..system.process import resident_bytes

LIMIT_FILES = {"cgroup": ["memory.limit_in_bytes"], "cgroup2": ["memory.max", "memory.high"]}
"""A cgroup's files of limits, by version: what it may take at most, and (high) above what it is slowed down."""

NO_LIMIT = 2**60
"""Version 1 of cgroups writes a number above this where there is no limit."""


@dataclass(frozen=True)
class Budget:
    """How many bytes may be resident, mapped pages included, and who says so.

    cgroup  limit of the control group around this process, in which the system's cache counts too; None without one
    """

    nbytes: int
    source: str
    cgroup: int | None = None

    def shared(self, n: int, common: int) -> Budget:
        """What each of `n` processes may take, `common` bytes of which all have together as long as they all fit.

        A limit that was asked for is each one's own.
        """
        if n == 1 or self.is_asked:
            return self
        left = self.nbytes - common
        share = common + left // n if left > 0 else self.nbytes // n
        return replace(self, nbytes=share, source=f"the share of one of {n} ranks in {self.source}")

    @property
    def is_asked(self) -> bool:
        """Whether the budget is what --mem-limit says."""
        return self.source.startswith("--mem-limit")


def read_budget(limit: str = "", root: Path = Path("/")) -> Budget:
    """The budget by --mem-limit (`1.5G`, `800M`, `50%` of what there is); without one, what there is.

    There is: what the system calls available, with what this process has already; the cgroup's limit if that is less.
    root: the folder under which sys and proc are found. UsageError for a limit that is none.
    """
    cgroup = cgroup_limit(root)
    sources = {"the limit of this process's cgroup": cgroup, "the memory that is available": _available(root)}
    known = [(nbytes, source) for source, nbytes in sources.items() if nbytes is not None]
    there_is, source = min(known, default=(NO_LIMIT, "no limit is known"))
    if limit:
        asked = parse_limit(limit, there_is)
        if cgroup is None or asked <= cgroup:
            return Budget(asked, f"--mem-limit {limit}", cgroup)
    return Budget(there_is, source, cgroup)


def parse_limit(text: str, there_is: int) -> int:
    """`1.5G`, `800M`, `1500000K`, `50%` in bytes; units are of 1024. UsageError for anything else."""
    number = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
    match = re.fullmatch(number + r"\s*(?:([KMGT])(?:i?B)?|(%))", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]) or (match[3] and float(match[1]) > 100):
        raise UsageError(f"--mem-limit {text}: must be a size such as 1.5G or 800M, or a share such as 50%")
    unit = there_is / 100 if match[3] else 2 ** (10 * (1 + "KMGT".index(match[2].upper())))
    return int(float(match[1]) * unit)


def cgroup_limit(root: Path = Path("/")) -> int | None:
    """The lowest memory limit of the cgroups around this process (versions 1 and 2), bytes; None if there is none."""
    limits = (_number(folder / name) for type, folders in groups_around("memory", root) for folder in folders
              for name in LIMIT_FILES[type])
    return min((limit for limit in limits if limit < NO_LIMIT), default=None)


def _number(path: Path) -> int:
    """What a file of a cgroup says; NO_LIMIT for "max", and where there is no such group."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return NO_LIMIT


def _available(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kilobytes[0] * 1024 + resident_bytes() if kilobytes else None
