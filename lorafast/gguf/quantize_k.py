"""Quantisers for the formats whose scales are searched: Q2_K to Q6_K, IQ4_NL and IQ4_XS.

A block's levels form a grid: value = scale * q + offset, with a scale (and an offset) for each sub-block. Quantising is
two steps. `fit` chooses the grid: for each sub-block it tries some scales around the obvious one, rounds with each, and
keeps the one with the least squared error after the scale has been fitted to the rounded values by least squares. The
scales of a super-block are then themselves rounded to a few bits. `assign` rounds every value to the nearest level.

Large values count more (weights x^2, or |x| + rms): they matter most for the products. llama.cpp's quantisers do the
same, and the errors are those of its files. Source of the formats: ggml-quants.c of llama.cpp.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from . import quants
from .block_fields import fields
from .quants import IQ4_VALUES, LAYOUTS, inverse, scales_and_mins_k4
from .types import GGMLType

PIECE = 2**15
"""Values that are worked on at a time, so that all temporary arrays stay in the cache."""


def quantize(x: np.ndarray, type: GGMLType) -> np.ndarray:
    """Blocks as stored, uint8 (rows, bytes per row), from float32 (rows, K), for every trainable type.

    K must be a multiple of the type's block size (ValueError). Other types raise LoraFastError.
    """
    if type not in FORMATS:
        return quants.quantize(x, type)
    rows, n = x.shape
    if n % type.block_size:
        raise ValueError(f"quantize: rows of {n} values are not a multiple of the {type.block_size} in a block of "
                         f"{type.label}")
    format = FORMATS[type]
    blocks = np.ascontiguousarray(x, np.float32).reshape(-1, type.block_size)
    stored = np.zeros(len(blocks), LAYOUTS[type])
    step = PIECE // type.block_size
    for begin in range(0, len(blocks), step):
        piece, block = blocks[begin:begin + step], stored[begin:begin + step]
        format.fit(piece, block)
        assign(piece, block, format)
    return stored.view(np.uint8).reshape(rows, type.row_bytes(n))


# ---- the two steps ----

@dataclass(frozen=True)
class Format:
    """How the values of a format depend on its scales.

    n_scales  sub-blocks of a block
    levels    lowest and highest q; None where q is an index into IQ4_VALUES
    fit       chooses the scales for x (blocks, values) and puts them into the block
    grid      block -> scales (blocks, n_scales) and offsets (the same, or None for zero), rounded as dequantize does
    pack      puts q - lowest, uint8 (blocks, values), or the index, into the block
    """

    n_scales: int
    levels: tuple[int, int] | None
    fit: Callable[[np.ndarray, np.ndarray], None]
    grid: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
    pack: Callable[[np.ndarray, np.ndarray], None]


def assign(x: np.ndarray, block: np.ndarray, format: Format) -> None:
    """Rounds x (blocks, values) to the levels that the scales in `block` allow, and packs them."""
    scales, offsets = format.grid(block)
    q = x.reshape(len(x), format.n_scales, -1)
    if offsets is not None:
        q = q - offsets[:, :, None]
    q = (q * inverse(scales)[:, :, None]).reshape(x.shape)
    if format.levels is None:
        format.pack(block, _nearest_iq4(q))
    else:
        lowest, highest = format.levels
        format.pack(block, (np.clip(np.rint(q), lowest, highest) - lowest).astype(np.uint8))


def _sub_blocks(x: np.ndarray, size: int) -> np.ndarray:
    """(size, n): a column for each sub-block, so that sums over a sub-block are sums of long rows."""
    return np.ascontiguousarray(x.reshape(-1, size).T)


def _largest(x: np.ndarray) -> np.ndarray:
    """The value of largest magnitude of each column, with its sign."""
    low, high = x.min(axis=0), x.max(axis=0)
    return np.where(-low > high, low, high)


def _fit_scale(x: np.ndarray, round_to_level: Callable[[np.ndarray], np.ndarray], numerators: np.ndarray) -> np.ndarray:
    """The scale (n,) for each sub-block of x (size, n) that leaves the least error of x ~ scale * q, weighted by x^2.

    Candidates are q = nearest level to x * numerator / (largest x). For given q the best scale is Σw·q·x / Σw·q², and
    the error is then Σw·x² - (Σw·q·x)² / Σw·q²: the larger the last term the better.
    """
    weights = x * x
    weighted_x = weights * x
    to_unit = inverse(_largest(x))
    best_gain, best_scale = np.zeros_like(to_unit), np.zeros_like(to_unit)
    for numerator in numerators:
        q = round_to_level(x * (to_unit * numerator))
        qx = np.multiply(q, weighted_x).sum(axis=0)
        np.multiply(q, q, out=q)
        q *= weights
        scale = qx * inverse(q.sum(axis=0))
        gain = qx * scale
        better = gain > best_gain
        best_gain[better], best_scale[better] = gain[better], scale[better]
    return best_scale


def _round_between(lowest: int, highest: int) -> Callable[[np.ndarray], np.ndarray]:
    def round_to_level(y: np.ndarray) -> np.ndarray:
        np.rint(y, out=y)
        np.maximum(y, np.float32(lowest), out=y)
        return np.minimum(y, np.float32(highest), out=y)

    return round_to_level


def _fit_scale_and_min(x: np.ndarray, highest: int, numerators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and minimum (n,), both >= 0, for each sub-block of x (size, n): least error of x ~ scale * q - minimum with
    q in 0 .. highest, weighted by |x| + rms(x).

    Candidates are q = round((x - min x) * numerator / (max x - min x)). For given q scale and minimum solve the normal
    equations of a line fit; where that minimum would be negative it is 0, and the scale that of a line through zero.
    """
    rms = np.sqrt(np.square(x).mean(axis=0))
    weights = np.abs(x) + rms
    weighted_x = weights * x
    sum_w, sum_x = weights.sum(axis=0), weighted_x.sum(axis=0)
    low = np.minimum(x.min(axis=0), 0)
    to_unit = inverse(x.max(axis=0) - low)
    above_low = x - low
    round_to_level = _round_between(0, highest)
    best_error = (weights * above_low * above_low).sum(axis=0)         # of scale 0, exact where all values are equal
    best_scale, best_min = np.zeros_like(low), -low
    for numerator in numerators:
        q = round_to_level(above_low * (to_unit * numerator))
        sum_qx = np.multiply(q, weighted_x).sum(axis=0)
        weighted_q = q * weights
        sum_q = weighted_q.sum(axis=0)
        weighted_q *= q
        sum_q2 = weighted_q.sum(axis=0)
        inverse_d = inverse(sum_w * sum_q2 - sum_q * sum_q)
        scale = (sum_w * sum_qx - sum_x * sum_q) * inverse_d
        minimum = (sum_q * sum_qx - sum_q2 * sum_x) * inverse_d
        through_zero = (minimum < 0) | (inverse_d == 0)
        scale = np.where(through_zero, sum_qx * inverse(sum_q2), scale)
        minimum = np.where(through_zero, 0, minimum)
        q *= scale
        q -= minimum
        q -= x
        q *= q
        error = (weights * q).sum(axis=0)       # summed up: the sums above would cancel where x is on a grid already
        better = (error < best_error) & (scale >= 0)
        best_error[better], best_scale[better], best_min[better] = error[better], scale[better], minimum[better]
    return best_scale, best_min


