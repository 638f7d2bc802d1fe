"""Identity of training data, and which tokens count."""
import numpy as np
import pytest

from lorafast.data.samples import Sequences, plain, samples_hash, string_hash, targets_of


def test_string_hash_vectors():
    assert string_hash(b"") == 6142509188972423790
    assert string_hash(b"a") == 4993892634952068459
    assert string_hash(b"abcdefgh") == 8664279048047335611
    assert string_hash(b"shakespeare.txt") == 2383937669184073865


@pytest.mark.parametrize("count, expected", [(27520, 2383937669184055177), (28849, 2383937669184073739)])
def test_samples_hash_vectors(count, expected):
    assert samples_hash("shakespeare.txt", np.arange(count), np.full(count, 64)) == expected


def test_samples_hash_sees_name_number_begin_and_size():
    begin, size = np.array([0, 5, 9]), np.array([5, 4, 3])

    def one_by_one(name, begin, size):
        h = string_hash(name.encode()) ^ len(begin) << 1
        for b, n in zip(begin.tolist(), size.tolist()):
            h = h ^ b << 1 ^ n << 1
        return h

    variants = [("a", begin, size), ("b", begin, size), ("a", begin[:2], size[:2]), ("a", begin + 1, size),
                ("a", begin, size + 2)]
    assert len({samples_hash(*variant) for variant in variants}) == 5
    assert samples_hash("a", begin, size) == one_by_one("a", begin, size)


def sequences(*stored):
    size = np.array([len(tokens) for tokens in stored])
    return Sequences(np.concatenate(stored).astype(np.int32), np.cumsum(size) - size, size, "a", [],
                     np.arange(len(stored)), np.zeros(len(stored), int), ("a",))


def test_stored_tokens():
    stored = np.array([~0, ~7, 0, 5], np.int32)
    assert plain(stored).tolist() == [0, 7, 0, 5] and targets_of(stored).tolist() == [-1, -1, 0, 5]


def test_subsets_and_unique_tokens(monkeypatch):
    samples = sequences([~1, 2], [3, 4, ~2], [~5])
    assert samples.n_unique_tokens == 5
    monkeypatch.setattr("lorafast.data.samples._PIECE", 2)
    assert samples.n_unique_tokens == 5
    part = samples.subset(np.array([1, 2]))
    assert [part.stored(i).tolist() for i in range(len(part))] == [[3, 4, ~2], [~5]] and part.line.tolist() == [1, 2]
    assert part.hash != samples.hash
