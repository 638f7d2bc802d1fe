from itertools import pairwise

import numpy as np
import pytest
from numerics import GRADIENT_LIMIT, gradient_error, nmse

from lorafast.kernels import short_conv
from lorafast.reference import short_conv as twin

LIMIT = 1e-13           # measured 1e-14, forward and backward
OPS = {"gated_conv": ("b", "c", "x"), "silu_conv": ("x",)}
"""The inputs by op."""


@pytest.fixture(params=OPS)
def op(request) -> str:
    return request.param


def forward(module, op: str, inputs, taps, begin, n_threads: int = 1) -> np.ndarray:
    y = np.full_like(inputs[0], np.nan)
    getattr(module, f"{op}_forward")(y, *inputs, taps, begin, n_threads)
    return y


def backward(module, op: str, dy, inputs, taps, begin, n_threads: int = 1) -> list[np.ndarray]:
    gradients = [np.full_like(x, np.nan) for x in inputs]
    getattr(module, f"{op}_backward")(*gradients, dy, *inputs, taps, begin, n_threads)
    return gradients


def case(rng, op: str, T: int, C: int, K: int):
    begin = np.array([0, T // 3, T // 3, T // 3 + min(1, T), T], np.int32)      # an empty one, and one of one row
    return [rng.standard_normal((T, C)) for _ in OPS[op]], rng.standard_normal((K, C)), begin


def test_twin_gradients(rng, op):
    inputs, taps, begin = case(rng, op, 9, 3, 3)
    weight = rng.standard_normal((9, 3))
    gradients = backward(twin, op, weight, inputs, taps, begin)
    for gradient, x in zip(gradients, inputs, strict=True):
        assert gradient_error(gradient, lambda: np.sum(weight * forward(twin, op, inputs, taps, begin)),
                              x) < GRADIENT_LIMIT


@pytest.mark.parametrize("T, C, K", [(200, 392, 3), (33, 70, 4), (5, 7, 16), (4, 65, 1)])
def test_kernel_equals_twin(isa, rng, op, T, C, K):
    inputs, taps, begin = case(rng, op, T, C, K)
    inputs, taps = [x.astype(np.float32) for x in inputs], taps.astype(np.float32)
    dy = rng.standard_normal((T, C), dtype=np.float32)
    exact = [x.astype(np.float64) for x in inputs], taps.astype(np.float64), begin
    y = forward(short_conv, op, inputs, taps, begin)
    assert nmse(y, forward(twin, op, *exact)) < LIMIT
    np.testing.assert_array_equal(forward(short_conv, op, inputs, taps, begin, 3), y)
    got, wanted = backward(short_conv, op, dy, inputs, taps, begin, 2), backward(twin, op, dy.astype(float), *exact)
    for gradient, exact_gradient in zip(got, wanted, strict=True):
        assert nmse(gradient, exact_gradient) < LIMIT
    in_place = [x.copy() for x in inputs]
    getattr(short_conv, f"{op}_backward")(*in_place, dy, *in_place, taps, begin, 1)
    np.testing.assert_array_equal(np.array(in_place), np.array(got))


def test_sequences_do_not_see_each_other(rng, op):
    """Bit for bit what each gives alone."""
    inputs, taps, begin = case(rng, op, 40, 20, 4)
    inputs, taps = [x.astype(np.float32) for x in inputs], taps.astype(np.float32)
    together = forward(short_conv, op, inputs, taps, begin)
    for first, end in pairwise(begin):
        whole = np.array([0, end - first], np.int32)
        alone = forward(short_conv, op, [x[first:end].copy() for x in inputs], taps, whole)
        np.testing.assert_array_equal(together[first:end], alone)


def test_begin_is_checked(op):
    x, taps = np.zeros((4, 3), np.float32), np.zeros((2, 3), np.float32)
    for begin in ([0, 3], [1, 4], [0, 3, 2, 4], []):
        with pytest.raises(ValueError, match="begin"):
            forward(short_conv, op, [x] * len(OPS[op]), taps, np.array(begin, np.int32))
    with pytest.raises(ValueError, match="17 rows, wanted 1 to 16"):
        forward(short_conv, op, [x] * len(OPS[op]), np.zeros((17, 3), np.float32), np.array([0, 4], np.int32))
