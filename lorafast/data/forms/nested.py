"""Records inside of one JSON value: wrapped in an object ({"data": [...]}), or given column by column."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..records import BadRecord
from ..shapes import KEYS, has_shape

MESSAGE_KEYS = ("role", "from")


def records_in(value: Any) -> Iterable[Any]:
    """The records that a JSON value holds: itself, its rows, or the objects in its only list of objects."""
    if not isinstance(value, dict):
        return (value,)
    if has_shape(value):
        return rows(value) or (value,)
    lists = [key for key, items in value.items() if is_records(key, items)]
    if len(lists) > 1:
        return (BadRecord(two_lists(lists)),)
    return value[lists[0]] if lists else rows(value) or (value,)


def is_records(key: str, items: Any) -> bool:
    """Whether what stands under a key is a list of records and not a part of one."""
    return key not in KEYS and isinstance(items, list) and bool(items) and all(isinstance(item, dict) for item in items)


def two_lists(keys: list[str]) -> str:
    return (f"it has several lists of objects, {' and '.join(map(repr, keys))}: keep one, as by "
            f"`jq .{keys[0]} IN.json > OUT.json`")


def rows(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of a value that gives a list (or, as pandas does, an object) a column; empty where it is none."""
    columns = {key: list(column.values()) if _is_numbered(column) else column for key, column in value.items()}
    known = [column for key, column in columns.items() if key in KEYS]
    if not known or not all(isinstance(column, list) and column for column in columns.values()):
        return []
    firsts = [column[0] for column in known]
    if any(isinstance(item, dict) and any(key in item for key in MESSAGE_KEYS) for item in firsts):
        return []                   # the messages of a single record
    if not isinstance(columns.get("token_ids", [[]])[0], list):
        return []                   # the ids of a single record
    if len({len(column) for column in columns.values()}) > 1:
        return []
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


def _is_numbered(column: Any) -> bool:
    return isinstance(column, dict) and bool(column) and all(str(key).isdecimal() for key in column)
