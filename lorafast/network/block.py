"""A decoder block: x1 = x + Wo·attention(norm(x)), out = x1 + Wdown·swiglu(norm(x1)); its backward pass goes upwards.

Source: Touvron et al., LLaMA (2023); grouped-query attention: Ainslie et al. (2023).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..gguf.reader import GGUFFile
from ..kernels.attention import attention_backward, attention_forward
from ..kernels.rope import rope_forward
from ..kernels.swiglu import swiglu_backward, swiglu_forward
from .buffers import Buffers, New, Scratch, empty
from .hparams import HParams
from .linear import Norm, Projections
from .lora import Adapter


@dataclass(frozen=True)
class Rows:
    """Where the T rows of a batch belong. Rows of one sequence follow each other; sequences don't see each other.

    positions   int32 (T,), place within the sequence
    q_begin     int32 (n_seq + 1,), first row of each sequence
    k_begin     int32 (n_seq + 1,), the same for keys and values, of which a cache may hold earlier ones
    """

    positions: np.ndarray
    q_begin: np.ndarray
    k_begin: np.ndarray

    @staticmethod
    def of(begin: np.ndarray) -> Rows:
        """Whole sequences, the i-th from row begin[i] to begin[i + 1]."""
        positions = np.arange(begin[-1], dtype=np.int32) - np.repeat(begin[:-1], np.diff(begin))
        return Rows(positions.astype(np.int32), begin, begin)


class Saved(Buffers):
    """What backward needs of a block's forward pass on T tokens: everything that is not cheap to compute again.

    backward uses it up: it leaves the gradients of gate and up in their place.
    """

    def __init__(self, hp: HParams, widths: Widths, T: int, new: New = empty,
                 attention: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """
        attention  o and lse, if they are shared with other blocks: then Block.attend must come before backward
        """
        size = hp.sizes
        self.rstd1, self.rstd2 = new(T), new(T)
        self.q, self.k, self.v = new(T, size["H*D"]), new(T, size["HKV*D"]), new(T, size["HKV*DV"])
        self.o, self.lse = attention or attention_outputs(hp, T, new)
        self.x1 = new(T, hp.n_embd)
        self.gate, self.up = new(T, hp.n_ff), new(T, hp.n_ff)
        self.h_qkv, self.h_output, self.h_gate_up, self.h_down = (
            [new(T, rank) for rank in group] for group in widths.ranks)
        self.y_output, self.y_down = new(T, widths.y_output), new(T, widths.y_down)


@dataclass(frozen=True)
class Widths:
    """What the adapter decides of a Saved that several blocks use in turn: the widest that any of them needs.

    ranks             of the pairs of each group
    y_output, y_down  columns of these products without the residual: of no use without DoRA, and 0
    """

    ranks: list[list[int]]
    y_output: int
    y_down: int

    @staticmethod
    def of(blocks: Sequence[Block], adapter: Adapter) -> Widths:
        ranks = [[group.ranks(adapter) for group in block.groups] for block in blocks]
        return Widths([[max(column) for column in zip(*group)] for group in zip(*ranks)],
                      max(block.output.dora_widths(adapter)[0] for block in blocks),
                      max(block.down.dora_widths(adapter)[0] for block in blocks))


def attention_outputs(hp: HParams, T: int, new: New = empty) -> tuple[np.ndarray, np.ndarray]:
    """Attention's output o, and lse, the logarithm of its softmax's denominators."""
    return new(T, hp.sizes["H*DV"]), new(T, hp.n_head)


class KVCache:
    """Keys and values of one sequence in one block, `n_ctx` positions at most."""

    def __init__(self, hp: HParams, n_ctx: int, new: New = empty) -> None:
        self.k, self.v = new(n_ctx, hp.sizes["HKV*D"]), new(n_ctx, hp.sizes["HKV*DV"])


class Block:
    """Layer `layer` of the model in `gguf`."""

    def __init__(self, gguf: GGUFFile, hp: HParams, layer: int, rope: tuple[np.ndarray, np.ndarray]) -> None:
        def tensors(*names: str) -> list:
            return [gguf.tensors[f"blk.{layer}.{name}.weight"] for name in names]

        self.hparams = hp
        self.attn_norm = Norm(*tensors("attn_norm"), hp.norm_rms_eps)
        self.qkv = Projections(tensors("attn_q", "attn_k", "attn_v"))
        self.output = Projections(tensors("attn_output"))
        self.ffn_norm = Norm(*tensors("ffn_norm"), hp.norm_rms_eps)
        self.gate_up = Projections(tensors("ffn_gate", "ffn_up"))
        self.down = Projections(tensors("ffn_down"))
        self.groups = (self.qkv, self.output, self.gate_up, self.down)
        self.cos, self.sin = rope
        self.minus_sin = -self.sin
        self.scale = hp.n_embd_head_k**-0.5

    def merge(self, adapter: Adapter) -> None:
        self.attn_norm.merge(adapter)
        self.ffn_norm.merge(adapter)
        for group in self.groups:
            group.forget_gains()

    def is_adapted(self, adapter: Adapter) -> bool:
        return (self.attn_norm.name in adapter or self.ffn_norm.name in adapter
                or any(group.is_adapted(adapter) for group in self.groups))

    def scratch_floats(self, T: int) -> int:
        """Size of the Scratch that forward and backward need for T tokens."""
        C, F, *heads = (self.hparams.sizes[symbol] for symbol in ("C", "F", "H*D", "HKV*D", "HKV*DV", "H*DV"))
        return max(Scratch.floats(T, F, F), Scratch.floats(T, C, C), Scratch.floats(T, *heads[:3], C, max(C, heads[3])))

    def forward(self, out: np.ndarray | None, x: np.ndarray, s: Saved, scratch: Scratch, rows: Rows, adapter: Adapter,
                n_threads: int, cache: KVCache | None = None) -> None:
        """out (T, C) from x (T, C). With out None only `s` is filled, for backward: without the last product, unless DoRA
        needs it."""
        hp = self.hparams
        T = x.shape[0]

        normed, = scratch.arrays(T, hp.n_embd)
        self.attn_norm.forward(normed, s.rstd1, x, n_threads)
        self.qkv.forward((s.q, s.k, s.v), s.h_qkv, normed, adapter, n_threads)
        self.rotate(s.q, hp.n_head, self.sin, rows, n_threads)
        self.rotate(s.k, hp.n_head_kv, self.sin, rows, n_threads)
        k, v = s.k, s.v
        if cache is not None:
            n = int(rows.k_begin[-1])
            cache.k[n - T:n], cache.v[n - T:n] = k, v
            k, v = cache.k[:n], cache.v[:n]
        self.attend(s, k, v, rows, n_threads)
        self.output.forward([s.x1], s.h_output, s.o, adapter, n_threads, residual=x, y=s.y_output)

        normed, = scratch.arrays(T, hp.n_embd)
        self.ffn_norm.forward(normed, s.rstd2, s.x1, n_threads)
        self.gate_up.forward((s.gate, s.up), s.h_gate_up, normed, adapter, n_threads)
        act, = scratch.arrays(T, hp.n_ff)
        swiglu_forward(act, s.gate, s.up, n_threads)
        if out is None:
            self.down.recompute([s.y_down], s.h_down, act, adapter, n_threads)
        else:
            self.down.forward([out], s.h_down, act, adapter, n_threads, residual=s.x1, y=s.y_down)

    def attend(self, s: Saved, k: np.ndarray, v: np.ndarray, rows: Rows, n_threads: int) -> None:
        """s.o and s.lse from s.q, keys and values."""
        hp = self.hparams
        attention_forward(s.o, s.lse, s.q, k, v, rows.q_begin, rows.k_begin, self.scale, 0, hp.n_head, hp.n_head_kv,
                          n_threads)

    def backward(self, dx: np.ndarray, x: np.ndarray, s: Saved, scratch: Scratch, rows: Rows, adapter: Adapter,
                 n_threads: int, need_dx: bool) -> None:
        """dx (T, C) holds the gradient of out and, if `need_dx`, becomes that of x; else nothing below is adapted."""
        hp = self.hparams
        T = x.shape[0]

        # out = x1 + down(act)
        act, d_act = scratch.arrays(T, hp.n_ff, hp.n_ff)
        swiglu_forward(act, s.gate, s.up, n_threads)
        d_down = self.down.gain_backward([dx], [s.y_down], adapter, n_threads)
        self.down.backward(d_act, d_down, act, s.h_down, adapter, n_threads)
        # act = swiglu(gate, up)
        if self.gate_up.has_gains(adapter):                                   # their backward needs gate and up
            swiglu_backward(act, d_act, d_act, s.gate, s.up, False, n_threads)
            self.gate_up.gain_backward([act, d_act], [s.gate, s.up], adapter, n_threads)
        else:
            swiglu_backward(s.gate, s.up, d_act, s.gate, s.up, False, n_threads)
        d_gate, d_up = s.gate, s.up
        # gate, up = projections of normed = norm(x1)
        normed, d_normed = scratch.arrays(T, hp.n_embd, hp.n_embd)
        self.ffn_norm.forward(normed, s.rstd2, s.x1, n_threads)
        self.gate_up.backward(d_normed, (d_gate, d_up), normed, s.h_gate_up, adapter, n_threads)
        self.ffn_norm.backward(dx, d_normed, s.x1, s.rstd2, adapter, n_threads)

        # x1 = x + output(o)
        d_output = self.output.gain_backward([dx], [s.y_output], adapter, n_threads)
        attention_is_adapted = self.qkv.is_adapted(adapter) or self.attn_norm.name in adapter
        if not (need_dx or attention_is_adapted):
            self.output.backward(None, d_output, s.o, s.h_output, adapter, n_threads)
            return
        widths = (s.q.shape[1], s.k.shape[1], s.v.shape[1], hp.n_embd)
        dq, dk, dv, d_normed, do = scratch.arrays(T, *widths, s.o.shape[1])
        self.output.backward(do, d_output, s.o, s.h_output, adapter, n_threads)
        # o = attention(q, k, v)
        attention_backward(dq, dk, dv, do, s.q, s.k, s.v, s.o, s.lse, rows.q_begin, rows.k_begin, self.scale, 0,
                           hp.n_head, hp.n_head_kv, False, n_threads)
        # q, k were turned by RoPE; its transpose turns back
        self.rotate(dq, hp.n_head, self.minus_sin, rows, n_threads)
        self.rotate(dk, hp.n_head_kv, self.minus_sin, rows, n_threads)
        if self.qkv.has_gains(adapter):
            self.rotate(s.q, hp.n_head, self.minus_sin, rows, n_threads)
            self.rotate(s.k, hp.n_head_kv, self.minus_sin, rows, n_threads)
        d_qkv = self.qkv.gain_backward([dq, dk, dv], [s.q, s.k, s.v], adapter, n_threads)
        # q, k, v = projections of normed = norm(x)
        *_, normed = scratch.arrays(T, *widths, hp.n_embd)                    # in the place of do, which has served
        self.attn_norm.forward(normed, s.rstd1, x, n_threads)
        need_d_normed = need_dx or self.attn_norm.name in adapter
        self.qkv.backward(d_normed if need_d_normed else None, d_qkv, normed, s.h_qkv, adapter, n_threads)
        if need_d_normed:
            self.attn_norm.backward(dx, d_normed, x, s.rstd1, adapter, n_threads)

    def rotate(self, heads: np.ndarray, n_head: int, sin: np.ndarray, rows: Rows, n_threads: int) -> None:
        """RoPE in place."""
        interleaved = self.hparams.architecture.rope_interleaved
        rope_forward(heads, heads, self.cos, sin, rows.positions, n_head, interleaved, n_threads)
