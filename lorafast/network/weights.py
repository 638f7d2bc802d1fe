"""Where the bytes of the weights come from when they are used: the mapping, the file, or a window that streams."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..gguf.reader import Tensor


class Matrices(Protocol):
    """Matrices that are used together."""

    @property
    def tensors(self) -> Sequence[Tensor]:
        """The tensors in the order in which they are used."""

    @property
    def n_parts(self) -> int:
        """0 where they are used whole; otherwise each tensor consists of so many, of which a pass needs some."""


class Weights(Protocol):
    """What a pass asks of them.

    streams: whether what is not asked for may be let go
    """

    streams: bool

    def wait_for(self, group: Matrices) -> None:
        """Returns when these matrices are in memory; they stay until the next call, or longer."""

    def announce(self, groups: Sequence[Matrices], parts: np.ndarray) -> None:
        """Says which parts of these groups will be needed from now on, until the next call or the end of the pass."""

    def rows(self, tensor: Tensor, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A table of rows as stored, uint8, and the place in it of each of `rows`, int32."""

    def slice(self, tensor: Tensor, begin: int, end: int) -> np.ndarray:
        """Rows as stored, uint8 (end - begin, bytes a row)."""


class MappedWeights:
    """All weights lie in their mappings, and the system brings their pages."""

    streams = False

    def wait_for(self, group: Matrices) -> None:
        pass

    def announce(self, groups: Sequence[Matrices], parts: np.ndarray) -> None:
        pass

    def rows(self, tensor: Tensor, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return tensor.data, rows

    def slice(self, tensor: Tensor, begin: int, end: int) -> np.ndarray:
        return tensor.data[begin:end]


MAPPED = MappedWeights()


class RowReader(Protocol):
    """Reads rows of a matrix from its file, as stored."""

    def read_rows(self, tensor: Tensor, rows: np.ndarray) -> np.ndarray:
        """uint8 (len(rows), bytes a row)."""


class RowsFromFile:
    """Rows are read from the file as they are needed, so that no others come into memory; matrices are as in the
    mapping."""

    streams = False

    def __init__(self, files: RowReader) -> None:
        self.files = files

    def wait_for(self, group: Matrices) -> None:
        pass

    def announce(self, groups: Sequence[Matrices], parts: np.ndarray) -> None:
        pass

    def rows(self, tensor: Tensor, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        different, places = np.unique(rows, return_inverse=True)
        return self.files.read_rows(tensor, different), places.astype(np.int32)

    def slice(self, tensor: Tensor, begin: int, end: int) -> np.ndarray:
        return self.files.read_rows(tensor, np.arange(begin, end))
