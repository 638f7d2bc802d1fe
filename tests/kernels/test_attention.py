from dataclasses import dataclass, replace

import numpy as np
import pytest
from numerics import GRADIENT_LIMIT, gradient_error, nmse

from lorafast.kernels import attention as kernel
from lorafast.reference import attention as twin

LIMITS = {"o": 1e-12, "lse": 1e-13, "dq": 2e-12, "dk": 2e-12, "dv": 2e-12}
"""NMSE against the twin. Measured, worst of SIZES and instruction sets: o 2e-13, lse 6e-15, dq, dk and dv 4e-13."""


@dataclass(frozen=True)
class Sizes:
    queries: tuple[int, ...]            # of each sequence
    keys: tuple[int, ...]
    n_head: int
    n_head_kv: int
    D: int
    Dv: int
    window: int = 0
    soft_cap: float = 0
    sinks: bool = False

    def arrays(self, rng, dtype=np.float32) -> tuple[np.ndarray, ...]:
        """q, k, v and do."""
        T, S = sum(self.queries), sum(self.keys)
        H, HKV = self.n_head, self.n_head_kv
        shapes = (T, H * self.D), (S, HKV * self.D), (S, HKV * self.Dv), (T, H * self.Dv)
        return tuple(rng.standard_normal(shape).astype(dtype) for shape in shapes)

    @property
    def rest(self) -> tuple:
        """q_begin, k_begin, scale, window, soft_cap, n_head, n_head_kv."""
        begins = (np.cumsum((0, *counts), dtype=np.int32) for counts in (self.queries, self.keys))
        return *begins, self.D**-0.5, self.window, self.soft_cap, self.n_head, self.n_head_kv


def sink_logits(sizes: Sizes, dtype) -> np.ndarray | None:
    """One is far below the scores, one far above."""
    return np.linspace(-9, 4, sizes.n_head).astype(dtype) if sizes.sinks else None


def forward(op, sizes: Sizes, q, k, v, n_threads=1) -> tuple[np.ndarray, np.ndarray]:
    o = np.full((len(q), sizes.n_head * sizes.Dv), np.nan, q.dtype)
    lse = np.full((len(q), sizes.n_head), np.nan, q.dtype)
    op.attention_forward(o, lse, q, k, v, sink_logits(sizes, q.dtype), *sizes.rest, n_threads)
    return o, lse


def backward(op, sizes: Sizes, q, k, v, do, o, lse, n_threads=1) -> tuple[np.ndarray, ...]:
    gradients = tuple(np.full_like(x, np.nan) for x in (q, k, v))
    op.attention_backward(*gradients, do, q, k, v, o, lse, *sizes.rest, n_threads)
    return gradients


def everything(op, sizes: Sizes, q, k, v, do, n_threads=1) -> dict[str, np.ndarray]:
    o, lse = forward(op, sizes, q, k, v, n_threads)
    return dict(zip(LIMITS, (o, lse, *backward(op, sizes, q, k, v, do, o, lse, n_threads))))


SIZES = {
    "one tile": Sizes((64,), (64,), 2, 2, 64, 64),
    "several tiles and blocks": Sizes((650,), (650,), 2, 1, 64, 64),
    "packed": Sizes((5, 1, 130, 96, 2), (5, 1, 130, 96, 2), 4, 2, 32, 32),
    "after a cache": Sizes((100, 33, 1), (300, 300, 290), 6, 2, 48, 48),
    "heads of 128": Sizes((200,), (200,), 2, 2, 128, 128),
    "heads of 80": Sizes((130,), (130,), 2, 2, 80, 80),
    "heads of 256": Sizes((100,), (110,), 1, 1, 256, 256),
    "odd heads": Sizes((101, 1), (120, 30), 3, 1, 13, 13),
    "other head size of v": Sizes((150, 1), (150, 70), 3, 3, 24, 40),
    "group of 8": Sizes((90, 1), (97, 200), 8, 1, 64, 64),
    "window": Sizes((400, 1), (450, 300), 4, 2, 32, 32, window=70),
    "window of two": Sizes((120,), (120,), 1, 1, 16, 16, window=2),
    "window far shorter than the text": Sizes((900,), (900,), 2, 1, 16, 16, window=40),
    "soft cap": Sizes((150, 1), (170, 60), 4, 2, 32, 32, soft_cap=1.5),
    "sinks": Sizes((150, 1), (170, 60), 4, 2, 32, 32, sinks=True),
    "window, soft cap and sinks": Sizes((300, 2, 1), (310, 90, 60), 4, 2, 24, 40, window=50, soft_cap=2, sinks=True),
    "empty sequences": Sizes((0, 40, 0, 3, 0), (7, 40, 0, 9, 0), 2, 1, 16, 16),
}


