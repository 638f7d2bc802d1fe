import numpy as np
from numerics import GRADIENT_LIMIT, gradient_error, nmse

from lorafast.kernels.dora import dora_backward, dora_forward
from lorafast.reference import dora as twin

FORWARD_LIMIT = 1e-14     # measured 1e-15
DM_LIMIT = 1e-12          # measured 1e-13: a sum over rows in float32


def test_twin_gradients(rng):
    """With c as a constant: gain = m / c."""
    z, weight, residual = rng.standard_normal((3, 5, 7))
    m, c = rng.uniform(0.5, 2, (2, 7))
    y, out, dz, dm = np.empty((5, 7)), np.empty((5, 7)), np.empty((5, 7)), np.zeros(7)

    def loss():
        twin.dora_forward(y, out, z, m / c, residual)
        return np.sum(weight * out)

    loss()
    twin.dora_backward(dz, dm, weight, y, m, m / c)
    assert gradient_error(dz, loss, z) < GRADIENT_LIMIT
    assert gradient_error(dm, loss, m) < GRADIENT_LIMIT


def test_kernel_equals_twin(isa, rng):
    T, N = 256, 1000
    z, dy, residual = rng.standard_normal((3, T, N), dtype=np.float32)
    m, gain = rng.uniform(0.1, 2, (2, N)).astype(np.float32)
    y, out, dz, dm = (np.zeros(shape, np.float32) for shape in ((T, N), (T, N), (T, N), N))
    dora_forward(y, out, z, gain, residual, 2)
    dora_backward(dz, dm, dy, y, m, gain, 2)

    z, dy, residual, m, gain = (x.astype(np.float64) for x in (z, dy, residual, m, gain))
    exact = [np.zeros(shape) for shape in ((T, N), (T, N), (T, N), N)]
    twin.dora_forward(exact[0], exact[1], z, gain, residual)
    twin.dora_backward(exact[2], exact[3], dy, exact[0], m, gain)
    for got, wanted, limit in zip((y, out, dz, dm), exact, (*[FORWARD_LIMIT] * 3, DM_LIMIT)):
        assert nmse(got, wanted) < limit


def test_in_place(isa, rng):
    """As the trainer calls it: y in the place of z, then dz in that of y; with or without a residual y is the same."""
    z, dy, residual = rng.standard_normal((3, 5, 517), dtype=np.float32)
    m, gain = rng.uniform(0.1, 2, (2, 517)).astype(np.float32)
    y, out, dz, dm, dm_in_place = (np.zeros(shape, np.float32) for shape in (*[(5, 517)] * 3, 517, 517))
    dora_forward(y, out, z, gain, residual, 1)
    dora_backward(dz, dm, dy, y, m, gain, 1)
    dora_forward(z, None, z, gain, None, 1)
    np.testing.assert_array_equal(z, y)
    dora_backward(z, dm_in_place, dy, z, m, gain, 1)
    np.testing.assert_array_equal(z, dz)
    np.testing.assert_array_equal(dm_in_place, dm)


def test_a_magnitude_of_zero_gets_no_gradient():
    one = np.ones((2, 3), np.float32)
    m, dm = np.array([1, 0, 2], np.float32), np.zeros(3, np.float32)
    dora_backward(np.empty_like(one), dm, one, one, m, m, 1)
    np.testing.assert_array_equal(dm, [2, 0, 1])
