"""Fields of a few bits in blocks, and scales for parts of a block: what the dequantisers share."""
from __future__ import annotations

import numpy as np


def f32(column: np.ndarray) -> np.ndarray:
    """A scale of each block as float32 (blocks, 1), to broadcast over the block's values."""
    return column.astype(np.float32)[:, None]


def fields(packed: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Fields of `bits` bits, lowest first, from bytes (blocks, n) taken in groups: the first field of every byte of a
    group, then the second field of every byte, and so on. Returns uint8 (blocks, n * 8 // bits).
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    groups = packed.reshape(len(packed), -1, 1, group)
    return ((groups >> shifts) & np.uint8(2**bits - 1)).reshape(len(packed), -1)


def nibbles(packed: np.ndarray, group: int = 16) -> np.ndarray:
    """Fields of four bits."""
    return fields(packed, 4, group)


def bits_in_order(packed: np.ndarray) -> np.ndarray:
    """Bit i of the block (little-endian) belongs to value i: the fifth bit of Q5_0 and Q5_1, signs."""
    return np.unpackbits(packed, axis=1, bitorder="little")


def scaled(scales: np.ndarray, q: np.ndarray) -> np.ndarray:
    """scales (blocks, n) times q (blocks, values), each scale for the next values / n values."""
    blocks, n = scales.shape
    return (scales[:, :, None] * q.reshape(blocks, n, -1).astype(np.float32)).reshape(blocks, -1)
