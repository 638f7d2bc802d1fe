"""Runs a stranger's chat template within bounds of time and memory.

jinja2's sandbox keeps a template from what it must not touch, but not from `range(99999)` in a loop of itself,
`'a' * 10**9`, or a list that doubles forty times. Here everything by which a template can spend much passes a meter:
loops and macros are metered by statements put into their bodies; operators, calls, and filters by the hooks that jinja2
has; and nothing is computed while a template is compiled. What one operation would make is estimated before it runs.
"""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, cast

from jinja2 import nodes, pass_context
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .template_sizes import (
    EACH,
    ITEM,
    NODE,
    UNITS,
    TooMuch,
    size_of_filter,
    size_of_format,
    size_of_method,
    size_of_operation,
    weight,
)

SECONDS = 0.9
"""Time that a rendering may take. After it, it may still use as much processor time: the machine may have been busy."""

UNITS_PER_INPUT = 16
"""Units that a rendering may spend beside UNITS, for each of what it is given."""

STEP = 500
"""Units of an iteration, a call, an operator, a filter."""

LONGEST_SOURCE, MOST_NODES = 48 << 10, 1 << 13
"""Characters of a template, and nodes of its tree: to compile one takes a tenth of a millisecond and 7 KB. The largest
templates that are known have 16 KB and 1,300 nodes.
"""

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
            self.spend(weight(value, 0))
        return value

    def counted(self, value: Any) -> Any:
        """What is to be gone through item by item: it is spent for each, of what has no end that is known as it comes.
        """
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, range):
            self.spend(EACH * len(value))
        elif isinstance(value, (list, tuple)):
            self.spend(ITEM * len(value))
        elif isinstance(value, Iterator):
            return self._each(value)
        return value

    def _each(self, values: Iterator[Any]) -> Iterator[Any]:
        for value in values:
            self.spend(EACH)
            yield value

    def sliced(self, value: Any) -> Any:
        """A part of a text or list."""
        self.spend(STEP + (1 if isinstance(value, str) else ITEM) * (len(value) if hasattr(value, "__len__") else 1))
        return value


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
                             "#count": self.meter.counted, "#slice": self.meter.sliced,
                             "#own": lambda value: OwnList(self.meter.weigh(value))})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > LONGEST_SOURCE:
            raise TooMuch(f"it has more than {LONGEST_SOURCE >> 10} KB")
        tree = super()._parse(source, name, filename)
        if any(number >= MOST_NODES for number, _ in enumerate(tree.find_all(nodes.Node))):
            raise TooMuch(f"it has more than {MOST_NODES:,} expressions and statements")
        return MeterTheTree().visit(tree)

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
            self.meter.spend(size_of_format(value.__self__, [*args, *kwargs.values()]))
            return wrapped(*args, **kwargs)

        return run

    # ------------------------------------------------------------------------------------------ what a template does

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter = __self.meter
        meter.spend(STEP + NODE * len(args))
        if isinstance(getattr(__obj, "__self__", None), str):
            if __obj.__name__ == "join" and args:
                args = (list(meter.counted(args[0])), *args[1:])
            meter.spend(size_of_method(__obj.__name__, __obj.__self__, args))
        result = super().call(__context, __obj, *args, **kwargs)
        meter.weigh(result)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if type(left) is str and type(right) is str and operator == "+":
            self.meter.spend(len(left) + len(right))
            return left + right
        self.meter.spend(STEP)
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
            passed, value, others = args[:n_passed], meter.counted(args[n_passed]), args[n_passed + 1:]
            meter.spend(STEP)
            if name == "join" and isinstance(value, Iterator):
                value = list(value)
            meter.spend(size_of_filter(name, value, [*others, *kwargs.values()]))
            result = function(*passed, value, *others, **kwargs)
            if isinstance(result, str):
                meter.spend(len(result))
            elif isinstance(result, (list, tuple)):
                meter.spend(ITEM * len(result))
            return result

        return run


class MeterTheTree(NodeTransformer):
    """Puts a step into the body of each loop and macro, and the meter around what loops go through, literals, slices,
    comparisons, and `~`.
    """

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self._stepping(node)
        node.iter = _filtered(node.iter, "#count")
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._stepping(node)

    visit_CallBlock = visit_Macro

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
        for operand in node.ops:
            if not isinstance(operand.expr, nodes.Const):
                operand.expr = _filtered(operand.expr, "#count")
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "#slice") if isinstance(node.arg, nodes.Slice) else node

    def visit_List(self, node: nodes.List) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "#own")

    def visit_Tuple(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _filtered(node, "#weigh")

    visit_Dict = visit_Tuple


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None, lineno=node.lineno)
