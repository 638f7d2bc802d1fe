"""Tokens on disk: what is written is mapped again, a named file is found again, and nothing else is taken for one."""
import numpy as np
import pytest

from lorafast.data.samples import TokenWeights
from lorafast.data.token_store import MAGIC, let_go, store_tokens
from lorafast.errors import LoraFastError


def fill(writer):
    writer.write(np.array([1, ~2], np.int32))
    writer.write(np.array([3], np.int64))
    writer.end_sample(5)
    writer.end_sample(6)
    writer.write(np.arange(10, 20)[::2])
    writer.end_sample(1 << 40)
    return {"kinds": ["text"], "é": 1}


def test_weights_and_labels():
    def fill(writer):
        writer.write(np.arange(3), None)
        writer.end_sample(1, label=1)
        writer.write(np.arange(4), np.array([1, 0.5, 0.5, 2], np.float32))
        writer.end_sample(2, label=-1)
        writer.write(np.arange(2))
        writer.end_sample(3)
        return {}

    stored = store_tokens(fill)
    assert stored.label.tolist() == [1, -1, 0]
    assert stored.weight_begin.tolist() == [4, 6, 7] and stored.weight.tolist() == [0.5, 2, 1]
    weights = TokenWeights(stored.weight_begin, stored.weight)
    assert weights.of(0, 9).tolist() == [1, 1, 1, 1, 0.5, 0.5, 2, 1, 1] and weights.of(5, 2).tolist() == [0.5, 2]


def must_not_be_called(writer):
    raise AssertionError


def check(stored):
    assert stored.tokens.tolist() == [1, ~2, 3, 10, 12, 14, 16, 18] and stored.tokens.dtype == np.int32
    assert stored.size.tolist() == [3, 0, 5] and stored.line.tolist() == [5, 6, 1 << 40]
    assert stored.size.dtype == stored.line.dtype == np.int64
    assert stored.facts == {"kinds": ["text"], "é": 1}
    assert not stored.tokens.flags.writeable and isinstance(stored.tokens.base, (np.memmap, np.ndarray))


def test_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stored = store_tokens(fill)
    assert list(tmp_path.iterdir()) == []       # it is gone from the folder at once, and stays mapped
    check(stored)


def test_let_go():
    stored = store_tokens(fill)
    let_go(stored.tokens)
    let_go(stored.tokens[1:4])
    check(stored)
    own = np.arange(5000)
    let_go(own)
    assert own[-1] == 4999, "memory that no file stands behind is left alone"


def test_named_file(tmp_path):
    path = str(tmp_path / "tokens")
    check(store_tokens(fill, path, "key"))
    check(store_tokens(must_not_be_called, path, "key"))
    with pytest.raises(AssertionError):
        store_tokens(must_not_be_called, path, "other key")
    check(store_tokens(must_not_be_called, path, "key"))        # a failure leaves the old file
    other = store_tokens(lambda writer: writer.end_sample() or {}, path, "other key")
    assert other.tokens.size == 0 and other.size.tolist() == [0]
    assert [file.name for file in tmp_path.iterdir()] == ["tokens"]


def test_no_samples():
    stored = store_tokens(lambda writer: {})
    assert stored.tokens.size == stored.size.size == stored.line.size == 0


def test_other_files_are_not_overwritten(tmp_path):
    path = tmp_path / "tokens"
    store_tokens(fill, str(path), "key")
    good = path.read_bytes()
    huge = good[:-8] + np.uint64(1 << 63).tobytes()
    for data in (b"", b"my thesis", MAGIC, good[:-1], good + b"\0", good[:40], huge,
                 good.replace(b'"n_tokens": 8', b'"n_tokens": 9'), good.replace(b'"n_tokens": 8', b'"n_tokens":-8'),
                 good.replace(b'"n_tokens": 8', b'"n_tokens":[]'), good.replace(b'"n_samples": 3', b'"n_samples":-3')):
        path.write_bytes(data)
        with pytest.raises(LoraFastError, match="tokens exists and is not tokenised data of lorafast"):
            store_tokens(fill, str(path), "key")
        assert path.read_bytes() == data


def test_no_room(monkeypatch):
    def full(writer):
        raise OSError(28, "No space left on device")
    with pytest.raises(LoraFastError, match=r"No space left on device; name a file with --data-cache, .* TMPDIR"):
        store_tokens(full)
