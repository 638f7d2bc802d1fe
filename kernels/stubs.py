"""Writes what type checkers read of the compiled kernels: a lorafast/kernels/X.pyi for each kernels/X.pyx.

`make stubs` runs it after a change of a kernel's signature; tests/kernels/test_stubs.py tells when that was forgotten.
"""
from __future__ import annotations

import re
from pathlib import Path

SOURCES = Path(__file__).parent
STUBS = SOURCES.parent / "lorafast" / "kernels"
MAX_COLUMNS = 120

ELEMENTS = {"float": "float32", "double": "float64", "int": "int32", "int16_t": "int16", "unsigned char": "uint8",
            "uint8_t": "uint8", "int8_t": "int8", "uint16_t": "uint16"}
"""NumPy types of a memoryview's elements, by their C type."""

SCALARS = {"int": "int", "Py_ssize_t": "int", "float": "float", "double": "float", "bint": "bool", "bytes": "bytes",
           "str": "str", "list": "list[Any]", "tuple": "tuple[Any, ...]", "object": "Any",
           "ExpertWeights": "ExpertWeights"}
"""Python types of an argument that is no memoryview, by its C type."""

TOP_LEVEL = re.compile(r"^def .*?:$|^(?:cdef )?class .*?(?=^\S|\Z)", re.MULTILINE | re.DOTALL)
FUNCTION = re.compile(r"^(?P<decorator> *@(?:property|staticmethod)\n)?"
                      r"(?P<indent> *)def (?P<name>\w+)\((?P<arguments>.*?)\)"
                      r"(?: -> (?P<returns>.+?))?:$",
                      re.MULTILINE | re.DOTALL)
CLASS = re.compile(r"(?:cdef )?class (?P<name>\w+)")
ATTRIBUTES = re.compile(r"^    cdef readonly (?P<type>\w+) (?P<names>.+)$", re.MULTILINE)
ARGUMENT = re.compile(r"(?:const )?(?P<type>[\w ]+?)(?P<view>\[[^\]]*\])? (?P<name>\w+)(?P<required> not None)?"
                      r"(?: ?= ?(?P<default>.+))?")


def stub(source: Path) -> str:
    """The stub of a kernel. Raises ValueError for an argument whose type it does not know."""
    parts = [_function(part) if part.startswith("def") else _class(part)
             for part in TOP_LEVEL.findall(source.read_text())]
    body = "\n\n".join(parts) + "\n"
    imports = ["from typing import Any"] if "Any" in body else []
    if "NDArray" in body:
        imports += [*([""] if imports else []), "import numpy as np", "from numpy.typing import NDArray"]
    head = f"# Made by kernels/stubs.py from kernels/{source.name}: change that, then `make stubs`."
    return "\n".join([head, *imports, "", body])


def _class(text: str) -> str:
    lines = [f"class {CLASS.match(text)['name']}:"]
    for attributes in ATTRIBUTES.finditer(text):
        lines += [f"    {name.strip()}: {SCALARS[attributes['type']]}" for name in attributes["names"].split(",")]
    lines += ["", *(_function(method[0]) for method in FUNCTION.finditer(text))]
    return "\n".join(lines)


def _function(text: str) -> str:
    match = FUNCTION.match(text)
    arguments = [_argument(match["name"], " ".join(argument.split()))
                 for argument in re.split(r",(?![^\[]*\])", match["arguments"]) if argument.strip()]
    line = begin = f"{match['indent']}def {match['name']}("
    end = f") -> {match['returns'] or 'None'}: ..."
    lines = []
    for word in [*(f"{argument}, " for argument in arguments[:-1]), "".join(arguments[-1:]) + end]:
        if len(line) + len(word.rstrip()) > MAX_COLUMNS:
            lines.append(line.rstrip())
            line = " " * len(begin)
        line += word
    return (match["decorator"] or "") + "\n".join([*lines, line])


def _argument(function: str, text: str) -> str:
    if text == "self":
        return text
    match = ARGUMENT.fullmatch(text)
    known = ELEMENTS if match and match["view"] else SCALARS
    if not match or match["type"] not in known:
        raise ValueError(f"{function}: the argument '{text}' has a type that kernels/stubs.py does not know")
    type = f"NDArray[np.{known[match['type']]}]" if match["view"] else known[match["type"]]
    if match["view"] and not match["required"]:
        type += " | None"
    return f"{match['name']}: {type}" + (f" = {match['default']}" if match["default"] else "")


def main() -> None:
    for source in sorted(SOURCES.glob("*.pyx")):
        (STUBS / f"{source.stem}.pyi").write_text(stub(source))


if __name__ == "__main__":
    main()
