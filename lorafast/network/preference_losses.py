"""The losses of preference training, of the log-probabilities of whole answers, with their derivatives. In float64.

With x of the better answer w and the worse answer l to a prompt, π the model, ref the model without the adapter:

    Δ      = log π(w) - log ref(w) - (log π(l) - log ref(l))
    DPO    -(1 - ε) log σ(β Δ) - ε log σ(-β Δ)                            Rafailov et al., 2023; ε: Mitchell, 2023
    IPO    (Δ with each side divided by its tokens - 1 / (2 β))²          Azar et al., 2023
    CPO    DPO without ref                                                Xu et al., 2024
    SimPO  CPO with log π(·) divided by its tokens, and βΔ - γ for βΔ     Meng et al., 2024
    ORPO   -β log σ(log odds(w) - log odds(l)), odds of exp(log π / tokens)   Hong et al., 2024

and of single answers y that are good or bad, with z how far the model has gone from the reference:

    KTO    1 - σ(β (log π(y) - log ref(y) - z)) of a good one, 1 - σ(β (z - ...)) of a bad one   Ethayarajh et al., 2024
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Hyper:
    """The options that are part of a loss: see above."""

    beta: float
    label_smoothing: float = 0.0
    gamma: float = 0.0


@dataclass(frozen=True)
class Answers:
    """Some answers under the model: log-probabilities, of the reference too, and how many tokens they have. All of the
    same shape: (P, 2) of pairs, the better one first, (n,) of judged ones.
    """

    log_p: np.ndarray
    reference: np.ndarray
    tokens: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        """log π - log ref."""
        return self.log_p - self.reference


@dataclass(frozen=True)
class Judged:
    """losses: one a pair, or answer; slopes: their derivatives by log_p; rewards: of each answer, as the paper has
    them."""

    losses: np.ndarray
    slopes: np.ndarray
    rewards: np.ndarray


def pair_losses(method: str, answers: Answers, hyper: Hyper) -> Judged:
    """The losses (P,) of pairs by a method that takes pairs."""
    if method == "ipo":
        return _ipo(answers, hyper)
    if method == "orpo":
        return _orpo(answers, hyper)
    score, slope = {"dpo": (answers.ratio, np.ones_like(answers.log_p)),
                    "cpo": (answers.log_p, np.ones_like(answers.log_p)),
                    "simpo": (answers.log_p / answers.tokens, 1 / answers.tokens)}[method]
    x = hyper.beta * (score[:, 0] - score[:, 1]) - (hyper.gamma if method == "simpo" else 0.0)
    losses, d_x = _smoothed(x, hyper.label_smoothing)
    return Judged(losses, hyper.beta * d_x[:, None] * slope * [1.0, -1.0], hyper.beta * score)


def _smoothed(x: np.ndarray, epsilon: float) -> tuple[np.ndarray, np.ndarray]:
    """-(1 - ε) log σ(x) - ε log σ(-x), and its derivative."""
    return (1 - epsilon) * softplus(-x) + epsilon * softplus(x), epsilon * sigmoid(x) - (1 - epsilon) * sigmoid(-x)


def _ipo(answers: Answers, hyper: Hyper) -> Judged:
    score = answers.ratio / answers.tokens
    distance = score[:, 0] - score[:, 1] - 1 / (2 * hyper.beta)
    return Judged(distance**2, 2 * distance[:, None] / answers.tokens * [1.0, -1.0], hyper.beta * answers.ratio)


def _orpo(answers: Answers, hyper: Hyper) -> Judged:
    mean = answers.log_p / answers.tokens
    log_odds = mean - log1mexp(mean)
    x = log_odds[:, 0] - log_odds[:, 1]
    # d log odds(m) / dm = 1 / (1 - exp(m))
    slopes = -hyper.beta * sigmoid(-x)[:, None] / -np.expm1(mean) / answers.tokens * [1.0, -1.0]
    return Judged(hyper.beta * softplus(-x), slopes, hyper.beta * mean)


def kto_losses(answers: Answers, is_good: np.ndarray, distance: float, hyper: Hyper) -> Judged:
    """The losses (n,) of judged answers.

    is_good   bool (n,)
    distance  z >= 0, which is held fixed
    """
    sign = np.where(is_good, 1.0, -1.0)
    x = hyper.beta * sign * (answers.ratio - distance)
    return Judged(sigmoid(-x), -hyper.beta * sign * sigmoid(x) * sigmoid(-x), hyper.beta * answers.ratio)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-softplus(-x))


def softplus(x: np.ndarray) -> np.ndarray:
    """log(1 + exp(x)) = -log σ(-x)."""
    return np.logaddexp(0.0, x)


def log1mexp(x: np.ndarray) -> np.ndarray:
    """log(1 - exp(x)) for x < 0 (Mächler, 2012)."""
    return np.where(x > -np.log(2), np.log(-np.expm1(x)), np.log1p(-np.exp(x)))
