"""Shuffling and batches, against vectors of the original's shuffle and a plain token-by-token reading of its rules."""
from dataclasses import replace

import numpy as np
import pytest

from lorafast.data.batches import Batch, Sampler, SamplerState, SequenceSampler, evaluation_batches
from lorafast.data.samples import Identity, Samples, Sequences
from lorafast.errors import FormatError, LoraFastError
from lorafast.rng import MT19937

BOS, EOS = 1, 2
IDS = dict(bos_id=BOS, eos_id=EOS, n_vocab=10_000)


def sliding(count: int, ctx: int, name="shakespeare.txt") -> Samples:
    """Samples of a text whose token ids count up from 100."""
    return Samples(np.arange(100, 100 + count + ctx, dtype=np.int32), np.arange(count), np.full(count, ctx), name)


def pieces(*sizes: int) -> Samples:
    size = np.array(sizes)
    return Samples(np.arange(100, 100 + size.sum(), dtype=np.int32), np.cumsum(size) - size, size, "pieces.txt")


def targets_of(batch: Batch) -> np.ndarray:
    """Its targets as (n, ctx)."""
    return batch.targets.reshape(len(batch.begin) - 1, -1)


def original_shuffle(samples: Samples, rng: MT19937) -> list[tuple[int, int]]:
    """(sample, random offset) in shuffled order."""
    draws = rng.draw(len(samples))
    order = sorted(range(len(samples)), key=lambda i: (draws[i], i))
    offsets = []
    for sample, draw in zip(order, rng.draw(len(samples)).tolist()):
        offsets.append(int((int(samples.size[sample]) - 1) * (draw / (2**32 - 2))) if samples.size[sample] else 10**9)
    return list(zip(order, offsets))


def original_batch(samples, shuffled, next_sample, n, ctx, fill=False, eos=False, bos=True, random_offsets=False):
    """targets (n, ctx) and the number of samples used, position by position."""
    targets, used = np.zeros((n, ctx), np.int32), 0
    for k in range(n):
        sample, offset = shuffled[(next_sample + used) % len(shuffled)]
        used += 1
        offset = offset if random_offsets else 0
        need_eos, need_bos = eos, bos
        for i in range(ctx):
            token = EOS
            if offset >= samples.size[sample] and fill:
                if need_eos:
                    need_eos = False
                    targets[k, i] = EOS
                    continue
                if need_bos:
                    need_bos = False
                    targets[k, i] = BOS
                    continue
                need_eos, need_bos = eos, bos
                sample, offset = shuffled[(next_sample + used) % len(shuffled)][0], 0
                used += 1
            if offset < samples.size[sample]:
                token = samples.tokens[samples.begin[sample] + offset]
                offset += 1
            targets[k, i] = token
    return targets, used


@pytest.mark.parametrize("seed, order, offsets", [
    (1720093158, [9048, 25169, 17642, 26810, 3456, 4927, 12670, 11571], [10, 20, 12, 1, 27, 58, 21, 33]),
    (42, [5804, 8302, 18374, 25565, 5208, 23766, 19927, 8525], [0, 48, 30, 59, 3, 8, 61, 23]),
])
def test_shuffle_vectors(seed, order, offsets):
    sampler = Sampler(sliding(27520, 64), 64, seed=seed, random_offsets=True, bos_id=BOS, eos_id=EOS, n_vocab=100_000)
    targets = targets_of(sampler.next_batch(8))
    assert (targets[:, 0] - 100).tolist() == [sample + offset for sample, offset in zip(order, offsets)]
    plain = Sampler(sliding(27520, 64), 64, seed=seed, bos_id=BOS, eos_id=EOS, n_vocab=100_000)
    assert plain.state.rng_state == MT19937(seed).state_text()
    assert (targets_of(plain.next_batch(8))[:, 0] - 100).tolist() == order
    plain.next_batch(27520)
    assert plain.state.rng_state.endswith(" 128")   # the position after two draws a sample


def test_rows():
    sampler = Sampler(pieces(3, 3), 5, seed=0, **IDS)
    batch = sampler.next_batch(2)
    assert sorted(targets_of(batch).tolist()) == [[100, 101, 102, EOS, EOS], [103, 104, 105, EOS, EOS]]
    assert batch.begin.tolist() == [0, 5, 10] and (batch.tokens[batch.begin[:-1]] == BOS).all()
    np.testing.assert_array_equal(batch.tokens.reshape(2, 5)[:, 1:], targets_of(batch)[:, :-1])
    assert batch.tokens.dtype == batch.targets.dtype == np.int32 and batch.n_used == 2


