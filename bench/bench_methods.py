"""What the methods cost: a DPO step beside one of sft with as many tokens, and a later epoch beside the first one.

    python bench/bench_methods.py MODEL.gguf [--threads 2] [--clock cpu]

Both are measured in one process, in turn. --clock cpu counts the processor's time, where others use the machine.
"""
from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from statistics import median

import numpy as np

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


class Bench:
    """A trainer, and a batch of pairs whose answers are half of their tokens."""

    def __init__(self, path: str, n_threads: int, layers: int) -> None:
        gguf = open_model(path)
        self.hparams = read_hparams(gguf)
        shapes = self.hparams.tensor_shapes()
        targets = [f"blk.{layer}.*_*" for layer in range(self.hparams.n_layer - layers, self.hparams.n_layer)]
        specs = [spec for spec in specs_for(shapes, default_ranks(RANK), targets) if spec.kind == "linear"]
        self.adapter, self.network = Adapter(specs, RANK, RANK), Network(gguf, self.hparams, TOKENS)
        self.adapter.initialise(0)
        self.network.refresh(self.adapter)
        self.trainer = Trainer(self.network, self.adapter, ROWS * TOKENS, Strategy(self.hparams.n_layer), n_threads)
        self.gradients = Gradients(self.adapter)
        rng = np.random.default_rng(0)
        tokens, targets_ = (rng.integers(3, self.hparams.n_vocab, ROWS * TOKENS, dtype=np.int32) for _ in range(2))
        targets_[np.arange(ROWS * TOKENS) % TOKENS < PROMPT] = -1
        self.batch = Batch(tokens, targets_, np.arange(0, ROWS * TOKENS + 1, TOKENS, dtype=np.int32), ROWS, False,
                           label=np.tile([1, -1], ROWS // 2).astype(np.int8), reference=np.full(ROWS, -300.0),
                           rows=np.arange(ROWS))

    def sft(self) -> None:
        self.trainer.minimise(self.batch, TokenSum(1 / self.batch.n_counted), self.gradients)

    def dpo(self) -> None:
        objective, _ = PairMethod("dpo", Hyper(0.1), 0.0).begin([self.batch], self.trainer)
        self.trainer.minimise(self.batch, objective, self.gradients)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("preferences", "prefix"))
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    n_layer = read_hparams(open_model(args.model)).n_layer
    if args.only != "prefix":
        preferences(Bench(args.model, args.threads, n_layer), args.repeats, clock)
    if args.only != "preferences":
        prefix(Bench(args.model, args.threads, max(1, n_layer // 4)), args.repeats, clock)


def preferences(bench: Bench, repeats: int, clock: Callable[[], float]) -> None:
    steps = in_turn({"sft": bench.sft, "dpo": bench.dpo}, repeats, clock)
    print(f"a step of {ROWS} rows of {TOKENS} tokens: sft {steps['sft']:.3f} s, dpo {steps['dpo']:.3f} s, "
          f"times {steps['dpo'] / steps['sft']:.2f}; buffers {bench.trainer.nbytes / 1e6:.1f} MB in both")


def prefix(bench: Bench, repeats: int, clock: Callable[[], float]) -> None:
    lowest = bench.network.lowest_block(bench.adapter)
    with tempfile.TemporaryDirectory() as folder:
        cache = PrefixCache(folder, "0" * 64, np.full(ROWS, TOKENS), bench.hparams.n_embd, lowest)

        def first() -> None:
            cache.there[:] = 0
            bench.trainer.prefix = cache
            bench.sft()

        epochs = in_turn({"first": first, "later": bench.sft}, repeats, clock)
        cache.close()
    times = epochs["later"] / epochs["first"]
    print(f"trained from block {lowest} of {bench.hparams.n_layer} on, --prefix-cache: first epoch "
          f"{epochs['first']:.3f} s a step, later {epochs['later']:.3f} s, times {times:.2f}")


if __name__ == "__main__":
    main()
