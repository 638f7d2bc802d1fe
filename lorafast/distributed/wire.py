"""Gradients as they go from rank to rank: float32, or rounded to bfloat16, which halves the bytes.

A sum over ranks is exact to the bit in float32 only. In bfloat16 each rank's part and the sum are rounded to 8
significant bits, so that what a run computes depends on how many ranks share its passes.
"""
from __future__ import annotations

from typing import Protocol

import numpy as np


class Wire(Protocol):
    """itemsize: bytes of a value."""

    itemsize: int

    def packed(self, values: np.ndarray) -> np.ndarray:
        """float32 (n,) as it is sent; a view where nothing changes."""

    def unpacked(self, sent: np.ndarray) -> np.ndarray:
        """What was sent, as float32 (n,)."""

    def buffer(self, n: int) -> np.ndarray:
        """Room for n values that are received."""


class Float32:
    """Gradients are sent as they are."""

    itemsize = 4

    def packed(self, values: np.ndarray) -> np.ndarray:
        """See Wire."""
        return values

    def unpacked(self, sent: np.ndarray) -> np.ndarray:
        """See Wire."""
        return sent

    def buffer(self, n: int) -> np.ndarray:
        """See Wire."""
        return np.empty(n, np.float32)


class BFloat16:
    """The upper halves of float32, rounded to the nearest, ties to even; what is not a number stays none."""

    itemsize = 2

    def packed(self, values: np.ndarray) -> np.ndarray:
        """See Wire."""
        bits = values.view(np.uint32)
        rounded = (bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16
        return np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)

    def unpacked(self, sent: np.ndarray) -> np.ndarray:
        """See Wire."""
        return (sent.astype(np.uint32) << 16).view(np.float32)

    def buffer(self, n: int) -> np.ndarray:
        """See Wire."""
        return np.empty(n, np.uint16)


WIRES: dict[str, type[Float32] | type[BFloat16]] = {"float32": Float32, "bfloat16": BFloat16}
