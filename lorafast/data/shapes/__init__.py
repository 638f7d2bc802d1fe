"""The shapes that records come in, and what each means. A shape knows the keys it needs and makes a record of them.

pairs.py         {"prompt": "...", "completion": "..."}, {"instruction": ..., "input": ..., "output": ...}, ...
chats.py         {"messages": [{"role": "user", "content": "..."}, ...]}, {"conversations": [{"from": "human", ...}]},
                 {"prompt": [...messages], "completion": [...messages]}
preferences.py   {"prompt": ..., "chosen": ..., "rejected": ...}
here             {"text": "..."}, {"token_ids": [...]}
"""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from ..records import BadRecord, Record, Text, Tokens
from .chats import ConversationalPair, Messages
from .fields import kind, string, weight
from .pairs import PAIRS
from .preferences import JudgedAnswer, PreferencePair


class Shape(Protocol):
    """A known arrangement of keys."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that a record of this shape must have."""

    def fits(self, value: Mapping[str, Any]) -> bool:
        """Whether a record with all of the keys is of this shape."""

    def parse(self, value: Mapping[str, Any]) -> Record:
        """The record. Raises BadRecord."""


class PlainText:
    """{"text": "..."}"""

    keys = ("text",)

    def fits(self, value: Mapping[str, Any]) -> bool:
        return True

    def parse(self, value: Mapping[str, Any]) -> Text:
        text = string(value, "text")
        if not text:
            raise BadRecord("its text is empty")
        return Text(text, weight(value))


class TokenIds:
    """{"token_ids": [1, 2, 3]}"""

    keys = ("token_ids",)

    def fits(self, value: Mapping[str, Any]) -> bool:
        return True

    def parse(self, value: Mapping[str, Any]) -> Tokens:
        ids = value["token_ids"]
        if not isinstance(ids, list) or not ids:
            raise BadRecord("'token_ids' is empty" if ids == [] else f"'token_ids' is not a list but {kind(ids)}")
        return Tokens(ids, weight(value))


# The first that fits decides: Alpaca's records carry a rendered "text" as well, and what is judged looks like a pair.
SHAPES: tuple[Shape, ...] = (
    PreferencePair(), JudgedAnswer(), *(Messages(key) for key in ("messages", "conversations", "conversation")),
    ConversationalPair("completion"), ConversationalPair("response"), *PAIRS, PlainText(), TokenIds(),
)
KEYS = frozenset(key for shape in SHAPES for key in shape.keys)
"""All keys by which a shape is known."""

KNOWN = "'text', 'prompt' with 'completion', 'instruction' with 'output', 'question' with 'answer', 'messages'"


def has_shape(keys: Iterable[str]) -> bool:
    """Whether records with these keys are of a known shape."""
    present = set(keys)
    return any(present.issuperset(shape.keys) for shape in SHAPES)


def parse_record(value: Any, names: Mapping[str, str] | None = None) -> Record:
    """The record that a JSON value means. Raises BadRecord.

    names   known key -> the key that stands for it in this data (--field)
    """
    if not isinstance(value, dict):
        raise BadRecord(f"an object like {{\"text\": ...}} is expected, not {kind(value)}")
    for key, theirs in (names or {}).items():
        if theirs in value:
            value = {**value, key: value[theirs]}
    for shape in SHAPES:
        if value.keys() >= set(shape.keys) and shape.fits(value):
            return shape.parse(value)
    raise BadRecord(unknown_keys("keys", value))


def unknown_keys(what: str, keys: Iterable[str]) -> str:
    """What is said about data whose keys, or columns, make none of the shapes."""
    shown = list(keys)
    names = ", ".join(map(repr, shown[:6])) or "none"
    known = f"its {what} are {names}, but lorafast knows {KNOWN} and the like (docs/data.md)"
    if shown in (["prompt"], ["completion"]):
        return f"{known}; {'completion' if shown == ['prompt'] else 'prompt'!r} is missing"
    first, last = (shown[0], shown[-1]) if len(shown) > 1 else [*shown, "A", "B"][:2]
    return f"{known}; say which is which, for example --field prompt={first} --field completion={last}"
