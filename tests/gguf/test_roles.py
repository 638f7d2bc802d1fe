"""What a tensor's name says."""
import pytest

from lorafast.gguf.roles import split_name


@pytest.mark.parametrize("name, expected", [
    ("blk.3.attn_q.weight", (3, "attn_q")), ("output_norm.weight", (-1, "output_norm")),
    ("blk.3.rope_freqs.weight", (3, "")), ("attn_q.weight", (-1, "")), ("blk.3.attn_q.bias", (-1, "")),
    pytest.param(f"blk.{'9' * 5000}.attn_q.weight", (-1, ""), id="a number too long for int()"),
    pytest.param("blk.\u0663.attn_q.weight", (-1, ""), id="a digit of another script"),
])
def test_layer_and_role(name, expected):
    assert split_name(name) == expected
