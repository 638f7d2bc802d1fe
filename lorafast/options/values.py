"""Options given from Python: `str | Path` wherever there is a path, one or a sequence wherever there are several."""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ..errors import UsageError
from .declare import LIST, SWITCHES, Options, fields, types_of, unknown
from .other_names import ALIASES

T = TypeVar("T", bound=Options)


def options_of(cls: type[T], given: Mapping[str, Any]) -> T:
    """The options with these values, by field. UsageError for a name that does not exist, which names the nearest one
    that does, and for a value of another type.
    """
    types = types_of(cls)
    known = [field.name for field, _ in fields(cls)]
    for name in given:
        if name not in known:
            option = "--" + name.replace("_", "-")
            meant = [field for field in known if option in ALIASES.get(field, ())]
            raise UsageError(f"unknown argument {name} (did you mean {meant[0]}?)" if meant
                             else unknown(name, known, "argument"))
    return cls.complete({name: _value(name, value, types[name]) for name, value in given.items()})


def _value(name: str, value: Any, wanted: Any) -> Any:
    """A value as the type of its field."""
    if wanted == LIST:
        items = [value] if isinstance(value, (str, os.PathLike)) else value
        if not isinstance(items, Sequence) or not all(isinstance(item, (str, os.PathLike)) for item in items):
            raise UsageError(f"{name} {value!r}: must be a path or text, or a sequence of them")
        return tuple(map(_text, items))
    if value is None and wanted not in (str, bool, int, float):
        return None
    if wanted is str:
        if not isinstance(value, (str, os.PathLike)):
            raise UsageError(f"{name} {value!r}: must be a path or text")
        return _text(value)
    if wanted in SWITCHES:
        if not isinstance(value, bool):
            raise UsageError(f"{name} {value!r}: must be True or False")
        return value
    numbers = (int,) if wanted in (int, int | None) else (int, float)
    if isinstance(value, bool) or not isinstance(value, numbers):
        raise UsageError(f"{name} {value!r}: must be a {'whole ' if len(numbers) == 1 else ''}number")
    return value


def _text(value: str | os.PathLike) -> str:
    """A path as text. One that ends in a separator, as folders do, keeps it."""
    return os.fspath(value)
