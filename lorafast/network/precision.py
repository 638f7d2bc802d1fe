"""The precision of products with quantised weights, from what a user asks for."""
from __future__ import annotations

from collections.abc import Iterable

from ..kernels import build_info
from ..kernels.linear import Weight

MEASURED = ("avx2", "avxvnni", "avx512", "amx")
"""Instruction sets on which int8 was timed, and what it makes of training looked at."""


def resolve(asked: str, types: Iterable[int] = (), *, may_round: bool = False) -> str:
    """One of kernels.linear.PRECISIONS for one of options.finetune.PRECISIONS. `auto` is int16, as exact as training
    needs and on every processor faster than float32; where a run may round more, int8 if this processor gains from it
    with weights of one of these ggml types.
    """
    if asked != "auto":
        return asked
    may_round = may_round and build_info.isa() in MEASURED
    gains = any(Weight.arithmetic_of(type, "int8") != Weight.arithmetic_of(type, "int16") for type in types)
    return "int8" if may_round and gains else "int16"