# ---- packing: the inverses of the unpackers in quants.py ----

def _pack_fields(q: np.ndarray, bits: int, group: int) -> np.ndarray:
    """The inverse of quants.fields: bytes (blocks, n * bits // 8) from values below 2^bits, uint8 (blocks, n)."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(q.reshape(len(q), -1, 8 // bits, group) << shifts, axis=2).reshape(len(q), -1)


def _pack_scales_and_mins_k4(scales: np.ndarray, mins: np.ndarray) -> np.ndarray:
    """The inverse of quants.scales_and_mins_k4: 12 bytes from 8 scales and 8 mins of 6 bits, uint8 (blocks, 8) each."""
    def with_upper_bits(values: np.ndarray) -> np.ndarray:
        return values[:, :4] | values[:, 4:] >> 4 << 6

    low_bits = scales[:, 4:] & 15 | mins[:, 4:] << 4
    return np.concatenate([with_upper_bits(scales), with_upper_bits(mins), low_bits], axis=1)


_HALF_STEPS = (np.arange(-256, 256) + 0.5) / 2
_IQ4_INDEX = np.abs(_HALF_STEPS[:, None] - IQ4_VALUES).argmin(axis=1).astype(np.uint8)
"""The nearest level for every half step from -128 on: all midpoints between levels are multiples of 1/2."""

_IQ4_NEAREST = IQ4_VALUES.astype(np.float32)[_IQ4_INDEX]


def _nearest_iq4(y: np.ndarray, table: np.ndarray = _IQ4_INDEX) -> np.ndarray:
    """The entry of `table` for the level in IQ4_VALUES that is nearest to each y: its index, or the level."""
    half_steps = y + y
    half_steps += np.float32(256)
    return np.take(table, half_steps.astype(np.intp), mode="clip")


def _round_to_iq4(y: np.ndarray) -> np.ndarray:
    return _nearest_iq4(y, _IQ4_NEAREST)


def _column(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32)[:, None]


def _to_bits(values: np.ndarray, unit: np.ndarray, lowest: int, highest: int) -> np.ndarray:
    """values (blocks, n) in whole multiples of `unit` (blocks,), between lowest and highest."""
    return np.clip(np.rint(values * inverse(unit)[:, None]), lowest, highest)


# ---- the formats ----

def _numerators(levels: int, lowest: int, highest: int) -> np.ndarray:
    """Candidates in tenths of a level around `levels`."""
    return (levels + np.arange(lowest, highest + 1) / 10).astype(np.float32)


def _signed_super_scale(scales: np.ndarray, half: int) -> np.ndarray:
    """d (blocks,) such that the largest of the scales (blocks, n), by magnitude, is -half · d. Rounded to float16."""
    return (_largest(scales.T) / np.float32(-half)).astype(np.float16)


NEAR_SYMMETRIC = np.arange(-9, 10, dtype=np.float32) * np.float32(0.1)
"""How much further than its lowest level the largest value of a sub-block may reach, in levels."""


def _fit_q6_K(x: np.ndarray, block: np.ndarray) -> None:
    scales = _fit_scale(_sub_blocks(x, 16), _round_between(-32, 31), -32 - NEAR_SYMMETRIC).reshape(len(x), 16)
    block["d"] = _signed_super_scale(scales, 128)
    block["scales"] = _to_bits(scales, block["d"].astype(np.float32), -128, 127)


def _grid_q6_K(block: np.ndarray) -> tuple[np.ndarray, None]:
    return _column(block["d"]) * block["scales"], None


def _pack_q6_K(block: np.ndarray, q: np.ndarray) -> None:
    block["q"], block["high"] = _pack_fields(q & 15, 4, 64), _pack_fields(q >> 4, 2, 32)


def _fit_q3_K(x: np.ndarray, block: np.ndarray) -> None:
    scales = _fit_scale(_sub_blocks(x, 16), _round_between(-4, 3), -4 - NEAR_SYMMETRIC).reshape(len(x), 16)
    block["d"] = _signed_super_scale(scales, 32)
    bits = (_to_bits(scales, block["d"].astype(np.float32), -32, 31) + 32).astype(np.uint8)
    block["scales"][:, :8] = _pack_fields(bits & 15, 4, 8)
    block["scales"][:, 8:] = _pack_fields(bits >> 4, 2, 4)


def _grid_q3_K(block: np.ndarray) -> tuple[np.ndarray, None]:
    low, high = block["scales"][:, :8], block["scales"][:, 8:]
    scales = fields(low, 4, 8) | fields(high, 2, 4) << 4
    return _column(block["d"]) * (scales.astype(np.float32) - 32), None


def _pack_q3_K(block: np.ndarray, q: np.ndarray) -> None:
    block["q"], block["high"] = _pack_fields(q & 3, 2, 32), _pack_fields(q >> 2, 1, 32)


def _fit_min_format(x: np.ndarray, block: np.ndarray, size: int, highest: int, numerators: np.ndarray,
                    scale_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Sets d and dmin, the units of scales and minima, and returns these in whole multiples, uint8 (blocks, n)."""
    scales, mins = (values.reshape(len(x), -1) for values in _fit_scale_and_min(_sub_blocks(x, size), highest,
                                                                                  numerators))
    largest = 2**scale_bits - 1
    for name, values in (("d", scales), ("dmin", mins)):
        block[name] = values.max(axis=1) / np.float32(largest)
    whole = [_to_bits(values, block[name].astype(np.float32), 0, largest).astype(np.uint8)
             for name, values in (("d", scales), ("dmin", mins))]
    return whole[0], whole[1]


