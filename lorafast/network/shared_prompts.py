"""Sequences that begin with the prompt of the sequence before them, whose rows are computed once.

Of a pair of answers to one prompt the first sequence is whole; the second has the rows behind the prompt only. Its
queries see the prompt's keys and values all the same. Attention takes the keys of a sequence one after the other, so
they are copied for it; on the way back the gradients of the copies are added to those of what was copied.
"""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .buffers import Buffers, New


class PromptKeys(Buffers):
    """Memory for the keys and values of sequences of S tokens in all, as attention takes them, and their gradients.

    widths  columns of k and of v in the widest block
    """

    def __init__(self, S: int, widths: tuple[int, int], new: New) -> None:
        self.k, self.v = (new(S, width) for width in widths)
        self.dk, self.dv = (new(S, width) for width in widths)


class SharedPrompts:
    """Which sequences of a pass share their prompts.

    begin    int32 (n + 1,), the first row of each
    shared   int32 (n,), rows of the sequence before that each begins with; no such sequence does so itself
    k_begin  int32 (n + 1,), where the keys of each begin among all, copies included
    """

    def __init__(self, begin: np.ndarray, shared: np.ndarray, k_begin: np.ndarray, memory: PromptKeys) -> None:
        self.begin, self.shared, self.k_begin, self.memory = begin, shared, k_begin, memory

    def seen(self, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(S, width) each, from those of the T rows."""
        return self._copied(self.memory.k, k), self._copied(self.memory.v, v)

    def gradients(self, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Memory for the gradients of what `seen` made of k and v."""
        return self._first(self.memory.dk, k), self._first(self.memory.dv, v)

    def add_up(self, dk: np.ndarray, dv: np.ndarray, d_seen: tuple[np.ndarray, np.ndarray]) -> None:
        """dk and dv of the T rows, from those of `gradients`."""
        for rows, seen in zip((dk, dv), d_seen, strict=True):
            for own, own_seen, prompt, prompt_seen in self._places():
                rows[own] = seen[own_seen]
                rows[prompt] += seen[prompt_seen]

    def _copied(self, memory: np.ndarray, rows: np.ndarray) -> np.ndarray:
        seen = self._first(memory, rows)
        for own, own_seen, prompt, prompt_seen in self._places():
            seen[own_seen] = rows[own]
            seen[prompt_seen] = rows[prompt]
        return seen

    def _first(self, memory: np.ndarray, like: np.ndarray) -> np.ndarray:
        S, width = int(self.k_begin[-1]), like.shape[1]
        return memory.reshape(-1)[:S * width].reshape(S, width)

    def _places(self) -> Iterator[tuple[slice, slice, slice, slice]]:
        """Yields for each sequence its own rows, their keys, the rows that it shares, and their copies."""
        for i, n in enumerate(self.shared.tolist()):
            first, k_first = int(self.begin[i]), int(self.k_begin[i])
            prompt = int(self.begin[i - 1]) if n else 0
            yield (slice(first, int(self.begin[i + 1])), slice(k_first + n, int(self.k_begin[i + 1])),
                   slice(prompt, prompt + n), slice(k_first, k_first + n))
