"""NumPy twins of the short convolutions. They work in the arrays' own precision."""
from __future__ import annotations

from itertools import pairwise

import numpy as np

from .activation import silu


def convolved(u: np.ndarray, taps: np.ndarray, begin: np.ndarray) -> np.ndarray:
    """v[t] = Σ_j taps[K - 1 - j] · u[t - j] within each sequence."""
    v, K = np.zeros_like(u), len(taps)
    for first, end in pairwise(begin):
        for j in range(min(K, end - first)):
            v[first + j:end] += taps[K - 1 - j] * u[first:end - j]
    return v


def convolved_backward(dv: np.ndarray, taps: np.ndarray, begin: np.ndarray) -> np.ndarray:
    # forward: v[t] += taps[K - 1 - j] * u[t - j]
    du, K = np.zeros_like(dv), len(taps)
    for first, end in pairwise(begin):
        for j in range(min(K, end - first)):
            du[first:end - j] += taps[K - 1 - j] * dv[first + j:end]
    return du


def gated_conv_forward(y: np.ndarray, b: np.ndarray, c: np.ndarray, x: np.ndarray, taps: np.ndarray, begin: np.ndarray,
                       n_threads: int) -> None:
    y[:] = c * convolved(b * x, taps, begin)


def gated_conv_backward(db: np.ndarray, dc: np.ndarray, dx: np.ndarray, dy: np.ndarray, b: np.ndarray, c: np.ndarray,
                        x: np.ndarray, taps: np.ndarray, begin: np.ndarray, n_threads: int) -> None:
    # forward: y = c * convolved(b * x)
    v, du = convolved(b * x, taps, begin), convolved_backward(dy * c, taps, begin)
    db[:], dc[:], dx[:] = du * x, dy * v, du * b


def silu_conv_forward(y: np.ndarray, x: np.ndarray, taps: np.ndarray, begin: np.ndarray, n_threads: int) -> None:
    y[:] = silu(convolved(x, taps, begin))[0]


def silu_conv_backward(dx: np.ndarray, dy: np.ndarray, x: np.ndarray, taps: np.ndarray, begin: np.ndarray,
                       n_threads: int) -> None:
    # forward: y = silu(convolved(x))
    slope = silu(convolved(x, taps, begin))[1]
    dx[:] = convolved_backward(dy * slope, taps, begin)
