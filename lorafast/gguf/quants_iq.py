"""The codebook formats IQ1_S to IQ3_S in NumPy: their blocks of 256 values to float32.

A block stores an index into a codebook (codebooks.py) for every 8 values, or every 4 for IQ3; signs, one bit a value;
and small scales for every 16 or 32 values, which count from a half so that none is zero:

    x = d * (sc + 1/2) / 4 * sign * level     IQ2_XXS, IQ2_XS, IQ2_S
    x = d * (sc + 1/2) / 2 * sign * level     IQ3_XXS
    x = d * (2 sc + 1) * sign * level         IQ3_S
    x = d * (2 sc + 1) * (level ± 1/8)        IQ1_S, IQ1_M

IQ2_XXS, IQ2_XS and IQ3_XXS store the signs of 8 values in 7 bits: the number of negative ones is even.
"""
from __future__ import annotations

import numpy as np

from . import codebooks
from .block_fields import bits_in_order, f32, fields, scaled

_F32 = np.float32
_EVEN_SIGNS = np.array([bits | (bits.bit_count() & 1) << 7 for bits in range(128)], np.uint8)
"""The signs of 8 values from those of 7."""

_IQ1, _IQ2_XXS, _IQ2_XS = codebooks.IQ1.entries, codebooks.IQ2_XXS.entries, codebooks.IQ2_XS.entries
_IQ2_S, _IQ3_XXS, _IQ3_S = codebooks.IQ2_S.entries, codebooks.IQ3_XXS.entries, codebooks.IQ3_S.entries


def _signed(entries: np.ndarray, index: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """int8 (blocks, 256): the entries at index (blocks, n), negative where signs, uint8 (blocks, 32), have a bit."""
    values = entries[index].reshape(len(index), 256)
    return np.where(bits_in_order(signs), -values, values)


def _even_signs(words: np.ndarray) -> np.ndarray:
    """uint8 (blocks, 32): the signs in the lower 28 bits of words, uint32 (blocks, 8)."""
    return _EVEN_SIGNS[words[:, :, None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127].reshape(len(words), 32)


def iq2_xxs(block: np.ndarray) -> np.ndarray:
    index, words = block["groups"]["index"].reshape(len(block), 32), block["groups"]["signs"]
    scales = f32(block["d"]) * (_F32(0.5) + (words >> 28).astype(_F32)) * _F32(0.25)
    return scaled(scales, _signed(_IQ2_XXS, index, _even_signs(words)))


def iq2_xs(block: np.ndarray) -> np.ndarray:
    scales = f32(block["d"]) * (_F32(0.5) + fields(block["scales"], 4, 1)) * _F32(0.25)
    return scaled(scales, _signed(_IQ2_XS, block["q"] & 511, _EVEN_SIGNS[block["q"] >> 9]))


def iq2_s(block: np.ndarray) -> np.ndarray:
    index = block["q"] | fields(block["high"], 2, 1).astype(np.uint16) << 8
    scales = f32(block["d"]) * (_F32(0.5) + fields(block["scales"], 4, 1)) * _F32(0.25)
    return scaled(scales, _signed(_IQ2_S, index, block["signs"]))


def iq3_xxs(block: np.ndarray) -> np.ndarray:
    words = block["signs"]
    scales = f32(block["d"]) * (_F32(0.5) + (words >> 28).astype(_F32)) * _F32(0.5)
    return scaled(scales, _signed(_IQ3_XXS, block["q"], _even_signs(words)))


def iq3_s(block: np.ndarray) -> np.ndarray:
    index = block["q"] | bits_in_order(block["high"]).astype(np.uint16) << 8
    scales = f32(block["d"]) * (1 + 2 * fields(block["scales"], 4, 1))
    return scaled(scales, _signed(_IQ3_S, index, block["signs"]))


def _iq1(scales: np.ndarray, index: np.ndarray, is_lower: np.ndarray) -> np.ndarray:
    """scales (blocks, n) times levels that are an eighth lower or higher, for is_lower (blocks, m)."""
    levels = _IQ1[index].reshape(len(index), is_lower.shape[1], -1)
    shifted = levels + np.where(is_lower, _F32(-0.125), _F32(0.125))[:, :, None]
    return scaled(scales, shifted.reshape(len(index), 256))


def iq1_s(block: np.ndarray) -> np.ndarray:
    high = block["high"]
    upper = (high[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(len(block), 32)
    scales = f32(block["d"]) * (2 * (high >> 12 & 7) + 1)
    return _iq1(scales, block["q"] | upper << 8, high >> 15 != 0)


def iq1_m(block: np.ndarray) -> np.ndarray:
    high, words = fields(block["high"], 4, 1), block["scales"]
    scales = (words[:, :, None] >> np.arange(0, 12, 3, dtype=np.uint16) & 7).reshape(len(block), 16)
    index = block["q"] | (high & 7).astype(np.uint16) << 8
    return _iq1(f32(iq1_m_scale(words)) * (2 * scales + 1), index, high & 8 != 0)


def iq1_m_scale(words: np.ndarray) -> np.ndarray:
    """The block's float16 scale, which lies in the upper four bits of 4 words, uint16 (blocks, 4)."""
    nibbles = words >> 12 << np.arange(0, 16, 4, dtype=np.uint16)
    return np.bitwise_or.reduce(nibbles, axis=1).view(np.float16)
