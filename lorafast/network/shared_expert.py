"""The expert that every token sees: a feed-forward network, whose output may be multiplied by a gate σ(g · x)."""
from __future__ import annotations

import numpy as np

from .buffers import Buffers, New, Scratch
from .feed_forward import FeedForward
from .lora import Adapter, Ranks
from .passes import Pass


class SharedSaved(Buffers):
    """y, gate: the network's output (T, C) and σ (T,), where there is a gate."""

    def __init__(self, expert: SharedExpert, T: int, new: New, ranks: Ranks) -> None:
        self.network = expert.network.saved(T, new, ranks)
        self.y = new(T, expert.C if expert.gate is not None else 0)
        self.gate = new(T)


class SharedExpert:
    """network  without a norm: it reads what the router reads
    gate     g, float32 (C,); None without
    """

    def __init__(self, network: FeedForward, gate: np.ndarray | None) -> None:
        self.network, self.gate, self.C, self.groups = network, gate, network.output.N, network.groups

    @property
    def shape(self) -> tuple:
        return (self.network.shape, self.gate is None)

    def saved(self, T: int, new: New, ranks: Ranks) -> SharedSaved:
        return SharedSaved(self, T, new, ranks)

    def scratch(self, T: int, adapter: Adapter) -> int:
        return Scratch.floats(T, self.C) + self.network.scratch(T, adapter)

    def forward(self, out: np.ndarray | None, s: SharedSaved, x: np.ndarray, pass_: Pass) -> None:
        """out (T, C) of x (T, C). With out None only s is filled, for backward."""
        zeros, = pass_.scratch.arrays(len(x), self.C)
        zeros.fill(0)
        pass_ = pass_.with_scratch(Scratch.floats(len(x), self.C))
        if self.gate is None:
            self.network.forward(out, zeros, x, s.network, pass_)
            return
        self.network.forward(s.y, zeros, x, s.network, pass_)
        s.gate[:] = 1 / (1 + np.exp(-np.einsum("tc,c->t", x, self.gate)))
        if out is not None:
            np.multiply(s.y, s.gate[:, None], out=out)

    def backward(self, dx: np.ndarray, d_out: np.ndarray, x: np.ndarray, s: SharedSaved, pass_: Pass,
                 need_dx: bool) -> None:
        """Adds to dx (T, C), which nobody reads without `need_dx`, and to the gradients of the adapter."""
        dy, = pass_.scratch.arrays(len(x), self.C)
        pass_ = pass_.with_scratch(Scratch.floats(len(x), self.C))
        if self.gate is None:
            self.network.backward(dx, d_out, x, s.network, pass_, need_dx)
            return
        # out = σ(g · x) y
        np.multiply(d_out, s.gate[:, None], out=dy)
        if need_dx:
            dz = np.einsum("tc,tc->t", d_out, s.y) * s.gate * (1 - s.gate)
            dx += dz[:, None] * self.gate
        self.network.backward(dx, dy, x, s.network, pass_, need_dx)
