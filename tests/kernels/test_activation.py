import numpy as np
import pytest
from numerics import GRADIENT_LIMIT, gradient_error, nmse

from lorafast.kernels import activation
from lorafast.reference import activation as twin

OPS = ["gelu", "relu_squared"]
LIMIT = 1e-12      # measured: forward 3e-15, backward 5e-14


@pytest.mark.parametrize("op", OPS)
def test_twin_gradient(rng, op):
    x, weight = rng.standard_normal((2, 4, 5))
    y, dx = np.empty((2, 4, 5))

    def loss():
        getattr(twin, f"{op}_forward")(y, x, 1)
        return np.sum(weight * y)

    getattr(twin, f"{op}_backward")(dx, weight, x, 1)
    assert gradient_error(dx, loss, x) < GRADIENT_LIMIT


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("T, F", [(64, 2048), (20, 37)])
def test_kernel_equals_twin(isa, rng, op, T, F):
    x, dy = 3 * rng.standard_normal((2, T, F), dtype=np.float32)
    y, dx = np.full((2, T, F), np.nan, np.float32)
    exact_y, exact_dx = np.empty((2, T, F))
    getattr(twin, f"{op}_forward")(exact_y, x.astype(np.float64), 1)
    getattr(twin, f"{op}_backward")(exact_dx, dy.astype(np.float64), x.astype(np.float64), 1)

    getattr(activation, f"{op}_forward")(y, x, 2)
    getattr(activation, f"{op}_backward")(dx, dy, x, 2)
    assert nmse(y, exact_y) < LIMIT
    assert nmse(dx, exact_dx) < LIMIT


@pytest.mark.parametrize("op", OPS)
def test_in_place(isa, rng, op):
    forward, backward = getattr(activation, f"{op}_forward"), getattr(activation, f"{op}_backward")
    x, dy = rng.standard_normal((2, 3, 50), dtype=np.float32)
    y, dx, in_place = np.empty_like(x), np.empty_like(x), x.copy()
    forward(y, x, 1)
    forward(in_place, in_place, 1)
    np.testing.assert_array_equal(in_place, y)
    backward(dx, dy, x, 1)
    for taken in (1, 2):                                # dx in the place of dy, then of x
        arrays = [None, dy.copy(), x.copy()]
        arrays[0] = arrays[taken]
        backward(*arrays, 1)
        np.testing.assert_array_equal(arrays[0], dx)


@pytest.mark.parametrize("op", OPS)
def test_nan_stays(isa, op):
    y = np.empty((1, 2), np.float32)
    getattr(activation, f"{op}_forward")(y, np.array([[np.nan, 1]], np.float32), 1)
    assert np.isnan(y[0, 0]) and np.isfinite(y[0, 1])
