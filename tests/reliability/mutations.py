"""Changes that make a bad file of a good one: bits, words, numbers of a header, types of GGUF values, JSON values."""
from __future__ import annotations

import json
import random
import re
import struct

NUMBERS = (0, 1, 2, 7, 31, 32, 127, 128, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
PIECES = (b"{", b"}", b"[", b"]", b'"', b"null", b"NaN", b"1e999", b"-1", b"\x1b[31m", b"\0", b"\xff\xfe", b"9" * 5000,
          b"[" * 2000, b'{"a":' * 2000, b"{{", b"{% for i in range(9) %}", b"lora_a", b"blk.0.attn_q.weight")
ODD_KEYS = (lambda key: re.sub("[0-9]+", "9" * 5000, key), lambda key: "", lambda key: key + "\x1b", str.upper)
JSON_VALUES = (None, True, [], {}, "", "x", 0, -1, 1.5, 10**30, [[]], {"a": 1}, "\x1b[31m", [1, 2, 3])


def mutated(data: bytes, chance: random.Random) -> bytes:
    """One to four changes."""
    for _ in range(chance.randint(1, 4)):
        data = chance.choice(FOR_TEXT if is_text(data) else FOR_BYTES)(data, chance)
    return data


def is_text(data: bytes) -> bool:
    """TOML, CSV, JSON or a template, as far as its beginning tells."""
    return b"\0" not in data[:64]


def flip(data: bytes, chance: random.Random) -> bytes:
    if not data:
        return data
    changed = bytearray(data)
    changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(data: bytes, chance: random.Random) -> bytes:
    begin, length = chance.randrange(len(data) + 1), chance.choice((1, 4, 8, 100, len(data)))
    return data[:begin] + data[begin + length:]


def insert(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.choice(PIECES) + data[at:]


def number(data: bytes, chance: random.Random) -> bytes:
    form = chance.choice(("<I", "<Q", "<H", "<B", "<f"))
    given = chance.choice(NUMBERS)
    packed = struct.pack(form, chance.choice((0.0, -1.0, float("nan"), float("inf"))) if form == "<f"
                         else given % 2**(8 * struct.calcsize(form)))
    at = chance.randrange(max(1, min(len(data), 4000)))
    return data[:at] + packed + data[at + len(packed):]


def copy(data: bytes, chance: random.Random) -> bytes:
    begin = chance.randrange(len(data) + 1)
    at = chance.randrange(len(data) + 1)
    return data[:at] + data[begin:begin + chance.choice((1, 8, 40))] + data[at:]


SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a number by its type in GGUF; 8 is a text, 9 an array."""
KEY = re.compile(rb"(?:general|llama|qwen2|tokenizer|training|optimizer|adapter|lorafast)\.[a-z0-9_.]+")


def retype(data: bytes, chance: random.Random) -> bytes:
    """Another type, and a value of it, for a key of a GGUF file."""
    keys = list(KEY.finditer(data[:20000])) if data[:4] == b"GGUF" else []
    if not keys:
        return data
    begin = chance.choice(keys).end()
    try:
        end = _end_of_value(data, begin)
    except (struct.error, KeyError, OverflowError):
        return data
    type = chance.choice([*SIZES, 8, 9])
    new = {8: struct.pack("<Q", 3) + b"a\x1bb", 9: struct.pack("<IQ", 4, 3) + bytes(12)}.get(type)
    return data[:begin] + struct.pack("<I", type) + (new or chance.choice((b"\0", b"\1")) * SIZES[type]) + data[end:]


def _end_of_value(data: bytes, begin: int) -> int:
    type, = struct.unpack_from("<I", data, begin)
    begin += 4
    if type == 8:
        return begin + 8 + struct.unpack_from("<Q", data, begin)[0]
    if type != 9:
        return begin + SIZES[type]
    element, count = struct.unpack_from("<IQ", data, begin)
    begin += 12
    if element != 8:
        return begin + count * SIZES[element]
    for _ in range(min(count, 100000)):
        begin += 8 + struct.unpack_from("<Q", data, begin)[0]
    return begin


def value(data: bytes, chance: random.Random) -> bytes:
    """Another value in a line of JSON, or in the header of a safetensors file."""
    head, body, tail = b"", data, b""
    if len(data) > 9 and data[8:9] == b"{":
        length, = struct.unpack_from("<Q", data)
        head, body, tail = data[:8], data[8:8 + min(length, len(data))], data[8 + min(length, len(data)):]
    lines = body.split(b"\n")
    at = chance.randrange(len(lines)) if len(lines) > 1 and not body.startswith(b"{\n") else None
    try:
        parsed = json.loads(lines[at] if at is not None else body)
        changed = json.dumps(_exchanged(parsed, chance)).encode()
    except (ValueError, RecursionError):
        return data
    if at is not None:
        lines[at] = changed
        return b"\n".join(lines)
    return (struct.pack("<Q", len(changed)) if head else b"") + changed + tail


def _exchanged(parsed: object, chance: random.Random) -> object:
    if isinstance(parsed, dict) and parsed and chance.random() < 0.9:
        key = chance.choice(list(parsed))
        if chance.random() < 0.1:
            return {chance.choice(ODD_KEYS)(name) if name == key else name: each for name, each in parsed.items()}
        return {**parsed, key: _exchanged(parsed[key], chance)}
    if isinstance(parsed, list) and parsed and chance.random() < 0.7:
        at = chance.randrange(len(parsed))
        return [*parsed[:at], _exchanged(parsed[at], chance), *parsed[at + 1:]]
    return chance.choice(JSON_VALUES)


TEMPLATE_WORDS = tuple(b"""
    range(99999) range(9) 10**9 'a'*10**9 [0]*10**8 **2 -1 0 none true [] {} '' ~ + - * // % == not in is and or if else
    messages[0] messages.x loop.index loop.previtem namespace(x=1) dict(a=1) cycler(1,2) raise_exception('x')
    strftime_now('%Y') tools bos_token |tojson(indent=9) |tojson |center(10**8) |join(',') |map(attribute='role')
    |selectattr('role','equalto','user') |list |batch(3) |length |sort |first |replace('a','b'*9999) |format(1) |trim
    .split('a') .items() .format(1) .__class__ [::-1] [1:] recursive {%break%} {%continue%} {%else%}
    {%endfor%} {%endif%} {%endset%} {%endmacro%} {%generation%} {{x}} {{loop(messages)}} {#
    """.split())
WORD = re.compile(rb"\w+|[^\w\s]+")


def word(data: bytes, chance: random.Random) -> bytes:
    """Another word of the text, or one that templates have, for one of its words, or before it."""
    words = list(WORD.finditer(data[:20000]))
    if not words:
        return data
    old = chance.choice(words)
    is_template = b"{%" in data or b"{{" in data
    new = chance.choice(TEMPLATE_WORDS if is_template and chance.random() < 0.6 else [chance.choice(words).group()])
    begin, end = chance.choice(((old.start(), old.end()), (old.start(), old.start())))
    return data[:begin] + (b" " + new + b" " if is_template else new) + data[end:]


FOR_BYTES = (flip, cut, insert, number, copy, value, value, retype, retype)
FOR_TEXT = (flip, cut, insert, number, copy, value, value, word, word, word)
