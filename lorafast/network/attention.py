"""The attention branch: q, k, v = projections of norm(x), RoPE, causal attention, and the output matrix.

Sources: Touvron et al., LLaMA (2023); grouped-query attention: Ainslie et al. (2023); norms of q and k: Dehghani et
al., "Scaling Vision Transformers to 22 Billion Parameters" (2023); soft caps: Gemma 2 (2024).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernels.attention import attention_backward, attention_forward, attention_scratch_bytes
from .branch import BranchInput, BranchOutput, Saved, given
from .buffers import Buffers, New, Scratch
from .kv_cache import KVCache
from .linear import Group
from .lora import Adapter, Ranks
from .norm import HeadNorm, Norm
from .passes import Pass
from .rope import Rope


@dataclass(frozen=True)
class Heads:
    """n_head queries of size D share n_head_kv keys of size D and values of size DV."""

    n_head: int
    n_head_kv: int
    D: int
    DV: int

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Widths of q, k, v and the output."""
        return self.n_head * self.D, self.n_head_kv * self.D, self.n_head_kv * self.DV, self.n_head * self.DV


@dataclass(frozen=True)
class Scores:
    """scale · q kᵀ, capped: c·tanh(s / c), of the `window` newest keys (0: of all; a cap of 0: none)."""

    scale: float
    window: int = 0
    soft_cap: float = 0.0


class AttentionSaved(Saved):
    """q and k stand as RoPE turned them, where that can be undone; otherwise as the projections put them out.

    cheap.o    attention's output
    cheap.lse  the logarithm of its softmax's denominators
    """

    def __init__(self, branch: Attention, T: int, new: New, ranks: Ranks) -> None:
        q, k, v = branch.saved_widths()
        self.norm = branch.input.saved(T, new)
        self.q, self.k, self.v = new(T, q), new(T, k), new(T, v)
        self.q_norm = branch.q_norm.saved(T, q, new) if branch.q_norm else []
        self.k_norm = branch.k_norm.saved(T, k, new) if branch.k_norm else []
        self.cheap = AttentionOutputs(branch.heads, T, new)
        self.h = branch.qkv.saved(T, new, ranks)
        self.output = branch.output.saved(T, new, ranks)


class AttentionOutputs(Buffers):
    """The output of each head, and the logarithm of its sum."""

    def __init__(self, heads: Heads, T: int, new: New) -> None:
        self.o, self.lse = new(T, heads.widths[3]), new(T, heads.n_head)


