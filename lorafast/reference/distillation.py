"""NumPy twin of the loss of a token with a teacher: from logits, token after token, as the equations stand."""
import numpy as np

from .cross_entropy import capped, log_softmax


def taught_loss(z, target, ids, log_q, weight, temperature, soft_cap):
    """Cross entropy and weight · T² Σ Q (log Q - log P): logits z (V,), the teacher's likeliest ids and log_q (k,)."""
    log_p = log_softmax(capped(z[None], soft_cap)[0])[0]

    def outcomes(known):
        b = np.append(np.exp(known), 1 - np.exp(known).sum()) ** (1 / temperature)
        return b / b.sum()

    P, Q = outcomes(log_p[ids]), outcomes(log_q)
    return -log_p[target] + weight * temperature**2 * (Q * np.log(Q / P)).sum()