def _fit_k4(x: np.ndarray, block: np.ndarray, highest: int, numerators: np.ndarray) -> None:
    scales, mins = _fit_min_format(x, block, 32, highest, numerators, 6)
    block["scales"] = _pack_scales_and_mins_k4(scales, mins)


def _fit_q4_K(x: np.ndarray, block: np.ndarray) -> None:
    _fit_k4(x, block, 15, _numerators(15, -10, 10))


def _fit_q5_K(x: np.ndarray, block: np.ndarray) -> None:
    _fit_k4(x, block, 31, _numerators(31, -5, 10))


def _grid_k4(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales, mins = scales_and_mins_k4(block["scales"])
    return _column(block["d"]) * scales, -(_column(block["dmin"]) * mins)


def _pack_q4_K(block: np.ndarray, q: np.ndarray) -> None:
    block["q"] = _pack_fields(q, 4, 32)


def _pack_q5_K(block: np.ndarray, q: np.ndarray) -> None:
    block["q"], block["high"] = _pack_fields(q & 15, 4, 32), _pack_fields(q >> 4, 1, 32)


def _fit_q2_K(x: np.ndarray, block: np.ndarray) -> None:
    scales, mins = _fit_min_format(x, block, 16, 3, _numerators(3, -5, 10), 4)
    block["scales"] = scales | mins << 4


def _grid_q2_K(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (_column(block["d"]) * (block["scales"] & 15), -(_column(block["dmin"]) * (block["scales"] >> 4)))


def _pack_q2_K(block: np.ndarray, q: np.ndarray) -> None:
    block["q"] = _pack_fields(q, 2, 32)


NEAR_IQ4 = np.concatenate([IQ4_VALUES[0] + np.arange(-7, 8), IQ4_VALUES[-1] + np.arange(0, 15, 7)]).astype(np.float32)
"""Where the largest value of a sub-block may come to lie: near the lowest level, or at the highest and beyond."""


def _fit_iq4_nl(x: np.ndarray, block: np.ndarray) -> None:
    block["d"] = _fit_scale(_sub_blocks(x, 32), _round_to_iq4, NEAR_IQ4)


def _fit_iq4_xs(x: np.ndarray, block: np.ndarray) -> None:
    scales = _fit_scale(_sub_blocks(x, 32), _round_to_iq4, NEAR_IQ4).reshape(len(x), 8)
    block["d"] = _signed_super_scale(scales, 32)
    bits = (_to_bits(scales, block["d"].astype(np.float32), -32, 31) + 32).astype(np.uint16)
    block["scales_low"] = _pack_fields((bits & 15).astype(np.uint8), 4, 1)
    block["scales_high"] = (bits >> 4 << np.arange(0, 16, 2, dtype=np.uint16)).sum(axis=1)


def _grid_iq4_xs(block: np.ndarray) -> tuple[np.ndarray, None]:
    low = fields(block["scales_low"], 4, 1)
    high = (block["scales_high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3).astype(np.uint8)
    return _column(block["d"]) * ((low | high << 4).astype(np.float32) - 32), None


def _pack_iq4(block: np.ndarray, q: np.ndarray) -> None:
    block["q"] = _pack_fields(q, 4, 16)


def _grid_iq4_nl(block: np.ndarray) -> tuple[np.ndarray, None]:
    return _column(block["d"]), None


FORMATS: dict[GGMLType, Format] = {
    GGMLType.Q2_K: Format(16, (0, 3), _fit_q2_K, _grid_q2_K, _pack_q2_K),
    GGMLType.Q3_K: Format(16, (-4, 3), _fit_q3_K, _grid_q3_K, _pack_q3_K),
    GGMLType.Q4_K: Format(8, (0, 15), _fit_q4_K, _grid_k4, _pack_q4_K),
    GGMLType.Q5_K: Format(8, (0, 31), _fit_q5_K, _grid_k4, _pack_q5_K),
    GGMLType.Q6_K: Format(16, (-32, 31), _fit_q6_K, _grid_q6_K, _pack_q6_K),
    GGMLType.IQ4_NL: Format(1, None, _fit_iq4_nl, _grid_iq4_nl, _pack_iq4),
    GGMLType.IQ4_XS: Format(8, None, _fit_iq4_xs, _grid_iq4_xs, _pack_iq4),
}
