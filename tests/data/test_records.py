"""Recognising records, and what is said about lines that are none."""
import json

import pytest

from lorafast.data.records import BadRecord, Chat, Completion, Text, is_json, parse_record, read_records
from lorafast.errors import LoraFastError

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


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
    ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [1]}], "tools": [{"name": "f"}]},
     Chat([USER, {"role": "assistant", "content": "", "tool_calls": [1]}], [False, True], [{"name": "f"}])),
])
def test_shapes(value, record):
    assert parse_record(value) == record


@pytest.mark.parametrize("value, reason", [
    ([1], "an object .* is expected, not an array"),
    (None, "not null"),
    ({}, "its keys are none; known are 'text'"),
    ({"instruction": "a", "prompt": "b"}, "its keys are 'instruction', 'prompt'; known are"),
    ({"text": 3}, "'text' is not a string but a number"),
    ({"text": ""}, "empty"),
    ({"prompt": "a", "completion": None}, "'completion' is not a string but null"),
    ({"messages": []}, "'messages' is not a list of messages"),
    ({"messages": ["a"]}, "'messages' is not a list of messages"),
    ({"messages": [USER]}, "no message of the assistant"),
    ({"messages": [USER, {"role": "assistant"}]}, "message 2: 'content' is missing"),
    ({"messages": [{"content": "a"}, ASSISTANT]}, "message 1: 'role' is missing"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}, ASSISTANT]}, "message 1: .* a part that is not"),
    ({"conversations": [{"from": "alien", "value": "a"}]}, "message 1: 'from' is 'alien'; known are system, human"),
])
def test_bad_shapes(value, reason):
    with pytest.raises(BadRecord, match=reason):
        parse_record(value)


def read(tmp_path, data: bytes, name="a.jsonl"):
    path = tmp_path / name
    path.write_bytes(data)
    return [(number, str(record) if isinstance(record, BadRecord) else record)
            for number, record in read_records(str(path))]


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
    with pytest.raises(LoraFastError, match=r"a.jsonl:11: the array in it is broken: ',' is missing before the end of "
                       r"the file"):
        read(tmp_path, data[:-1])


@pytest.mark.parametrize("data, name, expected", [
    (b'{"text": "a"}\n', "a.txt", True),
    (b'\n\xef\xbb\xbf{"text": "a"}', "a", False),           # a byte order mark is one at the very beginning only
    (b'\xef\xbb\xbf \n{"text": "a"}', "a", True),
    (b'{"text": broken\n{"text": "a"}\n', "a.txt", True),
    (b"{not json at all\nnor here\n", "a.txt", False),
    (b"{not json at all\n", "a.JSONL", True),
    (b'[\n  {"text": "a"}]', "a", True),
    (b"[Scene 1]\nEnter {Hamlet}", "a", False),
    (b"Shall I compare thee\n{}\n", "a", False),
    (b'{"text": "' + b"a" * 100_000 + b'"}\n', "a", True),
])
def test_recognised_by_content(tmp_path, data, name, expected):
    (tmp_path / name).write_bytes(data)
    assert is_json(str(tmp_path / name)) == expected


@pytest.mark.parametrize("function", [is_json, lambda path: list(read_records(path))])
def test_unreadable(tmp_path, function):
    with pytest.raises(LoraFastError, match=r"cannot read training data .*missing.*: No such file"):
        function(str(tmp_path / "missing.jsonl"))
