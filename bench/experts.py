"""Products of a mixture of experts, taking turns with dense products of as many rows: what sorting into small groups
costs."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from statistics import median

import numpy as np
from checks import check
from machine import Peaks, linear_peak
from models import random_blocks
from products import LIMITS
from timing import alternate, ratio, stopwatch, summary

from lorafast.gguf.quants import dequantize
from lorafast.gguf.types import GGMLType
from lorafast.kernels.linear import (
    ExpertWeights,
    Weight,
    experts_backward,
    experts_forward,
    experts_sum_backward,
    experts_sum_forward,
    linear_backward,
    linear_forward,
)
from lorafast.network.router import Routes
from lorafast.reference import linear as twin

TYPE = GGMLType.Q4_K
CASES = ((256, 128, 8, 2048, 768), (1024, 128, 8, 2048, 768))
"""(T, E, experts that see a token, n_embd, n_ff): those of a block of Qwen3-30B-A3B."""
DENSE_COPIES = 4                            # of the dense matrix's rows: as wide as a model's of this size


class ExpertProducts:
    """Gate, up and down of E random experts, T tokens that each see n_used of them, and one dense matrix."""

    def __init__(self, T: int, E: int, n_used: int, C: int, F: int) -> None:
        rng = np.random.default_rng(0)
        self.routes = Routes.of(np.sort(np.argsort(rng.random((T, E)), axis=1)[:, :n_used], axis=1), E)
        rows = T * n_used
        self.label, self.work = f"T={T} E={E} k={n_used}", 2 * rows * F * C / 1e9
        inner, outer = (random_blocks(rng, TYPE, 512, k, k**-0.5) for k in (C, F))
        self.inner = [inner[rng.integers(0, 512, E * F)].reshape(E, F, -1) for _ in range(2)]
        self.outer = outer[rng.integers(0, 512, E * C)].reshape(E, C, -1)
        self.weights = [ExpertWeights(blocks, int(TYPE), C) for blocks in self.inner]
        self.down = ExpertWeights(self.outer, int(TYPE), F)
        self.dense = Weight(inner[rng.integers(0, 512, DENSE_COPIES * F)], int(TYPE), C)
        self.x, self.y, self.dx = rng.standard_normal((T, C), dtype=np.float32), *np.zeros((2, T, C), np.float32)
        self.act, self.d_act = rng.standard_normal((2, rows, F), dtype=np.float32)
        self.gate, self.up = np.zeros((2, rows, F), np.float32)
        self.scale = rng.random(rows, dtype=np.float32)
        n = rows // DENSE_COPIES
        self.dense_x, self.dense_dx = rng.standard_normal((2, n, C), dtype=np.float32)
        self.dense_y = rng.standard_normal((n, DENSE_COPIES * F), dtype=np.float32)

    def runs(self, n: int) -> dict[str, tuple[int, Callable[[], None], Callable[[], None]]]:
        """By op: its matrices an expert, itself, and the dense product."""
        r = self.routes.begin, self.routes.tokens

        def dense_forward() -> None:
            linear_forward([self.dense_y], self.dense_x, [self.dense], [None], None, n)

        def dense_backward() -> None:
            linear_backward(self.dense_dx, [self.dense_y], [self.dense], [None], n)

        return {
            "experts_forward": (2, lambda: experts_forward([self.gate, self.up], self.x, self.weights, [None] * 2, *r,
                                                           n), dense_forward),
            "experts_sum_forward": (1, lambda: experts_sum_forward(self.y, self.act, self.down, None, self.scale, *r,
                                                                   n), dense_forward),
            "experts_sum_backward": (1, lambda: experts_sum_backward(self.d_act, self.x, self.down, *r, n),
                                     dense_backward),
            "experts_backward": (2, lambda: experts_backward(self.dx, [self.gate, self.up], self.weights, *r, n),
                                 dense_backward),
        }

    def error(self, n_threads: int, limit: float) -> float:
        """NMSE of gate and up of the first expert that has rows."""
        e, (F, C) = self.routes.experts[0], (self.weights[0].N, self.weights[0].K)
        begin = np.array([0, self.routes.begin[e + 1] - self.routes.begin[e]], np.int32)
        rows = slice(self.routes.begin[e], self.routes.begin[e + 1])
        tokens, got = self.routes.tokens[rows], [np.zeros((begin[1], F), np.float32) for _ in range(2)]
        weights = [ExpertWeights(blocks[e:e + 1], int(TYPE), C) for blocks in self.inner]
        experts_forward(got, self.x, weights, [None] * 2, begin, tokens, n_threads)
        exact = [np.zeros((begin[1], F)) for _ in range(2)]
        dense = [dequantize(blocks[e], TYPE)[None].astype(np.float64) for blocks in self.inner]
        twin.experts_forward(exact, self.x.astype(np.float64), dense, [None] * 2, begin, tokens)
        return check("experts_forward", np.array(got), np.array(exact), limit)


def bench_experts(cases: Sequence[Sequence[int]], isas: Sequence[str], threads: Sequence[int], peaks: Peaks,
                  repeats: int) -> Iterator[dict]:
    """A row for each case, ISA, number of threads and op."""
    for case in cases:
        products = ExpertProducts(*case)
        for isa in isas:
            os.environ["LORAFAST_ISA"] = isa                # the kernels look at each call
            for n in threads:
                error = products.error(n, LIMITS["bfloat16 pieces" if isa == "amx" else "int16"])
                peak, share = linear_peak(peaks, isa, TYPE)
                for op, (n_matrices, run, dense) in products.runs(n).items():
                    seconds = alternate({"lorafast": stopwatch(run), "dense": stopwatch(dense)}, repeats=repeats)
                    time = median(seconds["lorafast"])
                    gops = n_matrices * products.work / time
                    yield {"op": op, "type": TYPE.name, "label": products.label, "threads": n, "isa": isa,
                           "nmse": error, **summary(seconds["lorafast"]), "gops": gops, "peak": peak,
                           "gb_per_s": n_matrices * products.outer.nbytes / time / 1e9,
                           "percent_of_peak": 100 * gops / (share * peaks[peak][str(n)]),
                           "dense": {**summary(seconds["dense"]), "gops": products.work / median(seconds["dense"])},
                           "of_dense": n_matrices * ratio(seconds["dense"], seconds["lorafast"])}
