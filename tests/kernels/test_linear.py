"""Matrix products with frozen weights: every type and instruction set against the twin in float64."""
import numpy as np
import pytest
from make_models import random_blocks
from numerics import nmse
from quant_blocks import TRAINABLE

from lorafast.gguf.quants import dequantize
from lorafast.gguf.types import GGMLType
from lorafast.kernels.linear import PRECISIONS, Weight, linear_backward, linear_backward_add, linear_forward
from lorafast.reference import linear as twin

FLOAT32 = 1e-11         # the float32 core; measured 3e-13, 4e-12 for sums of 11008
INT16 = 5e-8            # the int16 core; measured 2e-9 forward and 9e-9 backward, with minima 3e-9 and 2e-8
INT16_OUTLIERS = 4e-7   # where single values are a thousand times the rest; measured 2e-7
INT8_FORWARD = 2e-4     # the int8 core; measured at most 1e-4 in any type
INT8_BACKWARD = 5e-4    # measured at most 3e-4
BFLOAT16 = 5e-5         # the AMX core of int8; measured 5e-6, 8e-6 for a single sum of few products
BFLOAT16_PIECES = 5e-10  # the AMX core of int16; measured 2e-11, 1e-10 for a single sum of few products

FLOATS = tuple(type for type in TRAINABLE if type.weights.q_max == 0)
every_type = pytest.mark.parametrize("type", TRAINABLE, ids=lambda type: type.label)


def limit(isa: str, *types: GGMLType, int16: float = INT16) -> float:
    if all(type in FLOATS for type in types):
        return FLOAT32
    return BFLOAT16_PIECES if isa == "amx" else int16


def rounded_limit(w: Weight, isa: str, type: GGMLType, int8: float) -> float:
    """In int8, by what it is there: products of bytes, on AMX of bfloat16, or int16 where neither is gained from."""
    return {"int8": int8, "bfloat16": BFLOAT16}.get(w.arithmetic) or limit(isa, type)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def weight(rng: np.random.Generator, type: GGMLType, N: int, K: int,
           precision: str = "int16") -> tuple[Weight, np.ndarray]:
    """A random matrix, and its values in float64."""
    blocks = random_blocks(rng, type, N, K)
    blocks.flags.writeable = False
    return Weight(blocks, int(type), K, precision), dequantize(blocks, type).astype(np.float64)


def error(got: np.ndarray, a: np.ndarray, b: np.ndarray) -> float:
    """NMSE of a product a @ b, normalised by what its terms add up to when none cancel: for products of few values."""
    return float(np.sum((got - a @ b) ** 2) / np.sum(a.astype(np.float64) ** 2 @ b**2))


def forward(x: np.ndarray, *weights: Weight, low_rank=None, residual=None, n_threads: int = 1) -> list[np.ndarray]:
    ys = [np.full((len(x), w.N), np.nan, np.float32) for w in weights]
    linear_forward(ys, x, list(weights), low_rank or [None] * len(ys), residual, n_threads)
    return ys


def backward(dys: list[np.ndarray], *weights: Weight, low_rank=None, n_threads: int = 1) -> np.ndarray:
    dx = np.full((len(dys[0]), weights[0].K), np.nan, np.float32)
    linear_backward(dx, dys, list(weights), low_rank or [None] * len(dys), n_threads)
    return dx


@every_type
def test_equals_twin(type, isa, rng):
    w, W = weight(rng, type, 301, 768)
    x, dy = normal(rng, 37, 768), normal(rng, 37, 301)
    assert nmse(forward(x, w)[0], x @ W.T) < limit(isa, type)
    assert nmse(backward([dy], w), dy @ W) < limit(isa, type)


