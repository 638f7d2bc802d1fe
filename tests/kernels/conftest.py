import numpy as np
import pytest

from lorafast.kernels.build_info import available_isas


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(params=available_isas())
def isa(request, monkeypatch) -> str:
    """The test runs once with each instruction set of this machine in force."""
    monkeypatch.setenv("LORAFAST_ISA", request.param)
    return request.param
