"""What holds for every test: the time it takes is its own."""
import os
import re
import signal
import sys

import pytest

# NumPy's products are small here, and slower with a second thread; pytest-xdist has a process a core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# libgomp's threads do not spin between two kernels: another process wants their core.
os.environ.setdefault("GOMP_SPINCOUNT", "0")

# What a shell runs in the background ignores SIGINT, and under nohup SIGHUP; tests send both.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# A hundred tests start a Python of their own: half a second each goes to compiling modules where none may be kept.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


SLOW_AS_A_WHOLE = re.compile(r"^pytestmark = .*pytest\.mark\.slow", re.MULTILINE)


def pytest_ignore_collect(collection_path, config):
    """A run of the quick tests does not import modules that are slow as a whole: they bring PyTorch with them."""
    if config.option.markexpr == "not slow" and collection_path.suffix == ".py":
        return bool(SLOW_AS_A_WHOLE.search(collection_path.read_text("utf-8"))) or None
    return None


def pytest_runtest_setup(item):
    """AddressSanitizer keeps freed memory for a while, and some around each array: what a run takes then is no figure
    of lorafast's."""
    if item.get_closest_marker("measures_memory") and "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("measures memory, of which AddressSanitizer takes more")


@pytest.fixture(autouse=True)
def speed_is_measured_briefly(monkeypatch):
    """Each run measures how long its blocks take, for a tenth of a second each, and the disk for half a second; few
    tests look at the figures."""
    monkeypatch.setattr("lorafast.planning.speed.ENOUGH", 0.0)
    monkeypatch.setattr("lorafast.planning.speed.MEASURED_SECONDS", 0.0)
