"""The embedding, forward and backward side by side."""
from __future__ import annotations

import numpy as np

from ..gguf.reader import Tensor
from ..kernels.dora import dora_forward
from ..kernels.embedding import embedding_forward
from .dora import Gain
from .passes import Pass


class Embedding:
    """x[t] = scale · (E[token] + s·Σ_k B[k, token]·A[k]), with DoRA times a gain."""

    def __init__(self, tensor: Tensor, scale: float = 1.0, precision: str = "int16") -> None:
        self.name, self.tensor, self.scale = tensor.name, tensor, np.float32(scale)
        self.gain = Gain(tensor, of_columns=True, precision=precision)

    def forward(self, x: np.ndarray, pass_: Pass) -> None:
        """x (T, C) of the pass's tokens."""
        adapter, tokens = pass_.adapter, pass_.tokens
        table, rows = pass_.weights.rows(self.tensor, tokens)
        embedding_forward(x, rows, table, int(self.tensor.type), pass_.n_threads)
        if self.name in adapter:
            A, s_B = adapter.A(self.name), np.float32(adapter.scale) * adapter.B(self.name)[:, tokens]
            for t in range(0, len(tokens), 64):         # by pieces: the product is a temporary array
                x[t:t + 64] += np.einsum("rt,rc->tc", s_B[:, t:t + 64], A)
        gain = self.gain.of(self.name, pass_)
        if gain is not None:
            dora_forward(x, None, x, gain, None, pass_.n_threads)
        if self.scale != 1:
            x *= self.scale

    def backward(self, dx: np.ndarray, x: np.ndarray, pass_: Pass) -> None:
        """x: of forward. dx is used up, and with DoRA so is x."""
        adapter, gradients, tokens = pass_.adapter, pass_.into, pass_.tokens
        if self.scale != 1:
            dx *= self.scale
        if self.name in adapter.magnitudes:
            x *= 1 / self.scale
            self.gain.backward(self.name, dx, x, pass_)
            dx = x
        if self.name in adapter:        # forward: x = ... + s·B[:, tokens].T @ A
            A, B, s = adapter.A(self.name), adapter.B(self.name), np.float32(adapter.scale)
            gradients.dA(self.name)[...] += np.einsum("rt,tc->rc", s * B[:, tokens], dx)
            for dB, change in zip(gradients.dB(self.name), s * np.einsum("rc,tc->rt", A, dx), strict=True):
                np.add.at(dB, tokens, change)
