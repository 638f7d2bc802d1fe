"""The gated delta net branch: a memory of a sequence that is a matrix a head, in attention's place.

Source: Yang, Kautz and Hatamizadeh, Gated Delta Networks (2025), as Qwen 3.5 has it.
"""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..kernels.delta_net import delta_net_backward, delta_net_forward, delta_net_scratch_bytes
from ..kernels.short_conv import silu_conv_backward, silu_conv_forward
from ..kernels.swiglu import swiglu_backward, swiglu_forward
from .block_params import DeltaHeads
from .branch import BranchInput, BranchOutput, Saved, given
from .buffers import Buffers, New, Scratch
from .linear import Group
from .lora import Adapter, Ranks
from .norm import HeadNorm, Norm, PlainNorm
from .passes import Pass
from .recurrent_cache import DeltaCache


class Decay:
    """g = a · softplus(alpha + bias), the logarithm of a head's decay, and rate = sigmoid(beta).

    a, bias  float32 (n_v,), a below 0. All arrays here are small: (T, n_v).
    """

    def __init__(self, a: np.ndarray, bias: np.ndarray) -> None:
        self.a, self.bias = a, bias

    def forward(self, alpha: np.ndarray, beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """g and the rates."""
        return self.a * np.logaddexp(np.float32(0), alpha + self.bias), _sigmoid(beta)

    def backward(self, d_alpha: np.ndarray, d_beta: np.ndarray, dg: np.ndarray, d_rate: np.ndarray, alpha: np.ndarray,
                 beta: np.ndarray) -> None:
        """d_alpha and d_beta are overwritten; they may be alpha and beta."""
        rate = _sigmoid(beta)
        np.multiply(dg, self.a * _sigmoid(alpha + self.bias), out=d_alpha)
        np.multiply(d_rate, rate * (1 - rate), out=d_beta)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.float32(0.5) * (np.tanh(np.float32(0.5) * x) + 1)


class DeltaNetSaved(Saved):
    """qkv  what the projections put out, before the convolution; z, beta and alpha likewise. backward leaves their
            gradients in their place
    qk_norms, o_norm  statistics

    cheap.o  what the heads put out
    """

    def __init__(self, branch: DeltaNet, T: int, new: New, ranks: Ranks) -> None:
        qk, v, n_v = branch.heads.width_k, branch.heads.width_v, branch.heads.n_v
        self.norm = branch.input.saved(T, new)
        self.qkv = [new(T, qk), new(T, qk), new(T, v)]
        self.z, self.beta, self.alpha = new(T, v), new(T, n_v), new(T, n_v)
        self.qk_norms = [norm.saved(T, qk, new) for norm in branch.qk_norms]
        self.o_norm = branch.o_norm.saved(T, v, new)
        self.cheap = DeltaNetOutput(T, v, new)
        self.h = branch.input.group.saved(T, new, ranks)
        self.output = branch.output.saved(T, new, ranks)

    @property
    def projected(self) -> list[np.ndarray]:
        """The projected values, in the order of the projections."""
        return [*self.qkv, self.z, self.beta, self.alpha]


class DeltaNetOutput(Buffers):
    def __init__(self, T: int, width: int, new: New) -> None:
        self.o = new(T, width)


class DeltaNet:
    """out = residual + output(silu(z) ⊙ o_norm(delta rule(q, k, v, decay))), q, k, v = silu(conv(projections)), q and k
    divided by their lengths.

    inner   projections of the normed input: q, k, v, z, beta, alpha
    taps    of q, k and v, float32 (K, width) each, frozen
    n_positions  length of the longest sequence
    """

    key_widths = None
    is_by_row = False

    def __init__(self, norm: Norm, inner: Group, taps: Sequence[np.ndarray], decay: Decay, o_norm: HeadNorm,
                 output: BranchOutput, heads: DeltaHeads, eps: float, n_positions: int) -> None:
        self.input, self.taps, self.decay, self.o_norm = BranchInput(norm, inner), taps, decay, o_norm
        self.output, self.heads, self.n_positions = output, heads, n_positions
        D = heads.D         # q / √(Σ q² + eps) / √D and k / √(Σ k² + eps), as RMS norms
        self.qk_norms = [HeadNorm(PlainNorm(D, eps / D, gain)) for gain in (1 / D, D**-0.5)]
        self.groups = (inner, output.group)
        self.norms = given(norm, output.post_norm)

    @property
    def shape(self) -> tuple:
        return (type(self), self.heads, len(self.taps[0]), self.output.is_plain)

    def saved(self, T: int, new: New, ranks: Ranks) -> DeltaNetSaved:
        return DeltaNetSaved(self, T, new, ranks)

    def scratch(self, T: int, adapter: Adapter) -> int:
        widths = self._output_widths(), self._rule_widths(), self.input.widths()
        return max(Scratch.floats(T, *of_phase) for of_phase in widths)

    def _output_widths(self) -> list[int]:
        """dz, d_o; then act, d_act, normed o and its gradient, and what the output needs."""
        return [self.heads.width_v] * 6 + list(self.output.widths())

    def _rule_widths(self) -> list[int]:
        """dz, d_o; then v, q, k, dv, q and k before their norms, dq, dk, and the gradients of g and the rates."""
        qk, v, n_v = self.heads.width_k, self.heads.width_v, self.heads.n_v
        return [v, v, v, qk, qk, v, qk, qk, qk, qk, n_v, n_v]

    def kernel_bytes(self, T: int, n_threads: int) -> int:
        return delta_net_scratch_bytes(min(T, self.n_positions), self.heads.D, self.heads.DV, n_threads)

    def cheap_growth(self, length: int, ctx: int) -> float:
        return 0.0

    def new_cache(self, n_ctx: int, chunk: int, new: New) -> DeltaCache:
        return DeltaCache(self.heads, len(self.taps[0]) - 1, chunk, new)

    def forward(self, out: np.ndarray | None, residual: np.ndarray, x: np.ndarray, s: DeltaNetSaved, pass_: Pass,
                cache: DeltaCache | None = None) -> None:
        normed, _ = pass_.scratch.arrays(len(x), *self.input.widths())
        self.input.forward(s.projected, s.norm, s.h, x, normed, pass_)
        self._remember(s, pass_, cache)
        _, _, act, _, normed_o, _, *spare = pass_.scratch.arrays(len(x), *self._output_widths())
        self._gate(act, normed_o, s, pass_)
        self.output.forward(out, residual, act, s.output, spare, pass_)

    def recompute_cheap(self, s: DeltaNetSaved, pass_: Pass) -> None:
        self._remember(s, pass_, None)

    def _remember(self, s: DeltaNetSaved, pass_: Pass, cache: DeltaCache | None) -> None:
        """s.cheap.o by the delta rule."""
        _, _, v, q, k, *_ = pass_.scratch.arrays(len(s.z), *self._rule_widths())
        self._convolve(q, k, v, s, pass_, cache)
        g, rate = self.decay.forward(s.alpha, s.beta)
        delta_net_forward(s.cheap.o, None if cache is None else cache.state, q, k, v, g, rate, pass_.rows.q_begin,
                          self.heads.n_k, pass_.n_threads)

    def _convolve(self, q: np.ndarray, k: np.ndarray, v: np.ndarray, s: DeltaNetSaved, pass_: Pass,
                  cache: DeltaCache | None = None) -> None:
        """q, k and v as the delta rule takes them, and in scratch q and k before their norms."""
        _, _, _, _, _, _, raw_q, raw_k, *_ = pass_.scratch.arrays(len(v), *self._rule_widths())
        convolved, qkv = (raw_q, raw_k, v), s.qkv if cache is None else cache.append(s.qkv)
        for y, x, taps in zip(convolved, qkv, self.taps, strict=True):
            if cache is None:
                silu_conv_forward(y, x, taps, pass_.rows.q_begin, pass_.n_threads)
            else:
                with_earlier = np.empty_like(x)
                silu_conv_forward(with_earlier, x, taps, np.array([0, len(x)], np.int32), pass_.n_threads)
                y[:] = with_earlier[-len(y):]
        for norm, y, x, statistics in zip(self.qk_norms, (q, k), (raw_q, raw_k), s.qk_norms, strict=True):
            norm.forward(y, statistics, x, pass_)

    def _gate(self, act: np.ndarray, normed_o: np.ndarray, s: DeltaNetSaved, pass_: Pass) -> None:
        """act = silu(z) ⊙ o_norm(o)"""
        self.o_norm.forward(normed_o, s.o_norm, s.cheap.o, pass_)
        swiglu_forward(act, s.z, normed_o, pass_.n_threads)

    def backward(self, dx: np.ndarray, d_out: np.ndarray, x: np.ndarray, s: DeltaNetSaved, pass_: Pass,
                 need_dx: bool) -> None:
        dz, d_o, act, d_act, normed_o, d_normed_o, *spare = pass_.scratch.arrays(len(x), *self._output_widths())
        has_gains = self.input.group.has_gains(pass_.adapter)               # whose backward pass needs what they made
        # out = residual + output(act), act = silu(z) ⊙ o_norm(o)
        self._gate(act, normed_o, s, pass_)
        if not self.input.has_gradients(pass_.adapter, need_dx):
            self.output.backward(None, d_out, act, s.output, spare, pass_)
            return
        self.output.backward(d_act, d_out, act, s.output, spare, pass_)
        dz = dz if has_gains else s.z
        swiglu_backward(dz, d_normed_o, d_act, s.z, normed_o, pass_.n_threads)
        self.o_norm.backward(d_o, d_normed_o, s.cheap.o, s.o_norm, pass_)
        # o = delta rule(q, k, v, decay)
        *d_qkv, d_beta, d_alpha = self._rule_backward(d_o, s, pass_, in_place=not has_gains)
        gradients = self.input.group.gain_backward([*d_qkv, dz, d_beta, d_alpha], s.projected, pass_)
        # q, k, v, z, beta, alpha = projections of normed = norm(x)
        normed, d_normed = pass_.scratch.arrays(len(x), *self.input.widths())
        self.input.backward(dx, gradients, s.norm, s.h, x, (normed, d_normed), pass_, need_dx)

    def _rule_backward(self, d_o: np.ndarray, s: DeltaNetSaved, pass_: Pass, in_place: bool) -> list[np.ndarray]:
        """The gradients of the projections q, k, v, beta and alpha: in their places, or in scratch."""
        _, _, v, q, k, dv, raw_q, raw_k, dq, dk, dg, d_rate = pass_.scratch.arrays(len(d_o), *self._rule_widths())
        begin, n_threads = pass_.rows.q_begin, pass_.n_threads
        self._convolve(q, k, v, s, pass_)
        g, rate = self.decay.forward(s.alpha, s.beta)
        delta_net_backward(dq, dk, dv, dg, d_rate, d_o, q, k, v, g, rate, begin, self.heads.n_k, n_threads)
        for norm, d_raw, d_normed, raw, statistics in zip(self.qk_norms, (q, k), (dq, dk), (raw_q, raw_k), s.qk_norms,
                                                          strict=True):
            norm.backward(d_raw, d_normed, raw, statistics, pass_)      # in the places of q and k, which have served
        places = [*s.qkv, s.beta, s.alpha] if in_place else [raw_q, raw_k, v, d_rate, dg]
        for place, dy, x, taps in zip(places, (q, k, dv), s.qkv, self.taps):
            silu_conv_backward(place, dy, x, taps, begin, n_threads)
        self.decay.backward(places[4], places[3], dg, d_rate, s.alpha, s.beta)
        return places
