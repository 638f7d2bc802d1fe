"""JSONL: one JSON value a line. A broken line spoils no other."""
from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from ..records import BadRecord
from ..source import HEAD_BYTES, Source, unreadable
from . import Advance
from .nested import records_in

BOM = b"\xef\xbb\xbf"


class JsonLines:
    name = "JSONL"

    def values(self, source: Source, advance: Advance) -> Iterator[tuple[int, Any]]:
        try:
            with open(source.path, "rb", HEAD_BYTES) as file:
                for number, line in enumerate(file, 1):
                    advance(len(line))
                    line = line.removeprefix(BOM) if number == 1 else line
                    if line.strip():
                        value = parse_line(line.rstrip())
                        yield from ((number, record) for record in records_in(value))
        except OSError as error:
            raise unreadable(source.name, error) from None


def parse_line(line: bytes) -> Any:
    """The JSON value; BadRecord instead where it is none."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        return BadRecord(f"not UTF-8 at byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return BadRecord(f"not valid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:       # a number of too many digits, too deep a nesting
        return BadRecord(f"not usable JSON: {error}")
