"""A decoder block: branches that each add to the residual stream; its backward pass goes from the last to the first."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .branch import Branch, Saved
from .buffers import Buffers, New
from .lora import Adapter, Ranks
from .passes import Pass


class BlockSaved(Buffers):
    """What backward needs of a block's forward pass on T tokens.

    branches  of each branch
    streams   the residual stream between the branches, (T, C) each
    """

    def __init__(self, block: Block, T: int, new: New, ranks: Ranks) -> None:
        self.branches: list[Saved] = [branch.saved(T, new, ranks) for branch in block.branches]
        self.streams = [new(T, block.n_embd) for _ in block.branches[1:]]


class Block:
    """out = scale · (x + f_1(x) + f_2(x + f_1(x))), and so on for each branch; or, in parallel, all branches read x
    itself."""

    def __init__(self, n_embd: int, branches: Sequence[Branch], is_parallel: bool = False, scale: float = 1.0) -> None:
        self.n_embd, self.branches, self.is_parallel = n_embd, tuple(branches), is_parallel
        self.scale = np.float32(scale)
        self.groups = tuple(group for branch in branches for group in branch.groups)

    @property
    def shape(self) -> tuple:
        """Blocks of equal shape save the same arrays, and take as long to compute."""
        return tuple(branch.shape for branch in self.branches)

    def refresh(self, adapter: Adapter) -> None:
        """Takes over an adapter's present values; to be called after each change of its parameters."""
        for branch in self.branches:
            for norm in branch.norms:
                norm.refresh(adapter)
        for group in self.groups:
            group.refresh()

    def is_adapted(self, adapter: Adapter) -> bool:
        return any(_is_adapted(branch, adapter) for branch in self.branches)

    def saved(self, T: int, new: New, ranks: Ranks) -> BlockSaved:
        return BlockSaved(self, T, new, ranks)

    def scratch(self, T: int, adapter: Adapter) -> int:
        """Floats of the Scratch that forward and backward need for T tokens."""
        return max(branch.scratch(T, adapter) for branch in self.branches)

    def new_caches(self, n_ctx: int, chunk: int, new: New) -> list[Any]:
        """What generation keeps of earlier positions, by branch."""
        return [branch.new_cache(n_ctx, chunk, new) for branch in self.branches]

    def forward(self, out: np.ndarray | None, x: np.ndarray, s: BlockSaved, pass_: Pass,
                caches: Sequence[Any] | None = None) -> None:
        """out (T, C) from x (T, C). With out None only `s` is filled, for backward."""
        streams: list[Any] = [x, *s.streams, out]         # the last may be None
        for i, branch in enumerate(self.branches):
            branch.forward(streams[i + 1], streams[i], x if self.is_parallel else streams[i], s.branches[i], pass_,
                           caches[i] if caches else None)
        if out is not None and self.scale != 1:
            out *= self.scale

    def backward(self, dx: np.ndarray, x: np.ndarray, s: BlockSaved, pass_: Pass, need_dx: bool) -> None:
        """dx (T, C) holds the gradient of out and, if `need_dx`, becomes that of x; else nothing below is adapted."""
        if self.scale != 1:
            dx *= self.scale
        inputs = [x] * len(self.branches) if self.is_parallel else [x, *s.streams]
        d_out = dx.copy() if self.is_parallel else dx
        for i in reversed(range(len(self.branches))):
            needed = need_dx or (not self.is_parallel and any(_is_adapted(b, pass_.adapter) for b in self.branches[:i]))
            self.branches[i].backward(dx, d_out, inputs[i], s.branches[i], pass_, needed)


def _is_adapted(branch: Branch, adapter: Adapter) -> bool:
    return (any(group.is_adapted(adapter) for group in branch.groups)
            or any(norm.is_adapted(adapter) for norm in branch.norms))
