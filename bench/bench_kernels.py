"""Speed of every kernel: checked against the reference first, then timed, and set against the peak of this machine.

    python bench/bench_kernels.py [--full] [--only products,experts,ops] [--threads N,...] [--isa NAME,...]
                                  [--precisions NAME,...] [--out FILE]

Percent are of the peak of what computes (products: machine.linear_peak; attention: float32) or of the memory (all else,
and products with a single row). OpenBLAS's sgemm, whose weights are in float32 already, takes turns with each product;
a dense product of as many rows with those of experts.
"""
from __future__ import annotations

import argparse
from pathlib import Path

from experts import CASES, bench_experts
from machine import describe, peaks_for
from ops import bench_ops, ops
from products import bench_products, product_cases
from results import RESULTS, write_results

from lorafast.kernels import build_info
from lorafast.system.threads import physical_cores


def words(text: str) -> list[str]:
    return text.split(",")


def counts(text: str) -> list[int]:
    return [int(word) for word in words(text)]


def report(row: dict) -> None:
    case = " ".join(f"{name}={row[name]}" for name in ("T", "N", "K") if name in row) or row["label"]
    speed = f"{row['gops']:7.0f} GOP/s" if "gops" in row else ""
    what = f"{row['op']:30} {row.get('type', ''):7} {row.get('precision', ''):7} {case:24} {row['isa']:6}"
    share = row.get("share_of_peak", 1)
    peak = row["peak"] if share == 1 else f"{share:.3g} times {row['peak']}"
    line = (f"{what} {row['threads']} thread(s) {1000 * row['seconds']:9.3f} ms {row['gb_per_s']:6.1f} GB/s {speed:13} "
            f"{row['percent_of_peak']:4.0f} % of {peak:22} NMSE {row['nmse']:.0e}")
    if "speedup" in row:
        line += f"  {row['speedup']:.2f} times sgemm ({row['sgemm']['gops']:.0f})"
    if "of_dense" in row:
        line += f"  {100 * row['of_dense']:.0f} % of a dense product ({row['dense']['gops']:.0f})"
    print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", type=words, default=["products", "experts", "ops"], metavar="PART,...")
    parser.add_argument("--op", type=words, metavar="NAME,...", help="ops to run, e.g. rope_forward,adam_step")
    parser.add_argument("--product", action="append", metavar="TYPE,T,N,K", help="instead of the usual; repeatable")
    parser.add_argument("--experts", action="append", metavar="T,E,K,C,F", help="likewise; K of E")
    parser.add_argument("--threads", type=counts, default=sorted({1, physical_cores()}), metavar="N,...")
    parser.add_argument("--isa", type=words, default=[build_info.isa()], metavar="NAME,...",
                        help=f"of {', '.join(build_info.available_isas())}; default: the best")
    parser.add_argument("--precisions", type=words, default=["int16", "int8"], metavar="NAME,...",
                        help="of the products; default: int16,int8")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--peaks", type=Path, metavar="FILE", help="of machine.py, instead of measuring them again")
    parser.add_argument("--out", type=Path, default=RESULTS / "kernels.json")
    args = parser.parse_args()

    machine, peaks = describe(max(args.threads)), peaks_for(args.threads, args.peaks)
    rows = []
    if "products" in args.only:
        cases = [(case[0], *map(int, case[1:])) for case in map(words, args.product or [])] or product_cases(args.full)
        for row in bench_products(cases, args.isa, args.threads, args.precisions, peaks, args.repeats):
            rows.append(row)
            report(row)
    if "experts" in args.only:
        chosen_cases = [tuple(map(int, words(case))) for case in args.experts or []] or CASES
        for row in bench_experts(chosen_cases, args.isa, args.threads, peaks, args.repeats):
            rows.append(row)
            report(row)
    if "ops" in args.only:
        chosen = [op for op in ops(args.full) if args.op is None or op.name in args.op]
        for row in bench_ops(chosen, args.isa, args.threads, peaks, args.repeats):
            rows.append(row)
            report(row)
    write_results(args.out, "kernels", machine, peaks, rows)


if __name__ == "__main__":
    main()
