"""The divergence of a student's next-token distribution from a teacher's, of which the likeliest tokens are known.

With the k likeliest tokens of the teacher, and all others as one more outcome, both have k + 1 outcomes b, and with a
temperature T

    Q_b ~ exp(log q_b / T),   P_b ~ exp(log p_b / T),   D = T² Σ_b Q_b (log Q_b - log P_b)

Hinton et al., "Distilling the Knowledge in a Neural Network" (2015). With g_b = (P_b - Q_b) T, which add up to 0, the
gradient by the student's logits z is g_j for a known token j, and g_rest p_j / p_rest for any other: that of a cross
entropy with another factor, but for k entries.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST = 1e-6
"""Least probability of all other tokens together: float32 knows no less beside 1."""


@dataclass(frozen=True)
class Targets:
    """What a teacher says of n tokens.

    ids          int32 (n, k), its likeliest
    log_q        float32 (n, k), their log-probabilities
    weight       of the divergence, beside a cross entropy of 1
    temperature  T
    """

    ids: np.ndarray
    log_q: np.ndarray
    weight: float
    temperature: float

    def part(self, first: int, end: int) -> Targets:
        return Targets(self.ids[first:end], self.log_q[first:end], self.weight, self.temperature)


@dataclass(frozen=True)
class Divergence:
    """losses: weight · D of each token, (n,); known: weight · g of the k tokens, (n, k); rest: weight · g_rest /
    p_rest, (n,)."""

    losses: np.ndarray
    known: np.ndarray
    rest: np.ndarray


def divergence(log_p: np.ndarray, targets: Targets) -> Divergence:
    """log_p: float (n, k), the student's log-probabilities of the teacher's likeliest tokens."""
    T = targets.temperature
    p, q = (with_rest(values.astype(np.float64)) for values in (log_p, targets.log_q))
    log_P, log_Q = tempered(p, T), tempered(q, T)
    P, Q = np.exp(log_P), np.exp(log_Q)
    g = targets.weight * T * (P - Q)
    losses = targets.weight * T * T * (Q * (log_Q - log_P)).sum(axis=1)
    return Divergence(losses, g[:, :-1], g[:, -1] / np.exp(p[:, -1]))


def with_rest(log_p: np.ndarray) -> np.ndarray:
    """(n, k + 1): the log-probability of all other outcomes at the end."""
    rest = np.maximum(1 - np.exp(log_p).sum(axis=1, keepdims=True), LEAST)
    return np.concatenate([log_p, np.log(rest)], axis=1)


def tempered(log_p: np.ndarray, temperature: float) -> np.ndarray:
    """log softmax(log p / T)."""
    scaled = log_p / temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
