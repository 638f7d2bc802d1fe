"""Options declared as dataclass fields: one field holds an option's default, type, help and allowed values.

From such a class this module reads a command line (`parse`), writes one (`to_argv`), and prints the help (`help_text`);
options_file.py does the same for a file of options. The rules of a command line are those of llama.cpp's
llama-finetune, with its traps removed:

- `-` and `_` are the same in an option's name; names are never abbreviated; a later option overrides an earlier one.
- A value is always the next argument, even if it begins with `-`. `--name=value` works too.
- A number must be a number to its last character (llama-finetune read `12abc` as 12).
"""
from __future__ import annotations

import dataclasses
import difflib
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_type_hints

from ..errors import UsageError
from .other_names import ALIASES, COMMANDS, HINTS, HINTS_WITHOUT_FIELD

HELP_WIDTH = 80
HELP = ("-h", "--help", "--help-all")
HELP_INDENT = 30
LIST = tuple[str, ...]
SWITCHES = (bool, bool | None)
"""Types of an option that is turned on or off by its name; None means that it was not given."""
T = TypeVar("T", bound="Options")


@dataclass(frozen=True)
class Allowed:
    """Which values an option takes: `test` decides, `text` says it in words ("at least 1")."""

    text: str
    test: Callable[[Any], bool]


@dataclass(frozen=True)
class Option:
    """What the command line knows about a field beside its default and type.

    names: every spelling that takes a value, or that turns a yes/no field on; off: those that turn it off. An argument
    has none: it is known by its place.
    shown_default: words for a default that is worked out at run time (a field whose default is None).
    """

    group: str
    help: str
    metavar: str
    names: tuple[str, ...]
    off: tuple[str, ...]
    allowed: Allowed | None
    shown_default: str
    is_argument: bool = False


def option(default: Any, group: str, metavar: str, help: str, *, names: Sequence[str] = (), off: Sequence[str] = (),
           allowed: Allowed | None = None, shown_default: str = "") -> Any:
    """A dataclass field that is an option. `names` are further spellings; the field's own name is always the first."""
    spec = Option(group, help, metavar, tuple(names), tuple(off), allowed, shown_default)
    return dataclasses.field(default=default, metadata={"option": spec})


def argument(metavar: str, help: str) -> Any:
    """A dataclass field that stands without a name on the command line (`convert IN OUT`) and must be given."""
    return dataclasses.field(default="", metadata={
        "option": Option("Arguments", help, metavar, (), (), None, "", is_argument=True)})


def force() -> Any:
    """The option of every command that writes files, to replace what it would not."""
    return option(False, "Options", "", "replace a file of another kind than the output")


def same_as(cls: type, name: str, group: str, **changes: Any) -> Any:
    """A dataclass field that is the same option as that field of `cls`, under another heading in the help, and with
    these changes of its Option."""
    field = {field.name: field for field in dataclasses.fields(cls)}[name]
    spec = dataclasses.replace(field.metadata["option"], group=group, **changes)
    return dataclasses.field(default=field.default, metadata={"option": spec})


class Options:
    """Base of the option classes, frozen dataclasses of fields made by `option`. Every value is checked on creation.

    MATTER_MOST  fields that the short help shows; empty: all
    """

    MATTER_MOST: ClassVar[tuple[str, ...]] = ()

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    def __post_init__(self) -> None:
        for field, spec in fields(type(self)):
            value = getattr(self, field.name)
            if spec.is_argument and not value:
                raise UsageError(f"{spec.metavar} is missing: {spec.help}")
            if spec.allowed and value is not None and not spec.allowed.test(value):
                given = " ".join(value) if isinstance(value, tuple) else value
                raise UsageError(f"{spec.names[0]} {given}: must be {spec.allowed.text}")

    @classmethod
    def complete(cls: type[T], given: Mapping[str, Any]) -> T:
        """The options with these values, by field. A class whose options can come from elsewhere too adds those
        here."""
        return cls(**given)


_FIELDS: dict[type, tuple[tuple[dataclasses.Field, Option], ...]] = {}
_TYPES: dict[type, dict[str, Any]] = {}


def fields(cls: type[Options]) -> tuple[tuple[dataclasses.Field, Option], ...]:
    """Each field with its Option, in which `names` begins with the name that follows from the field's."""
    def named(field: dataclasses.Field) -> Option:
        spec: Option = field.metadata["option"]
        if spec.is_argument:
            return spec
        return dataclasses.replace(spec, names=("--" + field.name.replace("_", "-"), *spec.names))

    if cls not in _FIELDS:
        _FIELDS[cls] = tuple((field, named(field)) for field in dataclasses.fields(cls))
    return _FIELDS[cls]


def types_of(cls: type[Options]) -> dict[str, Any]:
    """The type of each field."""
    if cls not in _TYPES:
        _TYPES[cls] = get_type_hints(cls)
    return _TYPES[cls]


def parse(cls: type[T], argv: Sequence[str]) -> T | None:
    """The options in `argv` as an instance of `cls`; None when help was asked for. UsageError says what is wrong."""
    given = given_in(cls, argv)
    return None if given is None else cls.complete(given)


