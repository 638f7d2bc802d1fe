"""Working arrays that are allocated once, for the longest batch, and used by every step."""
from __future__ import annotations

import copy
from typing import Any

import numpy as np


class Buffers:
    """Attributes are float32 arrays whose first axis are the rows (tokens) of a batch, lists of them, or further Buffers."""

    def first(self, T: int):
        """The same memory, but only the first T rows of every array."""
        view = copy.copy(self)
        for name, value in vars(self).items():
            setattr(view, name, _first(value, T))
        return view

    @property
    def nbytes(self) -> int:
        return _nbytes(list(vars(self).values()))


def empty(*shape: int) -> np.ndarray:
    """An uninitialised float32 array. The system hands out its pages when they are first written."""
    return np.empty(shape, np.float32)


def _first(value: Any, T: int) -> Any:
    if isinstance(value, list):
        return [_first(item, T) for item in value]
    return value.first(T) if isinstance(value, Buffers) else value[:T]


def _nbytes(value: Any) -> int:
    return sum(map(_nbytes, value)) if isinstance(value, list) else value.nbytes
