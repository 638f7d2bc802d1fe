"""Options in a TOML file, under the names of the command line: `adam-alpha = 1e-4`, `lora-out = ["a.gguf", "b/"]`.

`-` and `_` are the same. A file that this module wrote begins with WRITTEN, by which it knows it again.
"""
from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection
from typing import Any

from ..errors import LoraFastError, UsageError
from ..system.atomic import atomic_write
from .declare import LIST, SWITCHES, Options, convert, fields, types_of, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WRITTEN = "# All options of a lorafast run; --config FILE gives them again.\n"


def read_options(cls: type[Options], path: str) -> dict[str, Any]:
    """The values in a TOML file by field of `cls`. Raises LoraFastError for a file that cannot be read or is no TOML,
    UsageError for an option that does not exist or a value of another type.
    """
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            table = tomllib.loads(file.read())
    except OSError as error:
        raise LoraFastError(f"cannot read the options in {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:       # TOMLDecodeError; a number of thousands of digits; deep nesting
        raise LoraFastError(f"{path}: is not a TOML file: {error}") from None
    types = types_of(cls)
    names = {spec.names[0]: field.name for field, spec in fields(cls)}
    given = {}
    for key, value in table.items():
        name = "--" + key.replace("_", "-").removeprefix("--")
        if name not in names:
            raise UsageError(f"{path}: {unknown(name, list(names), help='--help-all')}")
        try:
            given[names[name]] = _value(name, value, types[names[name]])
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from None
    return given


def _value(name: str, value: Any, wanted: Any) -> Any:
    """A TOML value as the type of its field."""
    if wanted == LIST:
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in items):
            raise UsageError(f"{name} {value}: must be text, or a list of texts")
        return tuple(items)
    if wanted in SWITCHES:
        if not isinstance(value, bool):
            raise UsageError(f"{name} {value}: must be true or false")
        return value
    if isinstance(value, (bool, list, dict)) or (wanted is str) != isinstance(value, str):
        raise UsageError(f"{name} {value}: must be {'text' if wanted is str else 'a number'}")
    return value if wanted is str else convert(name, str(value), wanted)


def write_options(path: str | os.PathLike, options: Options, leave_out: Collection[str] = ()) -> None:
    """Writes every option but those fields with its value, by group, as a TOML file. One whose default is worked out
    later is a comment.
    """
    lines, group = [WRITTEN.rstrip()], ""
    for field, spec in fields(type(options)):
        if field.name in leave_out:
            continue
        if spec.group != group:
            group = spec.group
            lines += ["", f"# {group}"]
        value = getattr(options, field.name)
        name = spec.names[0].removeprefix("--")
        lines.append(f"# {name}: {spec.shown_default}" if value is None else f"{name} = {_toml(value)}")
    with atomic_write(path) as file:
        # Names of files need not be text: bytes that are not UTF-8 stand here as they are.
        file.write(("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # JSON's strings are TOML's, but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F") if isinstance(value, str) else repr(value)
