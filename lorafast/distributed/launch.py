"""`finetune --ranks N`: starts N ranks on this machine, each held on its share of the cores.

A rank whose cores belong to one NUMA node touches its arrays first from there, so they lie in that node's memory; a
process whose threads reach across nodes has half of them far away.
"""
from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import LoraFastError
from ..system.threads import core_of, usable_cpus
from .launcher import local_rank

CPUS = "LORAFAST_CPUS"
"""Environment variable: the CPUs of each rank on this host, `0,1;2,3`."""


def launch(n: int, argv: Sequence[str]) -> int:
    """Runs `lorafast` with these arguments in so many ranks, in place of this process where the system can do that.
    Returns the exit status. LoraFastError if there is no mpirun.
    """
    launcher = find_launcher()
    command = [launcher, "-n", str(n), *_options_of(launcher), sys.executable, "-m", "lorafast", *argv]
    environment = {**os.environ, CPUS: ";".join(",".join(map(str, cpus)) for cpus in shares_of_cpus(n))}
    sys.stdout.flush()
    if hasattr(os, "execve") and os.name == "posix":
        os.execve(launcher, command, environment)
    return subprocess.call(command, env=environment)


def find_launcher() -> str:
    """The mpirun beside this Python, where pip puts it, or the first on the path."""
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if not found:
        raise LoraFastError("--ranks needs mpirun: pip install 'lorafast[mpi]' mpich, or the system's package of MPICH "
                            "or Open MPI with mpi4py")
    return found


def _options_of(launcher: str) -> list[str]:
    """Options that Open MPI needs: it would bind each rank to one core, and refuses more ranks than cores, and root."""
    said = subprocess.run([launcher, "--version"], capture_output=True, text=True).stdout
    if "Open MPI" not in said and "OpenRTE" not in said:
        return []
    as_root = ["--allow-run-as-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return ["--bind-to", "none", "--oversubscribe", *as_root]


def shares_of_cpus(n: int, root: Path = Path("/")) -> list[list[int]]:
    """The CPUs of each of `n` ranks: whole cores, those of a NUMA node together. Where there are fewer cores than ranks
    all have all.

    root: the folder under which sys is found.
    """
    cpus = usable_cpus()
    nodes = nodes_of_cpus(root)
    cores: dict[tuple[int, str], list[int]] = {}
    for cpu in cpus:
        cores.setdefault((nodes.get(cpu, 0), core_of(cpu, root)), []).append(cpu)
    in_order = [cores[key] for key in sorted(cores, key=lambda key: (key[0], cores[key][0]))]
    if len(in_order) < n:
        return [list(cpus)] * n
    bounds = [len(in_order) * rank // n for rank in range(n + 1)]
    return [list(itertools.chain(*in_order[bounds[rank]:bounds[rank + 1]])) for rank in range(n)]


def nodes_of_cpus(root: Path = Path("/")) -> dict[int, int]:
    """The NUMA node of each CPU; empty where the system does not tell."""
    found: dict[int, int] = {}
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        for part in (folder / "cpulist").read_text().strip().split(","):
            first, _, last = part.partition("-")
            if first:
                found |= dict.fromkeys(range(int(first), int(last or first) + 1), int(folder.name[4:]))
    return found


def pin() -> None:
    """Holds this process on the CPUs that `launch` gave its rank. To be called before threads are started and memory is
    taken."""
    shares = os.environ.get(CPUS, "").split(";")
    rank = local_rank()
    if rank < len(shares) and shares[rank] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, map(int, shares[rank].split(",")))
