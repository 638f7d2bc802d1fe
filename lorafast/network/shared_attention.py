"""Attention of Gemma 4: values have a norm, and blocks in the upper part attend to keys and values of one below.

Source: Gemma 4 (2026), as transformers and llama.cpp compute it.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .attention import Attention, AttentionSaved
from .buffers import New
from .kv_cache import KVCache
from .lora import Ranks
from .norm import HeadNorm
from .passes import Pass
from .shared_keys import SharedKeys


class SharedAttentionSaved(AttentionSaved):
    """v_norm  statistics"""

    def __init__(self, branch: SharedAttention, T: int, new: New, ranks: Ranks) -> None:
        super().__init__(branch, T, new, ranks)
        self.v_norm = branch.v_norm.saved(T, branch.heads.widths[2], new) if branch.v_norm else []


class SharedAttention(Attention):
    """Attention with norms of q and k and:

    v_norm  of the heads of values, which are keys before their norm where there is no matrix for them; None where keys
            and values are those of another block
    place   in Pass.shared, of keys and values that several blocks attend to; None: nobody else does
    """

    def __init__(self, *attention: Any, v_norm: HeadNorm | None, place: int | None) -> None:
        super().__init__(*attention)
        self.v_norm, self.place = v_norm, place

    def _shared(self, pass_: Pass) -> SharedKeys:
        """Keys and values of several blocks."""
        assert self.place is not None, "without a norm of values they are another block's"
        return pass_.shared[self.place]

    @property
    def shape(self) -> tuple:
        return (*super().shape, self.v_norm is None, self.place is None, len(self.qkv.linears))

    def saved(self, T: int, new: New, ranks: Ranks) -> SharedAttentionSaved:
        return SharedAttentionSaved(self, T, new, ranks)

    def saved_widths(self) -> tuple[int, ...]:
        n = len(self.qkv.linears)
        return (*self.heads.widths[:n], *[0] * (3 - n))

    def new_cache(self, n_ctx: int, chunk: int, new: New) -> KVCache | None:
        return super().new_cache(n_ctx, chunk, new) if self.v_norm else None

    def _more_widths(self) -> tuple[int, ...]:
        """Normed values; then their gradient before the norm."""
        return (self.heads.widths[2] if self.v_norm else 0,)

    def _projected(self, s: SharedAttentionSaved) -> list[np.ndarray]:
        return [s.q, s.k, s.v][:len(self.qkv.linears)]

    def _raw_values(self, s: SharedAttentionSaved) -> np.ndarray:
        return s.v if len(self.qkv.linears) == 3 else s.k

    def _project(self, s: SharedAttentionSaved, x: np.ndarray, normed: np.ndarray, spare: list[np.ndarray],
                 pass_: Pass) -> None:
        self.input.forward(self._projected(s), s.norm, s.h, x, normed, pass_)

    def _project_backward(self, d_qkv: list[np.ndarray], s: SharedAttentionSaved, spare: list[np.ndarray],
                          pass_: Pass) -> Sequence[np.ndarray]:
        dq, dk, dv = d_qkv
        if self.v_norm:
            self.v_norm.backward(spare[-1], dv, self._raw_values(s), s.v_norm, pass_)
            if len(self.qkv.linears) == 3:
                dv = spare[-1]
            else:
                dk += spare[-1]
        return self.qkv.gain_backward([dq, dk, dv][:len(self.qkv.linears)], self._projected(s), pass_)

    def _values(self, s: SharedAttentionSaved, spare: list[np.ndarray], pass_: Pass) -> np.ndarray:
        if self.v_norm is None:
            return self._shared(pass_).v
        self.v_norm.forward(spare[-1], s.v_norm, self._raw_values(s), pass_)
        return spare[-1]

    def _seen(self, k: np.ndarray, v: np.ndarray, pass_: Pass, cache: KVCache | None) -> tuple[np.ndarray, np.ndarray]:
        if self.v_norm is None:
            return k, v
        k, v = super()._seen(k, v, pass_, cache)
        if self.place is not None:
            self._shared(pass_).put(k, v)
        return k, v

    def _seen_backward(self, dk: np.ndarray, dv: np.ndarray, pass_: Pass) -> None:
        if self.place is None:
            return
        shared = self._shared(pass_)
        if self.v_norm is None:
            shared.dk += dk
            shared.dv += dv
        else:
            dk += shared.dk
            dv += shared.dv

    def _turned(self, q: np.ndarray, k: np.ndarray, s: AttentionSaved, pass_: Pass) -> tuple[np.ndarray, np.ndarray]:
        if self.v_norm:
            return super()._turned(q, k, s, pass_)
        assert self.q_norm and self.rope
        self.q_norm.forward(q, s.q_norm, s.q, pass_)
        self.rope.of_queries.turn(q, pass_.rows.positions, self.heads.n_head, pass_.n_threads)
        return q, self._shared(pass_).k

    def _turned_backward(self, dq: np.ndarray, dk: np.ndarray, q: np.ndarray, k: np.ndarray, s: AttentionSaved,
                         pass_: Pass) -> tuple[np.ndarray, np.ndarray]:
        if self.v_norm:
            return super()._turned_backward(dq, dk, q, k, s, pass_)
        assert self.q_norm and self.rope
        self.rope.of_queries.turn_back(dq, pass_.rows.positions, self.heads.n_head, pass_.n_threads)
        self.q_norm.backward(q, dq, s.q, s.q_norm, pass_)
        return q, dk
