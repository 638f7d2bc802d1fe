"""How long a run is and which schedule it has."""
import numpy as np
import pytest

from lorafast.data.batches import Sampler, SamplerState, SequenceSampler
from lorafast.data.samples import Samples, Sequences
from lorafast.errors import UsageError
from lorafast.options.finetune import FinetuneConfig
from lorafast.training.course import iterations_of_epochs, plan_course


def config(**options) -> FinetuneConfig:
    return FinetuneConfig(model_base="m", **{"ctx": 8, "batch": 3, **options})


def text(count: int, size: int = 8) -> Samples:
    return Samples(np.arange(1000, dtype=np.int32) % 50, np.arange(count), np.full(count, size), "x")


def sequences(count: int) -> Sequences:
    size = np.full(count, 5)
    return Sequences(np.arange(5 * count, dtype=np.int32) % 50, np.cumsum(size) - size, size, "x", [],
                     np.zeros(count, np.int64), np.zeros(count, np.int64), ("x",))


@pytest.mark.parametrize("start", [0, 1, 4])
@pytest.mark.parametrize("options", [{}, {"grad_acc": 2}, {"epochs": 3}, {"batch": 7}, {"batch": 50},
                                     {"grad_acc": 5, "epochs": 2}])
def test_iterations_of_epochs_are_those_of_the_sampler(options, start):
    cfg = config(**{"epochs": 1, **options})
    sampler = Sampler(text(20), 8, seed=1, bos_id=1, eos_id=2, n_vocab=50)
    for _ in range(start):
        sampler.next_batch(cfg.batch)
    position = sampler.state
    expected = 0
    while sampler.state.epochs - position.epochs < cfg.epochs:
        expected += 1
        for _ in range(cfg.n_acc):
            sampler.next_batch(cfg.batch)
    assert iterations_of_epochs(cfg, text(20), position) == expected


def test_iterations_of_packed_epochs():
    cfg = config(epochs=2, pack=True)       # 4 inputs a sequence: 6 in 24 tokens
    sampler = SequenceSampler(sequences(20), 8, seed=1, n_vocab=50, pack=True)
    n = 0
    while sampler.state.epochs < 2:
        sampler.next_batch(3)
        n += 1
    assert iterations_of_epochs(cfg, sequences(20), SamplerState()) == n == 8


def test_length():
    state = SamplerState()
    assert (plan_course(config(), text(20), state, 0).n_iter,
            plan_course(config(), text(20), state, 0).limit) == (256, 256)
    assert plan_course(config(adam_iter=5, epochs=9), text(20), state, 0).limit == 5
    by_epochs = plan_course(config(epochs=2), text(20), state, 0)
    assert (by_epochs.n_iter, by_epochs.limit) == (14, None)


@pytest.mark.parametrize("options, iteration, stored, end", [
    (dict(adam_iter=20), 0, 0, 20),
    (dict(adam_iter=20), 5, 0, 25),
    (dict(adam_iter=6), 4, 10, 10),         # the rest of a run that was cut short
    (dict(adam_iter=2), 4, 10, 10),         # a part of the rest
    (dict(adam_iter=20), 4, 10, 24),        # further than planned
    (dict(adam_iter=20), 10, 10, 30),       # a new run after one that had ended
    (dict(epochs=2), 3, 10, 10),
    (dict(adam_iter=20, decay_iter=50), 4, 10, 50),
])
def test_end_of_the_schedule(options, iteration, stored, end):
    course = plan_course(config(schedule="linear", warmup_ratio=0.2, **options), text(20), SamplerState(), iteration,
                         stored)
    assert course.end == end and course.warmup == round(0.2 * end)
    assert course.schedule(end) == 0 and course.schedule(course.warmup) == 1


def test_resuming_counts_from_the_runs_beginning():
    samples, options = text(64), config(adam_iter=30, resume=True, schedule="cosine")
    position = Sampler(samples, 8, seed=1, bos_id=1, eos_id=2, n_vocab=50).state
    course = plan_course(options, samples, position, 12, stored_end=30)
    assert (course.n_iter, course.limit, course.end) == (18, 18, 30)
    with pytest.raises(UsageError, match=r"is complete \(30 iterations, .* times? through .*larger --adam-iter"):
        plan_course(options, samples, position, 30, stored_end=30)
