"""The feed-forward branch: down(activation(gate) ⊙ up), or down(activation(up)), of norm(x).

Source: Shazeer, "GLU Variants Improve Transformer" (2020).
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ..kernels.activation import gelu_backward, gelu_forward, relu_squared_backward, relu_squared_forward
from ..kernels.swiglu import (
    clamped_swiglu_backward,
    clamped_swiglu_forward,
    geglu_backward,
    geglu_forward,
    reglu2_backward,
    reglu2_forward,
    swiglu_backward,
    swiglu_forward,
)
from .branch import BranchInput, BranchOutput, Nothing, Saved, given
from .buffers import New, Scratch
from .linear import Group
from .lora import Adapter, Ranks
from .norm import Norm
from .passes import Pass

ACTIVATIONS: dict[tuple[str, bool], tuple[Callable[..., None], Callable[..., None]]] = {
    ("silu", True): (swiglu_forward, swiglu_backward),
    ("gelu", True): (geglu_forward, geglu_backward),
    ("relu_squared", True): (reglu2_forward, reglu2_backward),
    ("clamped_silu", True): (clamped_swiglu_forward, clamped_swiglu_backward),
    ("gelu", False): (gelu_forward, gelu_backward),
    ("relu_squared", False): (relu_squared_forward, relu_squared_backward),
}
"""Forward and backward by name, and whether there is a gate: f(act, *inner), f(*d_inner, d_act, *inner)."""


class FeedForwardSaved(Saved):
    """inner: gate and up, or up alone. backward leaves their gradients in their place."""

    def __init__(self, branch: FeedForward, T: int, new: New, ranks: Ranks) -> None:
        self.norm = branch.input.saved(T, new)
        self.inner = [new(T, branch.n_ff) for _ in branch.inner.linears]
        self.cheap = Nothing()
        self.h = branch.inner.saved(T, new, ranks)
        self.output = branch.output.saved(T, new, ranks)


class FeedForward:
    """out = residual + output(act), act = activation(inner(norm(x))).

    norm   of the input; None: x itself is read
    inner  gate and up, or up alone
    """

    key_widths = 0, 0
    is_by_row = True

    def __init__(self, norm: Norm | None, inner: Group, output: BranchOutput, activation: str) -> None:
        self.input, self.inner, self.output, self.n_ff = BranchInput(norm, inner), inner, output, output.K
        self.groups = (inner, output.group)
        self.norms = given(norm, output.post_norm)
        self.activation_forward, self.activation_backward = ACTIVATIONS[activation, len(inner.linears) == 2]

    @property
    def shape(self) -> tuple:
        return (type(self), self.n_ff, len(self.inner.linears), self.input.norm is None, self.output.is_plain)

    def saved(self, T: int, new: New, ranks: Ranks) -> FeedForwardSaved:
        return FeedForwardSaved(self, T, new, ranks)

    def scratch(self, T: int, adapter: Adapter) -> int:
        F = self.n_ff
        return max(Scratch.floats(T, F, F, *self.output.widths()), Scratch.floats(T, *self.input.widths()))

    def kernel_bytes(self, T: int, n_threads: int) -> int:
        return 0

    def cheap_growth(self, length: int, ctx: int) -> float:
        return 0.0

    def new_cache(self, n_ctx: int, chunk: int, new: New) -> None:
        return None

    def forward(self, out: np.ndarray | None, residual: np.ndarray, x: np.ndarray, s: FeedForwardSaved, pass_: Pass,
                cache: None = None) -> None:
        normed, _ = pass_.scratch.arrays(len(x), *self.input.widths())
        self.input.forward(s.inner, s.norm, s.h, x, normed, pass_)
        act, *spare = pass_.scratch.arrays(len(x), self.n_ff, *self.output.widths())
        self.activation_forward(act, *s.inner, pass_.n_threads)
        self.output.forward(out, residual, act, s.output, spare, pass_)

    def recompute_cheap(self, s: FeedForwardSaved, pass_: Pass) -> None:
        pass

    def backward(self, dx: np.ndarray, d_out: np.ndarray, x: np.ndarray, s: FeedForwardSaved, pass_: Pass,
                 need_dx: bool) -> None:
        T, F = len(x), self.n_ff
        # out = residual + output(act)
        act, d_act, *spare = pass_.scratch.arrays(T, F, F, *self.output.widths())
        self.activation_forward(act, *s.inner, pass_.n_threads)
        if not self.input.has_gradients(pass_.adapter, need_dx):
            self.output.backward(None, d_out, act, s.output, spare, pass_)
            return
        self.output.backward(d_act, d_out, act, s.output, spare, pass_)
        # act = activation(inner)
        d_inner = self._activation_backward(act, d_act, s.inner, pass_)
        # inner = projections of normed = norm(x)
        normed, d_normed = pass_.scratch.arrays(T, *self.input.widths())
        self.input.backward(dx, d_inner, s.norm, s.h, x, (normed, d_normed), pass_, need_dx)

    def _activation_backward(self, act: np.ndarray, d_act: np.ndarray, inner: Sequence[np.ndarray],
                             pass_: Pass) -> Sequence[np.ndarray]:
        """The gradients before the gains of `inner`, in its place. act and d_act are used up."""
        if not self.inner.has_gains(pass_.adapter):
            self.activation_backward(*inner, d_act, *inner, pass_.n_threads)
            return inner
        places = [act, d_act][2 - len(inner):]                          # the gains' backward pass needs inner
        self.activation_backward(*places, d_act, *inner, pass_.n_threads)
        return self.inner.gain_backward(places, inner, pass_)
