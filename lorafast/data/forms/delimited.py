"""CSV and its kin: a header that names the columns, and a record a row."""
from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import FormatError, LoraFastError
from ..records import BadRecord
from ..shapes import has_shape, unknown_keys
from ..source import HEAD_BYTES, Source, unreadable
from . import Advance

LONGEST_FIELD = 1 << 26     # characters
DELIMITERS = ",;\t|"


class Delimited:
    """Rows of fields. names: the keys that --field gives to columns (known key -> column)."""

    def __init__(self, delimiter: str, names: Sequence[str] = ()) -> None:
        self.delimiter, self.names = delimiter, names
        self.name = "TSV" if delimiter == "\t" else "CSV"

    def values(self, source: Source, advance: Advance) -> Iterator[tuple[int, Any]]:
        csv.field_size_limit(LONGEST_FIELD)
        rows = None
        try:
            with open(source.path, encoding="utf-8-sig", newline="") as file:
                rows = csv.reader(told(file, advance), delimiter=self.delimiter, strict=True)
                header = [column.strip() for column in next(rows, [])]
                self.check(source, header)
                line = rows.line_num + 1
                for row in rows:
                    if row:
                        yield line, self.record(header, row)
                    line = rows.line_num + 1
        except OSError as error:
            raise unreadable(source.name, error) from None
        except UnicodeDecodeError as error:
            raise FormatError(f"{source.name}: not UTF-8 ({error.reason}); convert it with `iconv -t utf-8`") from None
        except csv.Error as error:
            raise FormatError(f"{source.name}:{rows.line_num if rows else 1}: broken {self.name}: {error}") from None

    def check(self, source: Source, header: Sequence[str]) -> None:
        """Raises LoraFastError where the columns make no shape: no row would."""
        if not has_shape([*header, *self.names]):
            raise LoraFastError(f"{source.name} is {self.name}: {unknown_keys('columns', header)} (--data-format text "
                                "trains on it as prose)")

    def record(self, header: Sequence[str], row: Sequence[str]) -> Any:
        if len(row) != len(header):
            return BadRecord(f"it has {len(row)} fields, and the header {len(header)}")
        return {column: field for column, field in zip(header, row) if field or column != "weight"}


def told(lines: Iterator[str], advance: Advance) -> Iterator[str]:
    """The lines, whose lengths are told as they pass."""
    for line in lines:
        advance(len(line))
        yield line


def header_delimiter(head: bytes, names: Sequence[str] = ()) -> str:
    """The character by which the first line of a file parts into columns of a known shape; empty where none does.

    A column `text` alone says little: prose has the word as well.
    """
    first = head.removeprefix(b"\xef\xbb\xbf").split(b"\n", 1)[0]
    if len(first) > HEAD_BYTES // 2:
        return ""
    line = first.decode("utf-8", "replace").rstrip("\r")
    return next((delimiter for delimiter in DELIMITERS if delimiter in line and has_shape(
        {*(column.strip().strip('"') for column in line.split(delimiter)), *names} - {"text"})), "")
