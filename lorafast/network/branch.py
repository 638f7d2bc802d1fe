"""What a block is made of: branches that read the residual stream and add to it."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .buffers import Buffers, New, empty
from .linear import Group
from .lora import Adapter, Ranks
from .norm import Norm, Statistics
from .passes import Pass


class Branch(Protocol):
    """out = residual + f(x), forward and backward. All arrays are float32, x and out (T, C).

    groups  the matrices, in the order in which forward uses them
    norms   those whose gain may carry a pair
    shape   of its activations: branches of equal shape can use each other's `saved`
    key_widths  columns of the keys and values by which rows see earlier ones: (0, 0) where they see none, None where
            they see them by a state, so that two sequences cannot share their beginning
    is_by_row  a row of f(x) comes of this row of x alone, with the same bits beside any others
    """

    is_by_row: bool

    @property
    def groups(self) -> Sequence[Group]:
        """See above."""

    @property
    def norms(self) -> Sequence[Norm]:
        """See above."""

    @property
    def shape(self) -> tuple:
        """See above; with the type of the branch, what decides how long it computes."""

    @property
    def key_widths(self) -> tuple[int, int] | None:
        """See above."""

    def saved(self, T: int, new: New, ranks: Ranks) -> Saved:
        """Memory for what backward needs of a forward pass on T tokens."""

    def scratch(self, T: int, adapter: Adapter) -> int:
        """Floats of Scratch that forward and backward use."""

    def kernel_bytes(self, T: int, n_threads: int) -> int:
        """Bytes of working memory that its kernels take, without those of products."""

    def forward(self, out: np.ndarray | None, residual: np.ndarray, x: np.ndarray, s: Any, pass_: Pass,
                cache: Any = None) -> None:
        """out = residual + f(x), and fills s. With out None only s is filled, for backward: without the last product,
        unless its result is needed."""

    def recompute_cheap(self, s: Any, pass_: Pass) -> None:
        """Fills s.cheap from the rest of s."""

    def cheap_growth(self, length: int, ctx: int) -> float:
        """The share by which the cheap part's time for a token grows, from sequences of one length to a longer one."""

    def backward(self, dx: np.ndarray, d_out: np.ndarray, x: np.ndarray, s: Any, pass_: Pass, need_dx: bool) -> None:
        """Adds the gradient of f(x) to dx, which may be d_out itself, and to those of the adapter. Without `need_dx`
        nobody reads dx, and nothing below is adapted. Uses up s."""

    def new_cache(self, n_ctx: int, chunk: int, new: New) -> Any:
        """What generation keeps of up to n_ctx earlier positions, adding up to `chunk` at once; None if nothing."""


class Saved(Buffers):
    """What backward needs of a branch's forward pass: everything that is not cheap to compute again.

    cheap  what is: it may be shared with other blocks, and is then computed again before backward
    """

    cheap: Any


class Nothing(Buffers):
    """No arrays."""


class BranchInput:
    """How a branch reads the residual stream: ys = the projections of norm(x), those of one group.

    norm  None: of x itself
    """

    def __init__(self, norm: Norm | None, group: Group) -> None:
        self.norm, self.group = norm, group

    def saved(self, T: int, new: New) -> Statistics:
        return self.norm.saved(T, new) if self.norm else []

    def widths(self) -> tuple[int, int]:
        """Columns of the scratch arrays `normed` and `d_normed`."""
        return (self.group.linears[0].weight.K,) * 2

    def has_gradients(self, adapter: Adapter, need_dx: bool) -> bool:
        """Whether backward has anything to compute."""
        return need_dx or self._norm_is_adapted(adapter) or self.group.is_adapted(adapter)

    def _norm_is_adapted(self, adapter: Adapter) -> bool:
        return self.norm is not None and self.norm.is_adapted(adapter)

    def forward(self, ys: Sequence[np.ndarray], s: Statistics, h: Sequence[np.ndarray], x: np.ndarray,
                normed: np.ndarray, pass_: Pass) -> None:
        """ys and h: as Group.forward has them."""
        if self.norm:
            self.norm.forward(normed, s, x, pass_)
        self.group.forward(ys, h, normed if self.norm else x, pass_)

    def backward(self, dx: np.ndarray, dys: Sequence[np.ndarray], s: Statistics, h: Sequence[np.ndarray],
                 x: np.ndarray, spare: tuple[np.ndarray, np.ndarray], pass_: Pass, need_dx: bool) -> None:
        """Adds to dx, which nobody reads without `need_dx`. dys: behind the gains' backward pass."""
        normed, d_normed = spare
        if self.norm:
            self.norm.forward(normed, s, x, pass_)
        need_d_normed = need_dx or self._norm_is_adapted(pass_.adapter)
        self.group.backward(d_normed if need_d_normed else None, dys, normed if self.norm else x, h, pass_)
        if self.norm and need_d_normed:
            self.norm.backward(dx, d_normed, x, s, pass_)
        elif need_dx:
            dx += d_normed


