"""The branch of experts: of many feed-forward networks each token sees the few that a router chooses.

    out = residual + scale · (Σ_e w_e down_e(activation(gate_e(n), up_e(n))) + shared(n)),    n = norm(x)

The rows of a batch, one for each token and each of its experts, are sorted by expert, so that an expert's matrices are
read once for all its rows. The gradient of w_e needs no output of an expert: with a = activation(...) it is the product
of a and the gradient that down_e hands back. Experts and router are frozen; gradients pass through both.

Sources: Shazeer et al., "Outrageously Large Neural Networks" (2017); shared experts: Dai et al., DeepSeekMoE (2024).
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..gguf.reader import Tensor
from ..kernels.linear import (
    ExpertWeights,
    experts_backward,
    experts_forward,
    experts_scratch_bytes,
    experts_sum_backward,
    experts_sum_forward,
)
from .branch import Nothing, Saved, given
from .buffers import New, Scratch
from .feed_forward import ACTIVATIONS
from .linear import Group
from .lora import Adapter, Ranks
from .norm import Norm
from .passes import Pass
from .router import Router, Routes
from .shared_expert import SharedExpert


class ExpertGroup(Group):
    """Frozen matrices W_e (N, K), one or two for each of E experts, in the place of Linears.

    parts   of each: the tensor (E, rows, K), its rows, and the biases (E, rows) or None
    n_used  experts that see a token
    """

    def __init__(self, *parts: tuple[Tensor, slice, Tensor | None], n_used: int, precision: str) -> None:
        super().__init__()
        self.tensors = list({tensor.name: tensor for tensor, _, _ in parts}.values())
        self.experts = [ExpertWeights(tensor.data.reshape(*tensor.shape[:2], -1)[:, rows], int(tensor.type),
                                      tensor.shape[2], precision) for tensor, rows, _ in parts]
        self.biases = [None if bias is None else np.ascontiguousarray(bias.to_float32()[:, rows])
                       for _, rows, bias in parts]
        self.N, self.K, self.n_parts, self.n_used = self.experts[0].N, self.experts[0].K, self.experts[0].E, n_used

    @property
    def product_kinds(self) -> list[str]:
        return [name for weights in self.experts for name in [weights.arithmetic] * self.n_parts]

    @property
    def n_values(self) -> int:
        return sum(weights.E * weights.N * weights.K for weights in self.experts)


class ExpertsSaved(Saved):
    """inner: gate and up, (T, k · F) each. backward leaves their gradients in their place."""

    def __init__(self, branch: Experts, T: int, new: New, ranks: Ranks) -> None:
        self.norm = branch.norm.saved(T, new)
        self.router = branch.router.saved(T, new)
        self.inner = [new(T, branch.row_width) for _ in branch.inner.experts]
        self.cheap = Nothing()
        self.shared: Any = branch.shared.saved(T, new, ranks) if branch.shared else []


class Experts:
    """inner  gate and up of each expert; down  of each, alone
    shared  what all tokens see beside; None without
    scale   of what is added to the residual stream
    """

    key_widths = 0, 0
    is_by_row = False           # a few rows of an expert have a product of their own, with other bits

    def __init__(self, norm: Norm, router: Router, inner: ExpertGroup, down: ExpertGroup, shared: SharedExpert | None,
                 scale: float, activation: str) -> None:
        self.norm, self.router, self.inner, self.down, self.shared = norm, router, inner, down, shared
        self.scale, self.C, self.F, self.row_width = np.float32(scale), inner.K, inner.N, router.n_used * inner.N
        self.groups = (router.group, *(shared.groups if shared else ()), inner, down)
        self.norms = given(norm)
        self.activation_forward, self.activation_backward = ACTIVATIONS[activation, True]

    @property
    def shape(self) -> tuple:
        return (type(self), self.router.n_experts, self.router.n_used, self.F, self.shared and self.shared.shape)

    def saved(self, T: int, new: New, ranks: Ranks) -> ExpertsSaved:
        return ExpertsSaved(self, T, new, ranks)

    def _widths(self) -> tuple[int, ...]:
        """Widths of the scratch arrays: norm(x), two of (T, C), act and its gradient."""
        return self.C, self.C, self.C, self.row_width, self.row_width

    def scratch(self, T: int, adapter: Adapter) -> int:
        return Scratch.floats(T, *self._widths()) + (self.shared.scratch(T, adapter) if self.shared else 0)

    def kernel_bytes(self, T: int, n_threads: int) -> int:
        return experts_scratch_bytes(T, self.C, self.F, self.router.n_experts, self.router.n_used, n_threads)

    def cheap_growth(self, length: int, ctx: int) -> float:
        return 0.0

    def new_cache(self, n_ctx: int, chunk: int, new: New) -> None:
        return None

    def recompute_cheap(self, s: ExpertsSaved, pass_: Pass) -> None:
        pass

    def _arrays(self, T: int, pass_: Pass) -> tuple[list[np.ndarray], Pass]:
        """The scratch arrays, and a pass whose scratch lies behind them."""
        arrays = pass_.scratch.arrays(T, *self._widths())
        return arrays, pass_.with_scratch(Scratch.floats(T, *self._widths())) if self.shared else pass_

    def forward(self, out: np.ndarray | None, residual: np.ndarray, x: np.ndarray, s: ExpertsSaved, pass_: Pass,
                cache: None = None) -> None:
        (normed, total, y, act, _), inner_pass = self._arrays(len(x), pass_)
        self.norm.forward(normed, s.norm, x, pass_)
        routes = self.router.forward(s.router, normed, pass_)
        pass_.weights.announce((self.inner, self.down), routes.experts)
        if self.shared:
            self.shared.forward(None if out is None else y, s.shared, normed, inner_pass)
        self._inner_forward(normed, s, routes, pass_)
        if out is None:
            return
        act = self._rows(act)
        self.activation_forward(act, *map(self._rows, s.inner), pass_.n_threads)
        pass_.weights.wait_for(self.down)
        experts_sum_forward(total, act, self.down.experts[0], self.down.biases[0], _sorted(s.router.weights, routes),
                            routes.begin, routes.tokens, pass_.n_threads)
        if self.shared:
            total += y
        total *= self.scale
        np.add(residual, total, out=out)

    def _inner_forward(self, normed: np.ndarray, s: ExpertsSaved, routes: Routes, pass_: Pass) -> None:
        pass_.weights.wait_for(self.inner)
        experts_forward(list(map(self._rows, s.inner)), normed, self.inner.experts, self.inner.biases, routes.begin,
                        routes.tokens, pass_.n_threads)

    def backward(self, dx: np.ndarray, d_out: np.ndarray, x: np.ndarray, s: ExpertsSaved, pass_: Pass,
                 need_dx: bool) -> None:
        (normed, d_sum, d_normed, *acts), inner_pass = self._arrays(len(x), pass_)
        need_d_normed = need_dx or self.norm.is_adapted(pass_.adapter)
        # out = residual + scale · (sum over the experts + shared)
        if self.scale != 1:
            np.multiply(d_out, self.scale, out=d_sum)
            d_out = d_sum
        if need_d_normed:
            dw = self._experts_backward(d_normed, d_out, acts, s, pass_)
        if self.shared:
            self.norm.forward(normed, s.norm, x, pass_)
            self.shared.backward(d_normed, d_out, normed, s.shared, inner_pass, need_d_normed)
        if need_d_normed:
            self.router.backward(d_normed, dw, s.router, pass_)
            self.norm.backward(dx, d_normed, x, s.norm, pass_)

    def _experts_backward(self, d_normed: np.ndarray, d_sum: np.ndarray, acts: Sequence[np.ndarray], s: ExpertsSaved,
                          pass_: Pass) -> np.ndarray:
        """d_normed from the experts alone; returns the gradient of their weights, (T, k)."""
        act, d_act, *inner = map(self._rows, (*acts, *s.inner))
        routes = self.router.routes(s.router)
        # sum = Σ_e w_e down_e(act)
        pass_.weights.wait_for(self.down)
        experts_sum_backward(d_act, d_sum, self.down.experts[0], routes.begin, routes.tokens, pass_.n_threads)
        self.activation_forward(act, *inner, pass_.n_threads)
        dw = np.empty_like(s.router.weights)
        dw.reshape(-1)[routes.order] = self._dw(act, d_act, d_sum, routes)
        d_act *= _sorted(s.router.weights, routes)[:, None]
        # act = activation(gate, up), these = projections of normed
        self.activation_backward(*inner, d_act, *inner, pass_.n_threads)
        pass_.weights.wait_for(self.inner)
        experts_backward(d_normed, inner, self.inner.experts, routes.begin, routes.tokens, pass_.n_threads)
        return dw

    def _dw(self, act: np.ndarray, d_act: np.ndarray, d_sum: np.ndarray, routes: Routes) -> np.ndarray:
        """Gradients of the weights of sorted rows, from d_act before it is weighted: d_sum · down_e(act)."""
        dw = np.einsum("rf,rf->r", act, d_act)
        bias = self.down.biases[0]
        if bias is not None:
            for e in routes.experts:
                rows = slice(routes.begin[e], routes.begin[e + 1])
                dw[rows] += np.einsum("rc,c->r", d_sum[routes.tokens[rows]], bias[e])
        return dw

    def _rows(self, array: np.ndarray) -> np.ndarray:
        """(T, k · F) as (M, F)."""
        return array.reshape(-1, self.F)


def _sorted(weights: np.ndarray, routes: Routes) -> np.ndarray:
    """(T, k) in the order of the rows, (M,)."""
    return weights.reshape(-1)[routes.order]