@every_type
def test_int8(type, isa, rng):
    """Where it gains nothing, the weight says so, and what it takes instead has its own limit."""
    w, W = weight(rng, type, 301, 768, "int8")
    x, dy = normal(rng, 290, 768), normal(rng, 290, 301)
    [y], dx = forward(x, w), backward([dy], w)
    assert nmse(y, x @ W.T) < rounded_limit(w, isa, type, INT8_FORWARD)
    assert nmse(dx, dy @ W) < rounded_limit(w, isa, type, INT8_BACKWARD)
    for few in (slice(7, 19), slice(280, 290)):
        np.testing.assert_array_equal(forward(x[few], w, n_threads=2)[0], y[few])
        np.testing.assert_array_equal(backward([dy[few]], w, n_threads=3), dx[few])
    if type in (GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.Q6_K):
        gains = {"neon": False, "avx2": type is GGMLType.Q4_K}.get(isa, True)
        assert w.arithmetic == ("int16" if not gains else "bfloat16" if isa == "amx" else "int8")


def test_int8_rounds_gradients_without_bias(isa, rng):
    """Of many tokens with about the same gradient, the mean is nearer to the exact one than any of them. (All scales
    are 1: rounding weights times scales is an error that does not cancel.)"""
    blocks = random_blocks(rng, GGMLType.Q4_0, 64, 64).reshape(64, 2, 18)
    blocks[:, :, :2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    blocks = blocks.reshape(64, 36)
    w, W = Weight(blocks, int(GGMLType.Q4_0), 64, "int8"), dequantize(blocks, GGMLType.Q4_0).astype(np.float64)
    if w.arithmetic == "bfloat16":
        pytest.skip("AMX rounds to the nearest bfloat16: a hundredth of the error")
    dy = normal(rng, 1, 64) + 1e-3 * normal(rng, 1024, 64)
    dx = backward([dy], w)
    single, mean = nmse(dx, dy @ W), nmse(dx.mean(axis=0), (dy @ W).mean(axis=0))
    assert mean < single / 100          # measured: single / 800


@every_type
def test_float32_for_every_type(type, isa, rng):
    """The mode for comparing with others: nothing is rounded to integers."""
    w, W = weight(rng, type, 301, 768, "float32")
    for T in (2, 37):
        x, dy = normal(rng, T, 768), normal(rng, T, 301)
        assert nmse(forward(x, w)[0], x @ W.T) < FLOAT32
        assert nmse(backward([dy], w), dy @ W) < FLOAT32


@pytest.mark.parametrize("type, widths", [(GGMLType.Q8_0, (32, 96, 800)), (GGMLType.Q5_1, (64, 288)),
                                          (GGMLType.F16, (1, 7, 33, 515)), (GGMLType.F32, (1, 31, 300))],
                         ids=lambda value: value.label if isinstance(value, GGMLType) else "")
def test_odd_sizes(type, widths, isa, rng):
    for K in widths:
        for N in (1, 5, 97, 259):
            w, W = weight(rng, type, N, K)
            for T in (1, 3, 13, 34):
                x, dy = normal(rng, T, K), normal(rng, T, N)
                assert error(forward(x, w)[0], x, W.T) < limit(isa, type), (T, N, K)
                assert error(backward([dy], w), dy, W) < limit(isa, type), (T, N, K)


@pytest.mark.parametrize("type", [GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.BF16],
                         ids=lambda type: type.label)
def test_long_sums(type, isa, rng):
    w, W = weight(rng, type, 20, 11008)
    x = normal(rng, 9, 11008)
    assert nmse(forward(x, w)[0], x @ W.T) < limit(isa, type)
    w, W = weight(rng, type, 11008, 256)
    dy = normal(rng, 9, 11008)
    assert nmse(backward([dy], w), dy @ W) < limit(isa, type)


def test_mixed_types_share_an_input(isa, rng):
    """Projections of different types, as in a Q4_K_M file; each gives the bits that it gives alone."""
    types = (GGMLType.Q4_K, GGMLType.Q6_K, GGMLType.F16, GGMLType.Q8_0, GGMLType.Q6_K)
    weights, exact = zip(*(weight(rng, type, N, 512) for type, N in zip(types, (130, 64, 33, 1, 7))))
    x = normal(rng, 21, 512)
    low_rank = [(normal(rng, 21, R), normal(rng, R, w.N)) if R else None for w, R in zip(weights, (4, 0, 1, 9, 16))]
    ys = forward(x, *weights, low_rank=low_rank)
    expected = [np.empty(y.shape) for y in ys]
    twin.linear_forward(expected, x.astype(np.float64), exact, low_rank, None)
    for y, wanted, type, w, update in zip(ys, expected, types, weights, low_rank):
        assert nmse(y, wanted) < limit(isa, type)
        np.testing.assert_array_equal(y, forward(x, w, low_rank=[update])[0])

    dys = [normal(rng, 21, w.N) for w in weights]
    low_rank = [(normal(rng, 21, R), normal(rng, R, 512)) if R else None for R in (0, 4, 9, 1, 16)]
    wanted = np.zeros((21, 512))
    twin.linear_backward(wanted, [dy.astype(np.float64) for dy in dys], exact, low_rank)
    assert nmse(backward(dys, *weights, low_rank=low_rank), wanted) < limit(isa, *types)


@pytest.mark.parametrize("type", [GGMLType.Q8_0, GGMLType.F16], ids=lambda type: type.label)
def test_residual(type, isa, rng):
    w, W = weight(rng, type, 131, 96)
    x, residual, c, v = normal(rng, 19, 96), normal(rng, 19, 131), normal(rng, 19, 3), normal(rng, 3, 131)
    [y] = forward(x, w, low_rank=[(c, v)], residual=residual)
    assert nmse(y, x @ W.T + c @ v.astype(np.float64) + residual) < limit(isa, type)


@pytest.mark.parametrize("type", [GGMLType.Q5_K, GGMLType.Q6_K, GGMLType.F16], ids=lambda type: type.label)
def test_tokens_do_not_depend_on_each_other(type, isa, rng):
    """Of any number of tokens, also more than one pass over the weights takes (512), a few alone have the same bits."""
    w, _ = weight(rng, type, 40, 256)
    x, dy = normal(rng, 523, 256), normal(rng, 523, 40)
    residual, update = normal(rng, 523, 40), normal(rng, 523, 2)
    A, B = normal(rng, 2, 256), normal(rng, 2, 40)
    [y] = forward(x, w, low_rank=[(update, B)], residual=residual)
    dx = backward([dy], w, low_rank=[(update, A)])
    for part in (slice(0, 7), slice(500, 523), slice(507, 518)):
        [alone] = forward(x[part], w, low_rank=[(update[part], B)], residual=residual[part])
        np.testing.assert_array_equal(alone, y[part])
        np.testing.assert_array_equal(backward([dy[part]], w, low_rank=[(update[part], A)]), dx[part])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("type", [GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.F16], ids=lambda type: type.label)
def test_threads_give_equal_bits(type, precision, isa, rng):
    w, _ = weight(rng, type, 300, 768, precision)
    x, dy = normal(rng, 150, 768), normal(rng, 150, 300)
    update, A, B = normal(rng, 150, 9), normal(rng, 9, 768), normal(rng, 9, 300)
    runs = [(forward(x, w, low_rank=[(update, B)], n_threads=n)[0],
             backward([dy], w, low_rank=[(update, A)], n_threads=n))
            for n in (1, 2, 3, 8)]
    for y, dx in runs[1:]:
        np.testing.assert_array_equal(y, runs[0][0])
        np.testing.assert_array_equal(dx, runs[0][1])


@every_type
def test_massive_activations(type, isa, rng):
    """One channel and one token a thousand times the rest (Sun et al., Massive Activations in LLMs, 2024)."""
    w, W = weight(rng, type, 64, 512)
    x, dy = normal(rng, 16, 512), normal(rng, 16, 64)
    for values in (x, dy):
        values[:, 5] *= 1000
        values[3] *= 1000
    y, dx = forward(x, w)[0], backward([dy], w)
    for t in range(16):
        assert error(y[t:t + 1], x[t:t + 1], W.T) < limit(isa, type, int16=INT16_OUTLIERS)
        assert error(dx[t:t + 1], dy[t:t + 1], W) < limit(isa, type, int16=INT16_OUTLIERS)


def test_outlier_spoils_its_block_only(isa, rng):
    """Without the outlier's own, exact contribution: the other 31 values of its block are rounded coarsely."""
    w, W = weight(rng, GGMLType.Q8_0, 64, 512)
    x = normal(rng, 16, 512)
    x[:, 5] = 1000
    exact = x[:, 32:] @ W[:, 32:].T
    rest = forward(x, w)[0] - x[:, :32] @ W[:, :32].T
    assert nmse(rest, exact) < 1e-5         # measured 5e-6; 1e-4 with a scale for a whole row


def q6_k_of_largest_magnitude(N: int) -> np.ndarray:
    """Every value is (0 - 32) * -128 = 4096."""
    blocks = np.zeros((N, 210), np.uint8)
    blocks[:, 192:208] = 128
    blocks[:, 208:] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    return blocks


def q8_0_of_largest_magnitude(N: int) -> np.ndarray:
    blocks = np.zeros((N, 8, 34), np.uint8)
    blocks[:, :, 2:] = 128
    blocks[:, :, :2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    return blocks.reshape(N, -1)


def of_one_value(type: GGMLType, N: int) -> np.ndarray:
    """Rows of 256 values whose bits are all 0: the smallest integers of Q4_0 and Q5_0."""
    blocks = np.zeros((N, 8, type.type_size), np.uint8)
    blocks[:, :, :2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    return blocks.reshape(N, -1)


@pytest.mark.parametrize("precision", ["int16", "int8"])
@pytest.mark.parametrize("type, blocks, value", [
    (GGMLType.Q6_K, q6_k_of_largest_magnitude(512), 4096), (GGMLType.Q8_0, q8_0_of_largest_magnitude(512), -128),
    (GGMLType.Q4_0, of_one_value(GGMLType.Q4_0, 512), -8), (GGMLType.Q5_0, of_one_value(GGMLType.Q5_0, 512), -16)],
    ids=["Q6_K", "Q8_0", "Q4_0", "Q5_0"])
def test_largest_sums_fit(type, blocks, value, precision, isa):
    w = Weight(blocks, int(type), 256, precision)
    assert (dequantize(blocks, type) == value).all()
    x, dy = np.full((5, 256), -1.5, np.float32), np.full((5, 512), 2.5, np.float32)
    rtol = 2e-2 if precision == "int8" else 1e-4        # int8: a byte up or down of 127, and W' of -128
    np.testing.assert_allclose(forward(x, w)[0], -1.5 * value * 256, rtol=rtol)
    np.testing.assert_allclose(forward(-x, w)[0], 1.5 * value * 256, rtol=rtol)
    np.testing.assert_allclose(backward([dy], w), 2.5 * value * 512, rtol=rtol)
    np.testing.assert_allclose(backward([-dy], w), -2.5 * value * 512, rtol=rtol)


@every_type
def test_zeros(type, isa, rng):
    w, W = weight(rng, type, 70, 256)
    x, dy = normal(rng, 5, 256), normal(rng, 5, 70)
    x[2], dy[2] = 0, 0
    y, dx = forward(x, w)[0], backward([dy], w)
    assert not y[2].any() and not dx[2].any()
    assert nmse(y, x @ W.T) < limit(isa, type)
    assert nmse(dx, dy @ W) < limit(isa, type)


@pytest.mark.parametrize("precision", ("int16", "int8"))
@pytest.mark.parametrize("type", [GGMLType.Q4_1, GGMLType.Q5_1], ids=lambda type: type.label)
def test_blocks_that_are_all_minimum(type, precision, isa, rng):
    blocks = random_blocks(rng, type, 70, 64).reshape(70, 2, -1)
    blocks[:, :, :2] = 0                        # scales of zero
    w = Weight(blocks.reshape(70, -1), int(type), 64, precision)
    W = dequantize(blocks.reshape(70, -1), type).astype(np.float64)
    assert W.any()
    x, dy = normal(rng, 5, 64), normal(rng, 5, 70)
    assert nmse(forward(x, w)[0], x @ W.T) < rounded_limit(w, isa, type, INT8_FORWARD)
    most = rounded_limit(w, isa, type, 4 * INT8_BACKWARD)          # all columns of a block have the same error
    assert nmse(backward([dy], w), dy @ W) < most


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("type", [GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q4_K, GGMLType.Q6_K],
                         ids=lambda type: type.label)
def test_a_scale_that_is_not_a_number_reaches_the_output(type, precision, isa, rng):
    blocks = random_blocks(rng, type, 40, 512).reshape(40, -1, type.type_size)
    at = slice(-2, None) if type is GGMLType.Q6_K else slice(2)
    blocks[17, 1, at] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    w = Weight(blocks.reshape(40, -1), int(type), 512, precision)
    with np.errstate(invalid="ignore"):
        y, dx = forward(normal(rng, 7, 512), w)[0], backward([normal(rng, 7, 40)], w)
    block = type.block_size
    assert np.isnan(y[:, 17]).all() and np.isfinite(np.delete(y, 17, 1)).all()
    assert not np.isfinite(dx[:, block:2 * block]).any()


@every_type
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_reaches_the_output(type, value, precision, isa, rng):
    w, _ = weight(rng, type, 40, 512, precision)
    x, dy = normal(rng, 4, 512), normal(rng, 4, 40)
    x[1, 300] = dy[1, 17] = value
    with np.errstate(invalid="ignore"):
        y, dx = forward(x, w)[0], backward([dy], w)
    assert not np.isfinite(y[1]).any() and not np.isfinite(dx[1]).any()
    assert np.isfinite(np.delete(y, 1, 0)).all() and np.isfinite(np.delete(dx, 1, 0)).all()


def test_misfits_are_refused(rng):
    data = random_blocks(rng, GGMLType.Q8_0, 4, 64)
    with pytest.raises(ValueError, match="Weight: ggml type 24 has no kernel"):
        Weight(data, 24, 64)
    for K in (32, 65, 96):
        with pytest.raises(ValueError, match=f"do not hold {K} values"):
            Weight(data, int(GGMLType.Q8_0), K)
    with pytest.raises(ValueError, match="Weight: precision is 'int4', wanted one of float32, int16, int8"):
        Weight(data, int(GGMLType.Q8_0), 64, "int4")
    w = Weight(data, int(GGMLType.Q8_0), 64)
    x, y = np.zeros((3, 64), np.float32), np.zeros((3, 4), np.float32)
    with pytest.raises(ValueError, match="weight 0 wants K = 64"):
        linear_forward([y], np.zeros((3, 32), np.float32), [w], [None], None, 1)
    with pytest.raises(ValueError, match="v of a low-rank update"):
        linear_forward([y], x, [w], [(np.zeros((3, 2), np.float32), np.zeros((2, 5), np.float32))], None, 1)
    with pytest.raises(ValueError, match="a residual needs a single projection"):
        linear_forward([y, y], x, [w, w], [None, None], y, 1)
    with pytest.raises(ValueError, match="1 gradients, 2 weights"):
        linear_backward(x, [y], [w, w], [None, None], 1)


def test_backward_adds_what_it_would_write(isa, rng):
    w, _ = weight(rng, GGMLType.Q8_0, 40, 96)
    dy = normal(rng, 35, 40)
    low_rank = [(normal(rng, 35, 2), normal(rng, 2, 96))]
    dx = np.zeros((35, 96), np.float32)
    linear_backward_add(dx, [dy], [w], low_rank, 2)
    np.testing.assert_array_equal(dx, backward([dy], w, low_rank=low_rank, n_threads=2))
