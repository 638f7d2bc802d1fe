"""Sizes and constants of one block, as HParams.blocks holds them."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .rope import RopeParams

GatingFunction = Literal["softmax", "sigmoid", "softmax of chosen"]


@dataclass(frozen=True)
class Gating:
    """How an expert's weight comes from the router's outputs (see router.py), and whether the weights of the chosen
    are divided by their sum."""

    function: GatingFunction
    normed: bool


@dataclass(frozen=True)
class ExpertParams:
    """Sizes of a block's experts: E of them, of which each token sees n_used; n_ff values inside of one, n_ff_shared
    (or 0) inside of the one that all tokens see."""

    E: int
    n_used: int
    n_ff: int
    n_ff_shared: int
    gating: Gating


@dataclass(frozen=True)
class DeltaHeads:
    """The heads of a gated delta net: n_k heads of queries and keys of size D, and n_v, a multiple of n_k, of values of
    size DV. Head p of values goes with head p mod n_k of keys."""

    n_k: int
    n_v: int
    D: int
    DV: int

    @property
    def width_k(self) -> int:
        return self.n_k * self.D

    @property
    def width_v(self) -> int:
        return self.n_v * self.DV


@dataclass(frozen=True)
class BlockParams:
    """Sizes and constants of a block.

    n_embd_head_k, n_embd_head_v   size of a head of queries and keys, of values
    window      newest positions that a position sees, itself included; 0: all
    rope        None: positions are not told apart by RoPE
    conv_width  taps of the short convolution that stands in attention's place, or is a part of what does; 0: attention
    delta       the gated delta net that stands in attention's place; None without
    keys_from   the block below whose keys and values this one attends to; None: its own
    experts     in the place of a feed-forward network of n_ff; None without
    """

    n_head: int
    n_head_kv: int
    n_embd_head_k: int
    n_embd_head_v: int
    n_ff: int
    window: int = 0
    rope: RopeParams | None = None
    conv_width: int = 0
    delta: DeltaHeads | None = None
    experts: ExpertParams | None = None
    keys_from: int | None = None

    @property
    def sizes(self) -> dict[str, int]:
        """Values of the symbols in which shapes of a block's tensors are written."""
        q, k = self.n_head * self.n_embd_head_k, self.n_head_kv * self.n_embd_head_k
        v = self.n_head_kv * self.n_embd_head_v
        experts = self.experts and {"E": self.experts.E, "Fe": self.experts.n_ff, "2Fe": 2 * self.experts.n_ff,
                                    "Fs": self.experts.n_ff_shared}
        delta = self.delta and {"n_v": self.delta.n_v, "DeltaDV": self.delta.DV, "DeltaV": self.delta.width_v,
                                "DeltaQKV": 2 * self.delta.width_k + self.delta.width_v}
        return {"F": self.n_ff, "2F": 2 * self.n_ff, "D": self.n_embd_head_k, "H": self.n_head, "HKV": self.n_head_kv,
                "H*D": q, "HKV*D": k, "HKV*DV": v, "H*DV": self.n_head * self.n_embd_head_v, "QKV": q + k + v,
                "2H*D": 2 * q, "L": self.conv_width, **(experts or {}), **(delta or {})}
