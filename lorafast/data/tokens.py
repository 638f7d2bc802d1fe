"""What is needed of a tokenizer, and small functions on arrays of tokens."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np


class SpecialTokens(Protocol):
    """A tokenizer, as far as records need it."""

    n_vocab: int
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    eog_ids: frozenset[int]     # the tokens at which generation stops

    def encode(self, text: str | bytes, *, add_special: bool = False, parse_special: bool = False) -> np.ndarray: ...

    def fragments(self, text: bytes) -> Iterator[tuple[bytes, np.ndarray, bool]]: ...

    def encode_part(self, text: bytes, begins: bool) -> np.ndarray: ...

    def is_control(self, token: int) -> bool: ...

    def token_text(self, token: int) -> str: ...


def masked(sequence: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    """The sequence up to the last token that counts: tokens inside a span [begin, end) as they are, others ~token.

    It is changed in place: it may be long. spans: in order, without overlap
    """
    at = 0
    for begin, end in spans:
        np.invert(sequence[at:begin], out=sequence[at:begin])
        at = end
    return sequence[:at]


def span_weights(n: int, spans: list[tuple[int, int]], weights: list[float]) -> np.ndarray | None:
    """Factors of the losses of n tokens, float32: that of its span for each token inside one, 1 for others. None where
    all are 1."""
    if all(weight == 1 for weight in weights):
        return None
    factors = np.ones(n, np.float32)
    for (begin, end), weight in zip(spans, weights, strict=True):
        factors[begin:end] = weight
    return factors


def n_common(a: np.ndarray, b: np.ndarray) -> int:
    """Number of tokens with which both begin."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
