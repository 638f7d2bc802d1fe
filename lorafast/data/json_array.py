"""The items of a JSON array, read piece by piece: a file larger than memory takes memory for one item at a time."""
from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from ..errors import FormatError

PIECE = 1 << 20             # bytes
LONGEST_ITEM = 1 << 26      # characters

_SPACE = " \t\n\r"
_AFTER_ITEM = set(_SPACE + ",]")


def array_items(file: BinaryIO, name: str, advance: Callable[[int], object] = lambda n: None) -> Iterator[Any]:
    """Yields the values in the array that is all of the file. UTF-8, with a byte order mark or without.

    name     what messages call the file
    advance  is told the bytes that were read
    Raises FormatError, with line and item, where the array is broken or an item is longer than LONGEST_ITEM.
    """
    text = _Text(file, name, advance)
    decode = json.JSONDecoder().raw_decode
    text.take("[")
    number = 0
    while text.peek() != "]":
        if number:
            text.take(",")
            text.peek()
        number += 1
        while True:
            try:
                value, end = decode(text.buffer, text.at)
            except json.JSONDecodeError as error:       # not all of it has been read, or it is wrong
                if len(text.buffer) - text.at > LONGEST_ITEM:
                    raise text.broken(f"item {number} is no JSON, or longer than {LONGEST_ITEM >> 20} MB",
                                      text.at) from error
                if not text.read():
                    raise text.broken(f"item {number}: {error.msg}", error.pos) from error
            except (ValueError, RecursionError) as error:       # a number of too many digits, too deep a nesting
                raise text.broken(f"item {number}: {error}", text.at) from error
            else:
                if text.buffer[end:end + 1] in _AFTER_ITEM or not text.read():      # else a number may go on
                    break
        text.at = end
        yield value
    text.take("]")
    if text.peek():
        raise text.broken("something follows it", text.at)


class _Text:
    """A window on the text of a file: `buffer[at:]` is what was read and not yet used."""

    def __init__(self, file: BinaryIO, name: str, advance: Callable[[int], object]) -> None:
        self.file, self.name, self.advance = file, name, advance
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
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

    def broken(self, reason: str, at: int) -> FormatError:
        line = self.line + self.buffer.count("\n", 0, at)
        return FormatError(f"{self.name}:{line}: the array in it is broken: {reason}")
