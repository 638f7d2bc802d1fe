"""The parts of the network that carry an adapter, forward and backward side by side: gains, embedding, projections.

T tokens are the rows of a batch, flattened. All activations are float32. `adapter` may lack a tensor's pair; then the
part is frozen and only passes gradients on.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..gguf.reader import Tensor
from ..kernels.dora import dora_forward
from ..kernels.embedding import embedding_forward
from ..kernels.linear import Weight, linear_backward, linear_forward
from ..kernels.lora import lora_backward, lora_forward
from ..kernels.rms_norm import rms_norm_backward, rms_norm_forward
from .dora import Gain
from .lora import Adapter

if TYPE_CHECKING:
    from .residency import ModelFiles, Residency


def as_weight(tensor: Tensor) -> Weight:
    """The tensor as the product kernels take it: still the bytes of the file's mapping."""
    return Weight(tensor.data, int(tensor.type), tensor.shape[1])


class Norm:
    """y = x · rstd · (g + s·Σ_k B[k]·A[k]): RMS norm, whose gain may carry a pair."""

    def __init__(self, tensor: Tensor, eps: float) -> None:
        self.name, self.eps = tensor.name, eps
        self.base_gain = tensor.to_float32()
        self.gain = self.base_gain

    def merge(self, adapter: Adapter) -> None:
        """Takes over the pair's present values; to be called after each change of the parameters."""
        if self.name in adapter:
            self.gain = self.base_gain + np.float32(adapter.scale) * (adapter.B(self.name).T @ adapter.A(self.name))[0]

    def forward(self, y: np.ndarray, rstd: np.ndarray, x: np.ndarray, n_threads: int) -> None:
        rms_norm_forward(y, rstd, x, self.gain, self.eps, n_threads)

    def backward(self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, rstd: np.ndarray, adapter: Adapter,
                 n_threads: int) -> None:
        dgain = np.zeros_like(self.gain) if self.name in adapter else None
        rms_norm_backward(dx, dgain, dy, x, self.gain, rstd, n_threads)
        if dgain is not None:           # forward: gain = g + s·B.T @ A
            A, B, s = adapter.A(self.name), adapter.B(self.name), np.float32(adapter.scale)
            adapter.dA(self.name)[...] += s * B * dgain
            adapter.dB(self.name)[...] += s * (A @ dgain)[:, None]


class Embedding:
    """x[t] = E[token] + s·Σ_k B[k, token]·A[k], with DoRA times a gain.

    reader  reads the rows of a batch's tokens from the file, so that no others come into memory; None: they are mapped
    """

    def __init__(self, tensor: Tensor) -> None:
        self.name, self.tensor = tensor.name, tensor
        self.gain = Gain(tensor, of_columns=True, read=self.read)
        self.reader: ModelFiles | Residency | None = None

    def read(self, begin: int, end: int) -> np.ndarray:
        """Rows as stored."""
        if self.reader is None:
            return self.tensor.data[begin:end]
        return self.reader.read_rows(self.tensor, np.arange(begin, end))

    def forward(self, x: np.ndarray, tokens: np.ndarray, adapter: Adapter, n_threads: int) -> None:
        table, rows = self.tensor.data, tokens
        if self.reader is not None:
            different, rows = np.unique(tokens, return_inverse=True)
            table, rows = self.reader.read_rows(self.tensor, different), rows.astype(np.int32)
        embedding_forward(x, rows, table, int(self.tensor.type), n_threads)
        if self.name in adapter:
            A, s_B = adapter.A(self.name), np.float32(adapter.scale) * adapter.B(self.name)[:, tokens]
            for t in range(0, len(tokens), 64):         # by pieces: the product is a temporary array
                x[t:t + 64] += np.einsum("rt,rc->tc", s_B[:, t:t + 64], A)
        gain = self.gain.of(self.name, adapter, n_threads)
        if gain is not None:
            dora_forward(x, None, x, gain, None, n_threads)

    def backward(self, dx: np.ndarray, tokens: np.ndarray, x: np.ndarray, adapter: Adapter, n_threads: int) -> None:
        """x: of forward; with DoRA it is used up."""
        if self.name in adapter.magnitudes:
            self.gain.backward(self.name, dx, x, adapter, n_threads)
            dx = x
        if self.name in adapter:        # forward: x = ... + s·B[:, tokens].T @ A
            A, B, s = adapter.A(self.name), adapter.B(self.name), np.float32(adapter.scale)
            adapter.dA(self.name)[...] += np.einsum("rt,tc->rc", s * B[:, tokens], dx)
            np.add.at(adapter.dB(self.name), (slice(None), tokens), s * np.einsum("rc,tc->rt", A, dx))


