"""Matrices that carry an adapter, forward and backward side by side.

T tokens are the rows of a batch, flattened. All activations are float32. The adapter may lack a matrix's pair; then the
matrix is frozen and only passes gradients on.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..gguf.reader import Tensor
from ..gguf.roles import split_name
from ..kernels.dora import dora_forward
from ..kernels.linear import Weight, linear_backward, linear_backward_add, linear_forward
from ..kernels.lora import lora_backward, lora_forward
from .buffers import New
from .dora import Gain
from .lora import Adapter, Ranks
from .passes import Pass


class Linear:
    """y = g · (x Wᵀ + h B) + b with h = s·x Aᵀ: a matrix, its pair, DoRA's gain g, its bias b.

    name    under which it is adapted: the tensor's, but for an output matrix that is the embedding
    rows    of W, where a tensor holds several matrices one above the other (q, k and v; gate and up): the pair is then
            that of the whole tensor, and so is `gain`, its Gain
    bias    (N,) of these rows, or None
    precision  of its products: one of kernels.linear.PRECISIONS
    first_row  see kernels.linear.Weight
    """

    def __init__(self, tensor: Tensor, bias: Tensor | None = None, *, name: str = "", rows: slice | None = None,
                 gain: Gain | None = None, precision: str = "int16", first_row: int = 0) -> None:
        self.name, self.tensor, self.rows = name or tensor.name, tensor, rows
        self.role = split_name(self.name)[1]
        # still the bytes of the file's mapping
        self.weight = Weight(tensor.data if rows is None else tensor.data[rows], int(tensor.type), tensor.shape[1],
                             precision, first_row)
        self.gain = gain or Gain(tensor, precision=precision)
        self.bias = None if bias is None else np.ascontiguousarray(bias.to_float32()[rows or slice(None)])

    def B(self, adapter: Adapter) -> np.ndarray:
        """The part of the pair's B that belongs to these rows: (r, N), contiguous."""
        B = adapter.B(self.name)
        return B if self.rows is None else np.ascontiguousarray(B[:, self.rows])

    def gain_of(self, pass_: Pass) -> np.ndarray | None:
        """g (N,), or None without DoRA."""
        gain = self.gain.of(self.name, pass_)
        return gain if gain is None or self.rows is None else gain[self.rows]

    def pair_forward(self, h: np.ndarray, x: np.ndarray, pass_: Pass) -> None:
        """h = s·x Aᵀ, in the front of h's memory."""
        A = pass_.adapter.A(self.name)
        lora_forward(of_rank(h, A), x, A, pass_.adapter.scale, pass_.n_threads)

    def pair_backward(self, dy: np.ndarray, x: np.ndarray, h: np.ndarray, pass_: Pass) -> np.ndarray:
        """c = s·dy Bᵀ (T, r), the gradient before A; adds to the gradients of the pair."""
        adapter, gradients, B = pass_.adapter, pass_.into, self.B(pass_.adapter)
        h = of_rank(h, B)
        c = np.empty_like(h)
        dB = gradients.dB(self.name) if self.rows is None else np.zeros_like(B)
        lora_backward(c, gradients.dA(self.name), dB, dy, x, B, h, adapter.scale, pass_.n_threads)
        if self.rows is not None:
            gradients.dB(self.name)[:, self.rows] += dB
        return c

    def gain_backward(self, dy: np.ndarray, y: np.ndarray, pass_: Pass) -> None:
        """y, which forward made, becomes the gradient of the product before the gain; adds to that of the
        magnitudes."""
        if self.bias is not None:
            y -= self.bias
        self.gain.backward(self.name, dy, y, pass_, self.rows or slice(None))


