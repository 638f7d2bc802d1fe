"""NumPy twins of the cross-entropy kernels. They work in the arrays' own precision."""
from __future__ import annotations

import numpy as np


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def capped(logits: np.ndarray, soft_cap: float) -> tuple[np.ndarray, np.ndarray]:
    """soft_cap · tanh(logits / soft_cap), and its derivative."""
    if not soft_cap:
        return logits, np.ones_like(logits)
    tanh = np.tanh(logits / soft_cap)
    return soft_cap * tanh, 1 - tanh**2


def cross_entropy_forward(loss: np.ndarray, logits: np.ndarray, targets: np.ndarray, floor: float, soft_cap: float,
                          n_threads: int) -> None:
    t = np.flatnonzero(targets >= 0)
    log_p = log_softmax(capped(logits[t], soft_cap)[0])[np.arange(len(t)), targets[t]]
    loss[:] = 0
    loss[t] = -np.log(np.exp(log_p) * (1 - floor) + floor) if floor else -log_p


def cross_entropy_forward_backward(loss: np.ndarray, logits: np.ndarray, targets: np.ndarray, dloss: np.ndarray,
                                   floor: float, soft_cap: float, n_threads: int) -> None:
    cross_entropy_forward(loss, logits, targets, floor, soft_cap, n_threads)
    # forward: loss = -ln(p (1 - floor) + floor), p = softmax(capped)[target]
    t = np.flatnonzero(targets >= 0)
    value, slope = capped(logits[t], soft_cap)
    gradient = np.exp(log_softmax(value)) * (1 - floor) + floor
    gradient[np.arange(len(t)), targets[t]] -= 1
    logits[:] = 0
    logits[t] = gradient * slope * dloss[t, None]


def cross_entropy_piece_forward(max: np.ndarray, sum: np.ndarray, chosen: np.ndarray, logits: np.ndarray,
                                targets: np.ndarray, soft_cap: float, n_threads: int) -> None:
    y, before = capped(logits, soft_cap)[0], max.copy()
    max[:] = np.maximum(before, y.max(axis=1))
    sum[:] = np.exp(before - max) * sum + np.exp(y - max[:, None]).sum(axis=1)
    t = here(targets, y.shape[1])
    chosen[t] = y[t, targets[t]]


def cross_entropy_piece_loss(loss: np.ndarray, max: np.ndarray, sum: np.ndarray, chosen: np.ndarray, floor: float,
                             n_threads: int) -> None:
    log_p = chosen - max - np.log(sum)
    loss[:] = -np.log(np.exp(log_p) * (1 - floor) + floor) if floor else -log_p


def cross_entropy_piece_backward(logits: np.ndarray, max: np.ndarray, sum: np.ndarray, targets: np.ndarray,
                                 dloss: np.ndarray, floor: float, soft_cap: float, n_threads: int) -> None:
    # forward, over all pieces: loss = -ln(p (1 - floor) + floor), p = exp(chosen - max) / sum
    value, slope = capped(logits, soft_cap)
    gradient = np.exp(value - max[:, None]) / sum[:, None] * (1 - floor) + floor
    t = here(targets, value.shape[1])
    gradient[t, targets[t]] -= 1
    logits[:] = gradient * slope * dloss[:, None]


def here(targets: np.ndarray, n: int) -> np.ndarray:
    """The rows whose target is among the n columns of a piece."""
    return np.flatnonzero((targets >= 0) & (targets < n))
