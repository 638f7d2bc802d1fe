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

    @property
    def can_omit_rows(self) -> bool:
        """Whether the last branch can leave out rows whose outputs nobody reads."""
        return not self.is_parallel and len(self.branches) > 1 and self.branches[-1].is_by_row

    def forward(self, out: np.ndarray | None, x: np.ndarray, s: BlockSaved, pass_: Pass,
                caches: Sequence[Any] | None = None, read: np.ndarray | None = None) -> None:
        """out (T, C) from x (T, C). With out None only `s` is filled, for backward.

        read  where the block `can_omit_rows`, the n rows of out that are read: they become its first ones
        """
        streams: list[Any] = [x, *s.streams, out]         # the last may be None
        for i, branch in enumerate(self.branches if read is None else self.branches[:-1]):
            branch.forward(streams[i + 1], streams[i], x if self.is_parallel else streams[i], s.branches[i], pass_,
                           caches[i] if caches else None)
        if out is not None and read is not None:
            n, stream, out = len(read), s.streams[-1], out[:len(read)]
            stream[:n] = stream[read]                     # nobody else reads it
            self.branches[-1].forward(out, stream[:n], stream[:n], s.branches[-1].first(n), pass_)
        if out is not None and self.scale != 1:
            out *= self.scale

    def backward(self, dx: np.ndarray, x: np.ndarray, s: BlockSaved, pass_: Pass, need_dx: bool,
                 read: np.ndarray | None = None) -> None:
        """dx (T, C) holds the gradient of out and, if `need_dx`, becomes that of x; else nothing below is adapted.

        read  as in forward: the gradients of these rows are the first of dx
        """
        n, top = len(dx) if read is None else len(read), len(self.branches)
        if self.scale != 1:
            dx[:n] *= self.scale
        if read is not None:
            top -= 1
            self.branches[top].backward(dx[:n], dx[:n], s.streams[-1][:n], s.branches[top].first(n), pass_,
                                        self._needs_dx(top, need_dx, pass_))
            d_rows = dx[:n].copy()
            dx.fill(0)
            dx[read] = d_rows
        inputs = [x] * top if self.is_parallel else [x, *s.streams]
        d_out = dx.copy() if self.is_parallel else dx
        for i in reversed(range(top)):
            self.branches[i].backward(dx, d_out, inputs[i], s.branches[i], pass_, self._needs_dx(i, need_dx, pass_))

    def _needs_dx(self, i: int, need_dx: bool, pass_: Pass) -> bool:
        """Whether somebody reads the gradient of the input of a branch."""
        return need_dx or (not self.is_parallel and any(_is_adapted(b, pass_.adapter) for b in self.branches[:i]))


def _is_adapted(branch: Branch, adapter: Adapter) -> bool:
    return (any(group.is_adapted(adapter) for group in branch.groups)
            or any(norm.is_adapted(adapter) for norm in branch.norms))
