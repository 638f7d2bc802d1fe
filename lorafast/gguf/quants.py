"""Block formats in NumPy: every trainable ggml type to float32, and the simple ones back.

This is the readable form of each format, and the reference for the C unpackers in kernels/unpack_body.h. A row of K
values is a sequence of blocks; a block is a handful of packed fields, given here as a NumPy structured type. All
formats store small integers q and scales:

    x = d * q                  Q8_0, Q4_0, Q5_0, IQ4_NL, MXFP4  (32 values a block), TQ1_0, TQ2_0 (256)
    x = d * q + m              Q4_1, Q5_1
    x = (d * sc) * q           Q3_K, Q6_K, IQ4_XS               (256 values a block; an integer sc for every 16 or 32)
    x = sc * q                 NVFP4                            (64 values a block; a float sc for every 16)
    x = (d * sc) * q - dmin*m  Q2_K, Q4_K, Q5_K

Everything is float32 with these roundings in this order, which makes the values equal to those of the `gguf` package
bit for bit. Source: ggml-quants.c and ggml-common.h of llama.cpp (layouts).
"""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import LoraFastError
from . import quants_iq
from .block_fields import bits_in_order, f32, fields, nibbles, scaled
from .types import GGMLType

IQ4_VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
"""The 16 levels of IQ4_NL and IQ4_XS: denser near zero, where weights are."""

FP4_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
"""The 16 levels of MXFP4 and NVFP4: twice what a 4-bit float (sign, 2 bits of exponent, 1 of fraction) stands for."""


def dequantize(data: np.ndarray, type: GGMLType) -> np.ndarray:
    """float32 (rows, K) from blocks as stored, uint8 (rows, bytes per row). Raises LoraFastError for other types."""
    if type not in DEQUANTIZERS:
        raise LoraFastError(f"type {type.label} cannot be dequantised")
    rows, row_bytes = data.shape
    if row_bytes % type.type_size:
        raise ValueError(f"dequantize: rows of {row_bytes} bytes are not a multiple of the {type.type_size} of "
                         f"a {type.label} block")
    blocks = np.ascontiguousarray(data).reshape(-1, type.type_size).view(LAYOUTS[type])[:, 0]
    return DEQUANTIZERS[type](blocks).reshape(rows, row_bytes // type.type_size * type.block_size)


def quantize(x: np.ndarray, type: GGMLType) -> np.ndarray:
    """Blocks as stored, uint8 (rows, bytes per row), from float32 (rows, K).

    Rounds as llama.cpp's reference quantisers do. Raises LoraFastError for a type whose scales must be searched
    (K-quants, IQ4: quantize_k.py) or that is not supported.
    """
    if type not in QUANTIZERS:
        raise LoraFastError(f"cannot quantise to {type.label}; possible are "
                            f"{', '.join(t.label for t in QUANTIZERS)}")
    rows, n = x.shape
    if n % type.block_size:
        raise ValueError(f"quantize: rows of {n} values are not a multiple of the {type.block_size} in a block of "
                         f"{type.label}")
    blocks = np.ascontiguousarray(x, np.float32).reshape(-1, type.block_size)
    stored = np.zeros(len(blocks), LAYOUTS[type])
    QUANTIZERS[type](blocks, stored)
    return stored.view(np.uint8).reshape(rows, type.row_bytes(n))


LAYOUTS: dict[GGMLType, np.dtype] = {
    GGMLType.F32: np.dtype([("x", "<f4")]),
    GGMLType.F16: np.dtype([("x", "<f2")]),
    GGMLType.BF16: np.dtype([("x", "<u2")]),
    GGMLType.Q8_0: np.dtype([("d", "<f2"), ("q", "i1", 32)]),
    GGMLType.Q4_0: np.dtype([("d", "<f2"), ("q", "u1", 16)]),
    GGMLType.Q4_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)]),
    GGMLType.Q5_0: np.dtype([("d", "<f2"), ("high", "u1", 4), ("q", "u1", 16)]),
    GGMLType.Q5_1: np.dtype([("d", "<f2"), ("m", "<f2"), ("high", "u1", 4), ("q", "u1", 16)]),
    GGMLType.Q2_K: np.dtype([("scales", "u1", 16), ("q", "u1", 64), ("d", "<f2"), ("dmin", "<f2")]),
    GGMLType.Q3_K: np.dtype([("high", "u1", 32), ("q", "u1", 64), ("scales", "u1", 12), ("d", "<f2")]),
    GGMLType.Q4_K: np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("q", "u1", 128)]),
    GGMLType.Q5_K: np.dtype([("d", "<f2"), ("dmin", "<f2"), ("scales", "u1", 12), ("high", "u1", 32),
                             ("q", "u1", 128)]),
    GGMLType.Q6_K: np.dtype([("q", "u1", 128), ("high", "u1", 64), ("scales", "i1", 16), ("d", "<f2")]),
    GGMLType.IQ4_NL: np.dtype([("d", "<f2"), ("q", "u1", 16)]),
    GGMLType.IQ4_XS: np.dtype([("d", "<f2"), ("scales_high", "<u2"), ("scales_low", "u1", 4), ("q", "u1", 128)]),
    GGMLType.IQ1_S: np.dtype([("d", "<f2"), ("q", "u1", 32), ("high", "<u2", 8)]),
    GGMLType.IQ1_M: np.dtype([("q", "u1", 32), ("high", "u1", 16), ("scales", "<u2", 4)]),
    GGMLType.IQ2_XXS: np.dtype([("d", "<f2"), ("groups", [("index", "u1", 4), ("signs", "<u4")], 8)]),
    GGMLType.IQ2_XS: np.dtype([("d", "<f2"), ("q", "<u2", 32), ("scales", "u1", 8)]),
    GGMLType.IQ2_S: np.dtype([("d", "<f2"), ("q", "u1", 32), ("signs", "u1", 32), ("high", "u1", 8),
                              ("scales", "u1", 8)]),
    GGMLType.IQ3_XXS: np.dtype([("d", "<f2"), ("q", "u1", 64), ("signs", "<u4", 8)]),
    GGMLType.IQ3_S: np.dtype([("d", "<f2"), ("q", "u1", 64), ("high", "u1", 8), ("signs", "u1", 32),
                              ("scales", "u1", 4)]),
    GGMLType.TQ1_0: np.dtype([("q", "u1", 48), ("high", "u1", 4), ("d", "<f2")]),
    GGMLType.TQ2_0: np.dtype([("q", "u1", 64), ("d", "<f2")]),
    GGMLType.MXFP4: np.dtype([("e", "u1"), ("q", "u1", 16)]),
    GGMLType.NVFP4: np.dtype([("scales", "u1", 4), ("q", "u1", 32)]),
}
"""A block of each type as a NumPy structured type."""