OPTIONS = [
    dict(), dict(random_offsets=True), dict(fill=True), dict(fill=True, eos=True), dict(fill=True, bos=False),
    dict(fill=True, eos=True, bos=False), dict(fill=True, eos=True, random_offsets=True),
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("sizes", [(3, 0, 12, 1, 7, 0, 0, 5, 2, 30), (4,), (0, 0, 1), (9, 9, 9, 9)], ids=str)
@pytest.mark.parametrize("ctx", [1, 6])
def test_batches_follow_the_original_through_epochs(options, sizes, ctx):
    samples = pieces(*sizes)
    sampler = Sampler(samples, ctx, seed=7, fill_with_next_samples=options.get("fill", False),
                      separate_with_eos=options.get("eos", False), separate_with_bos=options.get("bos", True),
                      random_offsets=options.get("random_offsets", False), **IDS)
    rng = MT19937(7)
    shuffled, next_sample, epochs, samples_used = original_shuffle(samples, rng), 0, 0, 0
    for _ in range(40):
        targets, used = original_batch(samples, shuffled, next_sample, 3, ctx, **options)
        batch = sampler.next_batch(3)
        np.testing.assert_array_equal(targets_of(batch), targets)
        assert batch.n_used == used
        next_sample += used
        samples_used += used
        assert batch.epoch_ended == (next_sample >= len(samples))
        if batch.epoch_ended:
            current = rng.state_text()
            shuffled, next_sample, epochs = original_shuffle(samples, rng), 0, epochs + 1
            assert sampler.state.rng_state == current
        state = sampler.state
        assert (state.next_sample, state.epochs, state.samples_used) == (next_sample, epochs, samples_used)
    assert epochs > 1


@pytest.mark.parametrize("options", [dict(), dict(random_offsets=True), dict(fill_with_next_samples=True)], ids=str)
def test_a_state_resumes_exactly(options):
    samples = pieces(3, 5, 12, 1, 7, 8, 2)
    sampler = Sampler(samples, 6, seed=7, **options, **IDS)
    states, batches = [], []
    for _ in range(12):
        states.append(sampler.state)
        batches.append(sampler.next_batch(2))
    for i, state in enumerate(states):
        resumed = Sampler(samples, 6, seed=99, state=state, **options, **IDS)
        assert not resumed.restarted and resumed.state == state
        for batch in batches[i:]:
            np.testing.assert_array_equal(resumed.next_batch(2).targets, batch.targets)
        assert resumed.state == sampler.state


@pytest.mark.parametrize("samples, restarted", [
    (sliding(20, 4), False), (sliding(21, 4), True), (sliding(20, 4, "b.txt"), False), (pieces(*[4] * 19, 5), True),
], ids=["same", "longer", "renamed", "cut otherwise"])
def test_other_data_restarts_the_epoch_and_keeps_the_counters(samples, restarted):
    sampler = Sampler(sliding(20, 4), 4, seed=7, **IDS)
    assert sampler.restarted   # a fresh run has seen no data
    sampler.next_batch(21)
    sampler.next_batch(3)
    state = sampler.state
    assert (state.epochs, state.samples_used, state.next_sample) == (1, 24, 3)
    resumed = Sampler(samples, 4, seed=5, state=state, **IDS)
    assert resumed.restarted == restarted
    assert (resumed.state.epochs, resumed.state.samples_used) == (1, 24)
    assert resumed.state.next_sample == (0 if restarted else 3)
    assert (resumed.state.rng_state == MT19937(5).state_text()) == restarted
    assert resumed.state.samples_hash == samples.hash and resumed.state.sample_count == len(samples)
    assert Sampler(samples, 4, seed=5, state=replace(resumed.state, sample_count=19), **IDS).restarted


def test_llama_finetunes_position_is_known_by_the_name():
    state = Sampler(sliding(20, 4), 4, seed=7, **IDS).state
    for name, restarted in (("shakespeare.txt", False), ("b.txt", True)):
        resumed = Sampler(sliding(20, 4, name), 4, seed=7, state=replace(state, data=Identity()), **IDS)
        assert resumed.restarted == restarted and not resumed.other_contents


def test_contents_of_the_same_size_are_other_data():
    samples = sliding(20, 4)
    state = Sampler(samples, 4, seed=7, **IDS).state
    resumed = Sampler(replace(samples, tokens=samples.tokens[::-1]), 4, seed=7, state=state, **IDS)
    assert resumed.restarted and resumed.other_contents and state.samples_hash == samples.hash


def test_force_reshuffle_and_a_state_without_generator_start_from_the_seed():
    samples = sliding(20, 4)
    sampler = Sampler(samples, 4, seed=7, **IDS)
    sampler.next_batch(3)
    forced = Sampler(samples, 4, seed=5, state=sampler.state, force_reshuffle=True, **IDS)
    no_generator = Sampler(samples, 4, seed=5, state=SamplerState(samples.hash, "", 20, 3), **IDS)
    for other in (forced, no_generator):
        assert not other.restarted
        assert other.state.rng_state == MT19937(5).state_text() and other.state.next_sample == 0


def test_broken_state():
    samples = sliding(20, 4)
    with pytest.raises(FormatError, match="state"):
        Sampler(samples, 4, seed=5, state=SamplerState(samples.hash, "1 2 3", 20, 3), **IDS)


def test_token_ids_are_clamped_to_the_vocabulary():
    samples = Samples(np.array([5, 9, 10, 12], np.int32), np.array([0]), np.array([4]), "a")
    sampler = Sampler(samples, 4, seed=0, bos_id=BOS, eos_id=EOS, n_vocab=10)
    assert sampler.next_batch(1).targets.tolist() == [5, 9, 9, 9]


def test_no_samples():
    with pytest.raises(LoraFastError, match="no samples"):
        Sampler(Samples(np.zeros(0, np.int32), np.zeros(0, np.int64), np.zeros(0, np.int64), "a"), 4, seed=0, **IDS)


def sequences(*sizes: int) -> Sequences:
    """Sequence i is 100 i, 100 i + 1, ...; the first third of it does not count."""
    stored = [np.arange(100 * i, 100 * i + size, dtype=np.int32) for i, size in enumerate(sizes)]
    for tokens in stored:
        tokens[:-(-len(tokens) // 3)] ^= -1
    size = np.array(sizes)
    return Sequences(np.concatenate(stored), np.cumsum(size) - size, size, "a.jsonl")


SIZES = (5, 9, 3, 12, 2, 7, 7, 4, 10, 6, 2)


def rows(batch: Batch) -> list[list[int]]:
    return [batch.tokens[begin:end].tolist() for begin, end in zip(batch.begin[:-1], batch.begin[1:])]


def check_rows(batch: Batch) -> list[int]:
    """That tokens and targets are those of whole sequences; returns which."""
    numbers = []
    for begin, end in zip(batch.begin[:-1], batch.begin[1:]):
        number = batch.tokens[begin] // 100
        size = SIZES[number]
        assert batch.tokens[begin:end].tolist() == list(range(100 * number, 100 * number + size - 1))
        n_read = -(-size // 3)
        counted = range(100 * number + n_read, 100 * number + size)
        assert batch.targets[begin:end].tolist() == [-1] * (n_read - 1) + list(counted)
        numbers.append(int(number))
    assert batch.tokens.dtype == batch.targets.dtype == batch.begin.dtype == np.int32
    assert len(batch.tokens) == len(batch.targets) == batch.begin[-1] and batch.begin[0] == 0
    return numbers


@pytest.mark.parametrize("pack", [False, True])
def test_an_epoch_shows_each_sequence_once_in_the_order_of_the_shuffle(pack):
    samples = sequences(*SIZES)
    sampler = SequenceSampler(samples, 12, seed=7, n_vocab=10_000, pack=pack)
    rng = MT19937(7)
    for epoch in range(3):
        order = [sample for sample, _ in original_shuffle(samples, rng)]
        seen, ended = [], False
        while not ended:
            assert sampler.state.next_sample == len(seen) and sampler.state.epochs == epoch
            batch = sampler.next_batch(2)
            numbers = check_rows(batch)
            assert batch.n_used == len(numbers)
            seen += numbers
            ended = batch.epoch_ended
            if pack:
                following = SIZES[order[len(seen)]] - 1 if len(seen) < len(order) else 24
                assert len(batch.tokens) <= 24 < len(batch.tokens) + following
            else:
                assert len(numbers) == (1 if ended else 2)
        assert seen == order
    assert sampler.state.samples_used == 3 * len(SIZES)


@pytest.mark.parametrize("pack", [False, True])
def test_sequences_resume_exactly(pack):
    samples = sequences(*SIZES)
    sampler = SequenceSampler(samples, 12, seed=7, n_vocab=10_000, pack=pack)
    assert sampler.restarted
    states, batches = [], []
    for _ in range(12):
        states.append(sampler.state)
        batches.append(sampler.next_batch(2))
    for i, state in enumerate(states):
        resumed = SequenceSampler(samples, 12, seed=99, n_vocab=10_000, pack=pack, state=state)
        assert not resumed.restarted and resumed.state == state
        assert [rows(resumed.next_batch(2)) for _ in batches[i:]] == [rows(batch) for batch in batches[i:]]
        assert resumed.state == sampler.state


def test_ids_of_sequences_are_clamped():
    batch = SequenceSampler(sequences(4), 12, seed=0, n_vocab=2).next_batch(1)
    assert batch.tokens.tolist() == [0, 1, 1] and batch.targets.tolist() == [-1, 1, 1]


def test_evaluation_shows_every_sequence_once_in_order():
    seen = []
    for batch in evaluation_batches(sequences(*SIZES), 14, bos_id=BOS, n_vocab=10_000):
        assert len(batch.tokens) <= 14
        seen += check_rows(batch)
    assert seen == list(range(len(SIZES))) and batch.epoch_ended


def test_evaluation_of_text():
    text = Samples(np.arange(100, 110, dtype=np.int32), np.array([0, 4, 8]), np.array([4, 4, 2]), "a.txt")
    first, second = evaluation_batches(text, 8, bos_id=BOS, n_vocab=109)
    assert rows(first) == [[BOS, 100, 101, 102], [BOS, 104, 105, 106]] and rows(second) == [[BOS, 108]]
    assert first.targets.tolist() == list(range(100, 108)) and second.targets.tolist() == [108, 108]
    assert not first.epoch_ended and second.epoch_ended
