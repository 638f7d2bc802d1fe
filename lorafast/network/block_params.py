"""Sizes and constants of one block, as HParams.blocks holds them."""
from __future__ import annotations

from dataclasses import dataclass

from .rope import RopeParams


@dataclass(frozen=True)
class BlockParams:
    """Sizes and constants of a block.

    n_embd_head_k, n_embd_head_v   size of a head of queries and keys, of values
    window      newest positions that a position sees, itself included; 0: all
    rope        None: positions are not told apart by RoPE
    conv_width  taps of the short convolution that stands in attention's place; 0: attention does
    """

    n_head: int
    n_head_kv: int
    n_embd_head_k: int
    n_embd_head_v: int
    n_ff: int
    window: int = 0
    rope: RopeParams | None = None
    conv_width: int = 0

    @property
    def sizes(self) -> dict[str, int]:
        """Values of the symbols in which shapes of a block's tensors are written."""
        q, k = self.n_head * self.n_embd_head_k, self.n_head_kv * self.n_embd_head_k
        v = self.n_head_kv * self.n_embd_head_v
        return {"F": self.n_ff, "2F": 2 * self.n_ff, "D": self.n_embd_head_k, "H": self.n_head, "HKV": self.n_head_kv,
                "H*D": q, "HKV*D": k, "HKV*DV": v, "H*DV": self.n_head * self.n_embd_head_v, "QKV": q + k + v,
                "L": self.conv_width}
