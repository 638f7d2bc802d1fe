"""Blocks of every trainable type for tests: random, zero and one bits; scales of both signs, huge, subnormal, zero."""
import numpy as np

from lorafast.gguf.quants import LAYOUTS
from lorafast.gguf.types import TRAINABLE as TRAINABLE, GGMLType

SCALES = np.array([1.0, -1.0, 0.0, -0.0, 65504.0, -65504.0, 2.0**-14, 2.0**-24, -(2.0**-24), 1023 * 2.0**-24, 0.1,
                   -0.013], np.float16)
EXPONENTS = np.array([0, 1, 2, 3, 100, 120, 127, 128, 200, 251], np.uint8)


def set_iq1_m_scale(fields: np.ndarray, d: np.ndarray) -> None:
    """Writes float16 scales d (...) into the upper four bits of the 4 words of IQ1_M's blocks."""
    nibbles = d.view(np.uint16)[..., None] >> np.arange(0, 16, 4, dtype=np.uint16)
    fields["scales"] = fields["scales"] & 0x0FFF | nibbles << 12


def blocks_of_every_kind(type: GGMLType) -> np.ndarray:
    """uint8 (3, bytes per row) whose values are all finite: rows of random, zero and one bits, with every scale."""
    rng = np.random.default_rng(int(type))
    n_blocks = 4 * len(SCALES)
    if type in (GGMLType.F32, GGMLType.BF16):
        values = rng.standard_normal((3, n_blocks * 8)).astype(np.float32) * np.float32(10.0)**rng.integers(-38, 38)
        values[:, :6] = [0.0, -0.0, 3e38, -3e38, 1e-44, -1e-38]
        stored = values if type is GGMLType.F32 else (values.view(np.uint32) >> 16).astype("<u2")
        return stored.view(np.uint8)
    size = n_blocks, type.type_size
    random_bits = rng.integers(0, 256, size, dtype=np.uint8)
    bits = np.stack([random_bits, np.zeros_like(random_bits), np.full_like(random_bits, 255)])
    fields = bits.view(LAYOUTS[type])[:, :, 0]
    for name in sorted({"x", "d", "m", "dmin"} & set(fields.dtype.names)):
        fields[name] = [rng.permutation(np.resize(SCALES, n_blocks)) for _ in range(3)]
    if type is GGMLType.IQ1_M:              # whose scale lies in the upper four bits of 4 words
        d = np.stack([rng.permutation(np.resize(SCALES, n_blocks)) for _ in range(3)])
        set_iq1_m_scale(fields, d)
    if type is GGMLType.MXFP4:
        fields["e"] = [rng.permutation(np.resize(EXPONENTS, n_blocks)) for _ in range(3)]
    return bits.reshape(3, -1)
