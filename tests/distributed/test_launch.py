"""Ranks on one machine: which cores each has."""
import subprocess
import sys
from pathlib import Path

import pytest

from lorafast.distributed import launch
from lorafast.distributed.launch import find_launcher, nodes_of_cpus, shares_of_cpus
from lorafast.errors import LoraFastError


@pytest.fixture
def two_sockets(tmp_path, monkeypatch) -> Path:
    """Eight CPUs: of two nodes with two cores each, and two hyper-threads a core. Even CPUs are on node 0."""
    monkeypatch.setattr(launch, "usable_cpus", lambda: tuple(range(8)))
    for node in (0, 1):
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        folder.mkdir(parents=True)
        (folder / "cpulist").write_text(",".join(str(cpu) for cpu in range(8) if cpu % 2 == node) + "\n")
    for cpu in range(8):
        folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{cpu % 4},{cpu % 4 + 4}\n")
    return tmp_path


def test_each_rank_has_whole_cores_of_one_node(two_sockets):
    assert nodes_of_cpus(two_sockets) == {cpu: cpu % 2 for cpu in range(8)}
    assert shares_of_cpus(2, two_sockets) == [[0, 4, 2, 6], [1, 5, 3, 7]]
    assert shares_of_cpus(4, two_sockets) == [[0, 4], [2, 6], [1, 5], [3, 7]]
    assert shares_of_cpus(1, two_sockets) == [[0, 4, 2, 6, 1, 5, 3, 7]]


def test_more_ranks_than_cores_are_not_held_anywhere(two_sockets):
    assert shares_of_cpus(5, two_sockets) == [list(range(8))] * 5


def test_without_mpirun_the_way_to_it_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LoraFastError, match=r"pip install 'lorafast\[mpi\]' mpich"):
        find_launcher()


def test_what_is_run(monkeypatch):
    ran = []
    monkeypatch.setattr(launch, "find_launcher", lambda: "/bin/mpirun")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, "HYDRA build", ""))
    monkeypatch.setattr(launch.os, "execve", lambda *arguments: ran.append(arguments))
    monkeypatch.setattr(subprocess, "call", lambda *_, **__: 0)
    monkeypatch.setattr(launch, "usable_cpus", lambda: (0, 1))
    launch.launch(2, ["finetune", "--ranks", "2"])
    path, command, environment = ran[0]
    assert command == [path, "-n", "2", sys.executable, "-m", "lorafast", "finetune", "--ranks", "2"]
    assert environment["LORAFAST_CPUS"].count(";") == 1
