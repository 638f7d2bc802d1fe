"""Reading single fields of a record."""
from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ..records import BadRecord


def string(value: Mapping[str, Any], key: str) -> str:
    """The text under a key. Raises BadRecord where there is none."""
    if key not in value:
        raise BadRecord(f"'{key}' is missing")
    if not isinstance(value[key], str):
        raise BadRecord(f"'{key}' is not a string but {kind(value[key])}")
    return value[key]


def optional(value: Mapping[str, Any], *keys: str) -> str:
    """The first text under one of these keys that is not empty, else an empty one."""
    return next((value[key] for key in keys if isinstance(value.get(key), str) and value[key]), "")


def weight(value: Mapping[str, Any]) -> float:
    """The factor of the loss of a record or message: 1 where it says nothing. Raises BadRecord."""
    given = value.get("weight")
    if given is None:
        return 1.0
    try:
        if isinstance(given, bool):
            raise TypeError
        number = float(given)
    except (TypeError, ValueError, OverflowError):
        raise BadRecord(f"'weight' is not a number but {kind(given)}") from None
    if not 0 <= number < math.inf:
        raise BadRecord(f"'weight' is {number:g}; it must not be negative or infinite")
    return number


def parsed(text: str, key: str) -> Any:
    """The JSON value that the text under a key spells. Raises BadRecord."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise BadRecord(f"'{key}' is a string that is not JSON") from None


def kind(value: Any) -> str:
    """What JSON calls a value of this kind."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    kinds: dict[type, str] = {dict: "an object", list: "an array", str: "a string"}
    return kinds.get(type(value), "a number")
