"""Recognising records, and what is said about lines that are none."""
import json

import pytest

from lorafast.data.forms import read_records
from lorafast.data.forms.recognise import recognise
from lorafast.data.records import BadRecord, Chat, Completion, Preference, Text
from lorafast.data.shapes import parse_record
from lorafast.data.source import open_source
from lorafast.errors import LoraFastError

CALL = {"type": "function", "function": {"name": "w", "arguments": {"a": 1}}}
USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}

CHAT = Chat([USER, ASSISTANT], [0, 1])


@pytest.mark.parametrize("value, record", [
    ({"text": "a", "id": 3}, Text("a")),
    ({"prompt": "a", "completion": ""}, Completion("a", "")),
    ({"messages": [USER, ASSISTANT]}, Chat([USER, ASSISTANT], [False, True])),
    ({"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
     Chat([USER, ASSISTANT], [False, True])),
    ({"conversations": [USER, ASSISTANT]}, Chat([USER, ASSISTANT], [False, True])),
    ({"system": "be kind", "conversations": [{"from": "user", "value": "hi"}, {"from": "model", "value": "hello"}]},
     Chat([{"role": "system", "content": "be kind"}, USER, ASSISTANT], [False, False, True])),
    ({"messages": [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}]},
     Chat([USER, ASSISTANT, USER, ASSISTANT], [False, False, False, True])),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
                   ASSISTANT]}, Chat([USER, ASSISTANT], [False, True])),
    ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}], "tools": [{"name": "f"}]},
     Chat([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}], [0, 1],
          [{"type": "function", "function": {"name": "f"}}])),
    ({"messages": [USER, {"role": "assistant", "content": "", "function_call": {"name": "w", "arguments": '{"a": 1}'}}],
      "tools": '[{"type": "function", "function": {"name": "f"}}]'},
     Chat([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}], [0, 1],
          [{"type": "function", "function": {"name": "f"}}])),
    ({"conversations": [{"from": "human", "value": "hi"},
                        {"from": "function_call", "value": '{"name": "w", "arguments": {"a": 1}}'},
                        {"from": "observation", "value": "5"}, {"from": "gpt", "value": "hello"}], "tools": ""},
     Chat([USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "5"},
           ASSISTANT],
          [0, 1, 0, 1])),
    ({"messages": [{"role": "Human", "content": "hi"}, {"role": "GPT", "content": "hello"}]}, CHAT),
    ({"messages": [{"role": "user", "content": "hi"}, {"role": "model", "content": "hello", "tool_calls": None}]},
     CHAT),
    ({"messages": '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]'}, CHAT),
    ({"messages": [USER, {**ASSISTANT, "train": False}, USER, {**ASSISTANT, "loss": True, "weight": 0.5}]},
     Chat([USER, ASSISTANT, USER, ASSISTANT], [0, 0, 0, 0.5])),
    ({"prompt": [USER], "completion": [ASSISTANT]}, CHAT), ({"prompt": [USER], "completion": "hello"}, CHAT),
    ({"prompt": [USER, ASSISTANT, USER], "completion": [ASSISTANT], "chat_template_kwargs": {"x": 1}, "weight": 2},
     Chat([USER, ASSISTANT, USER, ASSISTANT], [0, 0, 0, 1], template_kwargs={"x": 1}, weight=2.0)),
    ({"instruction": "Add.", "input": "2 and 3", "output": "5", "text": "rendered"},
     Completion("Add.\n\n2 and 3", "5", is_instruction=True)),
    ({"instruction": "Name one.", "context": "", "response": "A pear.", "category": "qa"},
     Completion("Name one.", "A pear.", is_instruction=True)),
    ({"system_prompt": "S", "question": "q", "response": "a"}, Completion("q", "a", "S", is_instruction=True)),
    ({"prompt": "q", "response": "a", "weight": "0.5"}, Completion("q", "a", weight=0.5)),
    ({"instruction": "q2", "input": "", "output": "a2", "history": [["q1", "a1"]]},
     Chat([{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}, {"role": "user", "content": "q2"},
           {"role": "assistant", "content": "a2"}], [0, 1, 0, 1])),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "weight": 2},
     Preference(Completion("q", "a", weight=2.0), Completion("q", "b", weight=2.0), 2.0)),
    ({"chosen": "Q: 1 yes", "rejected": "Q: 1 no"}, Preference(Completion("Q: 1", " yes"), Completion("Q: 1", " no"))),
    ({"chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "b"}]},
     Preference(Chat([USER, ASSISTANT], [0, 1]), Chat([USER, {**ASSISTANT, "content": "b"}], [0, 1]))),
    ({"prompt": "q", "chosen": [USER, ASSISTANT], "rejected": [USER, {**ASSISTANT, "content": "b"}]},
     Preference(Chat([USER, ASSISTANT], [0, 1]), Chat([USER, {**ASSISTANT, "content": "b"}], [0, 1]))),
    ({"prompt": [USER], "chosen": [ASSISTANT], "rejected": [{**ASSISTANT, "content": "b"}]},
     Preference(Chat([USER, ASSISTANT], [0, 1]), Chat([USER, {**ASSISTANT, "content": "b"}], [0, 1]))),
    ({"prompt": "q", "completion": "a", "label": False}, Preference(None, Completion("q", "a"))),
    ({"prompt": "q", "completion": "a", "label": "True"}, Preference(Completion("q", "a"), None)),
    ({"prompt": "q", "completion": "a", "label": 3}, Completion("q", "a")),
])
def test_shapes(value, record):
    assert parse_record(value) == record