@pytest.mark.parametrize("sizes", [
    Sizes((5, 3), (5, 3), 2, 1, 3, 3), Sizes((3, 1), (5, 4), 2, 2, 2, 3, window=3),
    Sizes((5, 3), (6, 3), 2, 1, 3, 3, soft_cap=0.7),
    Sizes((5, 3), (6, 3), 4, 2, 3, 3, window=2, soft_cap=2, sinks=True),
])
def test_twin_gradients(rng, sizes):
    q, k, v, do = sizes.arrays(rng, np.float64)
    gradients = backward(twin, sizes, q, k, v, do, *forward(twin, sizes, q, k, v))
    for gradient, x in zip(gradients, (q, k, v)):
        assert gradient_error(gradient, lambda: np.sum(do * forward(twin, sizes, q, k, v)[0]), x) < GRADIENT_LIMIT


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_kernel_equals_twin(isa, rng, sizes):
    arrays = sizes.arrays(rng)
    exact = everything(twin, sizes, *(x.astype(np.float64) for x in arrays))
    for name, value in everything(kernel, sizes, *arrays).items():
        assert nmse(value, exact[name]) < LIMITS[name], name


@pytest.mark.parametrize("name", ["several tiles and blocks", "packed", "after a cache", "group of 8", "window",
                                  "window, soft cap and sinks"])
def test_threads_give_equal_bits(rng, name):
    arrays = SIZES[name].arrays(rng)
    one = everything(kernel, SIZES[name], *arrays)
    for n_threads in (2, 3, 7):
        for key, value in everything(kernel, SIZES[name], *arrays, n_threads).items():
            np.testing.assert_array_equal(value, one[key], key)


def test_packed_sequences_do_not_meet(isa, rng):
    """A sequence gives the same bits alone and among others."""
    sizes = SIZES["packed"]
    q, k, v, _ = sizes.arrays(rng)
    o, lse = forward(kernel, sizes, q, k, v)
    for n, begin in zip(sizes.queries, np.cumsum((0, *sizes.queries))):
        rows = slice(begin, begin + n)
        alone = Sizes((n,), (n,), sizes.n_head, sizes.n_head_kv, sizes.D, sizes.Dv)
        for whole, part in zip((o, lse), forward(kernel, alone, q[rows], k[rows], v[rows])):
            np.testing.assert_array_equal(part, whole[rows])


@pytest.mark.parametrize("window", [0, 50])
def test_prompt_in_pieces_and_token_by_token(isa, rng, window):
    """With a cache of keys and values, a row comes out as it does when the whole text is given at once."""
    n = 210
    q, k, v, _ = Sizes((n,), (n,), 6, 2, 40, 40).arrays(rng)
    whole, _ = forward(kernel, Sizes((n,), (n,), 6, 2, 40, 40, window), q, k, v)
    for begin, end in ((0, 100), (100, 207), (207, 208), (208, 209), (209, 210)):
        sizes = Sizes((end - begin,), (end,), 6, 2, 40, 40, window)
        piece, _ = forward(kernel, sizes, q[begin:end], k[:end], v[:end])
        assert nmse(piece, whole[begin:end]) < LIMITS["o"]


def test_a_query_sees_its_window_and_nothing_else(isa, rng):
    """NaN in the keys and values of its window, its own and the 29 before, spoils an output; elsewhere it does not."""
    sizes = Sizes((250,), (250,), 2, 1, 16, 16, window=30)
    q, k, v, _ = sizes.arrays(rng)
    clean, _ = forward(kernel, sizes, q, k, v)
    for poisoned in (k, v):
        kept = poisoned[100].copy()
        poisoned[100] = np.nan
        o, _ = forward(kernel, sizes, q, k, v)
        spoiled = np.isnan(o).any(axis=1)
        assert spoiled[100:130].all()
        if poisoned is k:       # a hidden score is never used, while a hidden value may meet its probability: 0 · NaN
            assert not spoiled[:100].any() and not spoiled[130:].any()
            np.testing.assert_array_equal(o[~spoiled], clean[~spoiled])
        poisoned[100] = kept


NEUTRAL = [dict(window=60), dict(soft_cap=1e9), dict(sinks=True)]


@pytest.mark.parametrize("queries", [40, 1])
@pytest.mark.parametrize("neutral", NEUTRAL, ids=lambda options: next(iter(options)))
def test_an_option_that_changes_nothing(isa, rng, monkeypatch, queries, neutral):
    """A window as long as the text or a sink of no weight gives equal bits; a cap far above the scores equal values."""
    plain = Sizes((queries,), (60,), 2, 1, 16, 16)
    monkeypatch.setitem(forward.__globals__, "sink_logits",
                        lambda sizes, dtype: np.full(2, -np.inf, dtype) if sizes.sinks else None)
    arrays = plain.arrays(rng)
    expected = everything(kernel, plain, *arrays)
    for name, value in everything(kernel, replace(plain, **neutral), *arrays).items():
        if "soft_cap" in neutral:
            assert nmse(value, expected[name]) < LIMITS[name]
        else:
            np.testing.assert_array_equal(value, expected[name], name)


