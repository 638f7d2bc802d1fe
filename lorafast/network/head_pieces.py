"""The output's losses without the whole output matrix, and without all logits: by pieces of the vocabulary.

The pieces pass by twice. The first time the softmax's maximum and sum run on from piece to piece, the second time the
logits are computed again and become gradients. That costs one more product, and is what a large vocabulary needs where
memory is short: logits of 262,144 words for 128 tokens are 134 MB, and of a small model these words are most of the
weights. The results have the bits of Head.losses.

Source: Wijmans et al., "Cut Your Losses in Large-Vocabulary Language Models" (2024).
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from ..kernels.cross_entropy import (
    cross_entropy_piece_backward,
    cross_entropy_piece_forward,
    cross_entropy_piece_loss,
)
from .buffers import Scratch, empty
from .head import PIECE_ROWS, Head
from .linear import Group
from .norm import Statistics
from .passes import Pass


@dataclass
class _Chunk:
    """Some tokens whose target counts, and what is known of their softmax.

    index    int (n,), their rows in x
    targets  int32 (n,)
    normed   (n, C), what the product reads; d_normed: its gradient
    saved    of the norm
    """

    index: np.ndarray
    targets: np.ndarray
    normed: np.ndarray
    d_normed: np.ndarray
    saved: Statistics
    max: np.ndarray = field(init=False)
    sum: np.ndarray = field(init=False)
    chosen: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.index)
        self.max, self.sum, self.chosen = np.full(n, np.finfo(np.float32).min), np.zeros(n), empty(n)

    def of(self, array: np.ndarray, width: int) -> np.ndarray:
        """The front of an array's memory as (n, width)."""
        return array.reshape(-1)[:len(self.index) * width].reshape(-1, width)


class PiecewiseLosses:
    """What Head.losses does, for a head that `has_pieces`: first `forward`, then `backward` if there is a way back.

    x, targets, at_a_time, pass_  as in Head.losses
    """

    def __init__(self, head: Head, x: np.ndarray, targets: np.ndarray, at_a_time: int, pass_: Pass) -> None:
        self.head, self.x, self.targets, self.pass_ = head, x, targets, pass_
        counted = np.flatnonzero(targets >= 0)
        self.n_counted = n = len(counted)
        normed, d_normed, self.z, self.x_head, self.dx_head = pass_.scratch.arrays(1, *_widths(head.C, n, at_a_time))
        normed, d_normed = normed.reshape(n, head.C), d_normed.reshape(n, head.C)
        self.chunks = []
        for begin in range(0, n, at_a_time):
            rows = slice(begin, begin + at_a_time)
            index = counted[rows]
            saved = head.norm.saved(len(index), empty)
            self.chunks.append(_Chunk(index, targets[index], normed[rows], d_normed[rows], saved))

    @staticmethod
    def scratch(head: Head, T: int, at_a_time: int) -> int:
        """Floats of Scratch for T tokens."""
        return Scratch.floats(1, *_widths(head.C, T, at_a_time))

    def forward(self, floor: float) -> np.ndarray:
        """The losses in nats, float32, of the targets that count."""
        head, n_threads = self.head, self.pass_.n_threads
        for chunk in self.chunks:
            head.normed(chunk.normed, self._input(chunk), chunk.saved, self.pass_)
        for chunk, z, _, targets in self._logits():
            cross_entropy_piece_forward(chunk.max, chunk.sum, chunk.chosen, z, targets, head.soft_cap, n_threads)
        losses, begin = empty(self.n_counted), 0
        for chunk in self.chunks:
            loss = losses[begin:begin + len(chunk.index)]
            cross_entropy_piece_loss(loss, chunk.max, chunk.sum, chunk.chosen, floor, n_threads)
            begin += len(loss)
        return losses

    def backward(self, floor: float, weights: np.ndarray) -> None:
        """x becomes its gradient, that of the sum of the losses times `weights` (T,); those of the norm are added to.
        """
        head, n_threads = self.head, self.pass_.n_threads
        for chunk in self.chunks:
            chunk.d_normed.fill(0)
        for chunk, z, piece, targets in self._logits():
            cross_entropy_piece_backward(z, chunk.max, chunk.sum, targets, weights[chunk.index], floor, head.soft_cap,
                                         n_threads)
            piece.backward(chunk.d_normed, [z], chunk.normed, [empty(len(z), 0)], self.pass_, to_sum=True)
        for chunk in self.chunks:
            x, dx = self._input(chunk), chunk.of(self.dx_head, head.C)
            head.normed_backward(dx, chunk.d_normed, x, chunk.saved, self.pass_)
            self.x[chunk.index] = dx
        self.x[self.targets < 0] = 0

    def _input(self, chunk: _Chunk) -> np.ndarray:
        return np.take(self.x, chunk.index, axis=0, out=chunk.of(self.x_head, self.head.C))

    def _logits(self) -> Iterator[tuple[_Chunk, np.ndarray, Group, np.ndarray]]:
        """Yields for each piece each chunk's logits (n, rows), and its targets counted from the first of these rows."""
        begin = 0
        for piece in self.head.pieces:
            rows = piece.weights[0].N
            for chunk in self.chunks:
                z = chunk.of(self.z, rows)
                piece.forward([z], [empty(len(z), 0)], chunk.normed, self.pass_)
                yield chunk, z, piece, chunk.targets - np.int32(begin)
            begin += rows


def _widths(C: int, T: int, at_a_time: int) -> tuple[int, ...]:
    """Floats of the arrays for T tokens: normed and its gradient, a chunk's logits of a piece, x and its gradient."""
    n = min(T, at_a_time)
    return T * C, T * C, n * PIECE_ROWS, n * C, n * C
