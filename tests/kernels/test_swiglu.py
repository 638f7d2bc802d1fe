import numpy as np
import pytest
from numerics import GRADIENT_LIMIT, gradient_error, nmse

from lorafast.kernels import swiglu
from lorafast.reference import swiglu as twin

FORWARD_LIMIT = 1e-14      # measured 3e-15
DGATE_LIMIT = 1e-12        # measured 7e-14
DUP_LIMIT = 1e-14          # measured 4e-15
UNITS = ["swiglu", "geglu", "reglu2", "clamped_swiglu", "glu"]


@pytest.mark.parametrize("op", UNITS)
def test_twin_gradients(rng, op):
    gate, up, weight = rng.standard_normal((3, 4, 5))
    gate, up = 6 * gate, 6 * up                 # beyond the clamp, some
    h, dgate, dup = np.empty((3, 4, 5))

    def loss():
        getattr(twin, f"{op}_forward")(h, gate, up, 1)
        return np.sum(weight * h)

    getattr(twin, f"{op}_backward")(dgate, dup, weight, gate, up, 1)
    assert gradient_error(dgate, loss, gate) < GRADIENT_LIMIT
    assert gradient_error(dup, loss, up) < GRADIENT_LIMIT


@pytest.mark.parametrize("op", UNITS)
@pytest.mark.parametrize("T, F", [(64, 2048), (3, 11008), (20, 37)])
def test_kernel_equals_twin(isa, rng, op, T, F):
    gate, up, dh = rng.standard_normal((3, T, F), dtype=np.float32)
    gate, up = 3 * gate, 4 * up                 # some beyond the clamp
    h, dgate, dup = np.full((3, T, F), np.nan, np.float32)
    exact_h, exact_dgate, exact_dup = np.empty((3, T, F))
    inputs = gate.astype(np.float64), up.astype(np.float64)
    getattr(twin, f"{op}_forward")(exact_h, *inputs, 1)
    getattr(twin, f"{op}_backward")(exact_dgate, exact_dup, dh.astype(np.float64), *inputs, 1)

    getattr(swiglu, f"{op}_forward")(h, gate, up, 2)
    getattr(swiglu, f"{op}_backward")(dgate, dup, dh, gate, up, 2)
    assert nmse(h, exact_h) < FORWARD_LIMIT
    assert nmse(dgate, exact_dgate) < DGATE_LIMIT
    assert nmse(dup, exact_dup) < DUP_LIMIT


@pytest.mark.parametrize("op", ["swiglu", "geglu"])
def test_far_from_zero(isa, op):
    gate = np.array([[-1e4, -100, -90, 90, 100, 1e4]], np.float32)
    ones, h = np.ones_like(gate), np.empty_like(gate)
    getattr(swiglu, f"{op}_forward")(h, gate, ones, 1)
    np.testing.assert_allclose(h, np.maximum(gate, 0), atol=1e-35)
    dgate, dup = np.empty_like(gate), np.empty_like(gate)
    getattr(swiglu, f"{op}_backward")(dgate, dup, ones, gate, ones, 1)
    np.testing.assert_allclose(dgate, gate > 0, atol=1e-35)


@pytest.mark.parametrize("op", UNITS)
def test_in_place(isa, rng, op):
    """Results in the place of what they are made of: as the trainer does it, without DoRA and with it."""
    forward, backward = getattr(swiglu, f"{op}_forward"), getattr(swiglu, f"{op}_backward")
    gate, up, dh = rng.standard_normal((3, 3, 50), dtype=np.float32)
    dgate, dup, act, d_act = np.empty_like(gate), np.empty_like(gate), np.empty_like(gate), dh.copy()
    backward(dgate, dup, dh, gate, up, 1)
    backward(act, d_act, d_act, gate, up, 1)
    in_place = gate.copy(), up.copy()
    backward(*in_place, dh, *in_place, 1)
    np.testing.assert_array_equal(np.array([dgate, dup] * 2), np.array([*in_place, act, d_act]))
    h = np.empty_like(gate)
    forward(h, gate, up, 1)
    forward(gate, gate, up, 1)
    np.testing.assert_array_equal(gate, h)


@pytest.mark.parametrize("op", UNITS)
def test_nan_stays(isa, op):
    gate = np.array([[np.nan, 1]], np.float32)
    h = np.empty_like(gate)
    getattr(swiglu, f"{op}_forward")(h, gate, np.ones_like(gate), 1)
    assert np.isnan(h[0, 0]) and np.isfinite(h[0, 1])
