import numpy as np
import pytest
from numerics import GRADIENT_LIMIT, gradient_error, nmse

from lorafast.kernels.layer_norm import layer_norm_backward, layer_norm_forward
from lorafast.reference import layer_norm as twin

EPS = 1e-5
LIMITS = {"y": 1e-13, "mean": 1e-12, "rstd": 1e-13, "dx": 1e-12, "dgain": 1e-12}
"""NMSE against the twin. The mean is a difference of large values, so its relative error is the largest."""


def test_twin_gradients(rng):
    x, gain, weight = rng.standard_normal((3, 7)), rng.standard_normal(7), rng.standard_normal((3, 7))
    y, mean, rstd, dx, dgain = np.empty((3, 7)), np.empty(3), np.empty(3), np.zeros((3, 7)), np.zeros(7)

    def loss():
        twin.layer_norm_forward(y, mean, rstd, x, gain, np.ones(7), EPS, 1)
        return np.sum(weight * y)

    loss()
    twin.layer_norm_backward(dx, dgain, weight, x, gain, mean, rstd, 1)
    assert gradient_error(dx, loss, x) < GRADIENT_LIMIT
    assert gradient_error(dgain, loss, gain) < GRADIENT_LIMIT


def everything(forward, backward, x, dy, gain, bias) -> dict[str, np.ndarray]:
    T, C = x.shape
    y, mean, rstd, dx, dgain = (np.zeros(shape, x.dtype) for shape in ((T, C), T, T, (T, C), C))
    forward(y, mean, rstd, x, gain, bias, EPS, 2)
    backward(dx, dgain, dy, x, gain, mean, rstd, 2)
    return {"y": y, "mean": mean, "rstd": rstd, "dx": dx, "dgain": dgain}


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("T, C", [(256, 768), (40, 4096), (300, 64), (5, 13)])
def test_kernel_equals_twin(isa, rng, T, C, with_bias):
    scale = 10.0 ** rng.integers(-3, 3, T)[:, None]                       # rows of very different size
    x = (scale * (rng.standard_normal((T, C)) + rng.standard_normal((T, 1)))).astype(np.float32)
    dy, gain = rng.standard_normal((T, C), dtype=np.float32), rng.standard_normal(C, dtype=np.float32)
    bias = rng.standard_normal(C, dtype=np.float32) if with_bias else None
    exact = everything(twin.layer_norm_forward, twin.layer_norm_backward,
                       *(None if value is None else value.astype(np.float64) for value in (x, dy, gain, bias)))
    for name, value in everything(layer_norm_forward, layer_norm_backward, x, dy, gain, bias).items():
        assert nmse(value, exact[name]) < LIMITS[name], name


def test_no_gradient_of_the_gain(rng):
    x, dy = rng.standard_normal((2, 5, 32), dtype=np.float32)
    gain, mean, rstd, dgain = np.ones(32, np.float32), *np.ones((2, 5), np.float32), np.zeros(32, np.float32)
    dx = np.zeros((2, 5, 32), np.float32)
    layer_norm_backward(dx[0], dgain, dy, x, gain, mean, rstd, 1)
    layer_norm_backward(dx[1], None, dy, x, gain, mean, rstd, 1)
    np.testing.assert_array_equal(dx[0], dx[1])


def test_a_row_of_equal_values(isa):
    """Nothing is left but the bias; the gradient is finite."""
    x, gain, bias = np.full((1, 40), 1e4, np.float32), np.ones(40, np.float32), np.full(40, 0.5, np.float32)
    results = everything(layer_norm_forward, layer_norm_backward, x, np.ones((1, 40), np.float32), gain, bias)
    np.testing.assert_array_equal(results["y"], 0.5)
    assert np.isfinite(results["dx"]).all()


@pytest.mark.parametrize("bias", [np.zeros(8, np.float32)])
def test_a_wrong_bias_is_refused(bias):
    y, x, stat, gain = np.zeros((2, 9), np.float32), np.zeros((2, 9), np.float32), np.zeros(2, np.float32), np.ones(9)
    with pytest.raises(ValueError, match=r"^layer_norm_forward: bias has shape \(8,\), wanted \(9,\)"):
        layer_norm_forward(y, stat, stat.copy(), x, gain.astype(np.float32), bias, EPS, 1)
