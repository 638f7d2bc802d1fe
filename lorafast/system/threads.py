"""How many threads compute, decided in one place: one for each physical core that this process may use.

Two hyper-threads of a core share its vector units, so for matrix products the second one adds contention and no speed.

Threads are not pinned to cores, which the system's scheduler keeps apart anyway: on two cores pinning gained less than
1 % of a step (0.0, 0.0, 0.5 and 0.7 % in alternating runs), while two runs pinned to the same cores would halve each
other, and a thread that fetches weights would be held on a core that computes. OMP_PROC_BIND=true pins them.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .cgroups import groups_around


def physical_cores(root: Path = Path("/")) -> int:
    """Physical cores among the CPUs this process may run on, or its cgroup's CPU quota if that is less; at least 1.

    root: the folder under which sys and proc are found.
    """
    cpus = usable_cpus()
    if not cpus:
        return os.cpu_count() or 1
    cores = {core_of(cpu, root) for cpu in cpus}
    return max(1, min([len(cores), *(int(quota) for quota in _cpu_quotas(root))]))


def usable_cpus() -> tuple[int, ...]:
    """Numbers of the CPUs that this process may run on; empty where the system does not tell."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def core_of(cpu: int, root: Path) -> str:
    """The hyper-threads that share a core with `cpu`, as a key of that core; where nothing is known, the CPU itself."""
    try:
        return (root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _cpu_quotas(root: Path) -> Iterator[float]:
    """CPUs' worth of time that each cgroup around this process allows it (versions 1 and 2), where one is set."""
    for type, folders in groups_around("cpu", root):
        for folder in folders:
            quota = _quota_v1(folder) if type == "cgroup" else _quota_v2(folder)
            if quota:
                yield quota


def _quota_v2(folder: Path) -> float | None:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float | None:
    try:
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
    except (OSError, ValueError):
        return None
    return quota / period if quota > 0 else None
