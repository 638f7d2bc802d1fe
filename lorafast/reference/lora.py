"""NumPy twin of kernels/lora.pyx."""
from __future__ import annotations

import numpy as np


def lora_forward(h: np.ndarray, x: np.ndarray, A: np.ndarray, scale: float, n_threads: int = 1) -> None:
    h[:] = scale * x @ A.T


def lora_backward(c: np.ndarray, dA: np.ndarray, dB: np.ndarray, dy: np.ndarray, x: np.ndarray, B: np.ndarray,
                  h: np.ndarray, scale: float, n_threads: int = 1) -> None:
    c[:] = scale * dy @ B.T             # forward: y += h @ B, h = scale * x @ A.T
    dA += c.T @ x
    dB += h.T @ dy
