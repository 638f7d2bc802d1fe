"""What the methods cost: a DPO step beside one of sft with as many tokens, in time and memory; pairs whose prompt is
computed once beside whole rows; a later epoch beside the first one.

    python bench/bench_methods.py MODEL.gguf [--only dpo,prompts,prefix,memory] [--threads 2] [--clock cpu]

What is compared is measured in one process, in turn; memory in a process each. --clock cpu counts the processor's time,
where others use the machine.
"""
from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from machine import describe
from results import RESULTS, write_results

from lorafast.data.batches import Batch
from lorafast.gguf.reader import open_model
from lorafast.network.hparams import read_hparams
from lorafast.network.lora import Adapter, Gradients, default_ranks, specs_for
from lorafast.network.network import Network
from lorafast.network.objective import TokenSum
from lorafast.network.preference_losses import Hyper
from lorafast.network.prefix_cache import PrefixCache
from lorafast.network.trainer import Strategy, Trainer
from lorafast.training.methods import PairMethod

ROWS, TOKENS, PROMPT, RANK = 8, 64, 32, 8
PAIRS = [(32, 32), (96, 32), (192, 32)]
"""Tokens of the prompt and of each answer, where a prompt is computed once or twice."""


class Bench:
    """A trainer of the top `layers` blocks, for batches of up to `max_tokens` tokens."""

    def __init__(self, path: str, n_threads: int, layers: int = 0, max_tokens: int = ROWS * TOKENS) -> None:
        gguf = open_model(path)
        self.hparams = read_hparams(gguf)
        n_layer = self.hparams.n_layer
        targets = [f"blk.{layer}.*_*" for layer in range(n_layer - (layers or n_layer), n_layer)]
        shapes = self.hparams.tensor_shapes()
        specs = [spec for spec in specs_for(shapes, default_ranks(RANK), targets) if spec.kind == "linear"]
        self.adapter, self.network = Adapter(specs, RANK, RANK), Network(gguf, self.hparams, max_tokens)
        self.adapter.initialise(0)
        self.network.refresh(self.adapter)
        self.trainer = Trainer(self.network, self.adapter, max_tokens, Strategy(n_layer), n_threads)
        self.gradients = Gradients(self.adapter)

    def batch(self, n_rows: int, prompt: int, answer: int, *, shares_prompts: bool = False) -> Batch:
        """Pairs of random tokens, the answers to one prompt of `answer` tokens each."""
        rng, shared = np.random.default_rng(0), prompt - 1 if shares_prompts else 0
        rows, wanted = [], []
        for row in range(n_rows):
            begin = rng.integers(3, self.hparams.n_vocab, prompt) if row % 2 == 0 else rows[-1][:prompt]
            rows.append(np.concatenate([begin, rng.integers(3, self.hparams.n_vocab, answer)]).astype(np.int32))
            wanted.append(np.where(np.arange(1, prompt + answer) < prompt, -1, rows[-1][1:]).astype(np.int32))
        first = [shared * (row % 2) for row in range(n_rows)]
        begin = np.cumsum([0, *(prompt + answer - 1 - n for n in first)], dtype=np.int32)
        return Batch(np.concatenate([row[n:-1] for row, n in zip(rows, first)]),
                     np.concatenate([row[n:] for row, n in zip(wanted, first)]), begin, n_rows, False,
                     label=np.tile([1, -1], n_rows // 2).astype(np.int8), reference=np.full(n_rows, -300.0),
                     rows=np.arange(n_rows), shared=np.array(first, np.int32) if shared else None)

    def sft(self, batch: Batch) -> None:
        self.trainer.minimise(batch, TokenSum(1 / batch.n_counted), self.gradients)

    def dpo(self, batch: Batch) -> None:
        objective, _ = PairMethod("dpo", Hyper(0.1), 0.0).begin([batch], self.trainer)
        self.trainer.minimise(batch, objective, self.gradients)


def in_turn(works: dict[str, Callable[[], None]], repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """The median seconds of each."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, work in works.items():
            began = clock()
            work()
            if turn:                    # the first one warms up
                seconds[name].append(clock() - began)
    return {name: median(values) for name, values in seconds.items()}


def dpo(args: argparse.Namespace, clock: Callable[[], float]) -> list[dict[str, Any]]:
    bench = Bench(args.model, args.threads)
    batch = bench.batch(ROWS, PROMPT, TOKENS - PROMPT + 1)
    steps = in_turn({"sft": lambda: bench.sft(batch), "dpo": lambda: bench.dpo(batch)}, args.repeats, clock)
    return [dict(what="a step of as many tokens", rows=ROWS, tokens=TOKENS, **steps, times=steps["dpo"] / steps["sft"])]


def memory(args: argparse.Namespace, clock: Callable[[], float]) -> list[dict[str, Any]]:
    def peak(step: str) -> int:
        command = [sys.executable, __file__, args.model, "--threads", str(args.threads), "--step", step]
        return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    peaks = {step: peak(step) / 1e6 for step in ("sft", "dpo")}
    return [dict(what="most memory of the process, MB", rows=ROWS, tokens=TOKENS, **peaks,
                 times=peaks["dpo"] / peaks["sft"])]


def one_step(args: argparse.Namespace) -> int:
    """Bytes that this process has taken at most, after two steps; of dpo with its pass of the reference."""
    bench = Bench(args.model, args.threads)
    batch = bench.batch(ROWS, PROMPT, TOKENS - PROMPT + 1)
    for _ in range(2):
        (bench.dpo if args.step == "dpo" else bench.sft)(batch)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def prompts(args: argparse.Namespace, clock: Callable[[], float]) -> list[dict[str, Any]]:
    rows, bench = [], Bench(args.model, args.threads, max_tokens=4 * max(sum(pair) for pair in PAIRS))
    for prompt, answer in PAIRS:
        batches = {name: bench.batch(4, prompt, answer, shares_prompts=name == "once") for name in ("twice", "once")}
        steps = in_turn({name: lambda batch=batch: bench.dpo(batch) for name, batch in batches.items()}, args.repeats,
                        clock)
        rows.append(dict(what="prompts computed once", prompt=prompt, answer=answer, **steps,
                         times=steps["once"] / steps["twice"]))
    return rows


def prefix(args: argparse.Namespace, clock: Callable[[], float]) -> list[dict[str, Any]]:
    bench = Bench(args.model, args.threads, max(1, read_hparams(open_model(args.model)).n_layer // 4))
    batch, lowest = bench.batch(ROWS, PROMPT, TOKENS - PROMPT + 1), bench.network.lowest_block(bench.adapter)
    with tempfile.TemporaryDirectory() as folder:
        cache = PrefixCache(folder, "0" * 64, np.full(ROWS, TOKENS), bench.hparams.n_embd, lowest)

        def first() -> None:
            cache.there[:] = 0
            bench.trainer.prefix = cache
            bench.sft(batch)

        epochs = in_turn({"first": first, "later": lambda: bench.sft(batch)}, args.repeats, clock)
        cache.close()
    return [dict(what="epochs with --prefix-cache", trained_from=lowest, blocks=bench.hparams.n_layer, **epochs,
                 times=epochs["later"] / epochs["first"])]


PARTS = {"dpo": dpo, "prompts": prompts, "prefix": prefix, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--step", choices=("sft", "dpo"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "methods.json")
    args = parser.parse_args()
    if args.step:
        print(one_step(args))
        return
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    rows = []
    for name in args.only.split(","):
        for row in PARTS[name](args, clock):
            print(", ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}"
                            for key, value in row.items()), flush=True)
            rows.append(row)
    machine = describe(args.threads) | {"model": Path(args.model).name, "clock": args.clock}
    write_results(args.out, "methods", machine, {}, rows)


if __name__ == "__main__":
    main()
