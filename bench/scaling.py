"""How the products' work divides among more threads than this machine has: items, their sizes, and who waits.

    python bench/scaling.py [--tokens 256] [--threads 2,4,8,16,32,64,128]

A model, not a measurement. Work is dealt out as kernels/linear.pyx does it (panels of rows forward; slices of columns,
cut by tokens where they do not divide evenly, backward), each thread taking the next item when it is done with one;
items cost as much as they have weights times tokens, and unpacking W, which each repeats, as much as UNPACKING says.
Printed for each number of threads: items, and percent of the threads' time that goes to waiting for the last one and to
unpacking more often than one thread would.
"""
from __future__ import annotations

import argparse
import heapq
from collections.abc import Iterator

from geometry import GEOMETRIES

PANEL_ROWS, PANEL_UNIT, SLICE_COLUMNS = 96, 12, {"avx2": 256, "avx512": 512}
"""Of the int16 core (kernels/gemm_i16_body.h)."""

UNPACKING = 16
"""Tokens that unpacking W costs as much time as: 6 % of 256 (kernels/README.md)."""


def round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def forward_items(sizes: list[tuple[int, int]], tokens: int, threads: int) -> Iterator[float]:
    """Projections (N, K) that share an input: `linear_plan_panels` of kernels/pieces.h."""
    total = sum(N for N, _ in sizes)
    panels = round_up(-(-total // PANEL_ROWS), 2 * threads)
    rows = min(PANEL_ROWS, round_up(-(-total // panels), PANEL_UNIT))
    for N, K in sizes:
        for n0 in range(0, N, rows):
            yield min(rows, N - n0) * K * (tokens + UNPACKING)


def backward_items(N: int, K: int, tokens: int, threads: int, columns: int) -> Iterator[float]:
    """One projection: `linear_plan_slices` of kernels/pieces.h."""
    slices = round_up(-(-K // columns), threads)
    width = min(columns, round_up(-(-K // slices), 32))
    slices, pieces = -(-K // width), 1
    while slices * pieces % threads and slices * pieces < 4 * threads and tokens // pieces >= 128:
        pieces *= 2
    piece = round_up(-(-tokens // pieces), 32)
    for t0 in range(0, tokens, piece):
        for k0 in range(0, K, width):
            yield N * min(width, K - k0) * (min(piece, tokens - t0) + UNPACKING)


def makespan(items: list[float], threads: int) -> float:
    """When the last thread ends, each taking the next item when it is done with one."""
    ends = [0.0] * threads
    for item in items:
        heapq.heappush(ends, heapq.heappop(ends) + item)
    return max(ends)


def step(model: str, tokens: int, threads: int, columns: int) -> tuple[int, float, float]:
    """Of all blocks' products and the head's: items, threads' time in units of work, the part of it that is lost."""
    geometry = GEOMETRIES[model]
    size = {name.split(".")[-2]: (N, K) for name, N, K in geometry.matrices}
    groups = [["attn_q", "attn_k", "attn_v"], ["attn_output"], ["ffn_gate", "ffn_up"], ["ffn_down"]]
    count, taken, work = 0, 0.0, 0.0
    for repeat, names in [*((geometry.n_layer, group) for group in groups), (1, ["output"])]:
        sizes = [size[name] for name in names]
        passes = [list(forward_items(sizes, tokens, threads))]
        passes += [list(backward_items(N, K, tokens, threads, columns)) for N, K in sizes]
        for items in passes:
            count += repeat * len(items)
            taken += repeat * threads * makespan(items, threads)
        # what one thread has to do, which cuts nothing: unpacking once more for each cut is lost as waiting is
        work += repeat * (sum(forward_items(sizes, tokens, 1))
                          + sum(sum(backward_items(N, K, tokens, 1, columns)) for N, K in sizes))
    return count, taken, 1 - work / taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", default="2,4,8,16,32,64,128")
    args = parser.parse_args()
    print("model  isa      threads   items a step   waiting and repeated work")
    for model in ("160m", "1b", "7b"):
        for isa, columns in SLICE_COLUMNS.items():
            for threads in map(int, args.threads.split(",")):
                count, _, lost = step(model, args.tokens, threads, columns)
                print(f"{model:6} {isa:8} {threads:7} {count:14} {100 * lost:10.1f} %")


if __name__ == "__main__":
    main()
