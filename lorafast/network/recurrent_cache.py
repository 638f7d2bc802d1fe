"""What generation keeps in branches whose memory of a sequence does not grow with it."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .block_params import DeltaHeads
from .buffers import New


class RowsCache:
    """The newest rows of some arrays, as far back as a convolution sees: of one sequence in one block.

    n_rows  that are kept of each, at most
    chunk   most rows that are added at once
    widths  columns of each array
    """

    def __init__(self, n_rows: int, chunk: int, widths: Sequence[int], new: New) -> None:
        self.n_rows, self.n = n_rows, 0
        self.arrays = [new(n_rows + chunk, width) for width in widths]

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)

    def append(self, added: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Adds T rows (T, width) to each; returns these with what is kept of earlier ones before them. They may be
        used until the next call."""
        keep = min(self.n, self.n_rows)
        for array, new in zip(self.arrays, added, strict=True):
            array[:keep] = array[self.n - keep:self.n].copy()
            array[keep:keep + len(new)] = new
        self.n = keep + len(added[0])
        return [array[:self.n] for array in self.arrays]

    def can_rewind(self, n_past: int) -> bool:
        """Never: what stood before the newest rows is gone."""
        return False

    def rewind(self, n_past: int) -> None:
        """Forgets all, as Decoder.rewind then asks."""
        self.n = 0


class DeltaCache:
    """The cache of a gated delta net: the newest rows of q, k and v before their convolution, and the state of each
    head.

    n_rows, chunk  as of RowsCache
    state   float32 (n_v, D, DV)
    """

    def __init__(self, heads: DeltaHeads, n_rows: int, chunk: int, new: New) -> None:
        self.rows = RowsCache(n_rows, chunk, [heads.width_k, heads.width_k, heads.width_v], new)
        self.state = new(heads.n_v, heads.D, heads.DV)
        self.is_new = True

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes + self.state.nbytes

    def append(self, added: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Appends rows, as RowsCache does. Before the first rows the state is 0."""
        if self.is_new:
            self.state.fill(0)
            self.is_new = False
        return self.rows.append(added)

    def can_rewind(self, n_past: int) -> bool:
        """Never: a state does not tell what it was."""
        return False

    def rewind(self, n_past: int) -> None:
        """Forgets all, as Decoder.rewind then asks."""
        self.rows.rewind(0)
        self.is_new = True
