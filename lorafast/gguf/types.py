"""Every tensor type of ggml and every metadata type of GGUF, by number, name and size (ggml.h, gguf.h of llama.cpp).

The rows of `GGMLType` are the one table of facts about formats. The C tables of the kernels are made from it
(kernels/make_tables.py), and messages, help and docs take their lists of types from it. CONTRIBUTING.md says what else
a type needs.
"""
from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


@dataclass(frozen=True)
class Weights:
    """What computing with a type takes, and what merging does with it.

    file_type    `general.file_type` (llama_ftype) of a file whose matrices have the type
    q_max        the largest magnitude of the integers that the kernels unpack, so that they can tell how many products
                 fit an int32; 0 for a type that is unpacked to float32
    is_int8      whether they fit a signed byte although q_max is 128
    is_4_bit     whether they are stored as 4 bits each, which products with a single token take apart in registers
    scale_every  values that share a scale as unpacked. Types with finer sub-scales have these multiplied into the
                 integers, because the kernels know no scale for less than 32 values
    min_every    values that share a minimum; 0 where there is none
    fallback     the type that llama.cpp takes for a matrix whose rows are not whole blocks
    merge_as     the type to merge into instead, where merging does not write this one: its quantiser would need an
                 importance matrix, which says how much each column matters
    """

    file_type: int
    q_max: int = 0
    is_int8: bool = False
    is_4_bit: bool = False
    scale_every: int = 32
    min_every: int = 0
    fallback: str = "F16"
    merge_as: str = ""


class GGMLType(IntEnum):
    """A tensor type: `block_size` values along a row are stored together in `type_size` bytes.

    `weights`: what computing with the type takes; None for a type that is only listed.
    """

    F32 = 0, 1, 4, Weights(0)
    F16 = 1, 1, 2, Weights(1)
    Q4_0 = 2, 32, 18, Weights(2, q_max=8, is_4_bit=True)
    Q4_1 = 3, 32, 20, Weights(3, q_max=15, is_4_bit=True, min_every=32)
    Q5_0 = 6, 32, 22, Weights(8, q_max=16)
    Q5_1 = 7, 32, 24, Weights(9, q_max=31, min_every=32)
    Q8_0 = 8, 32, 34, Weights(7, q_max=128, is_int8=True)
    Q8_1 = 9, 32, 36
    Q2_K = 10, 256, 84, Weights(10, q_max=3 * 15, scale_every=256, min_every=16, fallback="IQ4_NL")
    Q3_K = 11, 256, 110, Weights(12, q_max=4 * 32, scale_every=256, fallback="IQ4_NL")
    Q4_K = 12, 256, 144, Weights(15, q_max=15, is_4_bit=True, min_every=32, fallback="Q5_0")
    Q5_K = 13, 256, 176, Weights(17, q_max=31, min_every=32, fallback="Q5_1")
    Q6_K = 14, 256, 210, Weights(18, q_max=32 * 128, scale_every=256, fallback="Q8_0")
    Q8_K = 15, 256, 292
    IQ2_XXS = 16, 256, 66, Weights(19, q_max=43, fallback="IQ4_NL", merge_as="Q2_K")
    IQ2_XS = 17, 256, 74, Weights(20, q_max=43 * 31, scale_every=256, fallback="IQ4_NL", merge_as="Q2_K")
    IQ3_XXS = 18, 256, 98, Weights(23, q_max=62, fallback="IQ4_NL", merge_as="Q3_K")
    IQ1_S = 19, 256, 50, Weights(24, q_max=9, fallback="IQ4_NL", merge_as="Q2_K")
    IQ4_NL = 20, 32, 18, Weights(25, q_max=127, is_4_bit=True)
    IQ3_S = 21, 256, 110, Weights(26, q_max=15, fallback="IQ4_NL", merge_as="Q3_K")
    IQ2_S = 22, 256, 82, Weights(28, q_max=43 * 31, scale_every=256, fallback="IQ4_NL", merge_as="Q2_K")
    IQ4_XS = 23, 256, 136, Weights(30, q_max=127, is_4_bit=True, fallback="IQ4_NL")
    I8 = 24, 1, 1
    I16 = 25, 1, 2
    I32 = 26, 1, 4
    I64 = 27, 1, 8
    F64 = 28, 1, 8
    IQ1_M = 29, 256, 56, Weights(31, q_max=9 * 15, scale_every=256, fallback="IQ4_NL", merge_as="Q2_K")
    BF16 = 30, 1, 2, Weights(32)
    Q4_0_4_4 = 31, 32, 18
    Q4_0_4_8 = 32, 32, 18
    Q4_0_8_8 = 33, 32, 18
    TQ1_0 = 34, 256, 54, Weights(36, q_max=1, scale_every=256, fallback="Q4_0")
    TQ2_0 = 35, 256, 66, Weights(37, q_max=2, scale_every=256, fallback="Q4_0")
    IQ4_NL_4_4 = 36, 32, 18
    IQ4_NL_4_8 = 37, 32, 18
    IQ4_NL_8_8 = 38, 32, 18
    MXFP4 = 39, 32, 17, Weights(38, q_max=12)
    NVFP4 = 40, 64, 36, Weights(39)
    Q1_0 = 41, 128, 18
    Q2_0 = 42, 64, 18

    block_size: int
    type_size: int
    weights: Weights | None

    def __new__(cls, value: int, block_size: int = 0, type_size: int = 0, weights: Weights | None = None) -> GGMLType:
        member = int.__new__(cls, value)
        member._value_ = value
        member.block_size = block_size
        member.type_size = type_size
        member.weights = weights
        return member

    @property
    def as_weights(self) -> Weights:
        """What computing with the type takes. ValueError for one that is only listed."""
        if self.weights is None:
            raise ValueError(f"{self.label} is not computed with")
        return self.weights

    @property
    def is_trainable(self) -> bool:
        """Whether the kernels multiply by weights of the type. All other types are only listed."""
        return self.weights is not None

    @property
    def is_mergeable(self) -> bool:
        """Whether merging writes matrices of the type."""
        return self.weights is not None and not self.weights.merge_as

    @property
    def label(self) -> str:
        """ggml's own spelling, as llama.cpp prints it: `f32`, `q8_0`, `q4_K`, `iq4_xs`."""
        return self.name.lower().replace("_k", "_K")

    def row_bytes(self, n: int) -> int:
        """Bytes of a row of `n` values; `n` is a multiple of `block_size`."""
        return n // self.block_size * self.type_size