class BranchOutput:
    """How a branch returns to the residual stream: out = residual + scale · post_norm(y), y = pre_norm(x) Wᵀ.

    pre_norm, post_norm  None where there is none
    """

    def __init__(self, group: Group, scale: float, pre_norm: Norm | None, post_norm: Norm | None) -> None:
        self.group, self.scale, self.pre_norm, self.post_norm = group, np.float32(scale), pre_norm, post_norm
        self.N, self.K = group.linears[0].weight.N, group.linears[0].weight.K
        self.is_plain = post_norm is None and scale == 1
        """The product itself adds the residual."""

    def saved(self, T: int, new: New, ranks: Ranks) -> OutputSaved:
        return OutputSaved(self, T, new, ranks)

    def widths(self) -> tuple[int, ...]:
        """Columns of the scratch arrays that forward and backward take as `spare`: of the product's result where it is
        not put out, and of pre_norm's."""
        return (0 if self.is_plain else self.N, self.K if self.pre_norm else 0)

    def needs_result(self, adapter: Adapter) -> bool:
        """Whether backward needs y."""
        return self.post_norm is not None or self.group.has_gains(adapter)

    def forward(self, out: np.ndarray | None, residual: np.ndarray, x: np.ndarray, s: OutputSaved,
                spare: list[np.ndarray], pass_: Pass) -> None:
        """Computes the output; without `out`, only what backward needs."""
        if self.pre_norm:
            self.pre_norm.forward(spare[1], s.pre, x, pass_)
            x = spare[1]
        if out is None and not self.needs_result(pass_.adapter):
            self.group.project(s.h, x, pass_)
        elif self.is_plain and out is not None:
            self.group.forward([out], s.h, x, pass_, residual=residual, y=s.y)
        else:
            y = s.y if self.needs_result(pass_.adapter) else spare[0]
            self.group.forward([y], s.h, x, pass_)
            if out is not None:
                self._add(out, residual, y, s, spare[0], pass_)
            elif self.post_norm:
                self.post_norm.forward(spare[0], s.post, y, pass_)

    def _add(self, out: np.ndarray, residual: np.ndarray, y: np.ndarray, s: OutputSaved, spare: np.ndarray,
             pass_: Pass) -> None:
        if self.post_norm:
            self.post_norm.forward(spare, s.post, y, pass_)
            y = spare
        np.multiply(y, self.scale, out=spare)
        np.add(residual, spare, out=out)

    def backward(self, dx: np.ndarray | None, d_out: np.ndarray, x: np.ndarray, s: OutputSaved, spare: list[np.ndarray],
                 pass_: Pass) -> None:
        """dx (T, K) of the branch's own values x; None when nobody reads it. d_out stays as it is."""
        dy, y = d_out, s.y
        if not self.is_plain:
            dy = spare[0]
            if self.post_norm:                          # out = residual + scale · post_norm(y)
                dy.fill(0)
                d_post = d_out if self.scale == 1 else self.scale * d_out
                self.post_norm.backward(dy, d_post, y, s.post, pass_)
            else:
                np.multiply(d_out, self.scale, out=dy)
        dy, = self.group.gain_backward([dy], [y], pass_)
        if not self.pre_norm:
            self.group.backward(dx, [dy], x, s.h, pass_)
            return
        self.pre_norm.forward(spare[1], s.pre, x, pass_)
        if dx is None:
            self.group.backward(None, [dy], spare[1], s.h, pass_)
            return
        d_normed = empty(*spare[1].shape)
        self.group.backward(d_normed, [dy], spare[1], s.h, pass_)
        dx.fill(0)
        self.pre_norm.backward(dx, d_normed, x, s.pre, pass_)


class OutputSaved(Buffers):
    """What BranchOutput's backward needs. y: of no columns where it is not needed."""

    def __init__(self, output: BranchOutput, T: int, new: New, ranks: Ranks) -> None:
        has_gain = any(ranks.has_gain(linear.role) for linear in output.group.linears)
        self.h = output.group.saved(T, new, ranks)
        self.y = new(T, output.N if output.post_norm or has_gain else 0)
        self.pre: Statistics = output.pre_norm.saved(T, new) if output.pre_norm else []
        self.post: Statistics = output.post_norm.saved(T, new) if output.post_norm else []


def given(*norms: Norm | None) -> tuple[Norm, ...]:
    """The norms that are there."""
    return tuple(norm for norm in norms if norm is not None)
