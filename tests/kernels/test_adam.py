import math

import numpy as np
import pytest
from numerics import nmse

from lorafast.kernels.adam import adam_step, sum_of_squares
from lorafast.reference import adam as twin

LIMIT = 1e-12     # measured 3e-14 for param, m and v after ten steps


def test_ten_steps_equal_twin(isa, rng):
    P, beta1, beta2 = 10_001, 0.9, 0.999
    state = [rng.standard_normal(P, dtype=np.float32), np.zeros(P, np.float32), np.zeros(P, np.float32)]
    exact = [x.astype(np.float64) for x in state]
    for iteration in range(1, 11):
        grad = rng.standard_normal(P, dtype=np.float32)
        factors = [float(np.float32(x)) for x in
                   (0.7, beta1, beta2, 0.01 / (1 - beta1**iteration), 1 / (1 - beta2**iteration), 1e-8, 0.001)]
        adam_step(*state, grad, *factors, 2)
        twin.adam_step(*exact, grad.astype(np.float64), *factors, 1)
    for got, wanted in zip(state, exact):
        assert nmse(got, wanted) < LIMIT


def test_by_hand():
    """First step, no decay: whatever the gradient's size, each value moves by the learning rate against its sign; by
    half as much where the gradient is as small as eps."""
    param, m, v = np.zeros((3, 3), np.float32)
    grad = np.array([1e-3, -5, 1e-8], np.float32)
    adam_step(param, m, v, grad, 1, 0.9, 0.999, 0.01 / (1 - 0.9), 1 / (1 - 0.999), 1e-8, 0, 1)
    np.testing.assert_allclose(param, [-0.01, 0.01, -0.005], rtol=1e-3)
    adam_step(param, m, v, np.zeros(3, np.float32), 1, 1, 1, 0, 1, 1e-8, 0.25, 1)          # decay alone
    np.testing.assert_allclose(param, [-0.0075, 0.0075, -0.00375], rtol=1e-3)


def test_moments_end_in_zero(isa):
    """Moments that decay end in 0, not in a subnormal number, which would make every later step slow."""
    param, m, v, grad = np.zeros((4, 20), np.float32)
    m[:10], m[10:], v[:] = 1.3e-38, -1.3e-38, 1.2e-38
    adam_step(param, m, v, grad, 1, 0.9, 0.9, 0.01, 1, 1e-8, 0, 1)
    assert not m.any() and not v.any()


@pytest.mark.parametrize("P", [0, 1, 15, 256, 257, 100_003])
def test_sum_of_squares(isa, rng, P):
    x = rng.standard_normal(P, dtype=np.float32)
    assert sum_of_squares(x, 2) == pytest.approx(twin.sum_of_squares(x, 1), rel=1e-12)


def test_sum_of_squares_threads():
    x = np.random.default_rng(1).standard_normal(100_003, dtype=np.float32)
    assert len({sum_of_squares(x, n_threads) for n_threads in (1, 2, 3)}) == 1


@pytest.mark.parametrize("place", [0, 500, 999])
def test_sum_of_squares_tells_what_is_not_finite(isa, place):
    x = np.full(1000, 3e38, np.float32)
    assert math.isfinite(sum_of_squares(x, 1))
    for bad in (np.nan, np.inf, -np.inf):
        x[place] = bad
        assert not math.isfinite(sum_of_squares(x, 1))