class Attention:
    """out = residual + output(attention(RoPE(q), RoPE(k), v)).

    norm            of the input; None: the projections read x itself
    q_norm, k_norm  of heads; None without. norm_after_rope: they come behind RoPE
    rope            None: no position is marked
    s               what `saved` made; that of a class made of this one has more
    sinks           float32 (n_head,), scores beside those of keys; None without
    """

    is_by_row = False

    def __init__(self, norm: Norm | None, qkv: Group, output: BranchOutput, heads: Heads, scores: Scores,
                 rope: Rope | None,
                 q_norm: HeadNorm | None = None, k_norm: HeadNorm | None = None, norm_after_rope: bool = False,
                 sinks: np.ndarray | None = None) -> None:
        self.input, self.qkv, self.output, self.heads, self.scores = BranchInput(norm, qkv), qkv, output, heads, scores
        self.rope, self.q_norm, self.k_norm, self.norm_after_rope = rope, q_norm, k_norm, norm_after_rope
        self.sinks, self.groups = sinks, (qkv, output.group)
        self.norms = given(norm, output.post_norm)
        norm_first = q_norm is not None and not norm_after_rope
        self.turns_saved = rope is not None and rope.is_rotation and not norm_first
        """RoPE turns s.q and s.k themselves: it can be undone."""

    @property
    def key_widths(self) -> tuple[int, int]:
        return self.heads.widths[1:3]

    @property
    def shape(self) -> tuple:
        return (type(self), self.heads, self.scores.window, self.input.norm is None, self.q_norm is None,
                self.output.is_plain)

    def saved(self, T: int, new: New, ranks: Ranks) -> AttentionSaved:
        return AttentionSaved(self, T, new, ranks)

    def saved_widths(self) -> tuple[int, ...]:
        """Columns of s.q, s.k and s.v."""
        return self.heads.widths[:3]

    def scratch(self, T: int, adapter: Adapter) -> int:
        C, spare = self.output.N, self.output.widths()
        q, k, v, o = self.heads.widths
        spare = (*spare, *self._more_widths())
        return max(Scratch.floats(T, C, *self._turned_widths(), *spare),
                   Scratch.floats(T, q, k, v, C, max(C, o), *self._turned_widths(), *spare))

    def kernel_bytes(self, T: int, n_threads: int) -> int:
        return attention_scratch_bytes(T, self.heads.n_head, self.heads.D, self.heads.DV, n_threads)

    def cheap_growth(self, length: int, ctx: int) -> float:
        window = self.scores.window or ctx
        return min(window, ctx) / min(window, length) - 1

    def new_cache(self, n_ctx: int, chunk: int, new: New) -> KVCache | None:
        return KVCache(n_ctx, self.scores.window, chunk, *self.heads.widths[1:3], new)

    def _more_widths(self) -> tuple[int, ...]:
        """Columns of scratch that _project and its like find behind `spare` of the output."""
        return ()

    def _turned_widths(self) -> tuple[int, int]:
        """Columns of scratch for q and k as attention takes them; 0 where these are s.q and s.k."""
        return (0, 0) if self._takes_saved else self.heads.widths[:2]

    @property
    def _takes_saved(self) -> bool:
        return self.q_norm is None and (self.rope is None or self.turns_saved)

    def forward(self, out: np.ndarray | None, residual: np.ndarray, x: np.ndarray, s: AttentionSaved, pass_: Pass,
                cache: KVCache | None = None) -> None:
        normed, q, k, *spare = pass_.scratch.arrays(len(x), self.output.N, *self._turned_widths(),
                                                    *self.output.widths(), *self._more_widths())
        self._project(s, x, normed, spare, pass_)
        if self.turns_saved:
            self._turn(s.q, s.k, pass_)
        q, k = self._turned(q, k, s, pass_)
        self._attend(s, q, *self._seen(k, self._values(s, spare, pass_), pass_, cache), pass_)
        self.output.forward(out, residual, self._put_out(s, spare, pass_), s.output, spare, pass_)

    def _project(self, s: Any, x: np.ndarray, normed: np.ndarray, spare: list[np.ndarray], pass_: Pass) -> None:
        """s.q, s.k and s.v from the residual stream."""
        self.input.forward((s.q, s.k, s.v), s.norm, s.h, x, normed, pass_)

    def _project_backward(self, d_qkv: list[np.ndarray], s: Any, spare: list[np.ndarray],
                          pass_: Pass) -> Sequence[np.ndarray]:
        """The gradients of the products, before their gains."""
        return self.qkv.gain_backward(d_qkv, [s.q, s.k, s.v], pass_)

    def _put_out(self, s: Any, spare: list[np.ndarray], pass_: Pass) -> np.ndarray:
        """What the output takes."""
        return s.cheap.o

    def _put_out_backward(self, do: np.ndarray, s: Any, spare: list[np.ndarray], pass_: Pass) -> None:
        """Turns the gradient of _put_out into that of s.cheap.o, in place."""

    def _values(self, s: Any, spare: list[np.ndarray], pass_: Pass) -> np.ndarray:
        """v as attention takes it."""
        return s.v

    def _seen(self, k: np.ndarray, v: np.ndarray, pass_: Pass, cache: KVCache | None) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values that the queries see, of those that belong to the same rows."""
        return (k, v) if cache is None else cache.append(k, v)

    def _seen_backward(self, dk: np.ndarray, dv: np.ndarray, pass_: Pass) -> None:
        """Turns the gradients of _seen into those of k and v, in place."""

    def recompute_cheap(self, s: AttentionSaved, pass_: Pass) -> None:
        _, q, k, *spare = pass_.scratch.arrays(len(s.q), self.output.N, *self._turned_widths(), *self.output.widths(),
                                               *self._more_widths())
        q, k = self._turned(q, k, s, pass_)
        self._attend(s, q, *self._seen(k, self._values(s, spare, pass_), pass_, None), pass_)

    def _attend(self, s: AttentionSaved, q: np.ndarray, k: np.ndarray, v: np.ndarray, pass_: Pass) -> None:
        """s.cheap from queries, and keys and values of the same rows, or of one sequence with earlier ones before
        them."""
        begin, heads, scores = pass_.rows.q_begin, self.heads, self.scores
        k_begin = begin if len(k) == len(q) else np.array([0, len(k)], np.int32)
        if prompts := pass_.rows.prompts:
            (k, v), k_begin = prompts.seen(k, v), prompts.k_begin
        attention_forward(s.cheap.o, s.cheap.lse, q, k, v, self.sinks, begin, k_begin, scores.scale, scores.window,
                          scores.soft_cap, heads.n_head, heads.n_head_kv, pass_.n_threads)

    def _turn(self, q: np.ndarray, k: np.ndarray, pass_: Pass) -> None:
        assert self.rope is not None
        self.rope.of_queries.turn(q, pass_.rows.positions, self.heads.n_head, pass_.n_threads)
        self.rope.turn(k, pass_.rows.positions, self.heads.n_head_kv, pass_.n_threads)

    def _turn_back(self, q: np.ndarray, k: np.ndarray, pass_: Pass) -> None:
        assert self.rope is not None
        self.rope.of_queries.turn_back(q, pass_.rows.positions, self.heads.n_head, pass_.n_threads)
        self.rope.turn_back(k, pass_.rows.positions, self.heads.n_head_kv, pass_.n_threads)

    def _turned(self, q: np.ndarray, k: np.ndarray, s: AttentionSaved, pass_: Pass) -> tuple[np.ndarray, np.ndarray]:
        """q and k as attention takes them: s.q and s.k, or made of them in the memory of q and k."""
        if self._takes_saved:
            return s.q, s.k
        if self.q_norm and self.k_norm:
            self.q_norm.forward(q, s.q_norm, s.q, pass_)
            self.k_norm.forward(k, s.k_norm, s.k, pass_)
        else:
            q[:], k[:] = s.q, s.k
        if self.rope and not self.turns_saved:
            self._turn(q, k, pass_)
        return q, k

    def backward(self, dx: np.ndarray, d_out: np.ndarray, x: np.ndarray, s: AttentionSaved, pass_: Pass,
                 need_dx: bool) -> None:
        T, C, (wq, wk, wv, wo) = len(x), self.output.N, self.heads.widths
        widths = wq, wk, wv, C, max(C, wo), *self._turned_widths(), *self.output.widths(), *self._more_widths()
        dq, dk, dv, d_normed, last, q, k, *spare = pass_.scratch.arrays(T, *widths)
        do, normed = last.reshape(-1)[:T * wo].reshape(T, wo), last.reshape(-1)[:T * C].reshape(T, C)
        # out = residual + output(o)
        if not self.input.has_gradients(pass_.adapter, need_dx):
            self.output.backward(None, d_out, self._put_out(s, spare, pass_), s.output, spare, pass_)
            return
        self.output.backward(do, d_out, self._put_out(s, spare, pass_), s.output, spare, pass_)
        self._put_out_backward(do, s, spare, pass_)
        # o = attention(q, k, v)
        (q, k), v = self._turned(q, k, s, pass_), self._values(s, spare, pass_)
        self._attend_backward((dq, dk, dv), do, (q, k, v), s, pass_)
        self._seen_backward(dk, dv, pass_)
        dq, dk = self._turned_backward(dq, dk, q, k, s, pass_)
        d_qkv = self._project_backward([dq, dk, dv], s, spare, pass_)
        # q, k, v = projections of normed = norm(x), which takes the place of do
        self.input.backward(dx, d_qkv, s.norm, s.h, x, (normed, d_normed), pass_, need_dx)

    def _attend_backward(self, d_qkv: tuple[np.ndarray, ...], do: np.ndarray, qkv: tuple[np.ndarray, ...],
                         s: AttentionSaved, pass_: Pass) -> None:
        """d_qkv, of whole sequences, from the gradient of s.cheap.o."""
        (dq, dk, dv), (q, k, v), begin, prompts = d_qkv, qkv, pass_.rows.q_begin, pass_.rows.prompts
        k_begin = prompts.k_begin if prompts else begin
        if prompts:
            (k, v), (dk, dv) = prompts.seen(k, v), prompts.gradients(k, v)
        scores, heads = self.scores, self.heads
        attention_backward(dq, dk, dv, do, q, k, v, s.cheap.o, s.cheap.lse, begin, k_begin, scores.scale, scores.window,
                           scores.soft_cap, heads.n_head, heads.n_head_kv, pass_.n_threads)
        if prompts:
            prompts.add_up(d_qkv[1], d_qkv[2], (dk, dv))

    def _turned_backward(self, dq: np.ndarray, dk: np.ndarray, q: np.ndarray, k: np.ndarray, s: AttentionSaved,
                         pass_: Pass) -> tuple[np.ndarray, np.ndarray]:
        """The gradients of what the projections put out; s.q and s.k become that again if it is needed. q, k: of
        _turned."""
        if self.rope and not self.norm_after_rope:
            self._turn_back(dq, dk, pass_)
        if self.q_norm and self.k_norm:
            self.q_norm.backward(q, dq, s.q, s.q_norm, pass_)   # q and k have served
            self.k_norm.backward(k, dk, s.k, s.k_norm, pass_)
            dq, dk = q, k
        if self.rope and self.norm_after_rope:
            self._turn_back(dq, dk, pass_)
        if self.turns_saved and self.qkv.has_gains(pass_.adapter):
            self._turn_back(s.q, s.k, pass_)
        return dq, dk