class Group:
    """Linears that share their input x.

    ys, dys  outputs and their gradients, float32 (T, N) each
    h        what `saved` made: (T, rank) each, or wider and used in part
    """

    def __init__(self, *linears: Linear, part: Tensor | None = None) -> None:
        """part: of the linears' tensor, what they need of it; None: all of their tensors."""
        self.linears = linears
        self.weights = [linear.weight for linear in linears]
        self.n_parts = 0
        self.tensors = [part] if part else list({linear.tensor.name: linear.tensor for linear in linears}.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the matrices, as stored."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def product_kinds(self) -> list[str]:
        """What the products of each matrix are made of."""
        return [linear.weight.arithmetic for linear in self.linears]

    @property
    def n_values(self) -> int:
        """Values of the matrices."""
        return sum(weight.N * weight.K for weight in self.weights)

    def saved(self, T: int, new: New, ranks: Ranks) -> list[np.ndarray]:
        """h: of no columns where a role has no pairs."""
        return [new(T, ranks.rank(linear.role)) for linear in self.linears]

    def is_adapted(self, adapter: Adapter) -> bool:
        return any(linear.name in adapter for linear in self.linears)

    def has_gains(self, adapter: Adapter) -> bool:
        return any(linear.name in adapter.magnitudes for linear in self.linears)

    def dora_widths(self, adapter: Adapter) -> list[int]:
        """Columns of each y that `gain_backward` needs: N where there is a gain, otherwise 0."""
        return [linear.weight.N if linear.name in adapter.magnitudes else 0 for linear in self.linears]

    def refresh(self) -> None:
        """Brings up to date what follows from the adapter; to be called after each change of its parameters."""
        for linear in self.linears:
            linear.gain.forget()

    def project(self, h: Sequence[np.ndarray], x: np.ndarray, pass_: Pass) -> None:
        """h_i = s·x A_iᵀ."""
        for linear, h_i in zip(self.linears, h, strict=True):
            if linear.name in pass_.adapter:
                linear.pair_forward(h_i, x, pass_)

    def forward(self, ys: Sequence[np.ndarray], h: Sequence[np.ndarray], x: np.ndarray, pass_: Pass,
                residual: np.ndarray | None = None, y: np.ndarray | None = None) -> None:
        """With a residual there is one matrix, and residual + y is put out; if it has a gain, y (T, N) is kept too."""
        pass_.weights.wait_for(self)
        self.project(h, x, pass_)
        low_rank = [_low_rank(linear, h_i, pass_.adapter) for linear, h_i in zip(self.linears, h, strict=True)]
        gains = [linear.gain_of(pass_) for linear in self.linears]
        if residual is not None and gains[0] is not None:
            assert y is not None, "what a gain multiplies is kept"
            linear_forward([y], x, self.weights, low_rank, None, pass_.n_threads)
            dora_forward(y, ys[0], y, gains[0], residual, pass_.n_threads)
        else:
            linear_forward(list(ys), x, self.weights, low_rank, residual, pass_.n_threads)
            for y_i, gain in zip(ys, gains, strict=True):
                if gain is not None:
                    dora_forward(y_i, None, y_i, gain, None, pass_.n_threads)
        for y_i, linear in zip(ys, self.linears, strict=True):
            if linear.bias is not None:
                y_i += linear.bias
                if residual is not None and gains[0] is not None:
                    y += linear.bias

    def gain_backward(self, dys: Sequence[np.ndarray], ys: Sequence[np.ndarray], pass_: Pass) -> Sequence[np.ndarray]:
        """The gradients of the products before their gains, and adds to those of the magnitudes.

        If there are gains, the results take the places of ys, which forward made; otherwise they are dys themselves.
        """
        if not self.has_gains(pass_.adapter):
            return dys
        for linear, dy, y in zip(self.linears, dys, ys, strict=True):
            if linear.name in pass_.adapter.magnitudes:
                linear.gain_backward(dy, y, pass_)
            else:
                y[:] = dy
        return ys

    def backward(self, dx: np.ndarray | None, dys: Sequence[np.ndarray], x: np.ndarray, h: Sequence[np.ndarray],
                 pass_: Pass, to_sum: bool = False) -> None:
        """dx = Σ dy_i W_i + c_i A_i, and adds to the gradients of the pairs; dx is None when nobody reads it.

        to_sum: it is added to dx
        """
        low_rank = []
        for linear, dy, h_i in zip(self.linears, dys, h, strict=True):
            is_adapted = linear.name in pass_.adapter
            low_rank.append((linear.pair_backward(dy, x, h_i, pass_), pass_.adapter.A(linear.name)) if is_adapted
                            else None)
        if dx is not None:
            pass_.weights.wait_for(self)
            backward = linear_backward_add if to_sum else linear_backward
            backward(dx, list(dys), self.weights, low_rank, pass_.n_threads)


def _low_rank(linear: Linear, h: np.ndarray, adapter: Adapter) -> tuple[np.ndarray, np.ndarray] | None:
    if linear.name not in adapter:
        return None
    B = linear.B(adapter)
    return of_rank(h, B), B


def of_rank(h: np.ndarray, pair: np.ndarray) -> np.ndarray:
    """The front of the memory of h (T, R) as (T, rank), rank being that of `pair` (rank, ...) and at most R."""
    T, rank = len(h), len(pair)
    return h.reshape(-1)[:T * rank].reshape(T, rank)
