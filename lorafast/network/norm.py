"""Norms, whose gain may carry a pair, forward and backward side by side: RMS norm and LayerNorm."""
from __future__ import annotations

import numpy as np

from ..gguf.reader import Tensor
from ..kernels.layer_norm import layer_norm_backward, layer_norm_forward
from ..kernels.rms_norm import rms_norm_backward, rms_norm_forward
from .buffers import New
from .lora import Adapter
from .passes import Pass

Statistics = list[np.ndarray]
"""Statistics of each row, float32 (T,), saved for backward."""


class Norm:
    """y = x · rstd · (g + s·Σ_k B[k]·A[k]): RMS norm (Zhang and Sennrich, 2019).

    All arrays are float32; x and y (T, C).
    """

    def __init__(self, tensor: Tensor, eps: float) -> None:
        self.name, self.eps = tensor.name, eps
        self.base_gain = tensor.to_float32()
        self.gain = self.base_gain

    def refresh(self, adapter: Adapter) -> None:
        """Takes over the pair's present values; to be called after each change of the parameters."""
        if self.name in adapter:
            self.gain = self.base_gain + np.float32(adapter.scale) * (adapter.B(self.name).T @ adapter.A(self.name))[0]

    def is_adapted(self, adapter: Adapter) -> bool:
        return self.name in adapter

    def saved(self, T: int, new: New) -> Statistics:
        """rstd."""
        return [new(T)]

    def forward(self, y: np.ndarray, saved: Statistics, x: np.ndarray, pass_: Pass) -> None:
        rms_norm_forward(y, saved[0], x, self.gain, self.eps, pass_.n_threads)

    def backward(self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, saved: Statistics, pass_: Pass) -> None:
        """Adds to dx, and to the gradients of the pair."""
        dgain = self._dgain(pass_)
        rms_norm_backward(dx, dgain, dy, x, self.gain, saved[0], pass_.n_threads)
        self._pair_backward(dgain, pass_)

    def _dgain(self, pass_: Pass) -> np.ndarray | None:
        return np.zeros_like(self.gain) if self.name in pass_.adapter else None

    def _pair_backward(self, dgain: np.ndarray | None, pass_: Pass) -> None:
        if dgain is None:               # forward: gain = g + s·B.T @ A
            return
        adapter, name = pass_.adapter, self.name
        A, B, s = adapter.A(name), adapter.B(name), np.float32(adapter.scale)
        pass_.into.dA(name)[...] += s * B * dgain
        pass_.into.dB(name)[...] += s * (A @ dgain)[:, None]


class PlainNorm(Norm):
    """RMS norm of `width` values without weights: one gain for all."""

    def __init__(self, width: int, eps: float, gain: float = 1.0) -> None:
        self.name, self.eps = "", eps
        self.base_gain = self.gain = np.full(width, gain, np.float32)


class LayerNorm(Norm):
    """y = (x - mean) · rstd · (g + s·Σ_k B[k]·A[k]) + b (Ba et al., 2016). bias: None without one."""

    def __init__(self, tensor: Tensor, eps: float, bias: Tensor | None) -> None:
        super().__init__(tensor, eps)
        self.bias = None if bias is None else bias.to_float32()

    def saved(self, T: int, new: New) -> Statistics:
        """mean, rstd."""
        return [new(T), new(T)]

    def forward(self, y: np.ndarray, saved: Statistics, x: np.ndarray, pass_: Pass) -> None:
        mean, rstd = saved
        layer_norm_forward(y, mean, rstd, x, self.gain, self.bias, self.eps, pass_.n_threads)

    def backward(self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, saved: Statistics, pass_: Pass) -> None:
        dgain, (mean, rstd) = self._dgain(pass_), saved
        layer_norm_backward(dx, dgain, dy, x, self.gain, mean, rstd, pass_.n_threads)
        self._pair_backward(dgain, pass_)


class HeadNorm:
    """The norm of each head of q or k, or of all heads of a row together; frozen.

    norm     over its width: a head's size, or that of a row
    gains    float32 (n_head · D,) where each head has weights of its own, the norm's being 1 then; None otherwise
    """

    def __init__(self, norm: Norm) -> None:
        self.norm, self.gains = norm, None
        if norm.gain.ndim == 2:
            self.gains = norm.gain.reshape(-1)
            norm.gain = norm.base_gain = np.ones(norm.gain.shape[1], np.float32)
        self.width = len(norm.gain)

    def saved(self, T: int, width: int, new: New) -> Statistics:
        """Arrays for the statistics of T rows of that many values."""
        return [new(T, width // self.width) for _ in self.norm.saved(0, new)]

    def forward(self, y: np.ndarray, saved: Statistics, x: np.ndarray, pass_: Pass) -> None:
        """y (T, n_head · D) from x, which is another array."""
        self.norm.forward(y.reshape(-1, self.width), _flat(saved), x.reshape(-1, self.width), pass_)
        if self.gains is not None:
            y *= self.gains

    def backward(self, dx: np.ndarray, dy: np.ndarray, x: np.ndarray, saved: Statistics, pass_: Pass) -> None:
        """dx (T, n_head · D) is overwritten; dy is used up."""
        dx.fill(0)
        if self.gains is not None:
            dy *= self.gains
        dx, dy, x = (array.reshape(-1, self.width) for array in (dx, dy, x))
        self.norm.backward(dx, dy, x, _flat(saved), pass_)


def _flat(saved: Statistics) -> Statistics:
    return [array.reshape(-1) for array in saved]
