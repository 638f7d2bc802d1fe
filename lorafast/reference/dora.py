"""NumPy twin of kernels/dora.pyx."""
from __future__ import annotations

import numpy as np


def dora_forward(y: np.ndarray, out: np.ndarray, z: np.ndarray, gain: np.ndarray, residual: np.ndarray | None,
                 n_threads: int = 1) -> None:
    y[:] = gain * z
    if residual is not None:
        out[:] = residual + y


def dora_backward(dz: np.ndarray, dm: np.ndarray, dy: np.ndarray, y: np.ndarray, m: np.ndarray, gain: np.ndarray,
                  n_threads: int = 1) -> None:
    # forward: y = gain * z with gain = m / c, so dy/dm = y / m
    dm += np.divide((dy * y).sum(axis=0), m, out=np.zeros_like(m), where=m != 0)
    dz[:] = gain * dy
