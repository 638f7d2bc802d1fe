"""JSON of any arrangement, read piece by piece: a file larger than memory takes memory for one record at a time.

    [{...}, {...}]                      an array
    {...} {...}                         objects that go over several lines, one after the other
    {"version": 1, "data": [{...}]}     an array that an object wraps
    {"prompt": [...], ...}              columns; these are held in memory
"""
from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from ...errors import FormatError
from ..shapes import KEYS
from ..source import Source, unreadable
from . import Advance
from .nested import records_in, two_lists

PIECE = 1 << 20             # bytes
LONGEST_ITEM = 1 << 26      # characters

_SPACE = " \t\n\r"
_AFTER_VALUE = set(_SPACE + ",:]}")


class JsonDocument:
    name = "JSON"

    def values(self, source: Source, advance: Advance) -> Iterator[tuple[int, Any]]:
        try:
            with open(source.path, "rb") as file:
                yield from enumerate(document_records(file, source.name, advance), 1)
        except OSError as error:
            raise unreadable(source.name, error) from None


def document_records(file: BinaryIO, name: str, advance: Advance = lambda n: None) -> Iterator[Any]:
    """Yields the records of a JSON file. UTF-8, with a byte order mark or without.

    name     what messages call the file
    Raises FormatError, with line and item, where the JSON is broken or an item is longer than LONGEST_ITEM.
    """
    text = JsonText(file, name, advance)
    while first := text.peek():
        if first == "[":
            yield from array_items(text)
        elif first == "{":
            yield from object_records(text)
        else:
            raise text.broken(f"an object or an array is expected, not {first!r}", text.at)


def array_items(text: JsonText) -> Iterator[Any]:
    """Yields the values of the array that comes next."""
    text.take("[")
    number = 0
    while text.peek() != "]":
        if number:
            text.take(",")
        number += 1
        yield text.value(f"item {number}")
    text.take("]")


def object_records(text: JsonText) -> Iterator[Any]:
    """Yields the records of the object that comes next. If it wraps a list of objects, these, as they are read."""
    start = text.at
    text.take("{")
    fields: dict[str, Any] = {}
    wrapped: list[str] = []
    while text.peek() != "}":
        if fields or wrapped:
            text.take(",")
        if text.peek() != '"':
            raise text.broken("a key in quotes is expected", text.at)
        key = text.value("a key")
        text.take(":")
        if text.peek() == "[" and key not in KEYS:
            items = array_items(text)
            first = next(items, None)
            if isinstance(first, dict):
                wrapped.append(key)
                if len(wrapped) > 1:
                    raise text.broken(two_lists(wrapped), start if start <= text.at else text.at)
                yield first
                yield from items
            else:
                fields[key] = [] if first is None else [first, *items]
        else:
            fields[key] = text.value(repr(key))
    text.take("}")
    if not wrapped:
        yield from records_in(fields)


class JsonText:
    """A window on the text of a file: buffer[at:] has been read and not used; line is that of the buffer's begin."""

    def __init__(self, file: BinaryIO, name: str, advance: Advance) -> None:
        self.file, self.name, self.advance = file, name, advance
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.decode = json.JSONDecoder().raw_decode
        self.buffer, self.at, self.line = "", 0, 1
        self.n_bytes = 0

    def read(self) -> bool:
        """Reads on, as much again as is there, and forgets what was used; False at the end of the file."""
        piece = self.file.read(max(PIECE, len(self.buffer) - self.at))
        self.advance(len(piece))
        try:
            text = self.decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            at = self.n_bytes + error.start - (len(error.object) - len(piece))
            raise FormatError(f"{self.name}: not UTF-8 at byte {at}") from None
        self.n_bytes += len(piece)
        self.line += self.buffer.count("\n", 0, self.at)
        self.buffer, self.at = self.buffer[self.at:] + text, 0
        return bool(piece)

    def peek(self) -> str:
        """The next character that is no white space; empty at the end of the file."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in _SPACE:
                self.at += 1
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self.read():
                return ""

    def take(self, character: str) -> None:
        """Goes past this character, which must come next."""
        if self.peek() != character:
            found = f"{self.peek()!r}" if self.peek() else "the end of the file"
            raise self.broken(f"{character!r} is missing before {found}", self.at)
        self.at += 1

    def value(self, what: str) -> Any:
        """The JSON value that comes next, which messages call `what`."""
        self.peek()
        while True:
            try:
                value, end = self.decode(self.buffer, self.at)
            except json.JSONDecodeError as error:       # not all of it has been read, or it is wrong
                if len(self.buffer) - self.at > LONGEST_ITEM:
                    raise self.broken(f"{what} is not JSON, or is longer than {LONGEST_ITEM >> 20} MB",
                                      self.at) from None
                if not self.read():
                    raise self.broken(f"{what}: {error.msg}", error.pos) from None
            except (ValueError, RecursionError) as error:       # a number of too many digits, too deep a nesting
                raise self.broken(f"{what}: {error}", self.at) from None
            else:
                length = end - self.at
                if self.buffer[end:end + 1] in _AFTER_VALUE or not self.read():     # else a number may go on
                    self.at += length
                    return value

    def broken(self, reason: str, at: int) -> FormatError:
        line = self.line + self.buffer.count("\n", 0, at)
        return FormatError(f"{self.name}:{line}: the JSON in it is broken: {reason}")