TRAINABLE = tuple(type for type in GGMLType if type.is_trainable)
"""The types that the kernels compute with."""

TRAINABLE_NAMES = ", ".join(type.name for type in TRAINABLE)
"""Their names, for messages."""


class GGUFValueType(IntEnum):
    """The type of a metadata value."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12

    @property
    def label(self) -> str:
        """The short name that llama.cpp prints: `u32`, `f32`, `str`, `arr`."""
        return _VALUE_TYPE_LABELS[self]


_VALUE_TYPE_LABELS = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", "arr", "u64", "i64", "f64")

FILE_TYPE_NAMES: dict[int, str] = {
    0: "all F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1",
    10: "Q2_K - Medium", 11: "Q3_K - Small", 12: "Q3_K - Medium", 13: "Q3_K - Large", 14: "Q4_K - Small",
    15: "Q4_K - Medium", 16: "Q5_K - Small", 17: "Q5_K - Medium", 18: "Q6_K", 19: "IQ2_XXS - 2.0625 bpw",
    20: "IQ2_XS - 2.3125 bpw", 21: "Q2_K - Small", 22: "IQ3_XS - 3.3 bpw", 23: "IQ3_XXS - 3.0625 bpw",
    24: "IQ1_S - 1.5625 bpw", 25: "IQ4_NL - 4.5 bpw", 26: "IQ3_S - 3.4375 bpw", 27: "IQ3_S mix - 3.66 bpw",
    28: "IQ2_S - 2.5 bpw", 29: "IQ2_M - 2.7 bpw", 30: "IQ4_XS - 4.25 bpw", 31: "IQ1_M - 1.75 bpw", 32: "BF16",
    33: "Q4_0_4_4", 34: "Q4_0_4_8", 35: "Q4_0_8_8", 36: "TQ1_0 - 1.69 bpw ternary", 37: "TQ2_0 - 2.06 bpw ternary",
    38: "MXFP4 MoE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}
"""`general.file_type` (llama_ftype) as llama.cpp prints it: what most matrices of the file are stored as."""
