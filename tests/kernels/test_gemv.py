"""The cores for few tokens: as exact as float32 or int16 is, for every type, width and instruction set."""
import numpy as np
import pytest
from make_models import random_blocks
from quant_blocks import TRAINABLE

from lorafast.gguf.quants import dequantize
from lorafast.gguf.types import GGMLType
from lorafast.kernels.linear import Weight, linear_forward

FLOAT32 = 1e-11         # of `error`; measured 3e-12 (SSE2, K = 11008), 7e-13 with AVX-512
# of weights of 4 bits, unless float32 is asked for; measured 4e-9, a single sum of 32 values 3e-8
INT16 = 5e-8
FOUR_BITS = (GGMLType.Q4_0, GGMLType.Q4_1, GGMLType.Q4_K, GGMLType.IQ4_NL, GGMLType.IQ4_XS)
FEW = (1, 2, 3, 4)      # tokens that this core takes


def error(got: np.ndarray, wanted: np.ndarray, terms: np.ndarray) -> float:
    """Squared error of x Wᵀ, relative to `terms`, what its terms add up to if none cancel: for few elements."""
    return float(np.sum((got - wanted) ** 2) / np.sum(terms))


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def product(x: np.ndarray, w: Weight, low_rank=None, residual=None, n_threads: int = 1) -> np.ndarray:
    y = np.full((len(x), w.N), np.nan, np.float32)
    linear_forward([y], x, [w], [low_rank], residual, n_threads)
    return y


def weight(rng: np.random.Generator, type: GGMLType, N: int, K: int,
           precision: str = "int16") -> tuple[Weight, np.ndarray]:
    blocks = random_blocks(rng, type, N, K)
    return Weight(blocks, int(type), K, precision), dequantize(blocks, type).astype(np.float64)


@pytest.mark.parametrize("precision", ["float32", "int16"])
@pytest.mark.parametrize("type", TRAINABLE, ids=lambda type: type.label)
def test_every_type_and_width(type, precision, isa, rng):
    limit = INT16 if precision == "int16" and type in FOUR_BITS else FLOAT32
    step = max(type.block_size, 1 if type.block_size == 1 else 32)
    for K in {1: (1, 17, 255, 300), 32: (32, 96, 288), 64: (64, 192, 320), 256: (256, 768)}[step] + (11008,):
        for N in (1, 3, 67):
            w, W = weight(rng, type, N, K, precision)
            x = normal(rng, max(FEW), K)
            wanted, terms = x @ W.T, x.astype(np.float64)**2 @ W.T**2
            for T in FEW:
                assert error(product(x[:T], w), wanted[:T], terms[:T]) < limit, (K, N, T)


@pytest.mark.parametrize("type", [GGMLType.Q8_0, GGMLType.Q4_K, GGMLType.F16], ids=lambda type: type.label)
def test_tokens_and_threads_do_not_depend_on_each_other(type, isa, rng):
    w, _ = weight(rng, type, 333, 512)
    x, residual, c, v = normal(rng, 4, 512), normal(rng, 4, 333), normal(rng, 4, 5), normal(rng, 5, 333)
    y = product(x, w, (c, v), residual)
    for n_threads in (1, 2, 3):
        for few in (slice(0, 1), slice(3, 4), slice(1, 3), slice(1, 4)):
            np.testing.assert_array_equal(product(x[few], w, (c[few], v), residual[few], n_threads), y[few])


def test_residual_and_update(isa, rng):
    w, W = weight(rng, GGMLType.Q5_1, 131, 96)
    x, residual, c, v = normal(rng, 2, 96), normal(rng, 2, 131), normal(rng, 2, 3), normal(rng, 3, 131)
    wanted = x @ W.T + c @ v.astype(np.float64) + residual
    np.testing.assert_allclose(product(x, w, (c, v), residual), wanted, atol=1e-4)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("type", [GGMLType.Q8_0, GGMLType.Q4_0, GGMLType.Q4_K], ids=lambda type: type.label)
def test_what_is_not_finite_stays_visible(type, value, isa, rng):
    w, _ = weight(rng, type, 40, 256)
    x = normal(rng, 2, 256)
    x[1, 37] = value
    with np.errstate(invalid="ignore"):
        y = product(x, w)
    assert np.isfinite(y[0]).all() and not np.isfinite(y[1]).any()
