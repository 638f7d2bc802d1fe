"""Keys and values that generation keeps."""
from __future__ import annotations

import numpy as np

from .buffers import New


class KVCache:
    """Keys and values of one sequence in one block: of `n_ctx` positions, or of those that a window still sees.

    window  0: none
    chunk   most positions that are added at once
    first   position of the oldest key
    """

    def __init__(self, n_ctx: int, window: int, chunk: int, k_width: int, v_width: int, new: New) -> None:
        self.window = window
        room = n_ctx if not window else min(n_ctx, 2 * window + chunk)      # moved only once in a window's length
        self.k, self.v = new(room, k_width), new(room, v_width)
        self.first = self.n = 0

    @property
    def nbytes(self) -> int:
        return self.k.nbytes + self.v.nbytes

    def append(self, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Adds those of T positions; returns what these see: (S, width) each, the newest last, S >= T."""
        T = len(k)
        if self.n + T > len(self.k):
            self._forget(T)
        end = self.n + T
        self.k[self.n:end], self.v[self.n:end] = k, v
        self.n = end
        return self.k[:end], self.v[:end]

    def _forget(self, T: int) -> None:
        """Makes room for T positions: what no later one sees goes."""
        keep = min(self.n, self.window - 1)
        if keep + T > len(self.k):
            raise ValueError(f"{T} positions at once do not fit a cache of {len(self.k)}")
        for array in (self.k, self.v):
            array[:keep] = array[self.n - keep:self.n].copy()
        self.first += self.n - keep
        self.n = keep

    def can_rewind(self, n_past: int) -> bool:
        """Whether all that position n_past sees is still there."""
        return self.first <= max(0, n_past - self.window + 1) if self.window else True

    def rewind(self, n_past: int) -> None:
        """Forgets all positions from n_past on."""
        self.n = max(0, n_past - self.first)
        self.first = min(self.first, n_past)
