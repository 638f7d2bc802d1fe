"""What data is reckoned to take, against what it takes."""
import json
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from lorafast.data import memory
from lorafast.data.batches import Sampler, SequenceSampler
from lorafast.data.memory import LOOKED_AT, DataMemory, data_memory, memory_of
from lorafast.data.open import DataOptions, open_data
from lorafast.data.samples import Sequences
from lorafast.errors import UsageError
from tests.data.test_open import METADATA, TOKENIZER, write

CTX = 8
TEXT = "the love of my sweet love with all thy love is not for me"


HEAD = memory.HEAD // 4


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(memory, "HEAD", HEAD)       # so that files need not be larger


def estimate(*train: str, **options) -> DataMemory:
    return data_memory(DataOptions(train, **options), TOKENIZER, METADATA, CTX)


def measured(*train: str, **options) -> int:
    """Bytes at most while a sampler goes through the data, of what is not mapped."""
    samples = open_data(DataOptions(train, **options), TOKENIZER, METADATA, CTX).train
    arrays = [samples.begin]
    if samples.size.strides != (0,):                        # each has a size of its own, a line and a source
        arrays += [samples.size] * 3
    tracemalloc.start()
    try:
        if isinstance(samples, Sequences):
            SequenceSampler(samples, CTX, seed=1, n_vocab=384)
        else:
            Sampler(samples, CTX, seed=1, bos_id=1, eos_id=2, n_vocab=384)
        return sum(array.nbytes for array in arrays) + tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("options", [dict(), dict(stride=3), dict(sample_start="love")], ids=str)
def test_text(options):
    Path("a.txt").write_text(f"{TEXT}\n" * 5000)
    assert os.path.getsize("a.txt") > 4 * HEAD
    data = estimate("a.txt", **options)
    assert data.kept == pytest.approx(measured("a.txt", **options), rel=0.25)
    n = len(open_data(DataOptions(["a.txt"], **options), TOKENIZER, METADATA, CTX).train)
    assert int(data.note.split()[1]) == pytest.approx(n, rel=0.01)
    assert data.sample_tokens is None and data.overlaps == (not options)


def test_records_in_a_folder():
    write("d/train.jsonl", *({"prompt": TEXT[:i % 5], "completion": TEXT[:3 + i % 4]} for i in range(2000)))
    write("d/valid.jsonl", *({"text": "love"} for _ in range(100)))
    data = estimate("d", raw_pairs=True)
    assert data.kept == pytest.approx(measured("d", raw_pairs=True), rel=0.25)
    assert 2 < data.sample_tokens < CTX
    opened = open_data(DataOptions(["d"], raw_pairs=True), TOKENIZER, METADATA, CTX)
    known = memory_of(opened, "sft")
    assert known.kept == pytest.approx(measured("d", raw_pairs=True), rel=0.25)
    assert known.note == f"{len(opened.train) + len(opened.valid):,} samples"
    assert known.sample_tokens == pytest.approx(data.sample_tokens, rel=0.1)
    np.testing.assert_array_equal(known.beginning, data.beginning)
    Path("a.txt").write_text(TEXT * 9)
    assert memory_of(open_data(DataOptions(["a.txt"]), TOKENIZER, METADATA, CTX), "sft") is None


def test_an_array_is_counted_by_its_records():
    Path("a.json").write_text(json.dumps([{"text": TEXT}] * 100))
    assert estimate("a.json").kept > 0


def test_records_longer_than_the_beginning_that_is_read():
    write("a.jsonl", *({"text": TEXT * (2 * HEAD // len(TEXT))} for _ in range(7)))
    assert estimate("a.jsonl").note == "about 7 samples"


def test_what_cannot_be_opened_is_not_counted():
    assert estimate("none.txt").note == "not counted, cannot read the data 'none.txt': No such file or directory"
    os.mkdir("empty")
    assert estimate("empty").note.startswith("not counted, empty has no train.jsonl")
    with pytest.raises(UsageError, match="is a folder: it must be the only one"):
        estimate("empty", "none.txt")
    write("bad.jsonl", "no JSON\n")
    assert estimate("bad.jsonl").kept > 0


def test_beginning():
    """The first tokens, whether they count in the loss or not."""
    Path("a.txt").write_text(f"{TEXT}\n" * 200)
    tokens = open_data(DataOptions(["a.txt"]), TOKENIZER, METADATA, CTX).train.tokens
    np.testing.assert_array_equal(estimate("a.txt").beginning, tokens[:LOOKED_AT])
    write("b.jsonl", *({"prompt": "love", "completion": "me"} for _ in range(9)))
    beginning = estimate("b.jsonl", raw_pairs=True).beginning
    assert len(beginning) > 9 and (beginning >= 0).all()
