"""NumPy twin of the rotary embedding kernel. Works in the arrays' own precision."""
from __future__ import annotations

import numpy as np


def pair_columns(n_rot: int, interleaved: bool) -> tuple[np.ndarray, np.ndarray]:
    """Index arrays (a, b) of the pairs within a head."""
    j = np.arange(n_rot // 2)
    return (2 * j, 2 * j + 1) if interleaved else (j, j + n_rot // 2)


def heads(x: np.ndarray, n_head: int) -> np.ndarray:
    return x.reshape(len(x), n_head, x.shape[1] // n_head)


def rope_forward(y: np.ndarray, x: np.ndarray, cos: np.ndarray, sin: np.ndarray, positions: np.ndarray, n_head: int,
                 interleaved: bool, n_threads: int) -> None:
    """y = R x. R is a rotation, so backward, dx = Rᵀ dy, is the same with -sin."""
    a, b = pair_columns(2 * cos.shape[1], interleaved)
    c, s = cos[positions, None], sin[positions, None]
    rotated = heads(x, n_head).copy()
    rotated[..., a] = heads(x, n_head)[..., a] * c - heads(x, n_head)[..., b] * s
    rotated[..., b] = heads(x, n_head)[..., a] * s + heads(x, n_head)[..., b] * c
    y[:] = rotated.reshape(x.shape)
