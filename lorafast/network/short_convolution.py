"""The short convolution branch: output(c ⊙ conv(b ⊙ x)), b, c and x being projections of the normed input.

Source: Liquid AI, LFM2 (2025).
"""
from __future__ import annotations

import numpy as np

from ..gguf.reader import Tensor
from ..kernels.short_conv import gated_conv_backward, gated_conv_forward
from .branch import BranchInput, BranchOutput, Nothing, Saved, given
from .buffers import New, Scratch
from .linear import Group
from .lora import Adapter, Ranks
from .norm import Norm
from .passes import Pass
from .recurrent_cache import RowsCache


def taps_of(tensor: Tensor) -> np.ndarray:
    """A convolution's, float32 (K, C), the oldest first, as the kernels take them: the file has (C, K)."""
    return np.ascontiguousarray(tensor.to_float32().T)


class ShortConvolutionSaved(Saved):
    """bcx: what the projections put out. backward leaves their gradients in their place."""

    def __init__(self, branch: ShortConvolution, T: int, new: New, ranks: Ranks) -> None:
        self.norm = branch.input.saved(T, new)
        self.bcx = [new(T, branch.output.K) for _ in range(3)]
        self.cheap = Nothing()
        self.h = branch.input.group.saved(T, new, ranks)
        self.output = branch.output.saved(T, new, ranks)


class ShortConvolution:
    """out = residual + output(c ⊙ conv(b ⊙ x')), with b, c, x' = bcx(norm(x)).

    taps  float32 (K, C), frozen
    """

    key_widths = None
    is_by_row = False

    def __init__(self, norm: Norm, bcx: Group, taps: np.ndarray, output: BranchOutput) -> None:
        self.input, self.taps, self.output = BranchInput(norm, bcx), taps, output
        self.groups = (bcx, output.group)
        self.norms = given(norm, output.post_norm)

    @property
    def shape(self) -> tuple:
        return (type(self), self.taps.shape, self.output.is_plain)

    def saved(self, T: int, new: New, ranks: Ranks) -> ShortConvolutionSaved:
        return ShortConvolutionSaved(self, T, new, ranks)

    def scratch(self, T: int, adapter: Adapter) -> int:
        C, spare = self.output.K, self.output.widths()
        return max(Scratch.floats(T, C, C, C, *spare), Scratch.floats(T, *self.input.widths()))

    def kernel_bytes(self, T: int, n_threads: int) -> int:
        return 0

    def cheap_growth(self, length: int, ctx: int) -> float:
        return 0.0

    def new_cache(self, n_ctx: int, chunk: int, new: New) -> RowsCache:
        return RowsCache(len(self.taps) - 1, chunk, [self.output.K] * 3, new)

    def forward(self, out: np.ndarray | None, residual: np.ndarray, x: np.ndarray, s: ShortConvolutionSaved,
                pass_: Pass, cache: RowsCache | None = None) -> None:
        T, C = len(x), self.output.K
        normed, _ = pass_.scratch.arrays(T, *self.input.widths())
        self.input.forward(s.bcx, s.norm, s.h, x, normed, pass_)
        y, *spare = pass_.scratch.arrays(T, C, *self.output.widths())
        if cache is None:
            b, c, gated = s.bcx
            gated_conv_forward(y, b, c, gated, self.taps, pass_.rows.q_begin, pass_.n_threads)
        else:
            b, c, gated = cache.append(s.bcx)
            with_earlier = np.empty_like(b)
            gated_conv_forward(with_earlier, b, c, gated, self.taps, np.array([0, len(with_earlier)], np.int32),
                               pass_.n_threads)
            y[:] = with_earlier[-T:]
        self.output.forward(out, residual, y, s.output, spare, pass_)

    def recompute_cheap(self, s: ShortConvolutionSaved, pass_: Pass) -> None:
        pass

    def backward(self, dx: np.ndarray, d_out: np.ndarray, x: np.ndarray, s: ShortConvolutionSaved, pass_: Pass,
                 need_dx: bool) -> None:
        T, C, begin, n_threads = len(x), self.output.K, pass_.rows.q_begin, pass_.n_threads
        # out = residual + output(y)
        y, dy, third, *spare = pass_.scratch.arrays(T, C, C, C, *self.output.widths())
        b, c, gated = s.bcx
        gated_conv_forward(y, b, c, gated, self.taps, begin, n_threads)
        if not self.input.has_gradients(pass_.adapter, need_dx):
            self.output.backward(None, d_out, y, s.output, spare, pass_)
            return
        self.output.backward(dy, d_out, y, s.output, spare, pass_)
        # y = c ⊙ conv(b ⊙ x')
        has_gains = self.input.group.has_gains(pass_.adapter)           # whose backward pass needs bcx
        db, dc, d_gated = places = [y, third, dy] if has_gains else s.bcx
        gated_conv_backward(db, dc, d_gated, dy, b, c, gated, self.taps, begin, n_threads)
        d_bcx = self.input.group.gain_backward(places, s.bcx, pass_)
        # b, c, x' = projections of normed = norm(x)
        normed, d_normed = pass_.scratch.arrays(T, *self.input.widths())
        self.input.backward(dx, d_bcx, s.norm, s.h, x, (normed, d_normed), pass_, need_dx)
