"""Ops on shapes and numbers of threads chosen at random: whatever they are, the bits are those of one thread.

tests/sanitize.sh asks for more of them: SHAPES, of each op and instruction set, and SEED in the environment.
"""
from __future__ import annotations

import math
import os

import numpy as np

from tests.kernels.test_contracts import Op, every_op, run

SHAPES = int(os.environ.get("SHAPES", 1))
MOST_ROWS, MOST_THREADS = 150, 8


@every_op
def test_any_shape_and_number_of_threads(op: Op, isa: str) -> None:
    chance = np.random.default_rng([int(os.environ.get("SEED", 1)), *op.name.encode()])
    unit = math.gcd(*op.widths)
    for _ in range(SHAPES):
        rows = int(chance.integers(MOST_ROWS + 1))
        width = unit * int(chance.integers(min(op.widths) // unit, max(op.widths) // unit + 1))
        n_threads = int(chance.integers(2, MOST_THREADS + 1))
        for one, several in zip(run(op, rows, width), run(op, rows, width, n_threads), strict=True):
            np.testing.assert_array_equal(one, several, err_msg=f"{rows} rows, width {width}, {n_threads} threads")
