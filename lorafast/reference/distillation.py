"""NumPy twin of the loss of a token with a teacher: from logits, token after token, as the equations stand."""
from __future__ import annotations

import numpy as np

from .cross_entropy import capped, log_softmax


def taught_loss(z: np.ndarray, target: int, ids: np.ndarray, log_q: np.ndarray, weight: float,
                temperature: float, soft_cap: float) -> np.ndarray:
    """Cross entropy and weight · T² Σ Q (log Q - log P): logits z (V,), the teacher's likeliest ids and log_q (k,)."""
    log_p = log_softmax(capped(z[None], soft_cap)[0])[0]

    def outcomes(known: np.ndarray) -> np.ndarray:
        b = np.append(np.exp(known), 1 - np.exp(known).sum()) ** (1 / temperature)
        return b / b.sum()

    P, Q = outcomes(log_p[ids]), outcomes(log_q)
    return -log_p[target] + weight * temperature**2 * (Q * np.log(Q / P)).sum()
