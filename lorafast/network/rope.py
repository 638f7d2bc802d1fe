"""Rotary position embedding: the tables of its angles, and turning heads by them.

Sources: Su et al., "RoFormer" (2021); Peng et al., "YaRN" (2023); Ding et al., "LongRoPE" (2024); llama.cpp,
ggml_rope_ext, for what the keys of a file mean.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..kernels.rope import rope_forward


@dataclass(frozen=True)
class Yarn:
    """YaRN's stretching of a context: slow pairs of values are interpolated by `factor`, fast ones are left.

    n_ctx_orig            positions that the model was first trained on
    beta_fast, beta_slow  turns within them from which on a pair counts as fast, up to which as slow
    """

    factor: float
    n_ctx_orig: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def ramp(self, n_rot: int, base: float) -> np.ndarray:
        """How far each pair is interpolated, 0 to 1, float32 (n_rot / 2,)."""
        def pair(beta: float) -> float:
            return n_rot * math.log(self.n_ctx_orig / (beta * 2 * math.pi)) / (2 * math.log(base))

        low = max(0.0, math.floor(pair(self.beta_fast)))
        high = min(n_rot - 1.0, math.ceil(pair(self.beta_slow)))
        return np.clip((np.arange(n_rot // 2, dtype=np.float32) - low) / max(0.001, high - low), 0, 1)


@dataclass(frozen=True)
class RopeParams:
    """What decides the angles of a block.

    n_rot     values of a head that are turned, even
    base      of the powers
    scale     reciprocal of a linear scaling factor
    factors   name of the tensor (n_rot / 2,) that divides the frequencies; "" without
    long_factors  the same, in its place where a context is longer than `n_ctx_orig` (longrope)
    yarn      None without
    multiplier  of cos and sin
    temperature, n_ctx_orig  q at position p is multiplied by 1 + temperature · ln(⌊p / n_ctx_orig⌋ + 1)
    """

    n_rot: int
    base: float
    scale: float = 1.0
    factors: str = ""
    long_factors: str = ""
    yarn: Yarn | None = None
    multiplier: float = 1.0
    temperature: float = 0.0
    n_ctx_orig: int = 0

    def factors_for(self, n_ctx: int) -> str:
        """The tensor of factors for a context of that length."""
        return self.long_factors if self.long_factors and n_ctx > self.n_ctx_orig else self.factors


class Rope:
    """Turns heads in place, and back.

    of_queries   turns those of queries; itself, unless their temperature grows with the position
    is_rotation  turning back undoes turning: cos and sin are not multiplied by anything
    """

    def __init__(self, params: RopeParams, n_positions: int, factors: np.ndarray | None, interleaved: bool) -> None:
        self.interleaved = interleaved
        cos, sin = rope_tables(n_positions, params.n_rot, params.base, params.scale, factors, params.yarn,
                               params.multiplier)
        self.cos, self.sin, self.minus_sin = cos, sin, -sin
        self.is_rotation = params.multiplier == 1 and not params.temperature
        self.of_queries = self
        if params.temperature:
            self.of_queries = self._times(params.temperature, params.n_ctx_orig)

    def _times(self, temperature: float, n_ctx_orig: int) -> Rope:
        """This table with cos and sin multiplied by the temperature of each position."""
        steps = np.arange(len(self.cos)) // n_ctx_orig
        t = (1 + temperature * np.log(steps + 1)).astype(np.float32)[:, None]
        scaled = object.__new__(Rope)
        scaled.interleaved, scaled.of_queries, scaled.is_rotation = self.interleaved, scaled, False
        scaled.cos, scaled.sin, scaled.minus_sin = self.cos * t, self.sin * t, self.minus_sin * t
        return scaled

    @property
    def n_positions(self) -> int:
        return len(self.cos)

    def turn(self, heads: np.ndarray, positions: np.ndarray, n_head: int, n_threads: int) -> None:
        """heads (T, n_head · D), in place."""
        rope_forward(heads, heads, self.cos, self.sin, positions, n_head, self.interleaved, n_threads)

    def turn_back(self, heads: np.ndarray, positions: np.ndarray, n_head: int, n_threads: int) -> None:
        """The transpose of `turn`, in place: also what its backward pass does to a gradient."""
        rope_forward(heads, heads, self.cos, self.minus_sin, positions, n_head, self.interleaved, n_threads)


def rope_tables(
    n_positions: int,
    n_rot: int,
    freq_base: float,
    freq_scale: float = 1.0,
    freq_factors: np.ndarray | None = None,
    yarn: Yarn | None = None,
    multiplier: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of angle[p, j] = freq_scale · p · freq_base^(-2j / n_rot) / freq_factors[j], times the multiplier.

    n_positions    the tables are for positions 0 .. n_positions - 1
    n_rot          values of a head that are turned, even
    freq_base      of `rope.freq_base`
    freq_scale     reciprocal of a linear `rope.scaling` factor
    freq_factors   (n_rot / 2,): the tensor `rope_freqs.weight` of Llama 3.1 and later, or None
    yarn           angle = (1 - ramp) · angle + ramp · angle / factor; None without
    Returns cos and sin, float32 (n_positions, n_rot / 2).
    Raises ValueError for an odd n_rot or a wrong number of factors.

    The power is built by repeated float32 multiplication, as in llama-finetune; far out that drifts from the exact
    power.
    """
    if n_rot % 2:
        raise ValueError(f"rope_tables: n_rot is {n_rot}, wanted an even number")
    factors = np.ones(n_rot // 2, np.float32) if freq_factors is None else np.asarray(freq_factors, np.float32)
    if factors.shape != (n_rot // 2,):
        raise ValueError(f"rope_tables: freq_factors has shape {factors.shape}, wanted {(n_rot // 2,)}")
    theta_scale = np.float32(float(np.float32(freq_base)) ** (-2 / n_rot))
    theta = np.arange(n_positions, dtype=np.float32)
    angle = np.empty((n_positions, n_rot // 2), np.float32)
    for j in range(n_rot // 2):
        angle[:, j] = np.float32(freq_scale) * (theta / factors[j])
        theta *= theta_scale
    if yarn is not None:
        ramp = yarn.ramp(n_rot, freq_base)
        angle = angle * (1 - ramp) + angle / np.float32(yarn.factor) * ramp
    cos, sin = np.cos(angle, dtype=np.float64), np.sin(angle, dtype=np.float64)
    return (cos * multiplier).astype(np.float32), (sin * multiplier).astype(np.float32)
