"""How much an operation of a chat template would make, estimated before it runs (template_sandbox.py).

Sizes are in units: a character is one. Where a result can't be told from its operands, the estimate is above it.
"""
from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

WIDEST = 10_000             # of padding and indentation
LONGEST_PATH = 1000         # characters of the attribute that a filter looks up, of a separator
LARGEST_INT_BITS = 4096
MOST_DIGITS = 4300          # as Python's own limit

NODE, ITEM, EACH = 16, 8, 64
"""Units of an object in a value, of a place in a list, of what a filter yields and somebody may keep."""

UNITS = 12 << 20
"""A rendering may make so many characters, an item of a list counting as some: what weighs more need not be weighed."""

ESCAPED = 6
"""Characters that one becomes at most as JSON or HTML; as many times its room does changing its case take."""

ANY_NUMBER = 330
"""Characters of a float that is formatted with %f."""

WALKING = frozenset("""
    batch first groupby join list map max min reject rejectattr select selectattr sort sum unique
""".split())
"""Filters that go through a value item by item, most with an attribute to look up in each."""

CASES = frozenset("capitalize casefold lower swapcase title upper".split())

SEARCHING_BACKWARDS = frozenset("lstrip rfind rindex rpartition rsplit rstrip strip".split())
"""Methods of texts that may compare each character with each of their argument."""


class TooMuch(Exception):
    """A template takes more time or memory than any needs."""


def weight(value: Any, limit: int) -> int:
    """Characters of a value as text, about; soon after it exceeds the limit the rest is left out."""
    total, stack = 0, [value]
    while stack and total <= limit:
        value = stack.pop()
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, int):
            total += value.bit_length() >> 2
        elif isinstance(value, dict):
            stack += value
            stack += value.values()
        elif isinstance(value, (list, tuple)):
            stack += value
        total += NODE
    return total


def depth(value: Any) -> int:
    """Lists and dicts within each other; 1 for what holds none. Only of what has been weighed."""
    levels, level = 0, [value]
    while level:
        levels += 1
        level = [item for each in level if isinstance(each, (list, tuple, dict))
                 for item in (each.values() if isinstance(each, dict) else each)
                 if isinstance(item, (list, tuple, dict))]
    return levels


def texts_in(values: Iterable[Any]) -> int:
    """Characters of the texts among arguments."""
    return sum(len(value) for value in values if isinstance(value, str))


def size_of_operation(operator: str, left: Any, right: Any) -> int:
    """Units of the result of `left operator right`. Raises TooMuch for numbers that are too large."""
    for sequence, n in ((left, right), (right, left)):
        if operator == "*" and isinstance(sequence, (str, list, tuple)) and isinstance(n, int):
            size = len(sequence) if isinstance(sequence, str) else weight(sequence, UNITS)
            return max(0, n) * max(1, size)
    if operator == "%" and isinstance(left, str):
        return size_of_format(left, right)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > LARGEST_INT_BITS:
            raise TooMuch("it makes a number of too many digits")
        return 0
    size = sum(len(value) * (1 if isinstance(value, str) else ITEM) for value in (left, right)
               if isinstance(value, (str, list, tuple)))
    return size * ESCAPED if hasattr(left, "__html__") or hasattr(right, "__html__") else size