@pytest.mark.parametrize("queries", [40, 1])
def test_a_sink_takes_probability(isa, rng, queries):
    """A sink far above the scores leaves nothing for the keys; lse is its logit then."""
    sizes = Sizes((queries,), (60,), 2, 1, 16, 16, sinks=True)
    q, k, v, _ = sizes.arrays(rng)
    o, lse = np.empty_like(q), np.empty((queries, 2), np.float32)
    kernel.attention_forward(o, lse, q, k, v, np.array([200, -200], np.float32), *sizes.rest, 1)
    np.testing.assert_array_equal(o[:, :16], 0)
    np.testing.assert_allclose(lse[:, 0], 200, rtol=1e-6)
    np.testing.assert_array_equal(o[:, 16:], forward(kernel, replace(sizes, sinks=False), q, k, v)[0][:, 16:])


@pytest.mark.parametrize("queries", [50, 1])
def test_large_scores(isa, rng, queries):
    """Scores up to 1e5: the best key takes everything, lse is its score, nothing overflows, gradients stay finite."""
    sizes = Sizes((queries,), (50,), 1, 1, 8, 8)
    q, k, v, do = sizes.arrays(rng)
    q *= 1e5
    o, lse = forward(kernel, sizes, q, k, v)
    visible = np.tril(np.ones((50, 50), bool))[50 - queries:]
    scores = np.where(visible, q @ k.T * np.float32(8**-0.5), -np.inf)
    np.testing.assert_allclose(lse[:, 0], scores.max(axis=1), rtol=1e-5)
    np.testing.assert_allclose(o, v[scores.argmax(axis=1)], rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in backward(kernel, sizes, q, k, v, do, o, lse))


def test_equal_scores_average(isa, rng):
    sizes = Sizes((3, 1), (200, 100), 1, 1, 16, 16)
    q, k, v, _ = sizes.arrays(rng)
    o, lse = forward(kernel, sizes, np.zeros_like(q), k, v)
    np.testing.assert_allclose(o[2], v[:200].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(o[3], v[200:].mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(lse[2:, 0], np.log([200, 100]), rtol=1e-6)


@pytest.mark.parametrize("queries", [3, 1])
def test_nan_reaches_the_output(isa, rng, queries):
    sizes = Sizes((queries,), (120,), 2, 1, 16, 16)
    q, k, v, _ = sizes.arrays(rng)
    q[-1, :16] = np.nan                 # head 0 of the last query
    o, lse = forward(kernel, sizes, q, k, v)
    assert np.isnan(o[-1, :16]).all() and np.isnan(lse[-1, 0])
    assert np.isfinite(o[-1, 16:]).all() and np.isfinite(o[:-1]).all()


@pytest.mark.parametrize("change, message", [
    (dict(q_begin=np.array([0, 5], np.int32)), "q_begin goes from 0 to 5"),
    (dict(k_begin=np.array([1, 6], np.int32)), "k_begin from 1 to 6"),
    (dict(k_begin=np.array([0, 3, 6], np.int32)), "k_begin has shape"),
    (dict(q_begin=np.array([0, 3, 4], np.int32), k_begin=np.array([0, 2, 6], np.int32)), "0 has 3 queries and 2 keys"),
    (dict(q_begin=np.array([0, 9, 4], np.int32), k_begin=np.array([0, 9, 6], np.int32)), "1 has -5 queries"),
    (dict(q_begin=np.array([], np.int32), k_begin=np.array([], np.int32)), "q_begin is empty"),
    (dict(n_head=3), "3 heads are no multiple of 2"),
    (dict(window=-1), "window is -1"),
    (dict(soft_cap=-2.5), "soft_cap is -2.5, wanted at least 0"),
    (dict(soft_cap=np.nan), "soft_cap is nan"),
    (dict(sinks=np.zeros(3, np.float32)), r"sinks has shape \(3,\), wanted \(4,\)"),
])
def test_bad_arguments_are_refused_in_words(change, message):
    def zeros(*shape):
        return np.zeros(shape, np.float32)

    good = dict(q=zeros(4, 32), k=zeros(6, 16), v=zeros(6, 16), sinks=None, q_begin=np.array([0, 4], np.int32),
                k_begin=np.array([0, 6], np.int32), scale=1.0, window=0, soft_cap=0, n_head=4, n_head_kv=2,
                n_threads=1)
    kernel.attention_forward(zeros(4, 32), zeros(4, 4), **good)
    with pytest.raises(ValueError, match=message):
        kernel.attention_forward(zeros(4, 32), zeros(4, 4), **(good | change))
