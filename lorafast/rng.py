"""Random numbers equal, bit for bit, to those of a C++ program built with GCC's library (libstdc++).

llama-finetune seeds a `std::mt19937` and draws from it the initial A matrices (through
`std::normal_distribution<float>`) and the order of the training samples. With the same generator the same seed starts
the same run.

Sources: Matsumoto and Nishimura, "Mersenne Twister" (1998); Marsaglia and Bray, "A convenient method for generating
normal variables" (1964), in the form libstdc++ gives it.
"""
from __future__ import annotations

import ctypes

import numpy as np
from numpy import random

from lorafast.errors import FormatError

STATE_WORDS = 624
_BLOCK = 1 << 20   # values a block: NumPy hands out 64-bit words, and we keep 32 bits of each

# The C library's own logf, as C++ calls it: one result in 140 differs by 1 ulp from the correctly rounded logarithm,
# and NumPy's is up to 4 ulp off. A call costs 0.25 µs; a 7B adapter of rank 4 takes 2.5 million.
_logf = ctypes.CDLL(None).logf
_logf.argtypes, _logf.restype = [ctypes.c_float], ctypes.c_float


class MT19937:
    """`std::mt19937`. NumPy has the same generator; seeding and the text form of the state are C++'s."""

    def __init__(self, seed: int):
        """`seed`: taken modulo 2^32, as `std::mt19937::seed` does."""
        words = [seed & 0xFFFFFFFF]
        for i in range(1, STATE_WORDS):
            previous = words[-1]
            words.append((1812433253 * (previous ^ (previous >> 30)) + i) & 0xFFFFFFFF)
        self._set_state(np.array(words, np.uint32), STATE_WORDS)

    def _set_state(self, words: np.ndarray, position: int) -> None:
        self._generator = random.MT19937(0)
        self._generator.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": position}}

    def draw(self, n: int) -> np.ndarray:
        """The next `n` values, uint32 (n,)."""
        values = np.empty(n, np.uint32)
        for start in range(0, n, _BLOCK):
            block = values[start:start + _BLOCK]
            block[:] = self._generator.random_raw(block.size)
        return values

    def copy(self) -> MT19937:
        """A generator that goes on from here on its own."""
        twin = object.__new__(MT19937)
        state = self._generator.state["state"]
        twin._set_state(state["key"], state["pos"])
        return twin

    def state_text(self) -> str:
        """The state as libstdc++'s `operator<<` writes it: 624 decimal words, then the position in them."""
        state = self._generator.state["state"]
        return " ".join(map(str, [*state["key"].tolist(), state["pos"]]))

    @classmethod
    def from_text(cls, text: str) -> MT19937:
        """The generator whose `state_text()` is `text`. FormatError when it is not such a text."""
        numbers = text.split()
        if len(numbers) != STATE_WORDS + 1 or not all(n.isascii() and n.isdigit() and len(n) <= 10 for n in numbers):
            raise FormatError(f"random generator's state {text[:40]!r}... is not {STATE_WORDS} words and a position")
        *words, position = map(int, numbers)
        if max(words) > 0xFFFFFFFF or position > STATE_WORDS:
            raise FormatError(f"random generator's state has a word above 32 bits or a position above {STATE_WORDS}")
        rng = object.__new__(cls)
        rng._set_state(np.array(words, np.uint32), position)
        return rng


def _logarithm(s: np.ndarray) -> np.ndarray:
    return np.fromiter(map(_logf, s.tolist()), np.float32, s.size)


class NormalDistribution:
    """libstdc++'s `std::normal_distribution<float>` with mean 0 and standard deviation 1, on an MT19937."""

    def __init__(self, rng: MT19937):
        self._rng = rng
        self._spare: np.float32 | None = None

    def draw(self, n: int) -> np.ndarray:
        """The next `n` values, float32 (n,).

        Polar method: (x, y) uniform in the square [-1, 1)², rejected outside the unit circle. With s = x² + y² both
        x·sqrt(-2 ln s / s) and y·sqrt(-2 ln s / s) are normal; libstdc++ returns that of y first and keeps the other.
        """
        values = np.empty(n, np.float32)
        filled = 0
        if n and self._spare is not None:
            values[0], self._spare, filled = self._spare, None, 1
        # As many pairs a round as are still missing: never one too many, so the generator ends where C++'s does.
        while missing := (n - filled + 1) // 2:
            x, y = self._points_in_circle(missing)
            s = x * x + y * y
            scale = np.sqrt(np.float32(-2) * _logarithm(s) / s)
            pairs = np.stack([y * scale, x * scale], axis=1).ravel()
            if filled + pairs.size > n:
                self._spare = pairs[-1]
                pairs = pairs[:-1]
            values[filled:filled + pairs.size] = pairs
            filled += pairs.size
        return values

    def _points_in_circle(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """The accepted ones among the next `n` candidates: x and y, float32 (<= n,)."""
        uniform = self._rng.draw(2 * n).astype(np.float32) * np.float32(2.0**-32)
        np.minimum(uniform, np.nextafter(np.float32(1), np.float32(0)), out=uniform)
        x, y = (np.float32(2) * uniform - np.float32(1)).reshape(n, 2).T
        s = x * x + y * y
        accepted = (s <= 1) & (s != 0)
        return x[accepted], y[accepted]
