"""Cuts long texts where tokens never join, so that encoding needs memory for one slice and not for the whole text."""
from __future__ import annotations

import re
from collections.abc import Iterator
from mmap import mmap

SLICE_BYTES = 1 << 18

_BEFORE_SPACE = re.compile(rb"[A-Za-z](?= [A-Za-z])")


def slices(text: bytes | mmap, size: int = SLICE_BYTES, at_spaces: bool = False) -> Iterator[bytes]:
    """Yields slices of at least `size` bytes. Each but the last ends with a line end between two words (_ends_line).

    at_spaces   where no such line end comes for long, a slice may end before a space between two words
    """
    start = 0
    while start < len(text):
        end = text.find(b"\n", start + size) + 1
        while end and not _ends_line(text, end):
            end = text.find(b"\n", end) + 1
        end = end or len(text)
        if at_spaces and end - start > 2 * size:
            match = _BEFORE_SPACE.search(text, start + size, end)
            end = match.end() if match else end
        yield text[start:end]
        start = end


def _ends_line(text: bytes | mmap, end: int) -> bool:
    """Whether text[:end] ends with a line end that has neither space, nor another line end, nor bad UTF-8 beside it.

    A malformed sequence can take in the three bytes after its first, so six bytes back tell what reaches the line end.
    """
    try:
        before = text[max(0, end - 7):end - 1].lstrip(CONTINUATION).decode()
        after = text[end:end + 4].decode("utf-8", "ignore")
    except UnicodeDecodeError:
        return False
    return before != "" and not before[-1].isspace() and after != "" and after[0].isalnum()


CONTINUATION = bytes(range(0x80, 0xc0))
