"""Two hosts on this one, with a slow network between them: network namespaces, each with an end of a cable.

The kernel's token bucket sends at the network's rate, frames with their gaps counted; cable.c brings them to the other
end after the latency. MPI, TCP and the program are what they are on two machines. Needs root, Linux and a C compiler.
"""
from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compiling import compiled

from lorafast.planning.sharing import link_of

GAP = 24
"""Bytes between frames on Ethernet: gap, preamble and checksum."""

HOSTS = ("10.77.0.1", "10.77.0.2")


def run(*command: object) -> None:
    subprocess.run(list(map(str, command)), check=True)


@contextmanager
def two_hosts(network: str) -> Iterator[list[str]]:
    """The command before mpirun's program that puts a rank on each host.

    network: as --network has it, 1G,1ms
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = compiled("cable.c", folder, "-O2", "-pthread")
        first = ["chrt", "-f", "50"]        # no rank makes the cable wait
        cable = subprocess.Popen([*first, program, "tap1", "tap2", str(link_of(network).latency)],
                                 stdout=subprocess.PIPE)
        try:
            if cable.stdout and not cable.stdout.readline():
                raise SystemExit("the cable does not start: this needs root and /dev/net/tun")
            for i, host in enumerate(HOSTS, 1):
                _lay(f"tap{i}", f"desk{i}", host, network.partition(",")[0])
            yield ["ip", "netns", "exec", "desk1", *_launcher(folder)]
        finally:
            cable.kill()
            cable.wait()
            for i in (1, 2):
                subprocess.run(["ip", "netns", "del", f"desk{i}"], stderr=subprocess.DEVNULL)


def _lay(tap: str, host: str, address: str, rate: str) -> None:
    """One end of the cable, in a namespace of its own."""
    run("ip", "netns", "add", host)
    run("ip", "link", "set", tap, "txqueuelen", 10000, "netns", host)
    run("ip", "-n", host, "addr", "add", f"{address}/24", "dev", tap)
    for device in ("lo", tap):
        run("ip", "-n", host, "link", "set", device, "up")
    run("tc", "-n", host, "qdisc", "add", "dev", tap, "root", "tbf", "rate", f"{float(rate[:-1]):g}gbit", "burst",
        "128k", "latency", "400ms", "overhead", GAP)


def _launcher(folder: Path) -> list[str]:
    """MPICH's mpirun, with a script in ssh's place."""
    script = folder / "on_host.sh"
    script.write_text('#!/bin/sh\nshift; host=desk${1##*.}; shift\n'
                      'exec ip netns exec $host unshare --uts sh -c "hostname $host; exec $*"\n')
    script.chmod(0o755)
    beside = Path(sys.executable).with_name("mpirun")
    return [str(beside) if beside.exists() else "mpirun", "-iface", "tap1", "-launcher", "ssh", "-launcher-exec",
            str(script), "-hosts", ",".join(HOSTS), "-genv", "UCX_TLS", "tcp,self"]
