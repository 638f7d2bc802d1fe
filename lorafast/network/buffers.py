"""Working arrays that are allocated once, for the longest batch, and used by every step."""
from __future__ import annotations

import copy
import mmap
from collections.abc import Callable, Iterator
from math import prod
from typing import Any, TypeVar

import numpy as np

LARGE = 1 << 18
"""Bytes."""

New = Callable[..., np.ndarray]
"""Makes a float32 array of a shape: `empty`, or `sized` where only the sizes matter."""


def empty(*shape: int) -> np.ndarray:
    """An uninitialised float32 array. The system hands out its pages when they are first written.

    A large one has pages of its own, which the system gets back with it. C's heap would keep what lies below others'
    memory.
    """
    if 4 * prod(shape) < LARGE:
        return np.empty(shape, np.float32)
    return np.frombuffer(mmap.mmap(-1, 4 * prod(shape), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
                         np.float32).reshape(shape)


def sized(*shape: int) -> np.ndarray:
    """Stands in for empty(*shape): it has its shape and nbytes, but takes no memory."""
    return np.ndarray(shape, np.float32, bytes(4), strides=(0,) * len(shape))


Some = TypeVar("Some", bound="Buffers")


class Buffers:
    """Attributes are float32 arrays whose first axis are the rows (tokens) of a batch, lists of them, Buffers, or
    numbers."""

    def first(self: Some, T: int) -> Some:
        """These buffers in the same memory, but only the first T rows of every array."""
        view = copy.copy(self)
        for name, value in vars(self).items():
            setattr(view, name, _first(value, T))
        return view

    @property
    def nbytes(self) -> int:
        """What several attributes share counts once."""
        return nbytes_of(list(vars(self).values()))


def nbytes_of(value: Any) -> int:
    """Bytes of all arrays in a Buffers, or in a list of such; what several share counts once."""
    return sum({id(array): array.nbytes for array in _arrays(value)}.values())


class Scratch:
    """Memory for results that soon have served. Phases of a pass use it in turn: `arrays` begins at its front each
    time."""

    def __init__(self, n_floats: int, new: New = empty) -> None:
        self.memory = new(n_floats)
        # of the newest T, since making views takes longer than small kernels run
        self._T = 0
        self._views: dict[tuple[int, ...], list[np.ndarray]] = {}

    def arrays(self, T: int, *widths: int) -> list[np.ndarray]:
        """Arrays (T, width) one after the other. Raises ValueError when they do not fit."""
        if T != self._T:
            self._T, self._views = T, {}
        if widths not in self._views:
            begins = [Scratch.floats(T, *widths[:i]) for i in range(len(widths))]
            if Scratch.floats(T, *widths) > len(self.memory):
                raise ValueError(f"scratch of {len(self.memory)} floats cannot hold {T} rows of {widths}")
            self._views[widths] = [self.memory[begin:begin + T * width].reshape(T, width)
                                   for begin, width in zip(begins, widths)]
        return self._views[widths]

    def behind(self, begin: int) -> Scratch:
        """The memory behind so many floats, for a part of a part."""
        return Scratch(len(self.memory) - begin, lambda n: self.memory[begin:begin + n])

    @staticmethod
    def floats(T: int, *widths: int) -> int:
        """The memory that `arrays` needs for them; each begins on a cache line if the memory does."""
        return sum(-(-T * width // 16) * 16 for width in widths)


def _first(value: Any, T: int) -> Any:
    if isinstance(value, list):
        return [_first(item, T) for item in value]
    if isinstance(value, Buffers):
        return value.first(T)
    return value[:T] if isinstance(value, np.ndarray) else value


def _arrays(value: Any) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (list, Buffers)):
        for item in value if isinstance(value, list) else vars(value).values():
            yield from _arrays(item)
