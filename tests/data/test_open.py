"""From what --train-data names to samples: recognition, folders, splits, bad lines, truncation, the cache."""
import json
import os
import tracemalloc

import chat_templates
import numpy as np
import pytest
from make_models import STRING, bpe_vocabulary

from lorafast.data import open as data_module
from lorafast.data.encode import SequenceEncoder
from lorafast.data.files import check_files, data_files
from lorafast.data.open import DataOptions, open_data
from lorafast.data.records import Completion
from lorafast.data.samples import Samples, Sequences, targets_of
from lorafast.errors import LoraFastError, UsageError
from lorafast.system.live import Meter
from lorafast.tokenizer import load_tokenizer

LONG_PAIR = 2.8         # bytes at most for each of the result; measured: 2.4
VALUES = [*bpe_vocabulary(), ("tokenizer.chat_template", STRING, chat_templates.CHATML)]
METADATA = {key: value for key, _, value in VALUES}


class Model:
    metadata = METADATA


TOKENIZER = load_tokenizer(Model)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name, *records):
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "w") as file:
        file.writelines(json.dumps(record) + "\n" if not isinstance(record, str) else record for record in records)


def texts(n, prefix="text"):
    return [{"text": f"{prefix} {i}"} for i in range(n)]


def opened(*train, ctx=32, **options):
    return open_data(DataOptions(train, **options), TOKENIZER, METADATA, ctx)


def shown(samples, i):
    return TOKENIZER.decode(np.maximum(samples.stored(i), ~samples.stored(i)))


@pytest.mark.parametrize("before, after, peak", [(5, 9, 9), (9, 9, 0)])
def test_the_peak_is_told_where_reading_is_what_took_most(monkeypatch, before, after, peak):
    write("a.jsonl", *texts(3))
    monkeypatch.setattr(data_module, "peak_resident_bytes", iter((before, after)).__next__)
    assert opened("a.jsonl").peak == peak


CHAT = {"messages": [{"role": "user", "content": "the love"}, {"role": "assistant", "content": "of thee"}]}


def test_records():
    pytest.importorskip("jinja2")
    write("a.jsonl", {"text": "sweet"}, {"prompt": "my", "completion": " love"}, "\n", CHAT, CHAT)
    data = opened("a.jsonl", ctx=64, raw_pairs=True)
    assert data.notes == ["a.jsonl: 1 text, 1 prompt and completion, 2 chats"] and data.valid is data.test is None
    samples = data.train
    assert isinstance(samples, Sequences) and len(samples) == 4 and samples.line.tolist() == [1, 2, 4, 5]
    counted = [TOKENIZER.decode(targets[targets >= 0], skip_special=False) for targets in
               (targets_of(samples.stored(i)) for i in range(4))]
    begin = TOKENIZER.token_text(TOKENIZER.bos_id) if TOKENIZER.add_bos else ""
    end = TOKENIZER.token_text(TOKENIZER.eos_id)
    assert counted[:2] == [f"{begin}sweet{end}", f" love{end}"]
    assert counted[2] == counted[3] == "of thee<|im_end|>\n"        # here <|im_end|> is no special token


def test_what_happened_to_records_is_a_warning():
    write("a.jsonl", {"prompt": "my ", "completion": "love"})    # the tokens are "my" and " love"
    warning, = opened("a.jsonl", raw_pairs=True).train.warnings
    assert warning.startswith("prompts whose tokens change when their completion follows (")
    assert warning.endswith("): 1")


def test_several_files():
    write("a.jsonl", *texts(3))
    write("b.json", json.dumps(texts(2, "other")))
    data = opened("a.jsonl", "b.json")
    assert data.notes == ["a.jsonl: 3 texts", "b.json: 2 texts"]
    assert data.train.source.tolist() == [0, 0, 0, 1, 1] and data.train.sources == ("a.jsonl", "b.json")
    assert [shown(data.train, i) for i in (2, 3)] == ["text 2", "other 0"]
    with open("c.txt", "w") as file:
        file.write("just text\n" * 20)
    with pytest.raises(LoraFastError, match=r"c.txt is text and a.jsonl has records"):
        opened("a.jsonl", "c.txt")
    data = opened("c.txt", "c.txt")
    assert data.notes == ["c.txt: text", "c.txt: text"] and not isinstance(data.train, Sequences)
    n = len(TOKENIZER.encode("just text\n" * 20))
    assert data.train.begin.tolist() == [*range(n - 32), *range(n, 2 * n - 32)]     # no sample reaches over the border


