"""Files as people have them, each opened as training data: every form gives the same records, none is taken for
prose."""
import csv
import gzip
import json
import os
import threading
from pathlib import Path

import chat_templates
import pytest
from make_models import STRING, bpe_vocabulary

from lorafast.data.encode import AS_CHATS
from lorafast.data.lengths import row_lengths, shared_rows
from lorafast.data.open import DataOptions, open_data
from lorafast.errors import FormatError, LoraFastError, UsageError
from lorafast.tokenizer import load_tokenizer

METADATA = {key: value for key, _, value in
            [*bpe_vocabulary(), ("tokenizer.chat_template", STRING, chat_templates.CHATML)]}


class Model:
    metadata = METADATA


TOKENIZER = load_tokenizer(Model)
PAIRS = [{"prompt": f"my love {i}", "completion": f"sweet, \"{i}\"\nself"} for i in range(5)]
CHATS = [{"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]} for i in range(5)]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def opened(*train, ctx=128, **options):
    return open_data(DataOptions(train, **options), TOKENIZER, METADATA, ctx)


def tokens_of(data):
    return [data.train.stored(i).tolist() for i in range(len(data.train))]


def write_table(path, dialect="excel", records=PAIRS):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(records[0]), dialect=dialect)
        writer.writeheader()
        writer.writerows(records)


def write_lines(path, records):
    Path(path).write_text("".join(json.dumps(record) + "\n" for record in records))


def columns(records):
    return {key: [record[key] for record in records] for key in records[0]}


def write_semicolons(path):
    class Semicolons(csv.excel):
        delimiter = ";"
    write_table(path, Semicolons)


WAYS = {
    "a.csv": write_table, "a.tsv": lambda path: write_table(path, "excel-tab"), "b.csv": write_semicolons,
    "a.txt": write_table,
    "a.json": lambda path: Path(path).write_text(json.dumps(PAIRS, indent=1)),
    "b.json": lambda path: Path(path).write_text(json.dumps({"version": 1, "data": PAIRS}, indent=1)),
    "c.json": lambda path: Path(path).write_text(json.dumps({"version": 1, "data": PAIRS})),
    "d.json": lambda path: Path(path).write_text(json.dumps(columns(PAIRS), indent=1)),
    "e.json": lambda path: Path(path).write_text("\n".join(json.dumps(pair, indent=2) for pair in PAIRS)),
    "f.json": lambda path: write_lines(path, PAIRS),
    "g.jsonl": lambda path: Path(path).write_text("\n".join(json.dumps(pair, indent=2) for pair in PAIRS)),
    "h.jsonl.gz": lambda path: Path(path).write_bytes(gzip.compress("\n".join(map(json.dumps, PAIRS)).encode())),
}


@pytest.mark.parametrize("name", WAYS)
def test_every_form_gives_the_same_records(name):
    write_lines("expected.jsonl", PAIRS)
    WAYS[name](name)
    data = opened(name)
    assert tokens_of(data) == tokens_of(opened("expected.jsonl"))
    assert data.notes == [f"{name}: 5 prompts and completions", f"{AS_CHATS}: 5"]


@pytest.mark.parametrize("records", [PAIRS, CHATS], ids=["pairs", "chats"])
def test_parquet_and_saved_data_sets(records):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    write_lines("expected.jsonl", records)
    table = pyarrow.Table.from_pylist(records)
    parquet.write_table(table, "a.parquet")
    for split in ("train", "test"):
        os.makedirs(f"d/{split}")
        with pyarrow.OSFile(f"d/{split}/data-00000-of-00001.arrow", "wb") as file, \
                pyarrow.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}
        Path(f"d/{split}/state.json").write_text(json.dumps(state))
        Path(f"d/{split}/dataset_info.json").write_text("{}")
    Path("d/dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    expected = tokens_of(opened("expected.jsonl"))
    for name in ("a.parquet", "d", "d/train", "d/train/data-00000-of-00001.arrow"):
        assert tokens_of(opened(name)) == expected
    assert len(opened("d").test) == 5
    Path("broken.parquet").write_bytes(b"PAR1" + bytes(50))
    with pytest.raises(FormatError, match=r"'broken.parquet' is broken Parquet: "):
        opened("broken.parquet")


def test_a_pipe_is_read_once_and_whole():
    write_lines("expected.jsonl", [{"text": f"line {i} " + "word " * (i % 20)} for i in range(1500)])
    os.mkfifo("pipe")

    def write():
        with open("pipe", "wb") as file:
            file.write(Path("expected.jsonl").read_bytes())

    thread = threading.Thread(target=write)
    thread.start()
    data = opened("pipe")
    thread.join()
    assert len(data.train) == 1500 and tokens_of(data) == tokens_of(opened("expected.jsonl"))
    assert tokens_of(opened("pipe")) == tokens_of(data)         # what has been read is kept
    assert data.train.name == "pipe"


@pytest.mark.parametrize("contents, name, reason", [
    ("a,b\n1,2\n", "a.csv", "a.csv is CSV: its columns are 'a', 'b', .*--field prompt=a --field completion=b.*prose"),
    ("prompt,completion\n1,2,3\n", "a.csv", "a.csv:2: it has 3 fields, and the header 2"),
    ('prompt,completion\n1,"2\n', "a.csv", "a.csv:2: broken CSV: unexpected end of data"),
    ("prompt,completion\n1,\xff\n", "a.csv", "a.csv: not UTF-8"),
    ('["first text", "second text"]', "a.json", "a.json:1: an object like .* is expected, not a string"),
    ("Dear reader", "a.json", "a.json:1: the JSON in it is broken: an object or an array is expected, not 'D'"),
    ('{"a": ' + "[" * 100_000, "a.json", "a.json:1: the JSON in it is broken"),
    ('{"a": ' + "9" * 5000 + "}", "a.json", "a.json:1: the JSON in it is broken"),
    ('{"train": [{"text": "a"}], "test": [{"text": "b"}]}', "a.json", "several lists of objects, 'train' and 'test'"),
    ('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "a.jsonl", "a.jsonl:1: it is a preference .*jq -c"),
    ('{"a": "b"}\n', "a.jsonl", "a.jsonl:1: its keys are 'a', but lorafast knows 'text', .*--field prompt=a"),
    ("\x1f\x8b broken", "a.jsonl.gz", "training data 'a.jsonl.gz' is broken gzip"),
])
def test_what_fits_nothing_is_refused_in_one_line(contents, name, reason):
    Path(name).write_bytes(contents.encode("latin-1"))
    with pytest.raises(LoraFastError, match=reason) as error:
        opened(name)
    assert "\n" not in str(error.value)


def test_text_stays_text_where_it_is_wanted():
    write_table("a.csv")
    data = opened("a.csv", ctx=8, data_format="text")
    assert TOKENIZER.decode(data.train.tokens).startswith("prompt,completion")


def test_fields_by_other_names():
    write_lines("expected.jsonl", PAIRS)
    other = [{"q": pair["prompt"], "a": pair["completion"]} for pair in PAIRS]
    write_lines("a.jsonl", other)
    write_table("a.csv", records=other)
    for name in ("a.jsonl", "a.csv"):
        data = opened(name, fields={"prompt": "q", "completion": "a"})
        assert tokens_of(data) == tokens_of(opened("expected.jsonl"))
    Path("a.txt").write_text("the love " * 100)
    with pytest.raises(UsageError, match=r"--field is for records, and a.txt is text"):
        opened("a.txt", fields={"text": "x"})


def test_pairs_are_chats_where_there_is_a_template():
    write_lines("a.jsonl", PAIRS)
    write_lines("chats.jsonl", [{"messages": [{"role": "user", "content": pair["prompt"]},
                                              {"role": "assistant", "content": pair["completion"]}]} for pair in PAIRS])
    data = opened("a.jsonl")
    assert tokens_of(data) == tokens_of(opened("chats.jsonl"))
    assert f"{AS_CHATS}: 5" in data.notes
    raw = opened("a.jsonl", raw_pairs=True)
    assert tokens_of(raw) != tokens_of(data) and not raw.train.warnings
    without = {key: value for key, value in METADATA.items() if key != "tokenizer.chat_template"}
    assert tokens_of(open_data(DataOptions(["a.jsonl"]), TOKENIZER, without, 128)) == tokens_of(raw)


def test_template_arguments():
    Path("t.jinja").write_text("{{ 'on' if thinking else 'off' }}" + chat_templates.CHATML)
    write_lines("a.jsonl", [CHATS[0], {**CHATS[0], "chat_template_kwargs": {"thinking": False}}])
    data = opened("a.jsonl", chat_template="t.jinja", template_args={"thinking": True})
    texts = [TOKENIZER.decode([~token for token in tokens[:2] if token < 0]) for tokens in tokens_of(data)]
    assert [text[:2] for text in texts] == ["on", "of"] and not data.warnings
    assert opened("a.jsonl", chat_template="t.jinja", template_args={"thinkng": True, "x": 1}).warnings == [
        "--template-arg thinkng: --chat-template t.jinja does not ask for such a variable (did you mean thinking?)",
        "--template-arg x: --chat-template t.jinja does not ask for such a variable (it asks for thinking)"]
    write_lines("b.jsonl", [{"text": "the love"}])
    assert opened("b.jsonl", template_args={"x": 1}).warnings == [
        "--template-arg changes nothing: no record is a chat"]


def test_lengths_of_samples():
    write_lines("a.jsonl", [{"text": "a" * n} for n in (3, 9, 5, 7)])
    samples = opened("a.jsonl", ctx=8).train
    extra = samples.size[0] - 1 - 3         # BOS or EOS
    lengths = row_lengths(samples, 8)
    assert lengths.tolist() == [min(n + extra, 8) for n in (3, 9, 5, 7)]
    Path("a.txt").write_text("the love " * 100)
    text = opened("a.txt", ctx=8).train
    assert set(row_lengths(text, 8).tolist()) == {8} and shared_rows([text, samples]) is None


def test_rows_of_pairs_that_share_their_prompts():
    write_lines("a.jsonl", [{"prompt": "a" * n, "chosen": "b", "rejected": "c"} for n in (4, 20)])
    samples = opened("a.jsonl", method="dpo", raw_pairs=True).train
    rows = samples.n_inputs - samples.in_common
    assert (rows < samples.n_inputs).all()
    shared = shared_rows([samples])
    assert shared.most_share == rows[0] / samples.n_inputs[0]
    assert shared.mean_share == pytest.approx(rows.sum() / samples.n_inputs.sum())
    assert shared_rows([samples.with_whole_rows()]) is None
