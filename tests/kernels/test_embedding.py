"""Token embedding: the right rows, unpacked, and bad ids refused."""
import numpy as np
import pytest
from make_models import random_blocks
from quant_blocks import TRAINABLE

from lorafast.gguf.types import GGMLType
from lorafast.kernels.embedding import embedding_forward
from lorafast.reference import embedding as twin

N_VOCAB, N_EMBD = 50, 512


@pytest.mark.parametrize("type", TRAINABLE, ids=lambda type: type.label)
def test_rows_equal_the_twin(type):
    rng = np.random.default_rng(0)
    weight = random_blocks(rng, type, N_VOCAB, N_EMBD)
    weight.flags.writeable = False
    tokens = np.array([0, 49, 7, 7, 3, 48], np.int32)
    y, expected = np.full((2, len(tokens), N_EMBD), np.nan, np.float32)
    twin.embedding_forward(expected, tokens, weight, type, 1)
    embedding_forward(y, tokens, weight, type, 2)
    np.testing.assert_array_equal(y, expected)
    assert not np.array_equal(y[0], y[1])


def test_threads_give_equal_bits():
    rng = np.random.default_rng(0)
    weight = random_blocks(rng, GGMLType.Q8_0, N_VOCAB, N_EMBD)
    tokens = rng.integers(0, N_VOCAB, 301, dtype=np.int32)
    y = np.full((3, len(tokens), N_EMBD), np.nan, np.float32)
    for n_threads in (1, 2, 3):
        embedding_forward(y[n_threads - 1], tokens, weight, GGMLType.Q8_0, n_threads)
    np.testing.assert_array_equal(y[0], y[1])
    np.testing.assert_array_equal(y[0], y[2])


def test_no_tokens():
    weight = np.zeros((4, 68), np.uint8)
    embedding_forward(np.zeros((0, 64), np.float32), np.zeros(0, np.int32), weight, GGMLType.Q8_0, 1)


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1])
def test_token_ids_are_checked(bad):
    tokens = np.array([0, 3, bad], np.int32)
    with pytest.raises(ValueError, match=rf"embedding_forward: tokens\[2\] is {bad}, wanted 0 to 3"):
        embedding_forward(np.zeros((3, 64), np.float32), tokens, np.zeros((4, 68), np.uint8), GGMLType.Q8_0, 1)


def test_shapes_are_checked():
    tokens = np.zeros(3, np.int32)
    with pytest.raises(ValueError, match=r"embedding_forward: y has shape \(2, 64\), wanted \(3, 64\)"):
        embedding_forward(np.zeros((2, 64), np.float32), tokens, np.zeros((4, 68), np.uint8), GGMLType.Q8_0, 1)
    with pytest.raises(ValueError, match=r"embedding_forward: weight has shape \(4, 67\), wanted \(4, 68\)"):
        embedding_forward(np.zeros((3, 64), np.float32), tokens, np.zeros((4, 67), np.uint8), GGMLType.Q8_0, 1)
