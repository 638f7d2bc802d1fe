"""NumPy twins of the gated-unit kernels. They work in the arrays' own precision."""
from __future__ import annotations

import numpy as np

from .activation import gelu, relu_squared, sigmoid, silu


def swiglu_forward(h: np.ndarray, gate: np.ndarray, up: np.ndarray, n_threads: int) -> None:
    h[:] = silu(gate)[0] * up


def swiglu_backward(dgate: np.ndarray, dup: np.ndarray, dh: np.ndarray, gate: np.ndarray, up: np.ndarray,
                    n_threads: int) -> None:
    # forward: h = silu(gate) * up
    value, slope = silu(gate)
    dgate[:], dup[:] = dh * up * slope, dh * value


def geglu_forward(h: np.ndarray, gate: np.ndarray, up: np.ndarray, n_threads: int) -> None:
    h[:] = gelu(gate)[0] * up


def geglu_backward(dgate: np.ndarray, dup: np.ndarray, dh: np.ndarray, gate: np.ndarray, up: np.ndarray,
                   n_threads: int) -> None:
    # forward: h = gelu(gate) * up
    value, slope = gelu(gate)
    dgate[:], dup[:] = dh * up * slope, dh * value


def reglu2_forward(h: np.ndarray, gate: np.ndarray, up: np.ndarray, n_threads: int) -> None:
    h[:] = relu_squared(gate)[0] * up


def reglu2_backward(dgate: np.ndarray, dup: np.ndarray, dh: np.ndarray, gate: np.ndarray, up: np.ndarray,
                    n_threads: int) -> None:
    # forward: h = relu(gate)² * up
    value, slope = relu_squared(gate)
    dgate[:], dup[:] = dh * up * slope, dh * value


def clamped_swiglu_forward(h: np.ndarray, gate: np.ndarray, up: np.ndarray, n_threads: int) -> None:
    g, u = np.minimum(gate, 7), np.clip(up, -7, 7)
    h[:] = silu(1.702 * g)[0] / 1.702 * (u + 1)


def clamped_swiglu_backward(dgate: np.ndarray, dup: np.ndarray, dh: np.ndarray, gate: np.ndarray, up: np.ndarray,
                            n_threads: int) -> None:
    # forward: h = g * sigmoid(1.702 * g) * (u + 1), g = min(gate, 7), u = clip(up, -7, 7)
    value, slope = silu(1.702 * np.minimum(gate, 7))
    d_g, d_u = dh * (np.clip(up, -7, 7) + 1) * slope, dh * value / 1.702
    dgate[:], dup[:] = np.where(gate > 7, 0, d_g), np.where(np.abs(up) > 7, 0, d_u)


def glu_forward(h: np.ndarray, gate: np.ndarray, up: np.ndarray, n_threads: int) -> None:
    h[:] = sigmoid(gate)[0] * up


def glu_backward(dgate: np.ndarray, dup: np.ndarray, dh: np.ndarray, gate: np.ndarray, up: np.ndarray,
                 n_threads: int) -> None:
    # forward: h = sigmoid(gate) * up
    value, slope = sigmoid(gate)
    dgate[:], dup[:] = dh * up * slope, dh * value
