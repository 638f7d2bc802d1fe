"""Matrices of which a pass needs parts only: experts. Which parts are wanted, which are in memory, where they lie."""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..gguf.reader import Tensor
from .weights import Matrices


class Parts:
    """Which parts of a group are wanted and there. Its tensors consist of n_parts equal parts each, one behind the
    other.

    wanted, there  bool (n_parts,); another array after each change
    """

    def __init__(self, group: Matrices) -> None:
        self.tensors, self.n = group.tensors, group.n_parts
        self.wanted = self.there = np.zeros(self.n, bool)

    def want(self, parts: np.ndarray) -> bool:
        """Whether these are others than before."""
        wanted = np.zeros(self.n, bool)
        wanted[parts] = True
        if np.array_equal(wanted, self.wanted):
            return False
        self.wanted = wanted
        return True

    def nbytes(self, mask: np.ndarray) -> int:
        return int(mask.sum()) * sum(tensor.nbytes // self.n for tensor in self.tensors)

    def runs(self, tensor: Tensor, mask: np.ndarray) -> Iterator[tuple[int, int]]:
        """Begin and end, in bytes from the tensor's beginning, of parts that follow each other."""
        edges = np.flatnonzero(np.diff(mask, prepend=False, append=False))
        for begin, end in edges.reshape(-1, 2).tolist():
            yield begin * (tensor.nbytes // self.n), end * (tensor.nbytes // self.n)
