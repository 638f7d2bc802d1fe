"""Schedule, Adam, clipping and stop tests against the original's printed values and plain restatements of its rules."""
import math

import numpy as np
import pytest

from lorafast.network.lora import Adapter, default_ranks, specs_for
from lorafast.training.optim import (
    EPS,
    Adam,
    EpochLimit,
    Group,
    LossHistory,
    OriginalSchedule,
    PlainSchedule,
    StopTests,
    clip_scale,
    parameter_groups,
)

# sched= on the lines iter=0 ... 20 of a run of the original with --warmup 5.
GOLDEN_SCHED = """0.000000 0.200000 0.400000 0.600000 0.800000 0.999945 0.999920 0.999891 0.999858 0.999820 0.999778
0.999731 0.999680 0.999625 0.999565 0.999500 0.999432 0.999358 0.999281 0.999199 0.999112""".split()


def test_schedule_prints_what_the_original_printed():
    schedule = OriginalSchedule(warmup=5)
    assert [f"{schedule(step):.6f}" for step in range(21)] == GOLDEN_SCHED


def test_schedule_without_restart():
    schedule = OriginalSchedule()
    printed = [f"{schedule(step):.6f}" for step in (0, 1, 7, 99, 100)]
    assert printed == ["0.000000", "0.010000", "0.070000", "0.990000", "0.977975"]
    assert schedule(500) == pytest.approx(0.55)
    assert schedule(1000) == schedule(5000) == pytest.approx(0.1)
    assert OriginalSchedule(warmup=0)(0) == 1


def test_schedule_with_restarts():
    schedule = OriginalSchedule(warmup=10, cos_decay_steps=100, cos_decay_restart=1.5, cos_decay_min=0.2,
                                enable_restart=True)

    def cosine(n, period):
        return 0.8 * 0.5 * (1 + math.cos(math.pi * n / period)) + 0.2

    assert schedule(9) == pytest.approx(0.9)
    expected = {10: 1.0, 60: cosine(50, 100), 110: 0.2, 111: cosine(1, 150), 260: 0.2, 261: cosine(1, 225)}
    for step, factor in expected.items():
        assert schedule(step) == pytest.approx(factor, abs=1e-6)


def test_schedule_floor():
    schedule = OriginalSchedule(warmup=10, floor=0.25)
    assert schedule(0) == 0.25
    assert schedule(5) == pytest.approx(0.25 + 0.5 * 0.75)
    assert schedule(9999) == pytest.approx(0.25 + 0.1 * 0.75)


def test_clip_scale():
    assert clip_scale(4.0, 1.0) == 0.25
    assert clip_scale(0.5, 1.0) == clip_scale(1.0, 1.0) == clip_scale(4.0, 0.0) == clip_scale(4.0, -1.0) == 1.0


def adam_float64(state, g, n_decayed, t, schedule, adam, factor=1.0):
    """One update of (x, m, v) by the formulas, in float64."""
    x, m, v = state
    norm = np.sqrt((g**2).sum())
    if adam.gclip > 0 and norm > adam.gclip:
        g = g * adam.gclip / norm
    m = adam.beta1 * m + (1 - adam.beta1) * g
    v = adam.beta2 * v + (1 - adam.beta2) * g**2
    rate = adam.alpha * schedule * factor
    decayed = np.arange(x.size) < n_decayed
    step = rate * (m / (1 - adam.beta1**t)) / (np.sqrt(v / (1 - adam.beta2**t)) + EPS)
    return x * (1 - adam.decay * rate * decayed) - step, m, v


@pytest.mark.parametrize("n_decayed", [0, 1, 70, 77])
@pytest.mark.parametrize("gclip", [0.0, 1.0, 1000.0])
def test_adam(n_decayed, gclip):
    rng = np.random.default_rng(0)
    adam = Adam(alpha=0.01, gclip=gclip, decay=0.5)
    x = rng.standard_normal(77).astype(np.float32)
    m, v = np.zeros_like(x), np.zeros_like(x)
    expected = [a.astype(np.float64) for a in (x, m, v)]
    for t, schedule in ((1, 0.0), (2, 0.5), (3, 1.0), (4, 1.0)):
        g = (3 * rng.standard_normal(77)).astype(np.float32)
        before = g.copy()
        groups = [Group(0, n_decayed, True), Group(n_decayed, 77, False)]
        norm = adam.step(x, m, v, g, groups=groups, iteration=t, schedule=schedule, n_threads=2)
        expected = adam_float64(expected, g.astype(np.float64), n_decayed, t, schedule, adam)
        assert norm == pytest.approx(np.linalg.norm(before.astype(np.float64)), rel=1e-6)
        for got, wanted in zip((x, m, v), expected):
            np.testing.assert_allclose(got, wanted, rtol=3e-5, atol=1e-7)   # 1 - 0.999 in float32 is off by 1.3e-5