@pytest.mark.parametrize("value, reason", [
    ([1], "an object .* is expected, not an array"),
    (None, "not null"),
    ({}, "its keys are none, but lorafast knows 'text'"),
    ({"instruction": "a", "prompt": "b"},
     "its keys are 'instruction', 'prompt', but lorafast knows .*--field prompt=instruction"),
    ({"text": "a", "weight": -1}, "'weight' is -1; it must not be negative"),
    ({"text": "a", "weight": []}, "'weight' is not a number but an array"),
    ({"text": "a", "weight": True}, "'weight' is not a number but true"),
    ({"messages": [USER, ASSISTANT], "tools": 3}, "'tools' is not a list"),
    ({"messages": [USER, ASSISTANT], "tools": "none"}, "'tools' is a string that is not JSON"),
    ({"messages": [USER, {**ASSISTANT, "tool_calls": [1]}]}, "message 2: 'tool_calls' is not a list of calls"),
    ({"messages": [USER, ASSISTANT], "chat_template_kwargs": 3}, "'chat_template_kwargs' is not an object"),
    ({"messages": [{"role": "pirate", "content": "a"}]}, "its roles are 'pirate', but lorafast knows system, "),
    ({"instruction": "a", "output": "b", "history": [1]}, "'history' is not a list of pairs"),
    ({"text": 3}, "'text' is not a string but a number"),
    ({"text": ""}, "empty"),
    ({"prompt": "a", "completion": None}, "'completion' is not a string but null"),
    ({"messages": []}, "'messages' is not a list of messages"),
    ({"messages": ["a"]}, "'messages' is not a list of messages"),
    ({"messages": [USER]}, "no message of the assistant"),
    ({"messages": [USER, {"role": "assistant"}]}, "message 2: 'content' is missing"),
    ({"messages": [{"content": "a"}, ASSISTANT]}, "message 1: 'role' is missing"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT]}, "message 1: .* a part that is not"),
    ({"conversations": [{"from": "alien", "value": "a"}]},
     "message 1: 'from' is 'alien', but lorafast knows system, developer, user, human"),
])
def test_bad_shapes(value, reason):
    with pytest.raises(BadRecord, match=reason):
        parse_record(value)


def read(tmp_path, data: bytes, name="a.jsonl"):
    path = tmp_path / name
    path.write_bytes(data)
    source = open_source(str(path))
    return [(number, str(record) if isinstance(record, BadRecord) else record)
            for number, record in read_records(recognise(source), source)]


def test_lines(tmp_path):
    data = b'\xef\xbb\xbf{"text": "a"}\r\n\n{"text": \n{"text": "\xff"}\n[1]\n{"text": "\xc3\xa9"}'
    assert read(tmp_path, data) == [
        (1, Text("a")), (3, "not valid JSON: Expecting value at column 9"), (4, "not UTF-8 at byte 11 of the line"),
        (5, 'an object like {"text": ...} is expected, not an array'), (6, Text("é"))]


def test_hostile_lines(tmp_path):
    deep = b"[" * 200_000
    (_, reason), = read(tmp_path, b'{"text": ' + deep)
    assert "JSON" in reason
    (_, reason), = read(tmp_path, b'{"text": ' + b"9" * 5000 + b"}")
    assert "JSON" in reason or "number" in reason


