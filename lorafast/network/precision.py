"""The precision of products with quantised weights, from what a user asks for."""
from __future__ import annotations

from ..kernels import build_info

INT8_GAINS = ("avx512", "avxvnni", "amx")
"""Instruction sets with which products in int8 were measured to take about half of int16's time, whatever the type."""


def resolve(asked: str, *, may_round: bool = False) -> str:
    """One of kernels.linear.PRECISIONS for one of options.finetune.PRECISIONS. `auto` is int16, as exact as training
    needs and on every processor faster than float32; where a run may round more, int8 if the processor gains from it.
    """
    if asked != "auto":
        return asked
    return "int8" if may_round and build_info.isa() in INT8_GAINS else "int16"
