"""The router of a mixture of experts: which experts see a token, and what their outputs weigh.

With z = x Wᵀ (+ b) and p = softmax(z) or σ(z) the k experts with the largest p (+ a bias that only chooses) are taken,
and w = p of these, divided by its sum where `normed`; or w = softmax of the k largest z.

Sources: Shazeer et al., "Outrageously Large Neural Networks" (2017); Fedus et al., "Switch Transformers" (2021); the
bias: DeepSeek-V3 (2024); llama.cpp's build_moe_ffn.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..kernels.linear import linear_backward_add
from .block_params import Gating
from .buffers import Buffers, New
from .linear import Group
from .passes import Pass

LEAST_SUM = 6.103515625e-5
"""What weights are divided by at least, as in llama.cpp: the smallest normal number of half precision."""


class RouterSaved(Buffers):
    """p      (T, E), or z where a softmax of the chosen follows
    weights  (T, k), of the chosen
    chosen   int32 (T, k), experts in rising order
    """

    def __init__(self, router: Router, T: int, new: New) -> None:
        self.p, self.weights = new(T, router.n_experts), new(T, router.n_used)
        self.chosen = new(T, router.n_used).view(np.int32)


@dataclass(frozen=True)
class Routes:
    """The rows of a batch, one for each token and each of its experts, sorted by expert.

    begin   int32 (E + 1,), first row of each expert, and the number of rows
    tokens  int32 (M,), token of each row
    order   (M,), place of each row in arrays (T, k)
    """

    begin: np.ndarray
    tokens: np.ndarray
    order: np.ndarray

    @classmethod
    def of(cls, chosen: np.ndarray, n_experts: int) -> Routes:
        """chosen: int (T, k)."""
        experts = chosen.reshape(-1)
        order = np.argsort(experts, kind="stable")
        begin = np.zeros(n_experts + 1, np.int32)
        np.cumsum(np.bincount(experts, minlength=n_experts), out=begin[1:])
        return cls(begin, (order // chosen.shape[1]).astype(np.int32), order)

    @property
    def experts(self) -> np.ndarray:
        """The experts that have rows."""
        return np.flatnonzero(np.diff(self.begin))


class Router:
    """group  of one matrix (E, C), whose products are made in float32
    bias   float32 (E,), added to p where experts are chosen; None without
    """

    def __init__(self, group: Group, gating: Gating, n_used: int, bias: np.ndarray | None = None) -> None:
        self.group, self.gating, self.n_used, self.bias = group, gating, n_used, bias
        self.n_experts = group.weights[0].N

    def saved(self, T: int, new: New) -> RouterSaved:
        return RouterSaved(self, T, new)

    def forward(self, s: RouterSaved, x: np.ndarray, pass_: Pass) -> Routes:
        """Fills s from x (T, C)."""
        z = s.p
        self.group.forward([z], [z[:, :0]], x, pass_)
        if self.gating.function == "softmax":
            _softmax(z)
        elif self.gating.function == "sigmoid":
            np.divide(1, 1 + np.exp(-z), out=z)
        score = z if self.bias is None else z + self.bias
        s.chosen[:] = np.sort(np.argpartition(-score, self.n_used - 1, axis=1)[:, :self.n_used], axis=1)
        s.weights[:] = np.take_along_axis(z, s.chosen, axis=1)
        if self.gating.function == "softmax of chosen":
            _softmax(s.weights)
        elif self.gating.normed:
            s.weights /= _sums(s.weights)
        return Routes.of(s.chosen, self.n_experts)

    def routes(self, s: RouterSaved) -> Routes:
        """The routes that forward returned."""
        return Routes.of(s.chosen, self.n_experts)

    def backward(self, dx: np.ndarray, dw: np.ndarray, s: RouterSaved, pass_: Pass) -> None:
        """Adds to dx (T, C) what follows from dw (T, k), the gradient of the weights. The choice has none."""
        w, function = s.weights, self.gating.function
        if function != "softmax of chosen" and self.gating.normed:
            sums = np.take_along_axis(s.p, s.chosen, axis=1).sum(axis=1, keepdims=True)
            dw = (dw - np.where(sums > LEAST_SUM, (w * dw).sum(axis=1, keepdims=True), 0)) / np.maximum(sums, LEAST_SUM)
        dz = np.zeros_like(s.p)
        if function == "softmax":
            np.put_along_axis(dz, s.chosen, dw, axis=1)
            dz = s.p * (dz - (s.p * dz).sum(axis=1, keepdims=True))
        else:
            p = np.take_along_axis(s.p, s.chosen, axis=1)
            of_chosen = p * (1 - p) * dw if function == "sigmoid" else w * (dw - (w * dw).sum(axis=1, keepdims=True))
            np.put_along_axis(dz, s.chosen, of_chosen, axis=1)
        pass_.weights.wait_for(self.group)
        linear_backward_add(dx, [dz], self.group.weights, [None], pass_.n_threads)


def _softmax(z: np.ndarray) -> None:
    """Replaces each row by its softmax."""
    z -= z.max(axis=1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=1, keepdims=True)


def _sums(weights: np.ndarray) -> np.ndarray:
    return np.maximum(weights.sum(axis=1, keepdims=True), np.float32(LEAST_SUM))
