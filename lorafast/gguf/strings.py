"""Many strings in little memory: for vocabularies, which have 10^5 of them."""
from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


class Strings(Sequence[str]):
    """Strings as UTF-8 in one piece; each becomes a `str` when it is asked for.

    data    the bytes
    begins  where in them each string begins, and where the last one ends
    Bytes that are not UTF-8 become surrogate escapes.
    """

    def __init__(self, data: bytes, begins: array[int]) -> None:
        self.data, self.begins = data, begins

    @staticmethod
    def of(texts: Iterable[bytes]) -> Strings:
        """A copy of them."""
        data, begins = bytearray(), array("Q", [0])
        for text in texts:
            data += text
            begins.append(len(data))
        return Strings(bytes(data), begins)

    @property
    def lengths(self) -> np.ndarray:
        """Bytes of each, int64 (n,)."""
        return np.diff(np.asarray(self.begins).astype(np.int64))

    def bytes_of(self, i: int) -> bytes:
        """The i-th, 0 <= i < len, as stored."""
        return self.data[self.begins[i]:self.begins[i + 1]]

    def __len__(self) -> int:
        return len(self.begins) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...

    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"string {i} of {len(self)}")
        return self.bytes_of(i % len(self)).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self.bytes_of(i).decode("utf-8", "surrogateescape") for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (Strings, list)) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None     # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))
