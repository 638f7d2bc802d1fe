"""What holds for every test: the time it takes is its own."""
import os
import sys

import pytest

# NumPy's products are small here, and slower with a second thread; pytest-xdist has a process a core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


# A hundred tests start a Python of their own: half a second each goes to compiling modules where none may be kept.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(autouse=True)
def speed_is_measured_briefly(monkeypatch):
    """Each run measures how long its blocks take, for a tenth of a second each; few tests look at the figures."""
    monkeypatch.setattr("lorafast.planning.speed.ENOUGH", 0.0)
