"""Makes each allocation of each kernel fail, one after the other: `python tests/reliability/kernel_memory.py`.

All ops of the contracts (tests/kernels/test_contracts.py) are called, each time in a new thread, whose working memory
begins empty. Every allocation of the thread counts, Cython's and Python's too; it fails alone, or with those after it.
The op must raise MemoryError or do without, and give the same bits as ever when it is called once more.
"""
from __future__ import annotations

import ctypes
import errno
import sys
import tempfile
from collections import Counter
from pathlib import Path
from threading import Thread

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import numpy as np  # noqa: E402
from preload import library, preloaded  # noqa: E402

from tests.kernels.test_contracts import OPS, Op, run  # noqa: E402

ALLOCATION = 6
"""The kind's place in the library's enum."""
ROWS = 5
MORE = (0, 20)
"""How many allocations after the first that fails do so, too."""


class Attempt(Thread):
    """A call of an op whose allocation number `at` fails, with `more` after it; then a second call.

    was_reached  whether there were as many allocations
    has_ended    whether the call ended by MemoryError
    error        what else was raised
    """

    def __init__(self, faults: ctypes.CDLL, op: Op, at: int, more: int) -> None:
        super().__init__()
        self.faults, self.op, self.at, self.more = faults, op, at, more
        self.was_reached = self.has_ended = False
        self.error: BaseException | None = None
        self.results: list[np.ndarray] = []

    def run(self) -> None:
        try:
            self._call()
            self.results = run(self.op, ROWS, self.op.widths[-1])
        except BaseException as error:
            self.error = error

    def _call(self) -> None:
        kernel = self.op.kernel
        arguments = {**self.op.make(np.random.default_rng(0), ROWS, self.op.widths[-1]), "n_threads": 1}
        try:
            self.faults.faults_arm(ALLOCATION, errno.ENOMEM, self.at, self.more, b"")
            kernel(**arguments)
        except MemoryError:
            self.has_ended = True
        while True:         # what this takes may fail, too
            try:
                count = self.faults.faults_count(ALLOCATION)
                self.faults.faults_arm(-1, 0, 0, 0, b"")
                break
            except (MemoryError, ctypes.ArgumentError):
                pass
        self.was_reached = count >= self.at


def try_all(faults: ctypes.CDLL, op: Op) -> tuple[int, int]:
    """How many allocations failed, and how many of these ended the op. AssertionError where it did anything else."""
    expected = run(op, ROWS, op.widths[-1])
    tried = ended = 0
    for more in MORE:
        for at in range(1, 100_000):
            attempt = Attempt(faults, op, at, more)
            attempt.start()
            attempt.join()
            if attempt.error:
                raise AssertionError(f"{op.name}: allocation {at} and {more} after it") from attempt.error
            for got, wanted in zip(attempt.results, expected, strict=True):
                np.testing.assert_array_equal(got, wanted, err_msg=f"{op.name}: allocation {at}")
            if not attempt.was_reached:
                break
            tried += 1
            ended += attempt.has_ended
    return tried, ended


def main() -> int:
    faults = library()
    if faults is None:
        with tempfile.TemporaryDirectory() as folder:
            return preloaded(folder, PYTHONMALLOC="malloc", OMP_NUM_THREADS="1")
    tried: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    ops = Counter(op.module for op in OPS)
    for op in OPS:
        counts = try_all(faults, op)
        tried[op.module] += counts[0]
        ended[op.module] += counts[1]
    print("| kernels | ops | allocations that failed | ended the op | afterwards |\n|---|---|---|---|---|")
    for module, count in ops.items():
        print(f"| {module} | {count} | {tried[module]} | {ended[module]} | same bits |")
    print(f"\n{tried.total()} allocations that failed, in {len(OPS)} ops")
    return 0


if __name__ == "__main__":
    sys.exit(main())
