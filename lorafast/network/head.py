"""The output: the last norm, the product with the vocabulary, the loss, forward and backward."""
from __future__ import annotations

from functools import cached_property

import numpy as np

from ..gguf.reader import Tensor
from ..kernels.cross_entropy import cross_entropy_forward, cross_entropy_forward_backward
from .buffers import Scratch, empty
from .distillation import Targets, divergence
from .linear import Group, Linear
from .lora import Adapter
from .norm import Norm
from .passes import Pass

PIECE_ROWS = 4096
"""Rows of the output matrix in a piece: a multiple of what its kernels take at a time, so that pieces give the bits of
the whole (DY_COLUMNS of kernels/linear.h, CROSS_ENTROPY_BLOCK of kernels/cross_entropy_body.h)."""


class Head:
    """logits = cap · tanh(z / cap), z = scale · norm(x) Wᵀ + b; without the tanh where cap is 0."""

    def __init__(self, norm: Norm, matrix: Tensor, bias: Tensor | None, scale: float, soft_cap: float,
                 precision: str = "int16") -> None:
        # On a tied model the pair of token_embd acts on the input only.
        self.norm, self.group = norm, Group(Linear(matrix, bias, name="output.weight", precision=precision))
        self.matrix, self.bias, self.precision = matrix, bias, precision
        self.scale, self.soft_cap = np.float32(scale), soft_cap
        self.V, self.C = matrix.shape

    @cached_property
    def pieces(self) -> list[Group]:
        """The product by PIECE_ROWS rows: what a pass needs of the matrix at a time, where it is not whole."""
        whole, = self.group.linears
        cuts = [slice(begin, min(begin + PIECE_ROWS, self.V)) for begin in range(0, self.V, PIECE_ROWS)]
        return [Group(Linear(self.matrix, self.bias, name=whole.name, rows=rows, gain=whole.gain,
                             precision=self.precision, first_row=rows.start),
                      part=self.matrix.rows(rows.start, rows.stop)) for rows in cuts]

    def groups(self, by_pieces: bool) -> list[Group]:
        """What a pass reads of the matrix, in this order, each way."""
        return self.pieces if by_pieces else [self.group]

    def has_pieces(self, adapter: Adapter) -> bool:
        """Whether the loss can be had by pieces: not with a pair on the output, whose gradient takes whole rows of
        logits."""
        return self.V > PIECE_ROWS and not self.group.is_adapted(adapter)

    def refresh(self, adapter: Adapter) -> None:
        self.norm.refresh(adapter)
        self.group.refresh()

    def scratch(self, T: int, adapter: Adapter) -> int:
        """Floats of Scratch for the loss of T tokens at a time."""
        return Scratch.floats(T, *self._widths(adapter))

    def _widths(self, adapter: Adapter) -> tuple[int, ...]:
        return (self.V, self.C, self.C, self.C, self.C, *self.group.dora_widths(adapter))

    def _h(self, T: int, adapter: Adapter) -> list[np.ndarray]:
        """What the group saves of T tokens, by the rank of the output matrix's own pair."""
        return [empty(T, len(adapter.A(linear.name)) if linear.name in adapter else 0) for linear in self.group.linears]

    def logits(self, x: np.ndarray, pass_: Pass) -> np.ndarray:
        """(T, V) of the last block's output x (T, C)."""
        T = len(x)
        normed, logits = empty(T, self.C), empty(T, self.V)
        h = self._h(T, pass_.adapter)
        self.normed(normed, x, self.norm.saved(T, empty), pass_)
        if pass_.weights.streams:
            begin = 0
            for piece in self.pieces:
                part = empty(T, piece.weights[0].N)
                piece.forward([part], h, normed, pass_)
                logits[:, begin:begin + part.shape[1]] = part
                begin += part.shape[1]
        else:
            self.group.forward([logits], h, normed, pass_)
        return logits if not self.soft_cap else np.tanh(logits / self.soft_cap) * np.float32(self.soft_cap)

    def normed(self, normed: np.ndarray, x: np.ndarray, saved: list[np.ndarray], pass_: Pass) -> None:
        """What the product reads."""
        self.norm.forward(normed, saved, x, pass_)
        if self.scale != 1:
            normed *= self.scale

    def normed_backward(self, dx: np.ndarray, d_normed: np.ndarray, x: np.ndarray, saved: list[np.ndarray],
                        pass_: Pass) -> None:
        """dx is overwritten, d_normed is used up."""
        if self.scale != 1:
            d_normed *= self.scale
        dx.fill(0)
        self.norm.backward(dx, d_normed, x, saved, pass_)

    def losses(self, x: np.ndarray, targets: np.ndarray, floor: float, at_a_time: int, weights: np.ndarray | None,
               need_dx: bool, pass_: Pass, taught: Targets | None = None) -> np.ndarray:
        """The losses in nats, float32 (n,), of the n targets that count (those >= 0), `at_a_time` tokens at a time.

        x (T, C), the last block's output, becomes its gradient; that, and the adapter's, are those of the sum of the
        losses times `weights`, float32 (T,). With weights None there is no way back, and x stays as it is.
        floor  under the probabilities in the loss; 0: none
        taught  of those n: to each loss the divergence from it is added
        """
        counted = np.flatnonzero(targets >= 0)
        losses = np.empty(len(counted), np.float32)
        for first in range(0, len(counted), at_a_time):
            index = counted[first:first + at_a_time]
            losses[first:first + at_a_time] = self._chunk(
                x, index, targets[index], floor, None if weights is None else weights[index], need_dx, pass_,
                taught and taught.part(first, first + at_a_time))
        if weights is not None:
            x[targets < 0] = 0
        return losses

    def _chunk(self, x: np.ndarray, index: np.ndarray, targets: np.ndarray, floor: float, weights: np.ndarray | None,
               need_dx: bool, pass_: Pass, taught: Targets | None) -> np.ndarray:
        adapter, n = pass_.adapter, len(index)
        z, normed, d_normed, x_head, dx_head, y = pass_.scratch.arrays(n, *self._widths(adapter))
        np.take(x, index, axis=0, out=x_head)
        saved = self.norm.saved(n, empty)
        h = self._h(n, adapter)
        self.normed(normed, x_head, saved, pass_)
        self.group.forward([z], h, normed, pass_)
        loss = empty(n)
        if weights is None:
            cross_entropy_forward(loss, z, targets, floor, self.soft_cap, pass_.n_threads)
            return loss
        y[:] = z[:, :y.shape[1]]
        if taught is None:
            cross_entropy_forward_backward(loss, z, targets, weights, floor, self.soft_cap, pass_.n_threads)
        else:
            self._taught_losses(loss, z, targets, weights, taught, pass_)
        dz, = self.group.gain_backward([z], [y], pass_)
        self.group.backward(d_normed if need_dx else None, [dz], normed, h, pass_)
        if need_dx:
            self.normed_backward(dx_head, d_normed, x_head, saved, pass_)
            x[index] = dx_head
        return loss

    def _taught_losses(self, loss: np.ndarray, z: np.ndarray, targets: np.ndarray, weights: np.ndarray,
                       taught: Targets, pass_: Pass) -> None:
        """loss (n,) := cross entropy + divergence; z (n, V), the logits, become the gradient of the losses times
        `weights`: see distillation.py."""
        rows = np.arange(len(z))
        known = np.concatenate([targets[:, None], taught.ids], axis=1)
        y = np.take_along_axis(z, known, 1).astype(np.float64)
        slope = np.ones_like(y)
        if self.soft_cap:
            y = self.soft_cap * np.tanh(y / self.soft_cap)
            slope = 1 - (y / self.soft_cap) ** 2
        cross_entropy_forward(loss, z, targets, 0.0, self.soft_cap, pass_.n_threads)
        log_p = y - (loss + y[:, 0])[:, None]
        apart = divergence(log_p[:, 1:], taught)
        factors = (weights * (1 + apart.rest)).astype(np.float32)
        cross_entropy_forward_backward(loss, z, targets, factors, 0.0, self.soft_cap, pass_.n_threads)
        z[rows, targets] += weights * apart.rest * slope[:, 0]
        fix = apart.known - np.exp(log_p[:, 1:]) * apart.rest[:, None]
        z[rows[:, None], taught.ids] += weights[:, None] * fix * slope[:, 1:]
        loss += apart.losses.astype(np.float32)