def test_folder():
    write("d/train.jsonl", *texts(4))
    write("d/train-2.jsonl", *texts(2))
    write("d/validation.jsonl", *texts(2, "v"))
    write("d/test.jsonl", *texts(1, "t"))
    write("d/README.md", "about")
    write("other.jsonl", *texts(5, "o"))
    data = opened("d")
    assert (len(data.train), len(data.valid), len(data.test)) == (6, 2, 1)
    assert shown(data.valid, 1) == "v 1" and shown(data.test, 0) == "t 0"
    assert len(data.notes) == 4 and data.notes[0] == f"{os.path.join('d', 'train-2.jsonl')}: 2 texts"
    assert len(opened("d", valid=("other.jsonl",)).valid) == 5
    with pytest.raises(UsageError, match=r"--valid-split 0.5: but .*validation.jsonl is there"):
        opened("d", valid_split=0.5)
    with pytest.raises(UsageError, match="d is a folder: it must be the only one"):
        opened("other.jsonl", "d")
    os.mkdir("empty")
    with pytest.raises(LoraFastError, match=r"empty has no train.jsonl"):
        opened("empty")
    with pytest.raises(UsageError, match="--train-data is missing"):
        opened()


def test_text_folder():
    for name, n in (("train", 40), ("valid", 7)):
        write(f"d/{name}.txt", "the love of thee\n" * n)
    data = opened("d", ctx=16)
    n_valid = len(TOKENIZER.encode("the love of thee\n" * 7))
    assert data.valid.size.sum() == n_valid and data.valid.size[:-1].tolist() == [16] * (len(data.valid) - 1)
    assert (data.valid.begin[1:] == np.cumsum(data.valid.size)[:-1]).all()


def test_split_of_records_is_random_and_always_the_same():
    write("a.jsonl", *texts(100))
    data, again = opened("a.jsonl", valid_split=0.1), opened("a.jsonl", valid_split=0.1)
    lines = data.valid.line.tolist()
    assert len(lines) == 10 and lines == again.valid.line.tolist() == sorted(lines) != list(range(91, 101))
    assert sorted(lines + data.train.line.tolist()) == list(range(1, 101))
    assert "held out to evaluate on: 10 of these samples" == data.notes[-1]
    write("b.jsonl", *texts(1))
    with pytest.raises(LoraFastError, match=r"too few samples for --valid-split 0.1: 1"):
        opened("b.jsonl", valid_split=0.1)


def test_split_of_text_is_its_end():
    write("a.txt", "".join(f"line {i}\n" for i in range(100)))
    data = opened("a.txt", ctx=8, valid_split=0.25)
    n = data.train.tokens.size
    cut = n - round(n / 4)
    assert (data.train.begin + 8).max() == cut and data.valid.begin[0] == cut
    assert data.valid.size.sum() == n - cut and data.valid.size.max() == 8
    with pytest.raises(LoraFastError, match=r"too short for --valid-split 0.99"):
        opened("a.txt", ctx=8, valid_split=0.99)


def test_split_of_text_with_sample_starts():
    write("a.txt", "".join(f"##{'line ' * i}" for i in range(1, 21)))
    data = opened("a.txt", ctx=8, valid_split=0.25, sample_start="##")
    assert (len(data.train), len(data.valid)) == (15, 5) and data.valid.size.max() <= 8


def test_stride():
    write("a.txt", "the love of thee\n" * 40)
    n = len(TOKENIZER.encode("the love of thee\n" * 40))
    data = opened("a.txt", ctx=16, stride=16)
    assert data.train.begin.tolist() == list(range(0, n - 15, 16))


