"""NumPy twins of the preference losses: from logits, one pair or answer after another, as the papers have them."""
from __future__ import annotations

import numpy as np

from .cross_entropy import log_softmax


def answer_log_p(logits: np.ndarray, targets: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Log-probability of an answer: logits (T, V), targets (T,), answers bool (T,)."""
    return log_softmax(logits)[np.arange(len(targets)), targets][answers].sum()


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.log(1 + np.exp(-x))


def pair_loss(method: str, w: np.ndarray, r: np.ndarray, ref_w: np.ndarray, ref_r: np.ndarray, n_w: np.ndarray,
              n_r: np.ndarray, beta: float, epsilon: float, gamma: float) -> np.ndarray:
    """The loss of one pair: log-probabilities of the better and the worse answer, by the reference too, and their
    tokens."""
    if method == "ipo":
        return ((w - ref_w) / n_w - (r - ref_r) / n_r - 1 / (2 * beta)) ** 2
    if method == "orpo":
        odds_w, odds_r = (np.exp(x) / (1 - np.exp(x)) for x in (w / n_w, r / n_r))
        return -beta * log_sigmoid(np.log(odds_w / odds_r))
    x = {"dpo": beta * ((w - ref_w) - (r - ref_r)), "cpo": beta * (w - r),
         "simpo": beta * (w / n_w - r / n_r) - gamma}[method]
    return -(1 - epsilon) * log_sigmoid(x) - epsilon * log_sigmoid(-x)


def kto_loss(log_p: np.ndarray, reference: np.ndarray, is_good: np.ndarray, distance: np.ndarray,
             beta: float) -> np.ndarray:
    """The loss of one answer."""
    x = beta * (log_p - reference - distance)
    return 1 - np.exp(log_sigmoid(x if is_good else -x))
