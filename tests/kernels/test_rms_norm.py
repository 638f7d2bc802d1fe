import numpy as np
import pytest
from numerics import GRADIENT_LIMIT, gradient_error, nmse

from lorafast.kernels.rms_norm import rms_norm_backward, rms_norm_forward
from lorafast.reference import rms_norm as twin

EPS = 1e-5
FORWARD_LIMIT = 1e-14     # measured 3e-15
RSTD_LIMIT = 1e-14        # measured 2e-15
DX_LIMIT = 1e-14          # measured 4e-15
DGAIN_LIMIT = 1e-12       # measured 2e-13: a sum over rows in float32


def test_twin_gradients(rng):
    x, gain, weight = rng.standard_normal((3, 7)), rng.standard_normal(7), rng.standard_normal((3, 7))
    y, rstd, dx, dgain = np.empty((3, 7)), np.empty(3), np.zeros((3, 7)), np.zeros(7)

    def loss():
        twin.rms_norm_forward(y, rstd, x, gain, EPS, 1)
        return np.sum(weight * y)

    loss()
    twin.rms_norm_backward(dx, dgain, weight, x, gain, rstd, 1)
    assert gradient_error(dx, loss, x) < GRADIENT_LIMIT
    assert gradient_error(dgain, loss, gain) < GRADIENT_LIMIT


@pytest.mark.parametrize("T, C", [(256, 768), (40, 4096), (300, 64)])
def test_kernel_equals_twin(isa, rng, T, C):
    scale = 10.0 ** rng.integers(-3, 3, T)[:, None]           # rows of very different size
    x, dy = (scale * rng.standard_normal((T, C))).astype(np.float32), rng.standard_normal((T, C), dtype=np.float32)
    gain = rng.standard_normal(C, dtype=np.float32)
    y, rstd, dx, dgain = (np.zeros(shape, np.float32) for shape in ((T, C), T, (T, C), C))
    rms_norm_forward(y, rstd, x, gain, EPS, 2)
    rms_norm_backward(dx, dgain, dy, x, gain, rstd, 2)

    x, dy, gain = x.astype(np.float64), dy.astype(np.float64), gain.astype(np.float64)
    exact_y, exact_rstd, exact_dx, exact_dgain = (np.zeros(shape) for shape in ((T, C), T, (T, C), C))
    twin.rms_norm_forward(exact_y, exact_rstd, x, gain, EPS, 1)
    twin.rms_norm_backward(exact_dx, exact_dgain, dy, x, gain, exact_rstd, 1)
    assert nmse(y, exact_y) < FORWARD_LIMIT
    assert nmse(rstd, exact_rstd) < RSTD_LIMIT
    assert nmse(dx, exact_dx) < DX_LIMIT
    assert nmse(dgain, exact_dgain) < DGAIN_LIMIT


def test_no_gradient_of_the_gain(rng):
    x, dy = rng.standard_normal((2, 5, 32), dtype=np.float32)
    gain, rstd, dgain = np.ones(32, np.float32), np.ones(5, np.float32), np.zeros(32, np.float32)
    dx = np.zeros((2, 5, 32), np.float32)
    rms_norm_backward(dx[0], dgain, dy, x, gain, rstd, 1)
    rms_norm_backward(dx[1], None, dy, x, gain, rstd, 1)
    np.testing.assert_array_equal(dx[0], dx[1])


def test_massive_activations_do_not_overflow():
    x = np.full((1, 64), 1e20, np.float32)
    y, rstd = np.empty((1, 64), np.float32), np.empty(1, np.float32)
    rms_norm_forward(y, rstd, x, np.ones(64, np.float32), EPS, 1)
    np.testing.assert_array_equal(y, 0)      # mean of squares 1e40 is inf in float32, so rstd is 0: as in the original
