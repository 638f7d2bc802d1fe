"""Embeddings that each block has of its own: a table that is only gathered from, and the branch that puts them in.

Source: Gemma 3n (2025), Gemma 4 (2026).
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..gguf.reader import Tensor
from ..kernels.embedding import embedding_forward
from ..kernels.swiglu import geglu_backward, geglu_forward
from .branch import BranchInput, BranchOutput, Nothing, Saved, given
from .buffers import New, Scratch, empty
from .linear import Group, Linear
from .lora import Adapter, Ranks
from .norm import HeadNorm, Norm
from .passes import Pass

PIECE = 128
"""Tokens of which rows of all blocks exist at a time."""


class PerLayerEmbedding:
    """e[layer] = (√n · table[token] + norm(W x / √C)) / √2, each of n values, x being the scaled embedding.

    They depend on tokens alone: nothing below is adapted, and they have no gradient.
    table  (V, n_layer · n), which is never in memory as a whole
    """

    def __init__(self, table: Tensor, projection: Tensor, norm: Norm, precision: str) -> None:
        self.table, self.group = table, Group(Linear(projection, precision=precision))
        self.norm = HeadNorm(norm)
        self.n = self.norm.width
        self.width, self.C = projection.shape
        self.n_layer = self.width // self.n

    def new(self, T: int, new: New) -> list[np.ndarray]:
        """Memory for those of T tokens: (T, n) for each block."""
        return [new(T, self.n) for _ in range(self.n_layer)]

    def scratch(self, T: int) -> int:
        return Scratch.floats(min(T, PIECE), *[self.width] * 3)

    def forward(self, e: Sequence[np.ndarray], x: np.ndarray, pass_: Pass) -> None:
        """x (T, C) of the pass's tokens."""
        for begin in range(0, len(x), PIECE):
            tokens, part = pass_.tokens[begin:begin + PIECE], x[begin:begin + PIECE]
            gathered, projected, normed = pass_.scratch.arrays(len(part), *[self.width] * 3)
            table, rows = pass_.weights.rows(self.table, tokens)
            embedding_forward(gathered, rows, table, int(self.table.type), pass_.n_threads)
            self.group.forward([projected], [empty(len(part), 0)], part, pass_)
            projected *= np.float32(self.C**-0.5)
            self.norm.forward(normed, self.norm.saved(len(part), self.width, empty), projected, pass_)
            gathered *= np.float32(self.n**0.5)
            normed += gathered
            normed *= np.float32(0.5**0.5)
            for layer, of_layer in enumerate(e):
                of_layer[begin:begin + PIECE] = normed[:, layer * self.n:(layer + 1) * self.n]


class PerLayerInputSaved(Saved):
    """gate: what the projection puts out. backward leaves its gradient in its place."""

    def __init__(self, branch: PerLayerInput, T: int, new: New, ranks: Ranks) -> None:
        self.gate = new(T, branch.n)
        self.cheap = Nothing()
        self.h = branch.input.group.saved(T, new, ranks)
        self.output = branch.output.saved(T, new, ranks)


class PerLayerInput:
    """out = residual + output(gelu(gate(x)) ⊙ e[layer]), e being what Pass.per_layer holds."""

    key_widths = 0, 0
    is_by_row = False           # it also reads Pass.per_layer, by the row's number

    def __init__(self, gate: Group, output: BranchOutput, layer: int) -> None:
        self.input, self.output, self.layer, self.n = BranchInput(None, gate), output, layer, output.K
        self.groups = (gate, output.group)
        self.norms = given(output.post_norm)

    @property
    def shape(self) -> tuple:
        return (type(self), self.n, self.output.is_plain)

    def saved(self, T: int, new: New, ranks: Ranks) -> PerLayerInputSaved:
        return PerLayerInputSaved(self, T, new, ranks)

    def scratch(self, T: int, adapter: Adapter) -> int:
        return max(Scratch.floats(T, self.n, self.n, self.n, *self.output.widths()),
                   Scratch.floats(T, *self.input.widths()))

    def kernel_bytes(self, T: int, n_threads: int) -> int:
        return 0

    def cheap_growth(self, length: int, ctx: int) -> float:
        return 0.0

    def new_cache(self, n_ctx: int, chunk: int, new: New) -> None:
        return None

    def forward(self, out: np.ndarray | None, residual: np.ndarray, x: np.ndarray, s: PerLayerInputSaved, pass_: Pass,
                cache: None = None) -> None:
        act, _, _, *spare = pass_.scratch.arrays(len(x), self.n, self.n, self.n, *self.output.widths())
        self.input.forward([s.gate], [], s.h, x, act, pass_)
        geglu_forward(act, s.gate, pass_.per_layer[self.layer], pass_.n_threads)
        self.output.forward(out, residual, act, s.output, spare, pass_)

    def recompute_cheap(self, s: PerLayerInputSaved, pass_: Pass) -> None:
        pass

    def backward(self, dx: np.ndarray, d_out: np.ndarray, x: np.ndarray, s: PerLayerInputSaved, pass_: Pass,
                 need_dx: bool) -> None:
        act, d_act, d_e, *spare = pass_.scratch.arrays(len(x), self.n, self.n, self.n, *self.output.widths())
        e = pass_.per_layer[self.layer]
        geglu_forward(act, s.gate, e, pass_.n_threads)
        if not self.input.has_gradients(pass_.adapter, need_dx):
            self.output.backward(None, d_out, act, s.output, spare, pass_)
            return
        self.output.backward(d_act, d_out, act, s.output, spare, pass_)
        # act = gelu(gate) ⊙ e; the gains' backward pass needs the gate
        place = act if self.input.group.has_gains(pass_.adapter) else s.gate
        geglu_backward(place, d_e, d_act, s.gate, e, pass_.n_threads)
        d_gate = self.input.group.gain_backward([place], [s.gate], pass_)
        normed, d_normed = pass_.scratch.arrays(len(x), *self.input.widths())
        self.input.backward(dx, d_gate, [], s.h, x, (normed, d_normed), pass_, need_dx)
