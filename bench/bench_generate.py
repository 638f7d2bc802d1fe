"""Generation: tokens a second, one token at a time, and what share of the memory's bandwidth reading the weights takes.

    python bench/bench_generate.py [--full] [--models 1b,...] [--type Q8_0] [--threads N,...] [--out FILE]

Each token reads every weight once, token_embd apart, of which it reads a row. The bandwidth is of the same run.
"""
from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from machine import Peaks, describe, peaks_for
from models import MODELS, make_model
from results import RESULTS, write_results
from timing import alternate, summary

from lorafast.gguf.reader import open_model
from lorafast.kernels import build_info
from lorafast.network.decoder import Decoder
from lorafast.network.hparams import read_hparams
from lorafast.network.lora import Adapter
from lorafast.network.network import Network
from lorafast.system.threads import physical_cores

PROMPT = 16         # tokens before the first that is timed
TOKENS = 8          # in a repeat


class Generation:
    """A sequence that grows by TOKENS tokens each time it is run; it starts anew when its context is full."""

    def __init__(self, path: Path, n_ctx: int, n_threads: int) -> None:
        gguf = open_model(path)
        hparams = read_hparams(gguf)
        self.n_ctx, self.n_threads = n_ctx, n_threads
        self.network, self.adapter = Network(gguf, hparams, n_ctx), Adapter((), 1, 1)
        self.weight_bytes = sum(tensor.nbytes for name, tensor in gguf.tensors.items() if name != "token_embd.weight")
        self.tokens = np.random.default_rng(0).integers(3, hparams.n_vocab, n_ctx, dtype=np.int32)
        self.restart()

    def restart(self) -> None:
        self.sequence = Decoder(self.network, self.adapter, self.n_ctx, self.n_threads)
        self.sequence.append(self.tokens[:PROMPT])

    def run(self) -> float:
        """Seconds a token."""
        if self.sequence.n_past + TOKENS > self.n_ctx:
            self.restart()
        n_past = self.sequence.n_past
        began = time.perf_counter()
        for token in self.tokens[n_past:n_past + TOKENS]:
            self.sequence.append(np.array([token], np.int32))
        return (time.perf_counter() - began) / TOKENS


def bench(path: Path, n_ctx: int, threads: Sequence[int], peaks: Peaks, repeats: int) -> Iterator[dict]:
    """A row for each number of threads."""
    runs = {n: Generation(path, n_ctx, n) for n in threads}
    seconds = alternate({n: run.run for n, run in runs.items()}, repeats=repeats)
    for n, run in runs.items():
        gb_per_s = run.weight_bytes / median(seconds[n]) / 1e9
        yield {"ctx": n_ctx, "threads": n, "isa": build_info.isa(), **summary(seconds[n]),
               "tokens_per_s": 1 / median(seconds[n]), "gb_per_s": gb_per_s, "peak": "memory read",
               "percent_of_peak": 100 * gb_per_s / peaks["memory read"][str(n)]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="160m and 7b too, and Q4_K")
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="NAME,...")
    parser.add_argument("--type", default="Q8_0")
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")],
                        default=sorted({1, physical_cores()}), metavar="N,...")
    parser.add_argument("--ctx", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--models-folder", type=Path, default=MODELS, metavar="FOLDER", help="where models are kept")
    parser.add_argument("--peaks", type=Path, metavar="FILE", help="of machine.py, instead of measuring them again")
    parser.add_argument("--out", type=Path, default=RESULTS / "generate.json")
    args = parser.parse_args()

    cases = [(model, args.type) for model in args.models or ["1b"]]
    if args.full:
        cases = [("160m", "Q8_0"), ("1b", "Q8_0"), ("1b", "Q4_K"), ("7b", "Q8_0")]
    machine, peaks = describe(max(args.threads)), peaks_for(args.threads, args.peaks)
    rows = []
    for model, type in cases:
        path = make_model(model, type, args.models_folder)
        for row in bench(path, args.ctx, args.threads, peaks, args.repeats):
            rows.append({"model": model, "type": type, **row})
            print(f"{model} {type}, {row['threads']} thread(s): {row['tokens_per_s']:.1f} tokens/s, "
                  f"{row['gb_per_s']:.1f} GB/s, {row['percent_of_peak']:.0f} % of memory read", flush=True)
    write_results(args.out, "generate", machine, peaks, rows)


if __name__ == "__main__":
    main()