def test_array(tmp_path):
    data = json.dumps([{"text": "a"}, {"x": 1}, {"text": "b"}], indent=1).encode()
    numbers, records = zip(*read(tmp_path, b"\n" + data, "a.json"))
    assert numbers == (1, 2, 3) and records[0] == Text("a") and records[2] == Text("b") and "'x'" in records[1]
    with pytest.raises(LoraFastError, match=r"a.jsonl:11: the JSON in it is broken: ',' is missing before the end"):
        read(tmp_path, data[:-1])


def test_names_of_fields():
    names = {"prompt": "q", "completion": "a"}
    assert parse_record({"q": "x", "a": "y"}, names) == Completion("x", "y")
    assert parse_record({"text": "x"}, names) == Text("x")


def form_of(path):
    form = recognise(open_source(str(path)))
    return form.name if form else "text"


@pytest.mark.parametrize("data, name, expected", [
    (b'{"text": "a"}\n', "a.txt", "JSONL"),
    (b'\n\xef\xbb\xbf{"text": "a"}', "a", "text"),           # a byte order mark is one at the very beginning only
    (b'\xef\xbb\xbf \n{"text": "a"}', "a", "JSONL"),
    (b'{"text": broken\n{"text": "a"}\n', "a.txt", "JSONL"),
    (b"{not json at all\nnor here\n", "a.txt", "text"),
    (b"{\n int x;\n}\n", "a.c", "text"),
    (b"{not json at all\n", "a.JSONL", "JSONL"),
    (b'[\n  {"text": "a"}]', "a", "JSON"),
    (b'["a", "b"]', "a.txt", "JSON"),
    (b"[1] a note\n", "a.txt", "text"),
    (b"[Scene 1]\nEnter {Hamlet}", "a", "text"),
    (b"Shall I compare thee\n{}\n", "a", "text"),
    (b'{"text": "' + b"a" * 100_000 + b'"}\n', "a", "JSONL"),
    (b'{"version": 1, "data": [{"text": "' + b"a" * 100_000 + b'"}]}\n', "a", "JSON"),
    (b'{\n "text": "a"\n}\n', "a.txt", "JSON"),
    (b'{\n "text": "a' + b"b" * 100_000 + b'"\n}\n', "a.txt", "JSON"),
    (b"text\n", "a.json", "JSON"), (b"", "a.json", "JSON"),
    (b"instruction,output\na,b\n", "a.txt", "CSV"), (b"prompt\tcompletion\na\tb\n", "a.tsv", "TSV"),
    (b'"prompt";"completion"\na;b\n', "a.csv", "CSV"), (b"x,y\n", "a.csv", "CSV"), (b"Dear reader,text\n", "a.txt",
                                                                                    "text"),
    (b"PAR1....", "a", "Parquet"), (b"ARROW1..", "a", "Arrow"),
])
def test_recognised_by_content(tmp_path, data, name, expected):
    (tmp_path / name).write_bytes(data)
    assert form_of(tmp_path / name) == expected


@pytest.mark.parametrize("data, name, line", [
    (b"\x00", "a b.xlsx", """python -c "import pandas; pandas.read_excel\\('.*a b.xlsx'\\).to_json\\('.*a b.jsonl'"""),
    (b"a: 1\n", "a.yaml", "yaml.safe_load.* > .*a.jsonl$"), (b"PK\x03\x04...", "a", "unzip .*a$"),
    (b"\x28\xb5\x2f\xfd", "a.jsonl.zst", "zstd -d "), (b"%PDF-1", "a", "pdftotext "),
])
def test_other_files_are_refused_with_what_converts_them(tmp_path, data, name, line):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(LoraFastError, match=line):
        form_of(tmp_path / name)


@pytest.mark.parametrize("function", [open_source, form_of])
def test_unreadable(tmp_path, function):
    with pytest.raises(LoraFastError, match=r"cannot read the data .*missing.*: No such file"):
        function(str(tmp_path / "missing.jsonl"))


@pytest.mark.parametrize("value, words", [
    ({"subject": "a", "reply": "b"}, "say which is which, for example --field prompt=subject --field completion=reply"),
    ({"prompt": "a"}, "'completion' is missing"),
    ({"completion": "a"}, "'prompt' is missing"),
    ({"body": "a"}, "--field prompt=body --field completion=A"),
])
def test_unknown_keys_come_with_an_example_that_fits(value, words):
    with pytest.raises(BadRecord) as refused:
        parse_record(value)
    assert str(refused.value).endswith(words)