def test_bad_lines():
    write("a.jsonl", *texts(2), '{"text": \n', {"text": 3}, *texts(1), {"x": 1}, "nonsense\n", "[]\n")
    with pytest.raises(LoraFastError, match=r"^a.jsonl:3: not valid JSON: .* \(--skip-bad leaves such lines out\)$"):
        opened("a.jsonl")
    data = opened("a.jsonl", skip_bad=True)
    assert len(data.train) == 3 and data.train.line.tolist() == [1, 2, 5]
    warning, = data.train.warnings
    assert warning.startswith("5 bad lines left out: a.jsonl:3: not valid JSON") and warning.endswith("; and 2 more")
    assert "a.jsonl:4: 'text' is not a string but a number" in warning
    write("b.jsonl", {"x": 1})
    with pytest.raises(LoraFastError, match=r"b.jsonl has no records that could be trained on"):
        opened("b.jsonl", skip_bad=True)


def test_truncation_is_reported():
    write("a.jsonl", {"text": "ab"}, {"text": "abcdefghij"}, {"prompt": "x" * 20, "completion": "y"})
    data = opened("a.jsonl", ctx=5, raw_pairs=True)
    assert data.train.size.tolist() == [3 + TOKENIZER.add_bos, 6] and data.train.line.tolist() == [1, 2]
    assert data.train.warnings == [
        "2 of 3 samples are longer than the context of 5 tokens and are cut "
        f"(the longest has {21 + TOKENIZER.add_bos})",
        "1 of these is left out: nothing that counts in the loss remains of it"]
    write("b.jsonl", {"prompt": "x" * 20, "completion": "y"})
    with pytest.raises(LoraFastError, match=r"b.jsonl: no sample has anything that counts .* larger --ctx"):
        opened("b.jsonl", ctx=5, raw_pairs=True)


def test_warnings_of_evaluation_data_are_notes():
    write("a.jsonl", *texts(2))
    write("v.jsonl", {"text": "abcdefghij"})
    assert "v.jsonl: 1 of 1 samples is longer" in opened("a.jsonl", ctx=6, valid=("v.jsonl",)).notes[-1]


def test_options_for_the_other_kind_of_data():
    write("a.jsonl", *texts(2))
    write("a.txt", "the love\n" * 40)
    for options, name in ((dict(sample_start="x"), "--sample-start"), (dict(stride=4), "--stride")):
        with pytest.raises(UsageError, match=f"{name} is for text"):
            opened("a.jsonl", **options)
    for options in (dict(train_on_prompt=True), dict(skip_bad=True), dict(chat_template="x")):
        with pytest.raises(UsageError, match=r"--.* is for records, and a.txt is text"):
            opened("a.txt", **options)


def test_records_as_text():
    write("a.jsonl", *texts(20))
    data = opened("a.jsonl", data_format="text")
    assert not isinstance(data.train, Sequences)
    assert TOKENIZER.decode(data.train.tokens).startswith('{"text": "text 0"}\n')


def test_chat_template_file():
    pytest.importorskip("jinja2")
    write("a.jsonl", CHAT)
    write("t.jinja", "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}[{% endif %}")
    assert shown(opened("a.jsonl", chat_template="t.jinja").train, 0) == "[the love][of thee]"
    with pytest.raises(LoraFastError, match="no chat template"):
        open_data(DataOptions(["a.jsonl"]), TOKENIZER, {}, 32)


def test_train_on_prompt():
    write("a.jsonl", {"prompt": "my ", "completion": "love"})
    assert (opened("a.jsonl", raw_pairs=True).train.stored(0) < 0).any()
    assert (opened("a.jsonl", raw_pairs=True, train_on_prompt=True).train.stored(0) >= 0).all()


@pytest.mark.parametrize("name, contents", [("a.jsonl", json.dumps({"prompt": "my ", "completion": "love"}) + "\n"),
                                            ("a.txt", "the love of thee\n" * 40)])
