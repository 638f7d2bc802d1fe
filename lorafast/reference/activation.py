"""NumPy twins of the activation kernels. They work in the arrays' own precision."""
from __future__ import annotations

import numpy as np


def silu(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative."""
    sigmoid = 1 / (1 + np.exp(-z))
    return z * sigmoid, sigmoid * (1 + z * (1 - sigmoid))


def gelu(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative of the tanh form."""
    k = np.sqrt(2 / np.pi).astype(z.dtype)
    tanh = np.tanh(k * (z + 0.044715 * z**3))
    return z * (1 + tanh) / 2, (1 + tanh) / 2 + z * (1 - tanh**2) / 2 * k * (1 + 3 * 0.044715 * z**2)


def relu_squared(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative."""
    positive = np.maximum(z, 0)
    return positive**2, 2 * positive


def sigmoid(z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and derivative."""
    value = 1 / (1 + np.exp(-z))
    return value, value * (1 - value)


def gelu_forward(y: np.ndarray, x: np.ndarray, n_threads: int) -> None:
    y[:] = gelu(x)[0]


def gelu_backward(dx: np.ndarray, dy: np.ndarray, x: np.ndarray, n_threads: int) -> None:
    # forward: y = gelu(x)
    dx[:] = dy * gelu(x)[1]


def relu_squared_forward(y: np.ndarray, x: np.ndarray, n_threads: int) -> None:
    y[:] = relu_squared(x)[0]


def relu_squared_backward(dx: np.ndarray, dy: np.ndarray, x: np.ndarray, n_threads: int) -> None:
    # forward: y = relu(x)²
    dx[:] = dy * relu_squared(x)[1]
