"""Streams that a run can print to whatever becomes of them, each in a process of its own."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from lorafast.system.output import Unfailing
events = []
out = Unfailing("stdout", lambda: events.append("gone"))
for i in range(3):
    print("x" * 20000, file=out, flush=True)
sys.stderr.write(",".join(events) or "nothing")
"""


def run(stdout):
    return subprocess.run([sys.executable, "-c", PROGRAM], stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_loses_lines_only():
    with open("/dev/full", "w") as full:
        done = run(full)
    assert done.returncode == 0 and done.stderr == "nothing"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("buffered", [True, False])
def test_a_full_disk_under_a_command(buffered):
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "lorafast", "--version"], stdout=full, stderr=subprocess.PIPE,
                              text=True, timeout=60, env=environment)
    assert done.returncode == 1
    assert done.stderr == "lorafast: error: standard output cannot be written: No space left on device\n"


def test_a_reader_that_is_gone_is_told_once():
    reader = subprocess.Popen(["true"], stdin=subprocess.PIPE)
    reader.wait()
    done = run(reader.stdin)
    reader.stdin.close()
    assert done.returncode == 0 and done.stderr == "gone"


def test_streams_that_were_closed():
    shell = f"'{sys.executable}' -m lorafast --version >&- 2>&-"
    assert subprocess.run(["sh", "-c", shell], timeout=60).returncode == 0