class Projections:
    """Matrices that share their input: y_i = x W_iᵀ + h_i B_i, h_i = s·x A_iᵀ, with DoRA times a gain (dora.py).

    residency  brings the matrices into memory before they are used, where the model is larger than that; else None
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.names = [tensor.name for tensor in tensors]
        self.tensors = list(tensors)
        self.weights = [as_weight(tensor) for tensor in tensors]
        self.gains = [Gain(tensor) for tensor in tensors]
        self.residency: Residency | None = None

    def ranks(self, adapter: Adapter) -> list[int]:
        """Rank of each pair, 0 where there is none: the arrays `h` below are (T, rank), or wider and used in part."""
        return [adapter.A(name).shape[0] if name in adapter else 0 for name in self.names]

    def has_gains(self, adapter: Adapter) -> bool:
        return any(name in adapter.magnitudes for name in self.names)

    def dora_widths(self, adapter: Adapter) -> list[int]:
        """Columns of each y that `gain_backward` needs: N where there is a gain, otherwise 0."""
        return [weight.N if name in adapter.magnitudes else 0 for name, weight in zip(self.names, self.weights)]

    def is_adapted(self, adapter: Adapter) -> bool:
        return any(name in adapter for name in self.names)

    def forget_gains(self) -> None:
        """To be called after each change of the parameters."""
        for gain in self.gains:
            gain.forget()

    def project(self, h: Sequence[np.ndarray], x: np.ndarray, adapter: Adapter, n_threads: int) -> None:
        """h_i = s·x A_iᵀ."""
        for name, h_i in zip(self.names, h):
            if name in adapter:
                lora_forward(_of_rank(h_i, adapter.A(name)), x, adapter.A(name), adapter.scale, n_threads)

    def recompute(self, ys: Sequence[np.ndarray], h: Sequence[np.ndarray], x: np.ndarray, adapter: Adapter,
                  n_threads: int) -> None:
        """All that backward needs of forward: h, and ys if there are gains."""
        if self.has_gains(adapter):
            self.forward(ys, h, x, adapter, n_threads)
        else:
            self.project(h, x, adapter, n_threads)

    def forward(self, ys: Sequence[np.ndarray], h: Sequence[np.ndarray], x: np.ndarray, adapter: Adapter,
                n_threads: int, residual: np.ndarray | None = None, y: np.ndarray | None = None) -> None:
        """With a residual there is one matrix, and residual + y is put out; if it has a gain, y (T, N) is kept too."""
        if self.residency is not None:
            self.residency.wait_for(self)
        self.project(h, x, adapter, n_threads)
        low_rank = [(_of_rank(h_i, adapter.B(name)), adapter.B(name)) if name in adapter else None
                    for name, h_i in zip(self.names, h)]
        gains = [gain.of(name, adapter, n_threads) for gain, name in zip(self.gains, self.names)]
        if residual is not None and gains[0] is not None:
            linear_forward([y], x, self.weights, low_rank, None, n_threads)
            dora_forward(y, ys[0], y, gains[0], residual, n_threads)
            return
        linear_forward(list(ys), x, self.weights, low_rank, residual, n_threads)
        for y_i, gain in zip(ys, gains):
            if gain is not None:
                dora_forward(y_i, None, y_i, gain, None, n_threads)

    def gain_backward(self, dys: Sequence[np.ndarray], ys: Sequence[np.ndarray], adapter: Adapter,
                      n_threads: int) -> Sequence[np.ndarray]:
        """The gradients of the products before their gains, and adds to those of the magnitudes.

        If there are gains, the results take the places of ys, which forward made; otherwise they are dys themselves.
        """
        if not self.has_gains(adapter):
            return dys
        for gain, name, dy, y in zip(self.gains, self.names, dys, ys):
            if name in adapter.magnitudes:
                gain.backward(name, dy, y, adapter, n_threads)
            else:
                y[:] = dy
        return ys

    def backward(self, dx: np.ndarray | None, dys: Sequence[np.ndarray], x: np.ndarray, h: Sequence[np.ndarray],
                 adapter: Adapter, n_threads: int) -> None:
        """dx = Σ dy_i W_i + c_i A_i, and adds to the gradients of the pairs; dx is None when nobody reads it."""
        low_rank = []
        for name, dy, h_i in zip(self.names, dys, h):
            if name not in adapter:
                low_rank.append(None)
                continue
            h_i = _of_rank(h_i, adapter.A(name))
            c = np.empty_like(h_i)
            lora_backward(c, adapter.dA(name), adapter.dB(name), dy, x, adapter.B(name), h_i, adapter.scale, n_threads)
            low_rank.append((c, adapter.A(name)))
        if dx is not None:
            if self.residency is not None:
                self.residency.wait_for(self)
            linear_backward(dx, list(dys), self.weights, low_rank, False, n_threads)


def _of_rank(h: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """The front of the memory of h (T, R) as (T, rank), rank being that of `pair` (rank, ...) and at most R."""
    T, rank = len(h), len(pair)
    return h.reshape(-1)[:T * rank].reshape(T, rank)
