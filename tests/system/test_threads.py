"""Physical cores, from made-up /sys and /proc trees."""
import os

import pytest

from lorafast.system.threads import physical_cores

MOUNTS = """\
30 1 0:20 / /sys/fs/cgroup rw - cgroup2 cgroup rw
31 1 0:21 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct
"""


def machine(root, siblings, files=()):
    """A tree with one siblings list for each CPU, and both versions of cgroups mounted."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/mountinfo").write_text(MOUNTS)
    for cpu, text in enumerate(siblings):
        folder = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    for path, text in files:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


V2 = ("proc/self/cgroup", "0::/a/b\n")
HYPERTHREADS = ["0,4", "1,5", "2,6", "3,7"] * 2


@pytest.mark.parametrize("cpus, siblings, files, expected", [
    (8, HYPERTHREADS, [], 4),
    (3, HYPERTHREADS, [], 3),
    (2, ["0-1", "0-1"], [], 1),
    (4, [], [], 4),
    (8, HYPERTHREADS, [V2, ("sys/fs/cgroup/a/b/cpu.max", "max 100000")], 4),
    (8, HYPERTHREADS, [V2, ("sys/fs/cgroup/a/b/cpu.max", "250000 100000")], 2),
    (8, HYPERTHREADS, [V2, ("sys/fs/cgroup/a/cpu.max", "50000 100000")], 1),
    (8, HYPERTHREADS, [V2, ("sys/fs/cgroup/cpu.max", "300000 100000")], 3),
    (8, HYPERTHREADS, [("proc/self/cgroup", "5:cpuset:/x\n4:cpu,cpuacct:/x\n"),
                       ("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "200000"),
                       ("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000")], 2),
    (8, HYPERTHREADS, [("proc/self/cgroup", "4:cpu:/x\n"), ("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "-1"),
                       ("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000")], 4),
])
def test_physical_cores(tmp_path, monkeypatch, cpus, siblings, files, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cpus)), raising=False)
    assert physical_cores(machine(tmp_path, siblings, files)) == expected
