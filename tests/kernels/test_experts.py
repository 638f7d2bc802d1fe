"""Products of experts in every weight type, with experts that have no rows, few (the core for few tokens) and many."""
import numpy as np
import pytest
from make_models import random_blocks
from numerics import nmse

from lorafast.gguf.quants import dequantize
from lorafast.gguf.types import TRAINABLE
from lorafast.kernels.linear import (
    ExpertWeights,
    experts_backward,
    experts_forward,
    experts_sum_backward,
    experts_sum_forward,
)
from lorafast.reference import linear as twin

LIMIT = 5e-8                # as tests/kernels/test_linear.py's for int16; measured 2e-8
ROWS = (0, 1, 40, 3, 700)   # of each expert: more than TOKENS_AT_ONCE of the last


@pytest.mark.parametrize("type", TRAINABLE, ids=lambda type: type.name)
def test_every_type(rng, type):
    E, N, K, T = len(ROWS), 35, 256, 60
    blocks = random_blocks(rng, type, E * N, K, K**-0.5)
    weight = ExpertWeights(blocks.reshape(E, N, -1), int(type), K)
    dense = dequantize(blocks, type).reshape(E, N, K).astype(np.float64)
    begin = np.append(0, np.cumsum(ROWS)).astype(np.int32)
    M = int(begin[-1])
    tokens, scale = rng.integers(0, T, M).astype(np.int32), rng.random(M, dtype=np.float32)
    x, dy = rng.standard_normal((T, K), dtype=np.float32), rng.standard_normal((T, N), dtype=np.float32)
    x_rows, dy_rows = rng.standard_normal((M, K), dtype=np.float32), rng.standard_normal((M, N), dtype=np.float32)
    exact = [np.zeros(shape) for shape in ((M, N), (T, K), (T, N), (M, K))]
    got = [np.full_like(value, np.nan, np.float32) for value in exact]
    as64 = {id(a): a.astype(np.float64) for a in (x, dy, x_rows, dy_rows, scale)}
    for out, w, of in ((got, weight, lambda a: a), (exact, dense, lambda a: as64[id(a)])):
        ops = (experts_forward, experts_backward, experts_sum_forward, experts_sum_backward) if out is got else (
            twin.experts_forward, twin.experts_backward, twin.experts_sum_forward, twin.experts_sum_backward)
        ops[0]([out[0]], of(x), [w], [None], begin, tokens, 2)
        ops[1](out[1], [of(dy_rows)], [w], begin, tokens, 2)
        ops[2](out[2], of(x_rows), w, None, of(scale), begin, tokens, 2)
        ops[3](out[3], of(dy), w, begin, tokens, 2)
    for value, wanted in zip(got, exact, strict=True):
        assert nmse(value, wanted) < LIMIT


def test_rows_that_cannot_be_are_refused(rng):
    weight = ExpertWeights(rng.standard_normal((2, 3, 4), dtype=np.float32).view(np.uint8), 0, 4)
    x, y = np.zeros((2, 4), np.float32), np.zeros((2, 3), np.float32)

    def run(begin, tokens):
        experts_forward([y], x, [weight], [None], np.array(begin, np.int32), np.array(tokens, np.int32), 1)

    run([0, 1, 2], [0, 1])
    for begin, tokens, message in (([0, 1, 3], [0, 1], "runs from 0 to 3"), ([0, 3, 2], [0, 1], "falls from 3 to 2"),
                                   ([0, 1, 2], [0, 2], "row 1 is of token 2, of 2"),
                                   ([0, 2], [0, 1], "begin has shape")):
        with pytest.raises(ValueError, match=message):
            run(begin, tokens)
