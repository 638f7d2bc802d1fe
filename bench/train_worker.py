"""The process in which bench_train.py runs lorafast: a training step, or one taken apart, for each line it is sent.

    python bench/train_worker.py MODEL.gguf BATCH CTX THREADS CHECKPOINTING(0|1) PRECISION
"""
from __future__ import annotations

import gc
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
from memory_use import watched
from worker import serve

from lorafast.data.batches import Batch
from lorafast.gguf.reader import open_model
from lorafast.kernels import build_info
from lorafast.network.block import Block
from lorafast.network.hparams import read_hparams
from lorafast.network.lora import Adapter, Gradients, Moments, default_ranks, specs_for
from lorafast.network.network import Network
from lorafast.network.trainer import Strategy, Trainer
from lorafast.training.optim import Adam, parameter_groups

RANK = 4
TARGETS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "output")


class Run:
    """A training run on random tokens with a rank-4 pair on every matrix."""

    def __init__(self, path: str, batch: int, ctx: int, n_threads: int, checkpointing: bool, precision: str) -> None:
        gguf = open_model(path)
        self.hparams = read_hparams(gguf)
        self.n_threads = n_threads
        specs = specs_for(self.hparams.tensor_shapes(), default_ranks(RANK), TARGETS)
        self.adapter = Adapter(specs, alpha=RANK, r=RANK)
        self.adapter.initialise(0)
        self.gradients, self.moments = Gradients(self.adapter), Moments(self.adapter)
        self.network = Network(gguf, self.hparams, ctx, precision)
        strategy = Strategy(n_kept=1 if checkpointing else self.hparams.n_layer)
        self.trainer = Trainer(self.network, self.adapter, batch * ctx, strategy, n_threads)
        self.adam, self.groups = Adam(alpha=1e-4), parameter_groups(self.adapter, decay_min_ndim=2, lora_plus=1.0)
        self.iteration = 0
        tokens = np.random.default_rng(0).integers(3, self.hparams.n_vocab, (batch, ctx + 1), dtype=np.int32)
        begin = np.arange(0, batch * ctx + 1, ctx, dtype=np.int32)
        self.batch = Batch(np.ascontiguousarray(tokens[:, :-1]).ravel(), np.ascontiguousarray(tokens[:, 1:]).ravel(),
                           begin, batch, False)

    def step(self) -> float:
        """As a step of `lorafast finetune`, without its data and its log. Returns the loss."""
        adapter, n = self.adapter, len(self.batch.tokens)
        self.network.refresh(adapter)
        self.gradients.clear()
        loss = self.trainer.loss_and_gradients(self.batch, 1 / n, self.gradients) / n
        self.iteration += 1
        self.adam.step(adapter.params, self.moments.m, self.moments.v, self.gradients.flat, groups=self.groups,
                       iteration=self.iteration, schedule=1.0, n_threads=self.n_threads)
        return loss

    def timed(self) -> dict[str, float]:
        began = time.perf_counter()
        loss = self.step()
        return {"seconds": time.perf_counter() - began, "loss": loss}

    def profiled(self) -> dict[str, Any]:
        """One step taken apart: seconds by op and by phase, and seconds outside of all kernels."""
        with Profile() as profile:
            result = self.timed()
        kernels = sum(profile.ops.values())
        return {"seconds": result["seconds"], "ops": dict(profile.ops), "phases": profile.phases(result["seconds"]),
                "calls": profile.calls, "python": result["seconds"] - kernels}

    def memory(self) -> dict[str, int]:
        """Peak memory during a step, in bytes; `buffers` are those the trainer allocated."""
        return {**watched(self.step), "buffers": self.trainer.nbytes}


class Profile:
    """While it is entered, every kernel is timed, and every phase, by exchanging the functions for timed ones.

    ops     seconds by name of the kernel
    calls   number of kernel calls
    """

    def __init__(self) -> None:
        self.ops: dict[str, float] = defaultdict(float)
        self.calls = 0
        self._spans: dict[str, float] = defaultdict(float)
        self._exchanged: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> Profile:
        for owner in kernels_owners():
            for attribute, function in list(vars(owner).items()):
                if is_kernel(function):
                    self._exchange(owner, attribute, self._timed_kernel(function))
        self._exchange(Block, "forward", self._timed_phase(Block.forward, self._forward_or_recompute))
        self._exchange(Block, "backward", self._timed_phase(Block.backward, lambda: "backward"))
        self._exchange(Trainer, "loss_and_gradients", self._timed_phase(Trainer.loss_and_gradients, lambda: "loss"))
        return self

    def __exit__(self, *exception: object) -> None:
        for owner, attribute, function in self._exchanged:
            setattr(owner, attribute, function)

    def phases(self, step: float) -> dict[str, float]:
        """Seconds of the blocks' forward, of their backward, of recomputing them for backward; the head is all else of
        loss and gradients (final norm, logits, loss, embedding), the update is all else of the step."""
        spans = dict(self._spans)
        loss = spans.pop("loss")
        return {**spans, "head": loss - sum(spans.values()), "update": step - loss}

    def _forward_or_recompute(self) -> str:
        return "recompute" if self._spans["backward"] else "forward"

    def _exchange(self, owner: Any, attribute: str, timed: Callable) -> None:
        self._exchanged.append((owner, attribute, vars(owner)[attribute]))
        setattr(owner, attribute, timed)

    def _timed_kernel(self, function: Callable) -> Callable:
        name, ops, clock = function.__name__, self.ops, time.perf_counter

        def kernel(*args: Any) -> Any:
            began = clock()
            result = function(*args)
            ops[name] += clock() - began
            self.calls += 1
            return result
        return kernel

    def _timed_phase(self, function: Callable, phase: Callable[[], str]) -> Callable:
        def method(*args: Any, **kwargs: Any) -> Any:
            name, began = phase(), time.perf_counter()
            result = function(*args, **kwargs)
            self._spans[name] += time.perf_counter() - began
            return result
        return method


def is_kernel(function: Any) -> bool:
    return callable(function) and str(getattr(function, "__module__", "")).startswith("lorafast.kernels.") \
        and not isinstance(function, type)


def kernels_owners() -> list[Any]:
    """What may call a kernel by a name of its own: modules, and objects such as a feed-forward with its activation."""
    modules = [module for name, module in list(sys.modules.items())
               if name.startswith("lorafast.") and not name.startswith("lorafast.kernels")]
    return modules + [each for each in gc.get_objects()
                      if str(type(each).__module__).startswith("lorafast.") and hasattr(each, "__dict__")]


def main() -> None:
    path, batch, ctx, n_threads, checkpointing, precision = sys.argv[1:]
    run = Run(path, int(batch), int(ctx), int(n_threads), bool(int(checkpointing)), precision)
    serve({"isa": build_info.isa(), "arithmetic": run.network.arithmetic()},
          {"step": run.timed, "profile": run.profiled, "memory": run.memory})


if __name__ == "__main__":
    main()
