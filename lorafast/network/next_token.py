"""The choice of the next token among the likely ones.

The rules are those of llama.cpp, and so is their order: repetition penalty, top-k, top-p, min-p, temperature. Each
takes what the one before it left.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import LoraFastError


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the defaults are llama.cpp's.

    temperature     logits are divided by it; 0: always the likeliest token
    top_k           only the so many likeliest tokens; 0: all
    top_p           only the likeliest tokens that together have this probability; 1: all (Holtzman et al., 2020)
    min_p           only tokens that have at least this share of the likeliest one's probability; 0: all (Nguyen, 2024)
    repeat_penalty  logits of tokens that occurred are divided by it, or multiplied if negative; 1: none (Keskar et al.,
                    2019)
    repeat_last_n   among so many last tokens, prompt included; 0: none, -1: all
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64


def choose(logits: np.ndarray, previous: Sequence[int], sampling: Sampling, rng: np.random.Generator) -> int:
    """The next token.

    logits    float32 (n_vocab,)
    previous  the tokens so far
    Raises LoraFastError when the logits are not finite.
    """
    if not np.isfinite(logits).all():
        raise LoraFastError("the model's logits are not finite; is the adapter broken?")
    logits = penalised(logits, previous, sampling.repeat_penalty, sampling.repeat_last_n)
    if sampling.temperature <= 0:
        return int(logits.argmax())
    tokens = likeliest(logits, sampling.top_k)
    logits = logits[tokens].astype(np.float64)
    if sampling.top_p < 1:
        reached = np.cumsum(probabilities(logits)) >= sampling.top_p
        logits = logits[:int(reached.argmax()) + 1] if reached.any() else logits
    if sampling.min_p > 0:
        logits = logits[logits >= logits[0] + np.log(sampling.min_p)]
    cumulative = np.cumsum(probabilities(logits / sampling.temperature))
    chosen = np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")
    return int(tokens[min(chosen, len(cumulative) - 1)])


def penalised(logits: np.ndarray, previous: Sequence[int], penalty: float, last_n: int) -> np.ndarray:
    """The logits, lower for each token that is among the last ones."""
    if penalty == 1 or last_n == 0 or not len(previous):
        return logits
    seen = np.unique(np.asarray(previous[-last_n:] if last_n > 0 else previous))
    logits = logits.copy()
    logits[seen] = np.where(logits[seen] <= 0, logits[seen] * penalty, logits[seen] / penalty)
    return logits


def likeliest(logits: np.ndarray, k: int) -> np.ndarray:
    """The tokens with the k largest logits (all, for k = 0), the largest first; of equal ones, the first token
    first."""
    tokens = np.arange(len(logits))
    if 0 < k < len(logits):
        kth = np.partition(logits, len(logits) - k)[len(logits) - k]
        tokens = np.flatnonzero(logits >= kth)
    return tokens[np.argsort(-logits[tokens], kind="stable")][:k or None]


def probabilities(logits: np.ndarray) -> np.ndarray:
    """softmax."""
    p = np.exp(logits - logits.max())
    return p / p.sum()
