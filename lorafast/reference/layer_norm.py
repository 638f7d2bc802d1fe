"""NumPy twin of the layer norm kernel. Works in the arrays' own precision."""
from __future__ import annotations

import numpy as np


def layer_norm_forward(y: np.ndarray, mean: np.ndarray, rstd: np.ndarray, x: np.ndarray, gain: np.ndarray,
                       bias: np.ndarray, eps: float, n_threads: int) -> None:
    mean[:] = x.mean(axis=1)
    centred = x - mean[:, None]
    rstd[:] = 1 / np.sqrt(np.mean(centred**2, axis=1) + eps)
    y[:] = centred * rstd[:, None] * gain
    if bias is not None:
        y += bias


def layer_norm_backward(dx: np.ndarray, dgain: np.ndarray | None, dy: np.ndarray, x: np.ndarray, gain: np.ndarray,
                        mean: np.ndarray, rstd: np.ndarray, n_threads: int) -> None:
    # forward: y = z * gain + bias, z = (x - mean) * rstd
    z = (x - mean[:, None]) * rstd[:, None]
    dz = dy * gain
    dx += rstd[:, None] * (dz - dz.mean(axis=1, keepdims=True) - z * np.mean(dz * z, axis=1, keepdims=True))
    if dgain is not None:
        dgain += np.sum(dy * z, axis=0)
