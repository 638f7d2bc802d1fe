"""Runs a stranger's chat template within bounds of time and memory.

jinja2's sandbox keeps a template from what it must not touch, but not from `range(99999)` in a loop of itself,
`'a' * 10**9`, or a list that doubles forty times. Here everything by which a template can spend much passes a meter:
loops and macros are metered by statements put into their bodies; operators, calls, and filters by the hooks that jinja2
has; and nothing is computed while a template is compiled. What one operation would make is estimated before it runs.
"""
from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from functools import wraps
from types import BuiltinMethodType
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

SECONDS = 1.0
"""Time that a rendering may take. After it, it may still use as much processor time: the machine may have been busy."""

UNITS = 12 << 20
"""Characters that a rendering may make, an item of a list counting as some, ..."""

UNITS_PER_INPUT = 16
"""... and how many more for each character of what it is given."""

LONGEST_SOURCE = 1 << 18    # characters of a template
WIDEST = 10_000             # of padding and indentation
LARGEST_INT_BITS = 4096
MOST_DIGITS = 4300          # as Python's own limit
NODE, ITEM, STEP = 16, 8, 500
"""Units of an object in a value, of a place in a list, of a step."""

CLOCK_UNITS = 20_000
"""Units between two looks at the clock."""

FILTERS = frozenset("""
    abs attr batch capitalize center count d default dictsort e escape first float forceescape format groupby indent int
    items join last length list lower map max min reject rejectattr replace reverse round safe select selectattr sort
    string sum title tojson trim truncate unique upper wordcount
""".split())
"""jinja2's filters that templates may use; the others are for web pages, or random."""

STR_METHODS = frozenset("""
    capitalize casefold center count endswith find format format_map index isalnum isalpha isascii isdecimal isdigit
    islower isnumeric isspace istitle isupper join ljust lower lstrip partition removeprefix removesuffix replace rfind
    rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper zfill
""".split())
DICT_METHODS = frozenset(("get", "items", "keys", "values"))


class TooMuch(Exception):
    """A template takes more time or memory than any needs."""


class OwnList(list):
    """A list that a template made itself, which it may change by append and pop; what it was given must not change."""


