import numpy as np
import pytest

from lorafast.adapters.adapter_file import BaseModel
from lorafast.adapters.row_order import columns_to_gguf, columns_to_hf, rows_to_gguf, rows_to_hf
from lorafast.errors import LoraFastError
from lorafast.network.block_params import DeltaHeads

LLAMA = BaseModel("llama", 2, 2, 1, tied=False)
QWEN35 = BaseModel("qwen35", 2, 2, 1, tied=False, delta=DeltaHeads(n_k=2, n_v=6, D=5, DV=3))
VALUES = [0, 2, 4, 1, 3, 5]
"""The heads of values in GGUF, in Hugging Face's order: those of the first head of keys, then those of the second."""


def test_q_and_k_of_llama():
    rows = np.arange(8)
    assert rows_to_hf(rows, "attn_q", LLAMA).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert rows_to_hf(rows, "attn_k", LLAMA).tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
    assert rows_to_hf(rows, "attn_v", LLAMA) is rows and rows_to_hf(rows, "attn_q", QWEN35) is rows


@pytest.mark.parametrize("role, first, size", [("ssm_beta", 0, 1), ("ssm_alpha", 0, 1), ("attn_gate", 0, 3),
                                               ("attn_qkv", 2 * 2 * 5, 3)])
def test_rows_of_a_delta_nets_values(role, first, size):
    rows = np.arange(first + 6 * size)
    ordered = rows_to_hf(rows, role, QWEN35)
    assert ordered[:first].tolist() == list(range(first))
    assert ((ordered[first::size] - first) // size).tolist() == VALUES
    np.testing.assert_array_equal(rows_to_gguf(ordered, role, QWEN35), rows)


def test_columns_of_a_delta_nets_output():
    A = np.arange(18)[None].repeat(2, axis=0)
    ordered = columns_to_hf(A, "ssm_out", QWEN35)
    assert (ordered[1, ::3] // 3).tolist() == VALUES
    np.testing.assert_array_equal(columns_to_gguf(ordered, "ssm_out", QWEN35), A)
    assert columns_to_hf(A, "attn_output", QWEN35) is A


def test_the_heads_must_be_known():
    with pytest.raises(LoraFastError, match="name the base model as well"):
        rows_to_hf(np.arange(18), "attn_gate", BaseModel("qwen35", 2, 2, 1, tied=False))


@pytest.mark.parametrize("role, n", [("attn_q", 64), ("attn_k", 10)])
def test_rows_of_another_models_heads_are_refused(role, n):
    base = BaseModel("llama", 2, 9, 3, tied=False)
    for reorder in (rows_to_gguf, rows_to_hf):
        with pytest.raises(LoraFastError, match=f"{role} has {n} rows, .* belongs to another one"):
            reorder(np.zeros((n, 2), np.float32), role, base)
