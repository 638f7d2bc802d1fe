"""Typed access to the metadata of a model under its architecture's prefix."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import FormatError
from ..gguf.reader import GGUFFile


class Keys:
    """Reads keys as what they must be. Every method raises FormatError, which names the key, for another type, a value
    that cannot be, and a key that is missing and has no default."""

    def __init__(self, gguf: GGUFFile) -> None:
        self.gguf = gguf
        name = gguf.metadata.get("general.architecture", "")
        if not isinstance(name, str):
            raise FormatError(f"{gguf.path}: key 'general.architecture' is not text; the file is broken")
        self.prefix = name

    def error(self, name: str, what: str) -> FormatError:
        return FormatError(f"{self.gguf.path}: key '{self.prefix}.{name}' {what}")

    def _value(self, name: str, default: Any) -> Any:
        value = self.gguf.metadata.get(f"{self.prefix}.{name}", default)
        if value is None:
            raise self.error(name, "is missing; is this a whole model?")
        return value

    def _scalar(self, name: str, default: Any, kinds: tuple[type, ...], wanted: str) -> Any:
        value = self._value(name, default)
        if isinstance(value, (np.ndarray, list)):
            raise self.error(name, "differs between layers, which lorafast does not support")
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise self.error(name, f"is {value!r}, wanted {wanted}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number above 0, or 0 where that is the default."""
        value = self._scalar(name, default, (int,), "a whole number")
        if not 0 <= value < 2**31 or (value == 0 and default != 0):
            raise self.error(name, f"is {value}, which cannot be")
        return value

    def counts(self, name: str, n_layer: int, default: Sequence[int] | None = None) -> list[int]:
        """A whole number for each block: the key holds one for all, or an array."""
        value = self.gguf.metadata.get(f"{self.prefix}.{name}")
        if value is None and default is not None:
            return list(default)
        if not isinstance(value, (np.ndarray, list)):
            return [self.count(name)] * n_layer
        numbers = self._array(name, value, n_layer, "iu")
        if not all(0 <= number < 2**31 for number in numbers):
            raise self.error(name, f"holds {min(numbers)} or {max(numbers)}, which cannot be")
        return [int(number) for number in numbers]

    def number(self, name: str, default: float | None = None, *, at_least: float | None = None) -> float:
        """A finite number above 0, or from `at_least` on."""
        value = float(self._scalar(name, default, (int, float), "a number"))
        if at_least is None and not 0 < value < float("inf"):
            raise self.error(name, f"is {value}, wanted a number above 0")
        if at_least is not None and not at_least <= value < float("inf"):
            raise self.error(name, f"is {value}, wanted a number from {at_least:g} on")
        return value

    def text(self, name: str, default: str) -> str:
        return self._scalar(name, default, (str,), "text")

    def flag(self, name: str, default: bool) -> bool:
        return self._scalar(name, default, (bool,), "true or false")

    def flags(self, name: str, n_layer: int, period: int) -> list[bool]:
        """True or false for each block: an array, or a number n: all are true but every n-th. period: n without the
        key."""
        value = self.gguf.metadata.get(f"{self.prefix}.{name}")
        if isinstance(value, (np.ndarray, list)):
            return [bool(flag) for flag in self._array(name, value, n_layer, "biu")]
        n = self.count(name, 0) or period
        return [n > 0 and layer % n < n - 1 for layer in range(n_layer)]

    def _array(self, name: str, value: Any, n_layer: int, kinds: str) -> np.ndarray:
        array = np.asarray(value)
        if array.ndim != 1 or array.dtype.kind not in kinds or len(array) < n_layer:
            raise self.error(name, f"is an array that does not hold a number for each of {n_layer} blocks")
        return array[:n_layer]
