"""The output: the last norm, the product with the vocabulary, the loss, forward and backward."""
from __future__ import annotations

import numpy as np

from ..gguf.reader import Tensor
from ..kernels.cross_entropy import cross_entropy_forward, cross_entropy_forward_backward
from .buffers import Scratch, empty
from .linear import Group, Linear
from .lora import Adapter
from .norm import Norm
from .passes import Pass


class Head:
    """logits = cap · tanh(z / cap), z = scale · norm(x) Wᵀ + b; without the tanh where cap is 0."""

    def __init__(self, norm: Norm, matrix: Tensor, bias: Tensor | None, scale: float, soft_cap: float,
                 precision: str = "int16") -> None:
        # On a tied model the pair of token_embd acts on the input only.
        self.norm, self.group = norm, Group(Linear(matrix, bias, name="output.weight", precision=precision))
        self.scale, self.soft_cap = np.float32(scale), soft_cap
        self.V, self.C = matrix.shape

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
        self._forward(logits, h, normed, x, self.norm.saved(T, empty), pass_)
        return logits if not self.soft_cap else np.tanh(logits / self.soft_cap) * np.float32(self.soft_cap)

    def _forward(self, z: np.ndarray, h: list[np.ndarray], normed: np.ndarray, x: np.ndarray, saved: list[np.ndarray],
                 pass_: Pass) -> None:
        """z before the soft cap; normed is what the product reads."""
        self.norm.forward(normed, saved, x, pass_)
        if self.scale != 1:
            normed *= self.scale
        self.group.forward([z], h, normed, pass_)

    def losses(self, x: np.ndarray, targets: np.ndarray, floor: float, at_a_time: int, weights: np.ndarray | None,
               need_dx: bool, pass_: Pass) -> np.ndarray:
        """The losses in nats, float32 (n,), of the n targets that count (those >= 0), `at_a_time` tokens at a time.

        x (T, C), the last block's output, becomes its gradient; that, and the adapter's, are those of the sum of the
        losses times `weights`, float32 (T,). With weights None there is no way back, and x stays as it is.
        floor  under the probabilities in the loss; 0: none
        """
        counted = np.flatnonzero(targets >= 0)
        losses = np.empty(len(counted), np.float32)
        for first in range(0, len(counted), at_a_time):
            index = counted[first:first + at_a_time]
            losses[first:first + at_a_time] = self._chunk(
                x, index, targets[index], floor, None if weights is None else weights[index], need_dx, pass_)
        if weights is not None:
            x[targets < 0] = 0
        return losses

    def _chunk(self, x: np.ndarray, index: np.ndarray, targets: np.ndarray, floor: float, weights: np.ndarray | None,
               need_dx: bool, pass_: Pass) -> np.ndarray:
        adapter, n = pass_.adapter, len(index)
        z, normed, d_normed, x_head, dx_head, y = pass_.scratch.arrays(n, *self._widths(adapter))
        np.take(x, index, axis=0, out=x_head)
        saved = self.norm.saved(n, empty)
        h = self._h(n, adapter)
        self._forward(z, h, normed, x_head, saved, pass_)
        loss = empty(n)
        if weights is None:
            cross_entropy_forward(loss, z, targets, floor, self.soft_cap, pass_.n_threads)
            return loss
        y[:] = z[:, :y.shape[1]]
        cross_entropy_forward_backward(loss, z, targets, weights, floor, self.soft_cap, pass_.n_threads)
        dz, = self.group.gain_backward([z], [y], pass_)
        self.group.backward(d_normed if need_dx else None, [dz], normed, h, pass_)
        if need_dx:
            if self.scale != 1:
                d_normed *= self.scale
            dx_head.fill(0)
            self.norm.backward(dx_head, d_normed, x_head, saved, pass_)
            x[index] = dx_head
        return loss
