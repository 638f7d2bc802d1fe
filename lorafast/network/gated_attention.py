"""Attention whose output is gated: one matrix puts out, head by head, the query and the gate of what the head puts out.

Source: Qwen3-Next and Qwen 3.5 (2025).
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..kernels.swiglu import glu_backward, glu_forward
from .attention import Attention, AttentionSaved
from .buffers import New
from .lora import Ranks
from .passes import Pass


class GatedAttentionSaved(AttentionSaved):
    """gate  before the sigmoid; backward leaves its gradient in its place"""

    def __init__(self, branch: Attention, T: int, new: New, ranks: Ranks) -> None:
        super().__init__(branch, T, new, ranks)
        self.gate = new(T, branch.heads.widths[0])


class GatedAttention(Attention):
    """out = residual + output(sigmoid(gate) ⊙ attention(q, k, v)). The rows of q's matrix are, for each head, D of q
    and D of the gate. q has a norm, values are as wide as queries."""

    def saved(self, T: int, new: New, ranks: Ranks) -> GatedAttentionSaved:
        return GatedAttentionSaved(self, T, new, ranks)

    def _more_widths(self) -> tuple[int, int]:
        """What the matrix of q and the gate puts out; its gradient, in whose place first stands the gated output."""
        return (2 * self.heads.widths[0],) * 2

    def _parts(self, both: np.ndarray) -> np.ndarray:
        """(2, T, n_head, D), of q and of the gate."""
        return np.moveaxis(both.reshape(len(both), self.heads.n_head, 2, self.heads.D), 2, 0)

    def _merge(self, both: np.ndarray, q: np.ndarray, gate: np.ndarray) -> None:
        for part, values in zip(self._parts(both), (q, gate), strict=True):
            part[:] = values.reshape(part.shape)

    def _project(self, s: GatedAttentionSaved, x: np.ndarray, normed: np.ndarray, spare: list[np.ndarray],
                 pass_: Pass) -> None:
        *_, both, _ = spare
        self.input.forward((both, s.k, s.v), s.norm, s.h, x, normed, pass_)
        for part, values in zip(self._parts(both), (s.q, s.gate), strict=True):
            values.reshape(part.shape)[:] = part

    def _put_out(self, s: GatedAttentionSaved, spare: list[np.ndarray], pass_: Pass) -> np.ndarray:
        act = spare[-1].reshape(-1)[:s.gate.size].reshape(s.gate.shape)
        glu_forward(act, s.gate, s.cheap.o, pass_.n_threads)
        return act

    def _put_out_backward(self, do: np.ndarray, s: GatedAttentionSaved, spare: list[np.ndarray], pass_: Pass) -> None:
        if self.qkv.has_gains(pass_.adapter):           # whose backward pass needs what the matrix put out
            self._merge(spare[-2], s.q, s.gate)
        glu_backward(s.gate, do, do, s.gate, s.cheap.o, pass_.n_threads)

    def _project_backward(self, d_qkv: list[np.ndarray], s: GatedAttentionSaved, spare: list[np.ndarray],
                          pass_: Pass) -> Sequence[np.ndarray]:
        *_, both, d_both = spare
        dq, dk, dv = d_qkv
        self._merge(d_both, dq, s.gate)
        return self.qkv.gain_backward([d_both, dk, dv], [both, s.k, s.v], pass_)
