"""JSON read piece by piece gives what json gives, in little memory, and says where it is broken."""
import io
import json
import random

import pytest

from lorafast.data.forms import json_document
from lorafast.data.forms.json_document import document_records
from lorafast.errors import FormatError


def items(data: bytes):
    return list(document_records(io.BytesIO(data), "a.json"))


def random_value(rng: random.Random, depth: int = 0):
    kind = rng.randrange(7 if depth < 3 else 5)
    if kind < 5:
        return [None, rng.random() < 0.5, rng.randint(-10**9, 10**9), rng.uniform(-1e6, 1e6),
                "".join(rng.choices('a"\\\n\t[]{},é🙂 ', k=rng.randrange(20)))][kind]
    values = [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return values if kind == 5 else {str(i): value for i, value in enumerate(values)}


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 64, 1 << 20])
def test_as_json_has_it(monkeypatch, piece):
    monkeypatch.setattr(json_document, "PIECE", piece)
    rng = random.Random(piece)
    for i in range(30):
        values = [random_value(rng) for _ in range(rng.randrange(6))]
        text = json.dumps(values, ensure_ascii=i % 2 == 0, indent=rng.choice([None, 0, 2]))
        for data in (text.encode(), b"\xef\xbb\xbf \r\n" + text.encode() + b"\n \n"):
            assert items(data) == values


@pytest.mark.parametrize("piece", [1, 5, 1 << 20])
@pytest.mark.parametrize("data, reason", [
    (b'[{"a": 1},\n {"b": 2}', "a.json:2: .*',' is missing before the end of the file"),
    (b'[{"a": 1}\n {"b": 2}]', "a.json:2: .*',' is missing before '{'"),
    (b'[{"a": 1},\n\n {"b": }]', "a.json:3: .*item 2: Expecting value"),
    (b'[{"a": 1},\n {"b": "x]', "a.json:2: .*item 2: Unterminated string"),
    (b'[{"a": 1},]', "a.json:1: .*item 2: "), (b"[", "a.json:1: .*item 1: "), (b"[1]\n\n,",
    "a.json:3: .*an object or an array is expected, not ','"),
    (b'{"a": [{}], "b": [{}]}', "several lists of objects, 'a' and 'b'"), (b'{"a" 1}', "':' is missing before '1'"),
    (b'{"a": 1', "',' is missing before the end"), (b"{1: 2}", "a key in quotes"),
    (b"[1, " + b"[" * 100_000, "a.json:1: .*item 2: "), (b"[" + b"9" * 5000 + b"]", "item 1: "),
    (b'[1, "\xff"]', "a.json: not UTF-8 at byte 5"), (b'[1, "\xe2\x82', "a.json: not UTF-8 at byte 5"),
])
def test_what_is_broken(monkeypatch, piece, data, reason):
    monkeypatch.setattr(json_document, "PIECE", piece)
    with pytest.raises(FormatError, match=reason):
        items(data)


def test_memory_for_one_item_at_a_time(monkeypatch):
    """The window on the file stays as small as its longest item; one that never ends is given up."""
    monkeypatch.setattr(json_document, "PIECE", 100)
    monkeypatch.setattr(json_document, "LONGEST_ITEM", 2000)
    windows, read = [], json_document.JsonText.read
    monkeypatch.setattr(json_document.JsonText, "read", lambda self: (windows.append(len(self.buffer) - self.at),
                                                                      read(self))[1])
    assert len(items(json.dumps(["x" * 300] * 1000).encode())) == 1000
    assert max(windows) < 800
    with pytest.raises(FormatError, match="item 2 is not JSON, or is longer than"):
        items(b'["x", "' + b"y" * 100_000)
    assert max(windows) < 8000


def test_progress_is_told():
    told = []
    data = json.dumps(list(range(1000))).encode()
    assert len(list(document_records(io.BytesIO(data), "a.json", told.append))) == 1000 and sum(told) == len(data)


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
@pytest.mark.parametrize("data, records", [
    (b'{"text":\n "a"}\n{"text": "b"} [{"text": "c"}]', [{"text": "a"}, {"text": "b"}, {"text": "c"}]),
    (b'{"version": 1, "data": [{"a": 1}, {"a": [2]}], "info": {"x": []}}', [{"a": 1}, {"a": [2]}]),
    (b'{"prompt": ["a", "b"], "completion": ["c", "d"], "extra": [1, 2]}',
     [{"prompt": "a", "completion": "c", "extra": 1}, {"prompt": "b", "completion": "d", "extra": 2}]),
    (b'{"text": {"0": "a", "1": "b"}}', [{"text": "a"}, {"text": "b"}]),
    (b'{"messages": [{"role": "user"}]}', [{"messages": [{"role": "user"}]}]),
    (b'{"messages": [[{"role": "user"}], [{"role": "x"}]]}', [{"messages": [{"role": "user"}]},
                                                              {"messages": [{"role": "x"}]}]),
    (b'{"prompt": [{"role": "user"}], "completion": [{"role": "x"}]}',
     [{"prompt": [{"role": "user"}], "completion": [{"role": "x"}]}]),
    (b'["a"]', ["a"]), (b'{"x": []}', [{"x": []}]), (b"", []),
])
def test_arrangements(monkeypatch, piece, data, records):
    monkeypatch.setattr(json_document, "PIECE", piece)
    assert items(data) == records
