"""Rows and columns that GGUF and Hugging Face store in different orders.

**q and k.** RoPE turns pairs of components of a head: GGUF files of architecture `llama` store the rows of attn_q and
attn_k so that the two of a pair are neighbours, Hugging Face so that they are half a head apart. The rows of W are B's
and the magnitudes', so these are permuted, A is not.

**Heads of values of a gated delta net.** m of them share a head of keys. Hugging Face stores these m together, GGUF the
first of all heads of keys, then the second. They are rows of what reads them in, and columns of `ssm_out`: of its A.

Source: llama.cpp, convert_hf_to_gguf.py.
"""
from __future__ import annotations

import numpy as np

from ..errors import LoraFastError
from ..network.architectures import architecture_of
from .adapter_file import BaseModel

READ_VALUES = ("attn_qkv", "attn_gate", "ssm_beta", "ssm_alpha")
"""Roles whose rows are values of a delta net's heads, attn_qkv's behind those of q and k."""


def rows_to_hf(rows: np.ndarray, role: str, base: BaseModel) -> np.ndarray:
    """`rows` (n_out, ...) from GGUF's order to Hugging Face's."""
    order = _order_of_rows(len(rows), role, base)
    return rows if order is None else rows[order]


def rows_to_gguf(rows: np.ndarray, role: str, base: BaseModel | None) -> np.ndarray:
    """The inverse of `rows_to_hf`; base may be None where the orders are the same in llama."""
    order = _order_of_rows(len(rows), role, base)
    return rows if order is None else rows[np.argsort(order)]


def columns_to_hf(columns: np.ndarray, role: str, base: BaseModel) -> np.ndarray:
    """`columns` (r, n_in) from GGUF's order to Hugging Face's."""
    order = _order_of_columns(columns.shape[1], role, base)
    return columns if order is None else columns[:, order]


def columns_to_gguf(columns: np.ndarray, role: str, base: BaseModel | None) -> np.ndarray:
    """The inverse of `columns_to_hf`."""
    order = _order_of_columns(columns.shape[1], role, base)
    return columns if order is None else columns[:, np.argsort(order)]


def _order_of_rows(n: int, role: str, base: BaseModel | None) -> np.ndarray | None:
    """The number in GGUF of each row at Hugging Face; None where the two orders are the same."""
    if base is None:
        return None
    arch = architecture_of(base.architecture)
    if role in ("attn_q", "attn_k") and arch.permuted:
        n_head = base.n_head if role == "attn_q" else base.n_head_kv
        _check_heads(n, 2 * n_head, f"{role} has {n} rows", base)
        return np.arange(n).reshape(n_head, -1, 2).swapaxes(1, 2).reshape(n)
    return _order_of_values(n, base) if role in READ_VALUES and arch.mixer == "delta_net" else None


def _order_of_columns(n: int, role: str, base: BaseModel | None) -> np.ndarray | None:
    return None if base is None or role != "ssm_out" else _order_of_values(n, base)


def _order_of_values(n: int, base: BaseModel) -> np.ndarray:
    """The order of n rows or columns; where there are more than the heads have values, the first ones stay."""
    if base.delta is None:
        raise LoraFastError(f"GGUF and Hugging Face order the value heads of '{base.architecture}' differently; name "
                            "the base model as well (--model-base)")
    n_k, n_v = base.delta.n_k, base.delta.n_v
    first = n - base.delta.width_v if n > base.delta.width_v else 0
    _check_heads(n - first, n_v, f"a delta net's values are {n - first}", base)
    values = np.arange(first, n).reshape(n_v // n_k, n_k, -1).swapaxes(0, 1)
    return np.concatenate([np.arange(first), values.reshape(-1)])


def _check_heads(n: int, divisor: int, what: str, base: BaseModel) -> None:
    """LoraFastError where n values are not those of so many heads, or pairs of theirs."""
    if n % divisor:
        raise LoraFastError(f"{what}, which does not fit the heads of this '{base.architecture}' model: the adapter "
                            "belongs to another one")