def test_cache(monkeypatch, name, contents):
    write(name, contents)
    fresh = opened(name, ctx=128)
    first = opened(name, ctx=128, cache="cache")

    def fail(*arguments, **options):
        raise AssertionError("tokenised again")

    with monkeypatch.context() as patch:
        patch.setattr(data_module.SequenceEncoder, "encode", fail)
        patch.setattr(type(TOKENIZER), "encode", fail)
        patch.setattr(type(TOKENIZER), "encode_slices", fail)
        patch.setattr(type(TOKENIZER), "fragments", fail)
        for data in (opened(name, ctx=128, cache="cache"), opened(name, ctx=128, cache="cache", valid=(),
                                                                  valid_split=0)):
            for a, b in ((first, data), (fresh, data)):
                assert a.train.hash == b.train.hash and a.notes == b.notes
                np.testing.assert_array_equal(a.train.tokens, b.train.tokens)
        changes = [dict(sample_start="love")]
        if name == "a.jsonl":
            changes = [dict(train_on_prompt=True), dict(skip_bad=True), dict(raw_pairs=True),
                       dict(fields={"text": "x"})]
        for change in changes:
            with pytest.raises(AssertionError):
                opened(name, cache="cache", **change)
        with pytest.raises(AssertionError):
            open_data(DataOptions([name], cache="cache"), TOKENIZER, {**METADATA, "tokenizer.ggml.pre": "x"}, 32)
        write(name, contents * 2)
        with pytest.raises(AssertionError):
            opened(name, cache="cache")
    write(name, contents * 2)
    assert opened(name, ctx=128, cache="cache").train.tokens.size > first.train.tokens.size


def test_all_files_are_there_before_anything_is_loaded():
    write("d/train.jsonl", *texts(2))
    os.mkfifo("pipe")
    check_files(data_files(["d"], ["pipe"]))                # opens nothing
    with pytest.raises(LoraFastError, match=r"cannot read the data 'none.jsonl': No such file"):
        check_files(data_files(["d"], ["none.jsonl"]))


def test_missing_files():
    for name in ("missing.txt", "missing.jsonl"):
        with pytest.raises(LoraFastError, match=f"cannot read the data '{name}': No such file"):
            opened(name, cache="c")
    write("a.jsonl", *texts(2))
    with pytest.raises(LoraFastError, match=r"cannot read .*t.jinja.*: No such file"):
        opened("a.jsonl", chat_template="t.jinja", cache="c")


def test_everything_is_mapped():
    write("a.jsonl", *texts(50))
    assert isinstance(opened("a.jsonl").train, Samples) and not opened("a.jsonl").train.tokens.flags.owndata


@pytest.mark.parametrize("name, options", [("a.jsonl", {}), ("a.json", {}), ("a.txt", {}), ("a.txt",
                                                                                            {"sample_start": "love"})])
def test_progress_is_shown(monkeypatch, name, options):
    records = [json.dumps(record) for record in texts(50)]
    write(name, {"jsonl": "\n".join(records), "json": f"[{', '.join(records)}]",
                 "txt": "the love of thee\n" * 40}[name[2:]])
    monkeypatch.setattr(Meter, "FIRST", 0.0)
    monkeypatch.setattr(Meter, "INTERVAL", 0.0)
    shown = []
    open_data(DataOptions((name,), **options), TOKENIZER, METADATA, 16, shown.append)
    assert shown[-2:] == [f"tokenising {name}: 100%, 0:00 left", ""]


@pytest.mark.parametrize("change", [lambda path: path.write_text(path.read_text() + '{"text": "more"}\n'),
                                    lambda path: path.unlink()], ids=["written to", "gone"])
def test_data_that_changes_while_it_is_read_is_refused(folder, monkeypatch, change):
    write("a.jsonl", *texts(3))
    write_records = data_module.write_records

    def changing(*arguments, **keywords):
        facts = write_records(*arguments, **keywords)
        change(folder / "a.jsonl")
        return facts

    monkeypatch.setattr(data_module, "write_records", changing)
    with pytest.raises(LoraFastError, match=r"a.jsonl'?(:| was changed while it was read)"):
        opened("a.jsonl")


def test_a_long_pair_takes_little_more_than_its_tokens():
    """A line of 6 MB kept a run no longer within --mem-limit 100M."""
    pair = Completion("q ", "word " * 100_000)
    encode = SequenceEncoder(TOKENIZER, None).encode
    encode(Completion("q", "a"))
    tracemalloc.start()
    try:
        sequence, = encode(pair)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / sequence.nbytes < LONG_PAIR
