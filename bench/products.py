"""Products with frozen weights, forward and backward, taking turns with OpenBLAS's sgemm on weights in float32."""
from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import numpy as np
from checks import check
from machine import Peaks, linear_peak
from models import random_blocks
from timing import alternate, ratio, stopwatch, summary
from worker import PAUSE, Worker

from lorafast.gguf.quants import dequantize
from lorafast.gguf.types import TRAINABLE, GGMLType
from lorafast.kernels.linear import Weight, linear_backward, linear_forward

OPENBLAS = Path(__file__).parent / "peers/openblas.py"
OPENBLAS_KERNELS = {"avx2": "Haswell"}      # what OpenBLAS is held to where ours is held to an ISA; else it chooses
# OpenBLAS's threads wait for the next call for 2^20 cycles before they sleep; by default so long that they would hold
# a core during our turn
SPIN = "20"

SHAPES_7B = ((4096, 4096), (11008, 4096), (4096, 11008), (32000, 4096))           # (N, K)
SHAPES_SMALL = ((768, 768), (2048, 768), (768, 2048), (2048, 2048), (5632, 2048), (2048, 5632))     # 160m, 1b
TYPES = ("Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "F16", "BF16")

LIMITS = {"float32": 1e-11, "int16": 3e-8, "int8": 5e-4, "bfloat16": 5e-5, "bfloat16 pieces": 1e-9}
"""Of the NMSE, by what computes; kernels/README.md states what was measured."""
CHECKED_ROWS, CHECKED_COLUMNS = 64, 256     # of W whose products are checked; a whole 7b matrix in float64 is 1 GB


def product_cases(full: bool) -> list[tuple[str, int, int, int]]:
    """(type, T, N, K) of each product."""
    cases = [("Q8_0", 256, N, K) for N, K in SHAPES_7B]
    cases += [(type, 256, 4096, 4096) for type in TYPES[1:]]
    cases += [("Q8_0", 1, 4096, 4096)]
    if full:
        cases += [("Q8_0", 256, N, K) for N, K in SHAPES_SMALL]
        cases += [("Q8_0", T, 11008, 4096) for T in (1, 16, 64, 512, 2048)]
        cases += [(type.name, 256, 11008, 4096) for type in TRAINABLE if type is not GGMLType.Q8_0]
    return cases


def bench_products(cases: Sequence[tuple[str, int, int, int]], isas: Sequence[str], threads: Sequence[int],
                   precisions: Sequence[str], peaks: Peaks, repeats: int) -> Iterator[dict]:
    """A row for each case, ISA, number of threads, precision and direction; the smaller numbers of threads for Q8_0
    only, and one token in the first precision."""
    with ExitStack() as stack:
        workers = {}
        for isa in isas:
            for n in threads:
                environment = {"OPENBLAS_NUM_THREADS": str(n), "OPENBLAS_CORETYPE": OPENBLAS_KERNELS.get(isa),
                               "OPENBLAS_L2_SIZE": None, "OPENBLAS_THREAD_TIMEOUT": SPIN}
                workers[isa, n] = stack.enter_context(Worker(OPENBLAS, environment=environment))
        for type, T, N, K in cases:
            product = Product(GGMLType[type], T, N, K)
            for (isa, n), sgemm in workers.items():
                if n == max(threads) or type == "Q8_0":
                    os.environ["LORAFAST_ISA"] = isa        # the kernels look at each call
                    for precision in product.precisions(precisions if T > 1 else precisions[:1]):
                        product.use(precision)
                        yield from bench_product(product, isa, n, sgemm, peaks, repeats)


class Product:
    """A random matrix W (N, K) of a GGML type, and inputs for T tokens."""

    def __init__(self, type: GGMLType, T: int, N: int, K: int) -> None:
        self.type, self.T, self.N, self.K = type, T, N, K
        rng = np.random.default_rng(0)
        pool = random_blocks(rng, type, 512, K, K**-0.5)
        self.blocks = pool[rng.integers(0, len(pool), N)]
        self.use("int16")
        self.x, self.dy = rng.standard_normal((T, K), dtype=np.float32), rng.standard_normal((T, N), dtype=np.float32)
        self.y, self.dx = np.full((T, N), np.nan, np.float32), np.full((T, K), np.nan, np.float32)

    def use(self, precision: str) -> None:
        self.precision, self.weight = precision, Weight(self.blocks, int(self.type), self.K, precision)

    def precisions(self, wanted: Sequence[str]) -> list[str]:
        """Those in which it is computed otherwise than in the ones before."""
        cores = {Weight(self.blocks, int(self.type), self.K, precision).arithmetic: precision
                 for precision in reversed(wanted)}
        return [precision for precision in wanted if precision in cores.values()]

    def forward(self, n_threads: int) -> None:
        linear_forward([self.y], self.x, [self.weight], [None], None, n_threads)

    def backward(self, n_threads: int) -> None:
        linear_backward(self.dx, [self.dy], [self.weight], [None], n_threads)

    def errors(self, n_threads: int, limit: float) -> dict[str, float]:
        """NMSE of some columns of y and of dx."""
        self.forward(n_threads)
        self.backward(n_threads)
        case = f"{self.type.name} T={self.T} N={self.N} K={self.K}"
        rows = np.linspace(0, self.N - 1, min(CHECKED_ROWS, self.N)).astype(int)
        y = self.x.astype(np.float64) @ dequantize(self.blocks[rows], self.type).astype(np.float64).T
        columns = min(CHECKED_COLUMNS, self.K)
        W = dequantize(np.ascontiguousarray(self.blocks[:, :self.type.row_bytes(columns)]), self.type)
        dx = self.dy.astype(np.float64) @ W.astype(np.float64)
        return {"forward": check(f"linear_forward {case}", self.y[:, rows], y, limit),
                "backward": check(f"linear_backward {case}", self.dx[:, :columns], dx, limit)}


def bench_product(product: Product, isa: str, threads: int, sgemm: Worker, peaks: Peaks,
                  repeats: int) -> Iterator[dict]:
    T, N, K, type = product.T, product.N, product.K, product.type
    errors = product.errors(threads, LIMITS[product.weight.arithmetic])
    peak, share = linear_peak(peaks, isa, type, product.precision)
    sgemm.ask("prepare", T=T, N=N, K=K)
    for direction, ours in (("forward", product.forward), ("backward", product.backward)):
        seconds = alternate({"lorafast": stopwatch(lambda: ours(threads)), "sgemm": lambda: sgemm.ask(direction)},
                            repeats=repeats, pause=PAUSE)
        time = median(seconds["lorafast"])
        gops = 2 * T * N * K / time / 1e9
        gb_per_s = (product.blocks.nbytes + product.x.nbytes + product.y.nbytes) / time / 1e9
        percent = gops / (share * peaks[peak][str(threads)])
        if T == 1:                                          # a row reads all weights for little work
            peak, share, percent = "memory read", 1.0, gb_per_s / peaks["memory read"][str(threads)]
        yield {"op": f"linear_{direction}", "type": type.name, "precision": product.precision,
               "T": T, "N": N, "K": K, "threads": threads, "isa": isa,
               "nmse": errors[direction], **summary(seconds["lorafast"]), "gops": gops, "gb_per_s": gb_per_s,
               "peak": peak, "share_of_peak": share, "percent_of_peak": 100 * percent,
               "sgemm": {**sgemm.about, **summary(seconds["sgemm"]),
                         "gops": 2 * T * N * K / median(seconds["sgemm"]) / 1e9},
               "speedup": ratio(seconds["sgemm"], seconds["lorafast"])}