def given_in(cls: type[Options], argv: Sequence[str]) -> dict[str, Any] | None:
    """What `argv` says, by field, before defaults complete it; None when help was asked for. UsageError as above."""
    types = types_of(cls)
    takes_value, switches = _spellings(cls, types)
    places = [field.name for field, spec in fields(cls) if spec.is_argument]
    given: dict[str, Any] = {}
    arguments = iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=") if argument.startswith("--") else (argument, "", "")
        if name.startswith("--"):
            name = name.replace("_", "-")
        if name in HELP:
            return None
        if name in switches:
            if equals:
                raise UsageError(f"{name} takes no value, but was given {value!r}")
            field_name, given_state = switches[name]
            given[field_name] = given_state
        elif name in takes_value:
            if not equals:
                try:
                    value = next(arguments)
                except StopIteration:
                    raise UsageError(f"{name} needs a value") from None
            field_name = takes_value[name]
            if types[field_name] == LIST:
                given[field_name] = (*given.get(field_name, ()), value)
            else:
                given[field_name] = convert(name, value, types[field_name])
        elif places and not argument.startswith("-"):
            given[places.pop(0)] = argument
        else:
            raise UsageError(unknown(name, [*takes_value, *switches, "--help"],
                                     help="--help-all" if cls.MATTER_MOST else "--help"))
    return given


def _spellings(cls: type[Options], types: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, tuple[str, bool]]]:
    """The field of each name that takes a value, and field and state of each that takes none; an alias takes nobody's
    place.
    """
    takes_value: dict[str, str] = {}
    switches: dict[str, tuple[str, bool]] = {}
    for field, spec in fields(cls):
        for state, names in ((True, spec.names), (False, spec.off)):
            for name in names:
                if types[field.name] in SWITCHES:
                    switches[name] = field.name, state
                else:
                    takes_value[name] = field.name
    for field, spec in fields(cls):
        for name in ALIASES.get(field.name, ()) if not spec.is_argument else ():
            if name not in takes_value and name not in switches:
                if types[field.name] in SWITCHES:
                    switches[name] = field.name, True
                else:
                    takes_value[name] = field.name
    return takes_value, switches


def convert(name: str, text: str, wanted: Any) -> Any:
    """`text` as the type of a field; UsageError, naming the option, if it is none."""
    if wanted in (int, int | None):
        if not re.fullmatch(r"[+-]?[0-9]{1,4000}", text):
            raise UsageError(f"{name} {text}: must be a whole number")
        return int(text)
    if wanted in (float, float | None):
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not math.isfinite(number) or "_" in text:
            raise UsageError(f"{name} {text}: must be a number")
        return number
    return text


MANY = 20
"""More arguments than these are too many for a message of one line."""


def unknown(name: str, known: Sequence[str], what: str = "option", help: str = "--help") -> str:
    """The message for an unknown name, with the nearest known one as a hint.

    help  the option that lists every name
    """
    hint = HINTS.get(name) or HINTS_WITHOUT_FIELD.get(name)
    if what == "option" and hint:
        return f"unknown option {name}: {hint}"
    if what == "command" and name in COMMANDS:
        return f"unknown command {name} (did you mean {COMMANDS[name]}?)"
    if what == "option" and not name.startswith("-"):
        return f"unexpected argument {name!r}: each value follows the name of its option ({help} lists them)"
    by_letters = {each.lstrip("-"): each for each in known}
    near = [by_letters[letters] for letters in difflib.get_close_matches(name.lstrip("-"), by_letters, n=1)]
    listed = f"{help} lists every {what}" if what in ("option", "command") else (
        "docs/options.md lists them" if what == "argument" and len(known) > MANY else f"known are {', '.join(known)}")
    return f"unknown {what} {name} ({f'did you mean {near[0]}?' if near else listed})"


def to_argv(options: Options, defaults: Mapping[str, Any] | None = None) -> list[str]:
    """The shortest command line that `parse` reads as these options: what differs from the defaults.

    defaults  those of a preset, by field
    """
    argv: list[str] = []
    for field, spec in fields(type(options)):
        value = getattr(options, field.name)
        if value == (defaults or {}).get(field.name, field.default):
            continue
        if isinstance(value, bool):
            argv.append((spec.names if value else spec.off)[0])
        elif spec.is_argument:
            argv.append(value)
        elif isinstance(value, tuple):
            for item in value:
                argv += [spec.names[0], item]
        else:
            argv += [spec.names[0], str(value)]
    return argv


def help_text(cls: type[Options], everything: bool = True) -> str:
    """Every option, or those that matter most, with its default, by group, HELP_WIDTH columns wide."""
    types = types_of(cls)
    groups: dict[str, list[str]] = {}
    for field, spec in fields(cls):
        if not everything and cls.MATTER_MOST and field.name not in cls.MATTER_MOST:
            continue
        names = sorted(spec.names, key=lambda name: name.startswith("--"))
        left = "  " + ", ".join([*names, *spec.off])
        if types[field.name] not in SWITCHES:
            left = left.rstrip() + " " * (1 if spec.names else 2) + spec.metavar
        default = spec.shown_default or shown(field.default, spec)
        text = spec.help + (f" [{default}]" if default else "")
        lines = textwrap.wrap(text, HELP_WIDTH - HELP_INDENT, break_on_hyphens=False)
        if len(left) > HELP_INDENT - 2:
            lines.insert(0, "")
        block = [left.ljust(HELP_INDENT) + lines[0], *(" " * HELP_INDENT + line for line in lines[1:])]
        groups.setdefault(spec.group, []).extend(line.rstrip() for line in block)
    return "\n\n".join("\n".join([f"{group}:", *lines]) for group, lines in groups.items())


def shown(default: Any, spec: Option) -> str:
    """A default as the help shows it; a switch that can only be turned on needs none."""
    if isinstance(default, bool):
        return "on" if default else "off" if spec.off else ""
    if isinstance(default, tuple):
        return " ".join(default)
    return "" if default is None else str(default)