class Meter:
    """What a rendering has spent."""

    __slots__ = ("cpu_deadline", "deadline", "given", "left", "since")

    def __init__(self) -> None:
        self.start(None)

    def start(self, given: Any) -> None:
        """given: what the template is to render."""
        self.left, self.since, self.given = UNITS, 0, given
        self.deadline, self.cpu_deadline = time.monotonic() + SECONDS, 0.0

    def spend(self, units: int) -> None:
        """Raises TooMuch when nothing is left."""
        self.left -= units
        self.since += units
        if self.since > CLOCK_UNITS:
            self._look()

    def _look(self) -> None:
        self.since = 0
        if self.left < 0:
            given, self.given = self.given, None
            self.left += UNITS_PER_INPUT * weight(given, 1 << 40)
            if self.left < 0:
                raise TooMuch(f"it makes more than {UNITS >> 20} million characters beyond its input")
        if time.monotonic() > self.deadline:
            now = time.thread_time()
            self.cpu_deadline = self.cpu_deadline or now + SECONDS
            if now > self.cpu_deadline:
                raise TooMuch(f"it takes more than {2 * SECONDS:.0f} seconds")

    def weigh(self, value: Any) -> Any:
        """The value, for which is spent what it would be as text."""
        if type(value) is str:
            self.spend(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.spend(weight(value, self.left + CLOCK_UNITS + UNITS_PER_INPUT * weight(self.given, 1 << 40)))
        else:
            self.spend(NODE)
        return value


def weight(value: Any, limit: int) -> int:
    """Characters of a value as text, about; soon after it exceeds the limit the rest is left out."""
    total, stack = 0, [value]
    while stack and total <= limit:
        value = stack.pop()
        if isinstance(value, str):
            total += len(value)
        elif isinstance(value, dict):
            stack += value
            stack += value.values()
        elif isinstance(value, (list, tuple)):
            stack += value
        total += NODE
    return total


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """An environment whose templates spend from `meter`. Not for several threads at once."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))

    def __init__(self, **options: Any) -> None:
        self.meter = Meter()
        super().__init__(optimized=False, finalize=pass_context(lambda context, value: self.meter.weigh(value)),
                         **options)
        del self.globals["lipsum"]
        self.filters = {name: self.metered(name, function) for name,
                        function in self.filters.items() if name in FILTERS}
        self.filters.update({"#step": self.meter.spend, "#weigh": self.meter.weigh, "#concat": self.concat,
                             "#own": lambda value: OwnList(self.meter.weigh(value))})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > LONGEST_SOURCE:
            raise TooMuch(f"it has more than {LONGEST_SOURCE >> 10} KB")
        return MeterTheTree().visit(super()._parse(source, name, filename))

    # --------------------------------------------------------------------------------------- what a template reaches

    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict:
            if attribute in DICT_METHODS:
                return getattr(obj, attribute)
            if attribute in obj:
                return obj[attribute]
        elif kind is OwnList and attribute in ("append", "pop"):
            return self.append_to(obj) if attribute == "append" else obj.pop
        elif kind is LoopContext:
            if attribute[:1] != "_":
                return getattr(obj, attribute, None)
        elif isinstance(obj, str) and hasattr(str, attribute) and attribute not in STR_METHODS:
            return self.unsafe_undefined(obj, attribute)
        elif isinstance(obj, (int, float)):
            return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        try:
            return obj[argument]
        except (TypeError, LookupError):
            return self.getattr(obj, argument) if isinstance(argument, str) else self.undefined(obj=obj, name=argument)

    def wrap_str_format(self, value: Any) -> Any:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        @wraps(value)
        def run(*args: Any, **kwargs: Any) -> str:
            check_format(value.__self__)
            self.meter.weigh([*args, *kwargs.values()])
            return wrapped(*args, **kwargs)

        return run

    # ------------------------------------------------------------------------------------------ what a template does

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = __self.meter
        meter.spend(STEP)
        if type(__obj) is BuiltinMethodType and isinstance(__obj.__self__, str):
            meter.spend(size_of_method(__obj.__name__, __obj.__self__, args))
        result = super().call(__context, __obj, *args, **kwargs)
        meter.weigh(result)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if type(left) is str and type(right) is str and operator == "+":
            self.meter.spend(len(left) + len(right))
            return left + right
        self.meter.spend(STEP)
        if operator == "%" and isinstance(left, str):
            check_format(left)
            self.meter.weigh(right)
        self.meter.spend(size_of_operation(operator, left, right))
        return self.binop_table[operator](left, right)

    def append_to(self, own: OwnList) -> Callable[[Any], None]:
        """The method `append` of a list."""
        def append(item: Any) -> None:
            self.meter.spend(ITEM)
            own.append(self.meter.weigh(item))

        return append

    def concat(self, values: Iterable[Any]) -> str:
        """`a ~ b ~ c`."""
        self.meter.weigh(values)
        return "".join(map(str, values))

    def metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that spends for its arguments and its result."""
        n_passed = int(hasattr(function, "jinja_pass_arg"))
        meter = self.meter

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            value, *others = args[n_passed:]
            meter.spend(STEP)
            meter.spend(size_of_filter(name, value, [*others, *kwargs.values()]))
            result = function(*args, **kwargs)
            if isinstance(result, str):
                meter.spend(len(result))
            elif isinstance(result, (list, tuple)):
                meter.spend(ITEM * len(result))
            return result

        return run


class MeterTheTree(NodeTransformer):
    """Puts a step into the body of each loop and macro, and the meter around literals, comparisons, and `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._stepping(node)

    visit_Macro = visit_CallBlock = visit_For

    def _stepping(self, node: Any) -> nodes.Node:
        text = sum(len(data.data) for child in node.body for data in
                   ([child] if isinstance(child, nodes.TemplateData) else child.find_all(nodes.TemplateData)))
        self.generic_visit(node)
        step = nodes.ExprStmt(_filtered(nodes.Const(STEP + text), "#step"), lineno=node.lineno)
        node.body.insert(0, step)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "#concat")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        if not isinstance(node.expr, nodes.Const):
            node.expr = _filtered(node.expr, "#weigh")
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "#own")

    def visit_Tuple(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _filtered(node, "#weigh")

    visit_Dict = visit_Tuple


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


# ------------------------------------------------------------------------------------- how much an operation would make

def size_of_operation(operator: str, left: Any, right: Any) -> int:
    """Units of the result of `left operator right`. Raises TooMuch for numbers that are too large."""
    for sequence, n in ((left, right), (right, left)):
        if operator == "*" and isinstance(sequence, (str, list, tuple)) and isinstance(n, int):
            size = len(sequence) if isinstance(sequence, str) else weight(sequence, UNITS)
            return max(0, n) * max(1, size)
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
        if bits > LARGEST_INT_BITS:
            raise TooMuch("it makes a number of too many digits")
        return 0
    return sum(len(value) * (1 if isinstance(value, str) else ITEM) for value in (left, right)
               if isinstance(value, (str, list, tuple)))


def size_of_method(name: str, text: str, args: tuple[Any, ...]) -> int:
    """Units of what a method of a string makes."""
    if name in ("center", "ljust", "rjust", "zfill"):
        check_widths(args)
    elif name == "replace" and len(args) >= 2:
        return size_of_replace(text, *args[:2])
    elif name == "join" and args and isinstance(args[0], (list, tuple)):
        return weight(args[0], UNITS) + len(args[0]) * len(text)
    elif name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args and isinstance(args[0], str) and args[0] else None
        n = text.count(separator) if separator else sum(map(text.count, " \t\n\r"))
        return 4 * NODE * n + len(text)
    return len(text)


def size_of_filter(name: str, value: Any, others: list[Any]) -> int:
    """Units of what a filter makes of its value."""
    if name in ("center", "indent", "batch", "round", "tojson", "truncate"):
        check_widths(others, 100 if name in ("round", "tojson") else WIDEST)
    if name == "sum" and any(isinstance(other, (list, tuple)) for other in others):
        raise TooMuch("it adds up lists")
    if name == "format":
        check_format(str(value))
        return weight(others, UNITS)
    if name == "int" and isinstance(value, str) and len(value) > MOST_DIGITS:
        raise TooMuch("it reads a number of too many digits")
    if not isinstance(value, str):
        size = weight(value, UNITS) if name in ("join", "string", "tojson", "replace", "sort", "unique") else STEP
        return size + (len(str(others[0])) * len(value) if name == "join" and others and hasattr(value,
                                                                                                 "__len__") else 0)
    if name == "replace" and len(others) >= 2:
        return size_of_replace(value, *others[:2])
    if name == "indent":
        width = others[0] if others else 4
        return (value.count("\n") + 1) * (len(width) if isinstance(width, str) else int(width)) + len(value)
    return NODE * len(value) if name in ("list", "sort", "unique", "map", "batch") else len(value)


def size_of_replace(text: str, old: Any, new: Any) -> int:
    return len(text) + text.count(str(old)) * len(str(new))


def check_widths(values: Any, most: int = WIDEST) -> None:
    """Raises TooMuch where one of these numbers, or texts to pad with, is too large for what it is for."""
    for value in values:
        if (isinstance(value, int) and value > most) or (isinstance(value, str) and len(value) > most):
            raise TooMuch(f"it pads a text, or rounds a number, to more than {most} places")


def check_format(text: str) -> None:
    """Raises TooMuch where a format string has a width of five digits, or one that comes from elsewhere."""
    if re.search(r"\d{5}|%[-+ #0]*\*|%[-+ #0\d]*\.\*|\{[^{}]*\{", text):
        raise TooMuch("it formats a text with a width that is too large")
