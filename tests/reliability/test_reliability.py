"""Short forms of the reliability scripts, for CI."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(script: str, *arguments: str, seconds: float = 900) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", str(HERE / script), *arguments], capture_output=True,
                          text=True, timeout=seconds)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_fifty_kills_lose_nothing():
    assert "50 kills in" in run("crash.py", "--kills", "50", "--minutes", "10")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("mpirun") or Path(sys.executable).with_name("mpirun").exists()),
                    reason="needs mpirun: pip install mpi4py mpich")
def test_kills_of_a_rank_lose_nothing():
    assert "4 kills in" in run("kill_ranks.py", "--kills", "4")


@pytest.mark.slow
def test_power_cuts_lose_nothing_that_was_flushed():
    assert "10 power cuts in" in run("crash.py", "--kills", "10", "--minutes", "5", "--power-cut")


@pytest.mark.slow
def test_ten_thousand_hostile_inputs_are_refused_in_a_line():
    assert "| GGUF models |" in run("fuzz.py", "--inputs", "10000", "--minutes", "4")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="preloads a library, on Linux")
def test_faults_of_the_system_lose_nothing():
    assert "15 faults," in run("faults.py", "--faults", "15", "--minutes", "5")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="preloads a library, on Linux")
def test_each_rename_of_a_short_run_may_fail_or_be_the_last():
    assert "| rename | 51 | 51 | 51 | bit-equal |" in run("faults.py", "--every", "--only", "rename")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="preloads a library, on Linux")
def test_kernels_without_memory_raise_and_go_on():
    assert "allocations that failed, in " in run("kernel_memory.py")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="changes /proc and the locale")
def test_other_settings_change_nothing():
    done = subprocess.run([HERE / "environments.sh", "settings"], capture_output=True, text=True, timeout=900,
                          env={**os.environ, "PYTHON": sys.executable,
                               "TESTS": "tests/test_cli.py tests/system tests/training/test_identity.py"})
    assert done.returncode == 0 and done.stdout.count(" passed") == 4, done.stdout + done.stderr[-2000:]


@pytest.mark.slow
def test_a_minute_of_training_grows_nothing():
    assert "flat" in run("soak.py", "--minutes", "1")
