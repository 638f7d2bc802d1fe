"""Regular expressions from files of strangers, matched in polynomial time.

A PEFT config names modules by regular expressions. Python's `re` tries one way after the other, which for a pattern
such as `((a|.)*)*Z` takes longer than anyone waits. Here a part of a pattern maps a position to the set of all
positions at which it can end, each pair of part and position worked out once: a match takes at most |pattern| · |text|²
steps.

Known are literals, `.`, sets, `\\d \\w \\s` and escaped characters, groups, `|`, `* + ? {m,n}`, `^` and `$`. What else
`re` knows (look-around, back-references, lazy and possessive repetition) raises ValueError.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache

Ends = Callable[[str, int], "frozenset[int]"]
"""A part of a pattern: from a text and the position where the part begins, all positions where it can end."""

MAX_LENGTH, MAX_DEPTH, MAX_REPEATS = 1000, 20, 100
CLASSES: dict[str, Callable[[str], bool]] = {
    "d": str.isdecimal, "w": lambda char: char.isalnum() or char == "_", "s": str.isspace,
    "D": lambda char: not char.isdecimal(), "W": lambda char: not (char.isalnum() or char == "_"),
    "S": lambda char: not char.isspace(),
}


def ends_with(pattern: str, text: str) -> bool:
    """Whether the pattern matches `text`, or what follows one of its points: PEFT's rule, `(.*\\.)?(pattern)$`.

    Raises ValueError for a pattern of a kind that is not known here.
    """
    ends = _compiled(pattern)
    starts = [0, *(position + 1 for position, char in enumerate(text) if char == ".")]
    return any(len(text) in ends(text, start) for start in starts)


@lru_cache(256)
def _compiled(pattern: str) -> Ends:
    if len(pattern) > MAX_LENGTH:
        raise ValueError(f"it has {len(pattern)} characters, more than {MAX_LENGTH}")
    parser = _Parser(pattern)
    ends = parser.alternatives(0)
    if parser.position < len(pattern):
        raise ValueError("it closes a group that it never opened")
    return ends


class _Parser:
    def __init__(self, pattern: str) -> None:
        self.pattern, self.position = pattern, 0

    def peek(self) -> str:
        return self.pattern[self.position:self.position + 1]

    def next(self) -> str:
        char = self.peek()
        if not char:
            raise ValueError("it ends in the middle")
        self.position += 1
        return char

    def alternatives(self, depth: int) -> Ends:
        if depth > MAX_DEPTH:
            raise ValueError(f"its groups are nested more than {MAX_DEPTH} deep")
        parts = [self.sequence(depth)]
        while self.peek() == "|":
            self.next()
            parts.append(self.sequence(depth))
        return parts[0] if len(parts) == 1 else _any_of(parts)

    def sequence(self, depth: int) -> Ends:
        parts = []
        while self.peek() not in ("", "|", ")"):
            parts.append(self.repeated(self.atom(depth)))
        return _in_turn(parts)

    def atom(self, depth: int) -> Ends:
        char = self.next()
        if char == "(":
            if self.peek() == "?":
                if self.pattern[self.position:self.position + 2] != "?:":
                    raise ValueError("it uses (?...), look-around or a named group")
                self.position += 2
            group = self.alternatives(depth + 1)
            if self.next() != ")":
                raise ValueError("a group is not closed")
            return group
        if char == "[":
            return _one(self.set())
        if char == "\\":
            return _one(self.escaped())
        if char in "*+?{":
            raise ValueError(f"{char} repeats nothing")
        if char == ".":
            return _one(lambda other: other != "\n")
        if char in "^$":
            return lambda text, start: frozenset([start] if start == (0 if char == "^" else len(text)) else [])
        return _one(char.__eq__)

    def escaped(self) -> Callable[[str], bool]:
        char = self.next()
        if char in CLASSES:
            return CLASSES[char]
        if char.isalnum():
            raise ValueError(f"\\{char} is not known")
        return char.__eq__

    def set(self) -> Callable[[str], bool]:
        negated = self.peek() == "^"
        if negated:
            self.next()
        tests: list[Callable[[str], bool]] = []
        while (char := self.next()) != "]" or not tests:
            if char == "\\":
                tests.append(self.escaped())
            elif self.peek() == "-" and self.pattern[self.position + 1:self.position + 2] not in ("", "]"):
                self.next()
                tests.append(_between(char, self.next()))
            else:
                tests.append(char.__eq__)
        return lambda other: any(test(other) for test in tests) != negated

    def repeated(self, part: Ends) -> Ends:
        if self.peek() not in ("*", "+", "?", "{"):
            return part
        char = self.next()
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(char) or self.bounds()
        if self.peek() in ("*", "+", "?", "{"):
            raise ValueError("a repetition is followed by another")
        return _times(part, low, high)

    def bounds(self) -> tuple[int, int | None]:
        inside = ""
        while (char := self.next()) != "}":
            inside += char
        low, comma, high = inside.partition(",")
        if len(inside) > 8 or not all(number.isdecimal() or not number for number in (low, high)) or not (low or high):
            raise ValueError(f"{{{inside:.20}}} is not a number of repetitions")
        bounds = int(low or 0), (int(high) if high else None) if comma else int(low)
        if max(bounds[0], bounds[1] or 0) > MAX_REPEATS:
            raise ValueError(f"{{{inside}}} is more than {MAX_REPEATS} repetitions")
        return bounds


def _between(low: str, high: str) -> Callable[[str], bool]:
    return lambda char: low <= char <= high


def _one(test: Callable[[str], bool]) -> Ends:
    return lambda text, start: frozenset([start + 1] if start < len(text) and test(text[start]) else [])


def _remembered(ends: Ends) -> Ends:
    """Each position worked out once for a text."""
    return lru_cache(2048)(ends)


def _any_of(parts: Iterable[Ends]) -> Ends:
    chosen = list(parts)
    return _remembered(lambda text, start: frozenset().union(*(part(text, start) for part in chosen)))


def _in_turn(parts: Iterable[Ends]) -> Ends:
    chosen = list(parts)

    def ends(text: str, start: int) -> frozenset[int]:
        reached = frozenset([start])
        for part in chosen:
            reached = frozenset().union(*(part(text, position) for position in reached))
        return reached

    return chosen[0] if len(chosen) == 1 else _remembered(ends)


def _times(part: Ends, low: int, high: int | None) -> Ends:
    """`part` from `low` to `high` times; None: any number."""
    def ends(text: str, start: int) -> frozenset[int]:
        reached = frozenset([start])
        for _ in range(low):
            reached = frozenset().union(*(part(text, position) for position in reached))
        found, newest = set(reached), reached
        more = len(text) if high is None else high - low      # each further one reaches a new position, or adds nothing
        for _ in range(more):
            newest = frozenset().union(*(part(text, position) for position in newest)) - found
            if not newest:
                break
            found |= newest
        return frozenset(found)

    return _remembered(ends)