def test_parameters_with_a_learning_rate_of_their_own():
    adam = Adam(alpha=0.01, gclip=0.0)
    x, m, v = np.ones(9, np.float32), np.zeros(9, np.float32), np.zeros(9, np.float32)
    g = np.linspace(-1, 1, 9).astype(np.float32)
    expected = [adam_float64([a.astype(np.float64) for a in (x, m, v)], g.astype(np.float64), 9, 1, 1.0, adam,
                             factor)[0]
                for factor in (1.0, 16.0)]
    adam.step(x, m, v, g, groups=[Group(0, 4, True), Group(4, 9, True, 16.0)], iteration=1, schedule=1.0, n_threads=1)
    np.testing.assert_allclose(x, [*expected[0][:4], *expected[1][4:]], rtol=3e-5)


def test_groups_cover_an_adapter_once():
    shapes = {"blk.0.attn_norm.weight": (8,), "blk.0.attn_q.weight": (6, 8), "blk.0.attn_v.weight": (4, 8)}
    adapter = Adapter(specs_for(shapes, default_ranks(2)), 2, 2)
    assert parameter_groups(adapter, 2, 1.0) == [Group(0, adapter.n_params - 1, True),
                                                 Group(adapter.n_params - 1, adapter.n_params, False)]
    assert parameter_groups(adapter, 1, 1.0) == [Group(0, adapter.n_params, True)]
    factor, decays = np.zeros(adapter.n_params, np.float32), np.zeros(adapter.n_params, np.float32)
    for group in parameter_groups(adapter, 2, 16.0):
        factor[group.begin:group.end] += group.rate_factor
        decays[group.begin:group.end] += group.decays
    factors, decaying = adapter.views(factor), adapter.views(decays)
    assert all((a == 1).all() and (b == 16).all() for a, b in factors.values())
    assert all((a == 1).all() and (b == ("norm" not in name)).all() for name, (a, b) in decaying.items())


def test_magnitudes_learn_as_fast_as_a_and_do_not_decay():
    adapter = Adapter(specs_for({"blk.0.attn_q.weight": (6, 8)}, default_ranks(2), dora=True), 2, 2)
    pairs = 2 * (6 + 8)
    for min_ndim in (1, 2):
        assert parameter_groups(adapter, min_ndim, 1.0) == [Group(0, pairs, True), Group(pairs, pairs + 6, False)]
        assert parameter_groups(adapter, min_ndim, 16.0) == [Group(0, 16, True), Group(16, pairs, True, 16.0),
                                                             Group(pairs, pairs + 6, False)]