def size_of_method(name: str, text: str, args: tuple[Any, ...]) -> int:
    """Units of what a method of a string makes, or of the characters that it compares."""
    escaped = ESCAPED if hasattr(text, "__html__") else 1
    if name in ("center", "ljust", "rjust", "zfill"):
        check_widths(args)
    elif name == "replace" and len(args) >= 2:
        return escaped * size_of_replace(text, *args[:2])
    elif name == "join" and args and isinstance(args[0], (list, tuple)):
        return escaped * weight(args[0], UNITS) + len(args[0]) * len(text)
    elif name in SEARCHING_BACKWARDS and args:
        return len(text) * (1 + texts_in(args) // NODE) + size_of_split(name, text, args)
    elif name in CASES:
        return len(text) * (1 if text.isascii() else ESCAPED)
    return len(text) + texts_in(args) + size_of_split(name, text, args)


def size_of_split(name: str, text: str, args: tuple[Any, ...]) -> int:
    """Units of the parts of a text."""
    if name not in ("split", "rsplit", "splitlines"):
        return 0
    separator = args[0] if args and isinstance(args[0], str) and args[0] else None
    return 4 * NODE * (text.count(separator) if separator else sum(map(text.count, " \t\n\r")))


def size_of_filter(name: str, value: Any, others: list[Any]) -> int:
    """Units of what a filter makes of its value."""
    if name in WALKING and texts_in(others) > LONGEST_PATH:
        raise TooMuch(f"it looks up an attribute, or joins by a text, of more than {LONGEST_PATH} characters")
    if name in ("center", "indent", "batch", "round", "tojson", "truncate"):
        check_widths(others, 100 if name in ("round", "tojson") else WIDEST)
    if name == "sum" and any(isinstance(other, (list, tuple)) for other in others):
        raise TooMuch("it adds up lists")
    if name == "format":
        return size_of_format(str(value), others)
    if name == "int" and isinstance(value, str) and len(value) > MOST_DIGITS:
        raise TooMuch("it reads a number of too many digits")
    if name == "tojson":
        return size_of_json(value, others)
    if not isinstance(value, str):
        size = weight(value, UNITS) if name in ("join", "string", "replace", "sort", "unique") else 0
        return size + (len(str(others[0])) * len(value) if name == "join" and others and hasattr(value, "__len__")
                       else 0)
    if name == "replace" and len(others) >= 2:
        return size_of_replace(value, *others[:2])
    if name == "indent":
        width = others[0] if others else 4
        return (value.count("\n") + 1) * (len(width) if isinstance(width, str) else int(width)) + len(value)
    if name in ("e", "escape", "forceescape") or (name in CASES and not value.isascii()):
        return ESCAPED * len(value)
    if name == "trim":
        return len(value) * (1 + texts_in(others) // NODE)
    return (EACH if name in WALKING else 1) * len(value) + texts_in(others)


def size_of_json(value: Any, others: list[Any]) -> int:
    """Units of a value as JSON: its texts escaped, and what goes between its items."""
    size = weight(value, UNITS)
    if size > UNITS:
        return size
    between = 0
    for other in others:
        if isinstance(other, (list, tuple)):
            between += texts_in(other)                                                       # separators
        elif isinstance(other, (int, str)) and not isinstance(other, bool):
            between += depth(value) * (len(other) if isinstance(other, str) else other)      # indentation
    escaped = 2 * ESCAPED if True in others else ESCAPED
    return escaped * size + between * (size // NODE)


def size_of_replace(text: str, old: Any, new: Any) -> int:
    return len(text) + text.count(str(old)) * len(str(new))


def size_of_format(text: str, values: Any) -> int:
    """Units of a text with values in its fields, each of which may show all of them, in its own width.

    Raises TooMuch where a width has five digits, or comes from elsewhere.
    """
    if re.search(r"\d{5}|%[-+ #0]*\*|%[-+ #0\d]*\.\*|\{[^{}]*\{", text):
        raise TooMuch("it formats a text with a width that is too large")
    fields = text.count("%") + text.count("{")
    escaped = ESCAPED if hasattr(text, "__html__") else 1
    return len(text) + escaped * fields * (ANY_NUMBER + weight(values, UNITS)) + sum(map(int, re.findall(r"\d+", text)))


def check_widths(values: Any, most: int = WIDEST) -> None:
    """Raises TooMuch where one of these numbers, or texts to pad with, is too large for what it is for."""
    for value in values:
        if (isinstance(value, int) and value > most) or (isinstance(value, str) and len(value) > most):
            raise TooMuch(f"it pads a text, or rounds a number, to more than {most} places")
