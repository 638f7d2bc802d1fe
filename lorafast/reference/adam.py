"""NumPy twins of the Adam kernel and its gradient norm. They work in the arrays' own precision."""
from __future__ import annotations

import numpy as np


def adam_step(param: np.ndarray, m: np.ndarray, v: np.ndarray, grad: np.ndarray, grad_scale: float, beta1: float,
              beta2: float, a_t: float, c_t: float, eps: float, decay: float, n_threads: int) -> None:
    g = grad * grad_scale
    m[:] = beta1 * m + (1 - beta1) * g
    v[:] = beta2 * v + (1 - beta2) * g**2
    param[:] = param * (1 - decay) - m * a_t / (np.sqrt(v * c_t) + eps)


def sum_of_squares(x: np.ndarray, n_threads: int) -> float:
    return float(np.sum(np.square(x, dtype=np.float64)))