# ---- to float32 ----

def scales_and_mins_k4(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The 6-bit scales and mins of the 8 sub-blocks of Q4_K and Q5_K, from 12 bytes: uint8 (blocks, 8) each.

    Bytes 0-3 and 4-7 hold scales and mins 0-3 in their lower six bits. Scales and mins 4-7 have their lower four bits
    in the nibbles of bytes 8-11 and their upper two on top of bytes 0-3 and 4-7.
    """
    scales, mins, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    return (np.concatenate([scales & 63, (rest & 15) | (scales >> 6 << 4)], axis=1),
            np.concatenate([mins & 63, (rest >> 4) | (mins >> 6 << 4)], axis=1))


def _dequantize_f32(block: np.ndarray) -> np.ndarray:
    return block["x"].copy()


def _dequantize_f16(block: np.ndarray) -> np.ndarray:
    return block["x"].astype(np.float32)


def _dequantize_bf16(block: np.ndarray) -> np.ndarray:
    return (block["x"].astype(np.uint32) << 16).view(np.float32)


def _dequantize_q8_0(block: np.ndarray) -> np.ndarray:
    return f32(block["d"]) * block["q"]


def _dequantize_q4_0(block: np.ndarray) -> np.ndarray:
    return f32(block["d"]) * (nibbles(block["q"]).astype(np.float32) - 8)


def _dequantize_q4_1(block: np.ndarray) -> np.ndarray:
    return f32(block["d"]) * nibbles(block["q"]) + f32(block["m"])


def _dequantize_q5_0(block: np.ndarray) -> np.ndarray:
    q = nibbles(block["q"]) | bits_in_order(block["high"]) << 4
    return f32(block["d"]) * (q.astype(np.float32) - 16)


def _dequantize_q5_1(block: np.ndarray) -> np.ndarray:
    q = nibbles(block["q"]) | bits_in_order(block["high"]) << 4
    return f32(block["d"]) * q + f32(block["m"])


def _dequantize_q2_K(block: np.ndarray) -> np.ndarray:
    scales = f32(block["d"]) * (block["scales"] & 15)              # (blocks, 16): one for every 16 values
    mins = f32(block["dmin"]) * (block["scales"] >> 4)
    q = fields(block["q"], 2, 32)
    return scaled(scales, q) - np.repeat(mins, 16, axis=1)


def _dequantize_q3_K(block: np.ndarray) -> np.ndarray:
    low, high = block["scales"][:, :8], block["scales"][:, 8:]      # 16 scales of 4 + 2 bits
    scales = fields(low, 4, 8) | fields(high, 2, 4) << 4
    q = fields(block["q"], 2, 32) | fields(block["high"], 1, 32) << 2
    return scaled(f32(block["d"]) * (scales.astype(np.float32) - 32), q.astype(np.float32) - 4)


def _dequantize_q4_K(block: np.ndarray) -> np.ndarray:
    scales, mins = scales_and_mins_k4(block["scales"])
    q = nibbles(block["q"], 32)
    return scaled(f32(block["d"]) * scales, q) - np.repeat(f32(block["dmin"]) * mins, 32, axis=1)


def _dequantize_q5_K(block: np.ndarray) -> np.ndarray:
    scales, mins = scales_and_mins_k4(block["scales"])
    q = nibbles(block["q"], 32) | fields(block["high"], 1, 32) << 4
    return scaled(f32(block["d"]) * scales, q) - np.repeat(f32(block["dmin"]) * mins, 32, axis=1)


def _dequantize_q6_K(block: np.ndarray) -> np.ndarray:
    q = nibbles(block["q"], 64) | fields(block["high"], 2, 32) << 4
    return scaled(f32(block["d"]) * block["scales"], q.astype(np.float32) - 32)


def _dequantize_iq4_nl(block: np.ndarray) -> np.ndarray:
    return f32(block["d"]) * IQ4_VALUES[nibbles(block["q"])]


def _dequantize_iq4_xs(block: np.ndarray) -> np.ndarray:
    low = fields(block["scales_low"], 4, 1)                        # 8 scales of 4 + 2 bits
    high = (block["scales_high"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16) & 3).astype(np.uint8)
    scales = (low | high << 4).astype(np.float32) - 32
    return scaled(f32(block["d"]) * scales, IQ4_VALUES[nibbles(block["q"])])


def _trits(packed: np.ndarray, n: int) -> np.ndarray:
    """n digits of base 3, the highest first, of bytes (blocks, m): of all bytes the first, then of all the second.

    A byte holds a fraction of 3^n in 256ths, rounded up: tripled, its carry is the next digit.
    """
    shifted = packed[:, None, :] * (3 ** np.arange(n)).astype(np.uint8)[:, None]
    return (shifted.astype(np.uint16) * 3 >> 8).reshape(len(packed), -1)


def _dequantize_tq1_0(block: np.ndarray) -> np.ndarray:
    packed = block["q"]
    q = np.concatenate([_trits(packed[:, :32], 5), _trits(packed[:, 32:], 5), _trits(block["high"], 4)], axis=1)
    return f32(block["d"]) * (q.astype(np.float32) - 1)


def _dequantize_tq2_0(block: np.ndarray) -> np.ndarray:
    return f32(block["d"]) * (fields(block["q"], 2, 32).astype(np.float32) - 1)


def _e8m0_half(e: np.ndarray) -> np.ndarray:
    """2^(e - 128) of exponents e, uint8: half of what they stand for, because FP4_VALUES are doubled."""
    return np.ldexp(np.float32(1), e.astype(np.int32) - 128)


def _dequantize_mxfp4(block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):        # e = 255, a NaN in the standard, is the next power of two in ggml
        return f32(_e8m0_half(block["e"])) * FP4_VALUES[nibbles(block["q"])]


def _e4m3_halves() -> np.ndarray:
    """float32 (256,): half of what each byte stands for as a float without sign, 4 bits of exponent and 3 of fraction;
    the eighth bit is ignored, and 0x7F, a NaN, is zero in ggml.
    """
    code = np.arange(256)
    exponent, fraction = code >> 3 & 15, (code & 7).astype(np.float32)
    values = np.where(exponent == 0, fraction / 8, 1 + fraction / 8) * np.exp2(np.maximum(exponent, 1) - 8.0)
    return np.where(code == 0x7F, 0, values).astype(np.float32)


E4M3_HALVES = _e4m3_halves()


def _dequantize_nvfp4(block: np.ndarray) -> np.ndarray:
    return scaled(E4M3_HALVES[block["scales"]], FP4_VALUES[nibbles(block["q"], 8)])


DEQUANTIZERS: dict[GGMLType, Callable[[np.ndarray], np.ndarray]] = {
    GGMLType.F32: _dequantize_f32, GGMLType.F16: _dequantize_f16, GGMLType.BF16: _dequantize_bf16,
    GGMLType.Q8_0: _dequantize_q8_0, GGMLType.Q4_0: _dequantize_q4_0, GGMLType.Q4_1: _dequantize_q4_1,
    GGMLType.Q5_0: _dequantize_q5_0, GGMLType.Q5_1: _dequantize_q5_1,
    GGMLType.Q2_K: _dequantize_q2_K, GGMLType.Q3_K: _dequantize_q3_K, GGMLType.Q4_K: _dequantize_q4_K,
    GGMLType.Q5_K: _dequantize_q5_K, GGMLType.Q6_K: _dequantize_q6_K,
    GGMLType.IQ4_NL: _dequantize_iq4_nl, GGMLType.IQ4_XS: _dequantize_iq4_xs,
    GGMLType.IQ1_S: quants_iq.iq1_s, GGMLType.IQ1_M: quants_iq.iq1_m, GGMLType.IQ2_XXS: quants_iq.iq2_xxs,
    GGMLType.IQ2_XS: quants_iq.iq2_xs, GGMLType.IQ2_S: quants_iq.iq2_s, GGMLType.IQ3_XXS: quants_iq.iq3_xxs,
    GGMLType.IQ3_S: quants_iq.iq3_s, GGMLType.TQ1_0: _dequantize_tq1_0, GGMLType.TQ2_0: _dequantize_tq2_0,
    GGMLType.MXFP4: _dequantize_mxfp4, GGMLType.NVFP4: _dequantize_nvfp4,
}


# ---- from float32 ----

def inverse(d: np.ndarray) -> np.ndarray:
    """1 / d, and 0 for a block of zeros or of values so small that 1 / d overflows: its float16 scale is zero too."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _pack_nibbles(q: np.ndarray) -> np.ndarray:
    return q[:, :16] & 15 | q[:, 16:] << 4


def _pack_fifth_bits(q: np.ndarray) -> np.ndarray:
    return np.packbits(q >> 4, axis=1, bitorder="little")


def _quantize_f32(x: np.ndarray, block: np.ndarray) -> None:
    block["x"] = x[:, 0]


def _quantize_f16(x: np.ndarray, block: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        block["x"] = x[:, 0]


def _quantize_bf16(x: np.ndarray, block: np.ndarray) -> None:
    bits = x[:, 0].view(np.uint32)
    nearest_even = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    quiet_nan = bits >> 16 | 64
    block["x"] = np.where(np.isnan(x[:, 0]), quiet_nan, nearest_even)


def _round_half_away(x: np.ndarray) -> np.ndarray:
    """C's roundf, in steps that are exact: x + 0.5 would itself be rounded just below a half."""
    whole = np.floor(np.abs(x))
    return np.copysign(whole + (np.abs(x) - whole >= 0.5), x)


def _quantize_q8_0(x: np.ndarray, block: np.ndarray) -> None:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    block["d"], block["q"] = d[:, 0], _round_half_away(x * inverse(d))


def _signed_levels(x: np.ndarray, half: int) -> tuple[np.ndarray, np.ndarray]:
    """Scale (blocks,) and levels 0 .. 2*half-1 for Q4_0 and Q5_0: the value of largest magnitude becomes -half exactly,
    whatever its sign (so d may be negative); level half is zero.
    """
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)
    d = largest / np.float32(-half)
    q = (x * inverse(d) + np.float32(half + 0.5)).astype(np.uint8)
    return d[:, 0], np.minimum(q, 2 * half - 1)


def _quantize_q4_0(x: np.ndarray, block: np.ndarray) -> None:
    block["d"], q = _signed_levels(x, 8)
    block["q"] = _pack_nibbles(q)


def _quantize_q5_0(x: np.ndarray, block: np.ndarray) -> None:
    block["d"], q = _signed_levels(x, 16)
    block["q"], block["high"] = _pack_nibbles(q), _pack_fifth_bits(q)


def _levels_above_min(x: np.ndarray, highest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale (blocks,), minimum (blocks,) and levels 0 .. highest for Q4_1 and Q5_1."""
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / np.float32(highest)
    q = ((x - low) * inverse(d) + np.float32(0.5)).astype(np.uint8)
    return d[:, 0], low[:, 0], np.minimum(q, highest)


def _quantize_q4_1(x: np.ndarray, block: np.ndarray) -> None:
    block["d"], block["m"], q = _levels_above_min(x, 15)
    block["q"] = _pack_nibbles(q)


def _quantize_q5_1(x: np.ndarray, block: np.ndarray) -> None:
    block["d"], block["m"], q = _levels_above_min(x, 31)
    block["q"], block["high"] = _pack_nibbles(q), _pack_fifth_bits(q)


def _ternary(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The scale (blocks,) and levels 0 .. 2, uint8 like x, of the ternary formats."""
    d = np.abs(x).max(axis=1, keepdims=True)
    return d[:, 0], (_round_half_away(x * inverse(d)) + 1).astype(np.uint8)


def _pack_trits(q: np.ndarray, n: int) -> np.ndarray:
    """The inverse of _trits: bytes (blocks, m) from digits (blocks, n * m); four digits have a fifth of zero."""
    number = (q.reshape(len(q), n, -1) * 3 ** np.arange(4, 4 - n, -1)[:, None]).sum(axis=1)
    return (number * 256 + 242) // 243


def _quantize_tq1_0(x: np.ndarray, block: np.ndarray) -> None:
    block["d"], q = _ternary(x)
    block["q"] = np.concatenate([_pack_trits(q[:, :160], 5), _pack_trits(q[:, 160:240], 5)], axis=1)
    block["high"] = _pack_trits(q[:, 240:], 4)


def _quantize_tq2_0(x: np.ndarray, block: np.ndarray) -> None:
    block["d"], q = _ternary(x)
    block["q"] = np.bitwise_or.reduce(q.reshape(len(x), 2, 4, 32) << np.arange(0, 8, 2, dtype=np.uint8)[:, None],
                                      axis=2).reshape(len(x), 64)


_FP4_MIDPOINTS = (FP4_VALUES[:7] + FP4_VALUES[1:8]) / np.float32(2)


def _nearest_fp4(y: np.ndarray) -> np.ndarray:
    """The index in FP4_VALUES of the level nearest to each y, of two the one nearer to zero."""
    magnitude = np.searchsorted(_FP4_MIDPOINTS, np.abs(y)).astype(np.uint8)
    return magnitude | ((y < 0) & (magnitude > 0)).astype(np.uint8) << 3


def _quantize_mxfp4(x: np.ndarray, block: np.ndarray) -> None:
    largest = np.abs(x).max(axis=1)
    _, exponent = np.frexp(largest)                                # largest < 2^exponent
    e = np.where(largest > 0, np.clip(exponent + 124, 0, 254), 0)
    block["e"] = np.where(np.isfinite(largest), e, 255)            # what is not finite stays so
    block["q"] = _pack_nibbles(_nearest_fp4(x / f32(_e8m0_half(block["e"]))))


_E4M3_MIDPOINTS = (E4M3_HALVES[:126] + E4M3_HALVES[1:127]) / np.float32(2)


def _quantize_nvfp4(x: np.ndarray, block: np.ndarray) -> None:
    parts = x.reshape(len(x), 4, 16)
    scales = np.searchsorted(_E4M3_MIDPOINTS, np.abs(parts).max(axis=2) / np.float32(FP4_VALUES.max()))
    block["scales"] = scales
    q = _nearest_fp4(parts * inverse(E4M3_HALVES[scales])[:, :, None])
    block["q"] = (q[:, :, :8] | q[:, :, 8:] << 4).reshape(len(x), 32)


QUANTIZERS: dict[GGMLType, Callable[[np.ndarray, np.ndarray], None]] = {
    GGMLType.F32: _quantize_f32, GGMLType.F16: _quantize_f16, GGMLType.BF16: _quantize_bf16,
    GGMLType.Q8_0: _quantize_q8_0, GGMLType.Q4_0: _quantize_q4_0, GGMLType.Q4_1: _quantize_q4_1,
    GGMLType.Q5_0: _quantize_q5_0, GGMLType.Q5_1: _quantize_q5_1, GGMLType.TQ1_0: _quantize_tq1_0,
    GGMLType.TQ2_0: _quantize_tq2_0, GGMLType.MXFP4: _quantize_mxfp4,
    GGMLType.NVFP4: _quantize_nvfp4,
}
