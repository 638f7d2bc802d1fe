"""Options given from Python: `str | Path` wherever there is a path, one or a sequence wherever there are several."""
from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

from ..errors import UsageError
from .declare import LIST, SWITCHES, Options, fields, types_of, unknown
from .other_names import ALIASES, HINTS

T = TypeVar("T", bound=Options)


def options_of(cls: type[T], given: Mapping[str, Any]) -> T:
    """The options with these values, by field. UsageError for a name that does not exist, which names the nearest one
    that does, and for a value of another type.
    """
    types, specs = types_of(cls), {field.name: spec for field, spec in fields(cls)}
    for name in given:
        if name not in specs:
            raise UsageError(_unknown(name, list(specs)))
    return cls.complete({name: _value(name, _as_typed(value, specs[name].metavar), types[name])
                         for name, value in given.items()})


def value_of(cls: type[Options], field: str, value: Any, name: str = "") -> Any:
    """A value as the type of this field of `cls`, which allows it. UsageError, which calls it `name`, if it is not."""
    spec = {each.name: spec for each, spec in fields(cls)}[field]
    name = name or field
    value = _value(name, value, types_of(cls)[field])
    if spec.allowed and value is not None and not spec.allowed.test(value):
        raise UsageError(f"{name} {value!r}: must be {spec.allowed.text}")
    return value


def _unknown(name: Any, known: Sequence[str]) -> str:
    """The message for an argument that does not exist."""
    option = "--" + str(name).replace("_", "-")
    meant = [field for field in known if option in ALIASES.get(field, ())]
    if meant:
        return f"unknown argument {name} (did you mean {meant[0]}?)"
    return f"unknown argument {name}: {HINTS[option]}" if option in HINTS else unknown(str(name), known, "argument")


def _as_typed(value: Any, metavar: str) -> Any:
    """What would be typed: for a LIST a sequence of texts with commas between, for NAME=VALUE a mapping as such."""
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    if metavar == "LIST" and is_sequence and all(isinstance(item, str) for item in value):
        return ",".join(value)
    if "=" in metavar and isinstance(value, Mapping):
        try:
            return [f"{name}={item if isinstance(item, str) else json.dumps(item)}" for name, item in value.items()]
        except TypeError:
            return value
    return value


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
    is_whole = wanted in (int, int | None)
    if isinstance(value, bool) or not isinstance(value, Integral if is_whole else Real) or not math.isfinite(value):
        raise UsageError(f"{name} {value!r}: must be a {'whole ' * is_whole}number")
    return int(value) if isinstance(value, Integral) else float(value)


def _text(value: str | os.PathLike) -> str:
    """A path as text. One that ends in a separator, as folders do, keeps it."""
    return os.fspath(value)
