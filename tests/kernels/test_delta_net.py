from itertools import pairwise

import numpy as np
import pytest
from numerics import GRADIENT_LIMIT, gradient_error, nmse

from lorafast.kernels import delta_net
from lorafast.reference import delta_net as twin

LIMIT = 1e-12           # measured below
STATE_LIMIT = 1e-11


def inputs(rng, T: int, HK: int, HV: int, D: int, DV: int, decay: float = 1.0) -> list[np.ndarray]:
    """q, k, v, g, beta; keys of length 1, as in models."""
    q, k = rng.standard_normal((2, T, HK, D))
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    return [q.reshape(T, -1) * D**-0.5, k.reshape(T, -1), rng.standard_normal((T, HV * DV)),
            -decay * rng.exponential(size=(T, HV)), rng.uniform(0.1, 0.9, (T, HV))]


def begins(*lengths: int) -> np.ndarray:
    return np.cumsum([0, *lengths], dtype=np.int32)


def forward(module, arrays, begin, HK: int, state=None, n_threads: int = 1) -> np.ndarray:
    o = np.full_like(arrays[2], np.nan)
    module.delta_net_forward(o, state, *arrays, begin, HK, n_threads)
    return o


def backward(module, do, arrays, begin, HK: int, n_threads: int = 1) -> list[np.ndarray]:
    gradients = [np.full_like(array, np.nan) for array in arrays]
    module.delta_net_backward(*gradients, do, *arrays, begin, HK, n_threads)
    return gradients


def test_twin_gradients(rng):
    arrays, begin = inputs(rng, 7, 2, 4, 3, 5), begins(5, 2)
    weight = rng.standard_normal(arrays[2].shape)
    gradients = backward(twin, weight, arrays, begin, 2)
    for gradient, array in zip(gradients, arrays, strict=True):
        assert gradient_error(gradient, lambda: np.sum(weight * forward(twin, arrays, begin, 2)),
                              array) < GRADIENT_LIMIT


@pytest.mark.parametrize("decay", [0.01, 1.0, 40.0])
@pytest.mark.parametrize("lengths, HK, HV, D, DV", [((150, 3), 1, 2, 16, 32), ((64, 1, 65), 2, 2, 7, 5),
                                                    ((130,), 2, 4, 40, 24)])
def test_kernel_equals_twin(isa, rng, lengths, HK, HV, D, DV, decay):
    begin = begins(*lengths)
    arrays = [array.astype(np.float32) for array in inputs(rng, begin[-1], HK, HV, D, DV, decay)]
    do = rng.standard_normal(arrays[2].shape, dtype=np.float32)
    exact = [array.astype(np.float64) for array in arrays]
    assert nmse(forward(delta_net, arrays, begin, HK), forward(twin, exact, begin, HK)) < LIMIT
    wanted = backward(twin, do.astype(np.float64), exact, begin, HK)
    for got, gradient in zip(backward(delta_net, do, arrays, begin, HK, 2), wanted, strict=True):
        assert nmse(got, gradient) < LIMIT


def test_a_sequence_in_pieces(isa, rng):
    """With its state carried on, piece by piece, as generation reads it."""
    T, HK, HV, D, DV = 100, 2, 4, 24, 16
    arrays = [array.astype(np.float32) for array in inputs(rng, T, HK, HV, D, DV, 0.1)]
    whole = forward(delta_net, arrays, begins(T), HK)
    state, exact_state = np.zeros((HV, D, DV), np.float32), np.zeros((HV, D, DV))
    at = 0
    for n in (1, 1, 65, 20, 13):
        piece = [array[at:at + n].copy() for array in arrays]
        np.testing.assert_allclose(forward(delta_net, piece, begins(n), HK, state), whole[at:at + n], atol=1e-5)
        at += n
    forward(twin, [array.astype(np.float64) for array in arrays], begins(T), HK, exact_state)
    assert nmse(state, exact_state) < STATE_LIMIT


def test_sequences_do_not_see_each_other(rng):
    """Bit for bit what each gives alone."""
    begin = begins(70, 1, 20)
    arrays = [array.astype(np.float32) for array in inputs(rng, 91, 1, 2, 8, 8)]
    together = backward(delta_net, arrays[2], arrays, begin, 1)
    for first, end in pairwise(begin):
        part = [array[first:end].copy() for array in arrays]
        for got, whole in zip(backward(delta_net, part[2], part, begins(end - first), 1), together, strict=True):
            np.testing.assert_array_equal(got, whole[first:end])


def test_what_does_not_fit_is_refused(rng):
    arrays = [array.astype(np.float32) for array in inputs(rng, 4, 2, 4, 8, 8)]
    with pytest.raises(ValueError, match="4 heads of values by g's shape, wanted a multiple of 3"):
        forward(delta_net, arrays, begins(4), 3)
    with pytest.raises(ValueError, match="begin does not go from 0 to 4"):
        forward(delta_net, arrays, begins(3), 2)
    with pytest.raises(ValueError, match="state has shape"):
        forward(delta_net, arrays, begins(2, 2), 2, np.zeros((4, 8, 8), np.float32))
