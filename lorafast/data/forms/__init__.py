"""The forms of files that hold records. Each gives the values in a file one after the other, and knows no shapes."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from ..records import BadRecord, Record
from ..shapes import parse_record
from ..source import Source

Advance = Callable[[int], object]
"""Is told the bytes that were read."""


class Form(Protocol):
    """How values are kept in a file."""

    name: str

    def values(self, source: Source, advance: Advance) -> Iterator[tuple[int, Any]]:
        """The values with their numbers (of a line where values are lines, else of a record), or a BadRecord instead.

        LoraFastError when the file cannot be read on.
        """


def read_records(form: Form, source: Source, names: Mapping[str, str] | None = None,
                 advance: Advance = lambda n: None) -> Iterator[tuple[int, Record | BadRecord]]:
    """The records of a file, with their numbers, or what is wrong with one. names: see parse_record."""
    for number, value in form.values(source, advance):
        if not isinstance(value, BadRecord):
            try:
                value = parse_record(value, names)
            except BadRecord as error:
                value = error
        yield number, value
