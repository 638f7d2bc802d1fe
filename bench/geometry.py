"""Sizes of the models that the benches train. A module of its own, because peers may lack all that lorafast needs."""
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    n_embd: int
    n_head: int
    n_head_kv: int
    n_ff: int
    n_layer: int
    n_vocab: int

    @property
    def matrices(self) -> list[tuple[str, int, int]]:
        """(name, N, K) of every matrix that is multiplied by, in the file's order; token_embd is only looked up."""
        kv = self.n_embd // self.n_head * self.n_head_kv
        C, F = self.n_embd, self.n_ff
        block = [("attn_q", C, C), ("attn_k", kv, C), ("attn_v", kv, C), ("attn_output", C, C),
                 ("ffn_gate", F, C), ("ffn_up", F, C), ("ffn_down", C, F)]
        layers = [(f"blk.{layer}.{name}.weight", N, K) for layer in range(self.n_layer) for name, N, K in block]
        return [*layers, ("output.weight", self.n_vocab, C)]

    @property
    def n_weights(self) -> int:
        """P: weights in matrix products. A step on T tokens takes 4 P T operations, recomputation not counted."""
        return sum(N * K for _, N, K in self.matrices)


GEOMETRIES = {
    "tiny": Geometry(64, 4, 2, 160, 2, 384),
    "160m": Geometry(768, 12, 12, 2048, 12, 32000),
    "1b": Geometry(2048, 32, 4, 5632, 22, 32000),         # TinyLlama
    "7b": Geometry(4096, 32, 32, 11008, 32, 32000),       # Llama 2
}
