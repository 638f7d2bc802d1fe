"""Keys and values that several blocks attend to."""
from __future__ import annotations

from typing import Protocol

import numpy as np

from .buffers import Buffers, New


class SharedKeys(Protocol):
    """Keys and values of the block that makes them, as attention takes them: k and v (S, width). dk, dv: sums of their
    gradients over the other blocks that attend to them."""

    k: np.ndarray
    v: np.ndarray
    dk: np.ndarray
    dv: np.ndarray

    def put(self, k: np.ndarray, v: np.ndarray) -> None:
        """Takes over what the block has made."""


class KeptKeys(Buffers):
    """Copied, for the pass over T rows and its way back."""

    def __init__(self, T: int, k_width: int, v_width: int, new: New) -> None:
        self.k, self.v = new(T, k_width), new(T, v_width)
        self.dk, self.dv = new(T, k_width), new(T, v_width)

    def put(self, k: np.ndarray, v: np.ndarray) -> None:
        self.k[:], self.v[:] = k, v

    def clear_gradients(self) -> None:
        self.dk.fill(0)
        self.dv.fill(0)


class CachedKeys:
    """Keys and values in the cache of a Decoder; they have no backward pass."""

    k: np.ndarray
    v: np.ndarray
    dk: np.ndarray
    dv: np.ndarray

    def put(self, k: np.ndarray, v: np.ndarray) -> None:
        self.k, self.v = k, v
