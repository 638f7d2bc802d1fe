"""Whole embeddings and output matrices in an adapter's folder: peft adds them where they are adapted, and where the
vocabulary was resized. They can be left out only if they are the base model's own.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import FormatError
from ..gguf.quantize_k import quantize
from ..gguf.quants import dequantize
from ..gguf.reader import Tensor
from .adapter_file import BaseModel

BFLOAT16_ROUNDING = 4e-6
"""NMSE of a row that was stored in bfloat16, rounded up."""

SAME = 4.0
"""A row is the base model's if its NMSE is at most so many times the largest that rounding to the type makes in the
rows tried.
"""

ROWS_TRIED = 256
ROWS_AT_A_TIME = 2048
MERGE = "Merge it with peft (merge_and_unload) and convert the whole model"


def compare_with_base(folder: Path, key: str, name: str | None, values: np.ndarray, base: BaseModel | None) -> str:
    """What to say of the matrix `values` (rows, n_embd) that is left out. FormatError where it is not the base model's.

    name  of the tensor in the base model; None if it is none that is known
    """
    if base is None or not base.tensors:
        return f"{folder}: {key!r} is left out; whether it is the base model's own matrix was not compared"
    tensor = base.tensors.get(name or "", base.tensors.get("token_embd.weight"))
    if tensor is None or tensor.shape != values.shape:
        has = "has no such matrix" if tensor is None else f"has {tensor.shape}"
        raise FormatError(f"{folder}: carries the whole matrix {key!r} of shape {values.shape}, but the base model "
                          f"{has}: it belongs to another vocabulary. {MERGE}")
    if not tensor.type.is_trainable:
        return (f"{folder}: {key!r} is left out; it could not be compared with the base model's, of type "
                f"{tensor.type.label}")
    tried = np.ascontiguousarray(values[::max(1, len(values) // ROWS_TRIED)], np.float32)
    rounding = row_nmse(dequantize(quantize(tried, tensor.type), tensor.type), tried).max()
    limit = SAME * rounding + BFLOAT16_ROUNDING
    changed = sum(int((errors > limit).sum()) for errors in _errors(tensor, values))
    if changed:
        raise FormatError(f"{folder}: carries the whole matrix {key!r}, {changed} of whose {len(values)} rows are not "
                          f"the base model's: it was trained, which pairs cannot express. {MERGE}")
    return f"{folder}: {key!r} is left out: it is the base model's own matrix"


def _errors(tensor: Tensor, values: np.ndarray) -> Iterator[np.ndarray]:
    """NMSE of each row, some rows at a time."""
    for begin in range(0, len(values), ROWS_AT_A_TIME):
        rows = slice(begin, begin + ROWS_AT_A_TIME)
        yield row_nmse(dequantize(tensor.data[rows], tensor.type).reshape(-1, values.shape[1]), values[rows])


def row_nmse(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """‖got - want‖² / ‖want‖² of each row, float64; 0 for two rows of zeros."""
    error = np.square(got - want, dtype=np.float64).sum(axis=1)
    return error / np.maximum(np.square(want, dtype=np.float64).sum(axis=1), 1e-30)