@pytest.mark.parametrize("shape, expected", [
    ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]),
    ("linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25, 0]),
    ("cosine", [0.25, 0.5, 0.75, 1, 1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0]),
])
def test_plain_schedules(shape, expected):
    schedule = PlainSchedule(shape, warmup=4, end=8)
    assert [schedule(step) for step in range(9)] == pytest.approx(expected, abs=1e-7)
    assert schedule(1000) == schedule(8)
    assert PlainSchedule(shape, 0, 0)(0) in (0, 1)
    floored = PlainSchedule(shape, warmup=4, end=8, floor=0.1)
    assert [floored(step) for step in (1, 8)] == pytest.approx([0.55, 1.0 if shape == "constant" else 0.1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_adam_changes_nothing_when_the_gradient_is_not_finite(bad):
    x, m, v = (np.full(9, value, np.float32) for value in (1, 2, 3))
    g = np.ones(9, np.float32)
    g[4] = bad
    norm = Adam().step(x, m, v, g, groups=[Group(0, 9, True)], iteration=1, schedule=1.0, n_threads=1)
    assert not math.isfinite(norm)
    assert (x == 1).all() and (m == 2).all() and (v == 3).all()


def run(tests: StopTests, losses, first_iteration=0) -> tuple[int | None, str | None]:
    """Iteration that stopped and why."""
    for iteration, loss in enumerate(losses, first_iteration):
        if reason := tests.check(loss, iteration):
            return iteration, reason
    return None, None


FALLING = [4.0, 3.5, 3.0, 2.999, 2.5, 2.6, 2.55, 2.5, 2.51, 2.4]


def test_no_stop_test_is_on_by_default():
    assert run(StopTests(), [1.0] * 20) == (None, None)


def test_relative_change():
    iteration, reason = run(StopTests(epsf=1e-3), FALLING)
    assert iteration == 3
    assert reason == "the loss changed by less than 0.001 of itself in one iteration (--adam-epsf)"


def test_change_over_a_window():
    # Iteration k looks at the loss of iteration k - 3, from k = 4 on: 2.5 at k = 7 against 2.5 at k = 4.
    iteration, reason = run(StopTests(past=3, delta=1e-2), FALLING)
    assert iteration == 7
    assert reason == "the loss changed by less than 0.01 of itself in 3 iterations (--opt-past, --opt-delta)"
    assert run(StopTests(past=1), [1.0] * 5)[0] == 2   # not 1: the first loss of a run is not looked at


def test_no_improvement():
    iteration, reason = run(StopTests(max_no_improvement=3), FALLING)
    assert iteration == 7   # 2.6, 2.55, and 2.5 again
    assert reason == "the loss has not fallen below 2.500000 for 3 iterations (--opt-max-no-improvement)"
    assert run(StopTests(max_no_improvement=4), FALLING)[0] == 8
    assert run(StopTests(max_no_improvement=5), FALLING)[0] is None


def test_the_tests_run_in_their_order():
    same = [1.0, 1.0]
    assert "--adam-epsf" in run(StopTests(epsf=1e-3, past=1, delta=1e-3, max_no_improvement=1), same)[1]
    assert "--opt-past" in run(StopTests(past=1, delta=1e-3, max_no_improvement=1), [2.0, 1.0, 1.0])[1]


def test_nan_passes_the_stop_tests():
    assert run(StopTests(epsf=1e-3, past=1, delta=1e-3), [1.0, math.nan, math.nan, math.nan]) == (None, None)


def test_history():
    tests = StopTests(past=3, max_no_improvement=9)
    run(tests, FALLING[:6])
    history = tests.history
    assert history.best_loss == 2.5 and history.no_improvement == 1
    assert history.previous_loss == np.float32(2.6)
    np.testing.assert_array_equal(history.past_losses, np.float32([2.5, 2.6, 2.999]))   # iterations 4, 5 and 3
    assert history.past_losses.dtype == np.float32
    off = StopTests()
    run(off, FALLING)
    assert off.history.best_loss == 4.0 and off.history.past_losses.shape == (0,)


@pytest.mark.parametrize("options, split", [
    (dict(past=3, delta=1e-2), 1), (dict(past=3, delta=1e-2), 5), (dict(past=3, delta=1e-2), 7),
    (dict(max_no_improvement=4), 1), (dict(max_no_improvement=4), 7), (dict(epsf=1e-3), 3), (dict(), 5),
], ids=str)
def test_a_resumed_run_stops_where_the_whole_one_does(options, split):
    tests = StopTests(**options)
    assert run(tests, FALLING[:split]) == (None, None)
    saved = tests.history
    values = (saved.best_loss, saved.previous_loss, saved.no_improvement, saved.past_losses.copy())
    expected = run(tests, FALLING[split:], split)
    np.testing.assert_array_equal(saved.past_losses, values[3])   # a kept history does not change
    assert run(StopTests(**options, history=LossHistory(*values)), FALLING[split:], split) == expected


def test_epoch_limit_lets_the_last_batch_be_trained_on():
    limit = EpochLimit(2, completed_before=5)
    # Epoch 7 is completed by a batch drawn in iteration 8, with two accumulation passes an iteration.
    draws = [(5, 7), (6, 7), (6, 8), (7, 8), (7, 9)]
    assert [limit.check(*draw) for draw in draws] == [None, None, None, None, "2 epochs completed (--epochs)"]
    assert all(EpochLimit(0).check(100, iteration) is None for iteration in range(5))
