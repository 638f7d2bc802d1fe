"""NumPy twin of kernels/linear.pyx. A weight is a float array (N, K) here, in whatever precision the caller wants; that
of experts is (E, N, K)."""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np

LowRank = list["tuple[np.ndarray, np.ndarray] | None"]
"""c (T, R) and v (R, N) of each, or None."""


def linear_forward(ys: list[np.ndarray], x: np.ndarray, weights: list[np.ndarray], low_rank: LowRank,
                   residual: np.ndarray | None, n_threads: int = 1) -> None:
    for y, W, update in zip(ys, weights, low_rank):
        y[:] = x @ W.T
        if update is not None:
            c, v = update
            y += c @ v
        if residual is not None:
            y += residual


def linear_backward(dx: np.ndarray, dys: list[np.ndarray], weights: list[np.ndarray], low_rank: LowRank,
                    n_threads: int = 1) -> None:
    dx[:] = 0
    linear_backward_add(dx, dys, weights, low_rank)


def linear_backward_add(dx: np.ndarray, dys: list[np.ndarray], weights: list[np.ndarray], low_rank: LowRank,
                        n_threads: int = 1) -> None:
    for dy, W, update in zip(dys, weights, low_rank):
        dx += dy @ W                    # forward: y = x @ W.T
        if update is not None:
            c, v = update
            dx += c @ v                 # forward: y += h @ B, h = scale * x @ A.T; here c = scale * dy @ B.T, v = A


def _experts(begin: np.ndarray) -> Iterator[tuple[int, slice]]:
    """Each expert that has rows, and these."""
    for e in range(len(begin) - 1):
        if begin[e] < begin[e + 1]:
            yield e, slice(begin[e], begin[e + 1])


def experts_forward(ys: list[np.ndarray], x: np.ndarray, weights: list[np.ndarray], biases: list[np.ndarray | None],
                    begin: np.ndarray, tokens: np.ndarray, n_threads: int = 1) -> None:
    for e, rows in _experts(begin):
        for y, W, bias in zip(ys, weights, biases):
            y[rows] = x[tokens[rows]] @ W[e].T
            if bias is not None:
                y[rows] += bias[e]


def experts_backward(dx: np.ndarray, dys: list[np.ndarray], weights: list[np.ndarray], begin: np.ndarray,
                     tokens: np.ndarray, n_threads: int = 1) -> None:
    dx[:] = 0
    for e, rows in _experts(begin):
        for dy, W in zip(dys, weights):
            np.add.at(dx, tokens[rows], dy[rows] @ W[e])    # forward: y[rows] = x[tokens[rows]] @ W[e].T


def experts_sum_forward(y: np.ndarray, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, scale: np.ndarray,
                        begin: np.ndarray, tokens: np.ndarray, n_threads: int = 1) -> None:
    y[:] = 0
    for e, rows in _experts(begin):
        z = x[rows] @ weight[e].T + (0 if bias is None else bias[e])
        np.add.at(y, tokens[rows], scale[rows, None] * z)


def experts_sum_backward(dx: np.ndarray, dy: np.ndarray, weight: np.ndarray, begin: np.ndarray, tokens: np.ndarray,
                         n_threads: int = 1) -> None:
    for e, rows in _experts(begin):
        dx[rows] = dy[tokens[rows]] @ weight[e]             # forward: z = x[rows] @ weight[e].T
