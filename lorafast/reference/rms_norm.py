"""NumPy twin of the RMS norm kernel. Works in the arrays' own precision."""
from __future__ import annotations

import numpy as np


def rms_norm_forward(y: np.ndarray, rstd: np.ndarray, x: np.ndarray, gain: np.ndarray, eps: float,
                     n_threads: int) -> None:
    rstd[:] = 1 / np.sqrt(np.mean(x * x, axis=1) + eps)
    y[:] = x * rstd[:, None] * gain


def rms_norm_backward(dx: np.ndarray, dgain: np.ndarray | None, dy: np.ndarray, x: np.ndarray, gain: np.ndarray,
                      rstd: np.ndarray, n_threads: int) -> None:
    # forward: y = x * rstd * gain
    dz = dy * gain
    dx += rstd[:, None] * (dz - x * rstd[:, None] ** 2 * np.mean(dz * x, axis=1, keepdims=True))
    if dgain is not None:
        dgain += np.sum(dy * x * rstd[:, None], axis=0)
