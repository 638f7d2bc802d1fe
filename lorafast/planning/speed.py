"""How fast this machine is at the parts of a step, and how long a step takes when reading goes on beside computing."""
from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from ..kernels.adam import adam_step
from ..network.block import Rows
from ..network.linear import Embedding, Projections
from ..network.lora import Adapter
from ..network.network import Model, Strategy, Trainer, weight_order
from ..network.residency import ModelFiles, Residency, Window, least_capacity

MEASURED_TOKENS = 512
"""A measurement takes as many sequences as fit in this, or so much of one; the rest is in proportion, attention's growth with
the length of a sequence included."""

FEWEST, ENOUGH, LONG = 4, 0.1, 0.3
"""Runs of what is measured, at least; seconds for more; and seconds that make one run enough."""

BACKWARD_OF_ATTENTION = 2.5
"""Products in attention's backward pass, of those in its forward pass."""

MEASURED_BYTES, MEASURED_SECONDS = 256 << 20, 0.5
"""What is read at most to learn how fast the disk is."""


@dataclass(frozen=True)
class Speed:
    """Seconds for a pass of `tokens` tokens: of one block forward, with what follows from the adapter's present values;
    forward again for backward (without what that does not need), backward, and its attention alone; of the output, both
    ways, `head_tokens` at a time.
    """

    tokens: int
    head_tokens: int
    attention: float
    forward: float
    again: float
    backward: float
    head: float


def measure_speed(model: Model, adapter: Adapter, T: int, ctx: int, head_tokens: int, n_threads: int,
                  files: ModelFiles | None = None) -> Speed:
    """Runs one block in the middle, and the output, on some tokens. The adapter is not touched.

    With `files` no more of the weights is in memory at a time than must be.
    """
    length = min(ctx, MEASURED_TOKENS)
    n_sequences = max(1, min(T, MEASURED_TOKENS) // length)
    begin = np.arange(0, n_sequences * length + 1, length, dtype=np.int32)
    tokens = np.arange(begin[-1], dtype=np.int32) % min(model.hparams.n_vocab, 64)
    block = model.blocks[len(model.blocks) // 2]
    small = copy.copy(model)
    small.hparams, small.blocks = replace(model.hparams, n_layer=1), [block]
    names = {name for group in (*block.groups, model.head) for name in group.names}
    part = Adapter([spec for spec in adapter.specs if spec.name in names], adapter.alpha, adapter.r, training=True)
    for magnitude in part.magnitudes.values():
        magnitude.fill(1)
    trainer = Trainer(small, part, len(tokens), Strategy(n_kept=1, head_tokens=head_tokens), n_threads)
    buffers = trainer.buffers
    x, out, saved = buffers.input(0), buffers.input(1), buffers.saved_of(0)
    common = trainer.scratch, Rows.of(begin), part, n_threads
    order = weight_order(small, buffers)
    residency = Residency(files, small.embedding, order, least_capacity(order)) if files else None
    small.embedding.forward(x, tokens, part, n_threads)

    def forward_block() -> None:
        small.merge(part)
        block.forward(out, x, saved, *common)

    def output() -> None:
        small.merge(part)
        trainer.head(out, buffers.rstd, tokens, 1e-6)

    some = np.arange(min(16, len(tokens)))          # once before, on a few tokens, so that the weights are there
    trainer.head(out[some], buffers.rstd, tokens[some], None)
    forward_block()
    attention, forward, again, backward, head = (T / len(tokens) * _usual_time(run, residency) for run in (
        lambda: block.attend(saved, saved.k, saved.v, common[1], n_threads),
        forward_block,
        lambda: block.forward(None, x, saved, *common),
        lambda: block.backward(out, x, saved, *common, need_dx=True),
        output))
    if residency:
        residency.close()
    more = (ctx / length - 1) * attention
    return Speed(T, head_tokens, attention + more, forward + more, again + more,
                 backward + BACKWARD_OF_ATTENTION * more, head)


def measure_optimiser(n_params: int, n_threads: int) -> float:
    """Seconds of an update."""
    arrays = [np.ones(min(n_params, 1 << 18), np.float32) for _ in range(4)]
    seconds = _usual_time(lambda: adam_step(*arrays, 1.0, 0.9, 0.999, 1e-3, 1.0, 1e-8, 0.0, n_threads))
    return n_params / len(arrays[0]) * seconds


def measure_disk(files: ModelFiles, embedding: Embedding, order: Sequence[Projections]) -> float:
    """Bytes a second at which the weights are read, in the order of a pass, when the system's cache does not have them."""
    residency = Residency(files, embedding, order, least_capacity(order))
    began, seconds = time.perf_counter(), 0.0
    for group in order:
        residency.wait_for(group)
        seconds = time.perf_counter() - began
        if residency.bytes_read > MEASURED_BYTES or seconds > MEASURED_SECONDS:
            break
    rate = residency.bytes_read / seconds
    residency.close()
    return rate


def _usual_time(run: Callable[[], object], residency: Residency | None = None) -> float:
    """The median of some runs, without waiting for the disk. The first one finds threads asleep and memory untouched: it counts
    only if there is no other, because it took long.
    """
    def waited() -> float:
        return residency.seconds_waited if residency else 0.0

    seconds: list[float] = []
    end = time.perf_counter() + ENOUGH
    while len(seconds) < FEWEST or time.perf_counter() < end:
        began = time.perf_counter() - waited()
        run()
        seconds.append(time.perf_counter() - waited() - began)
        if seconds[-1] > LONG:
            break
    return median(seconds[1:] or seconds)


def follow(window: Window, compute: Sequence[float], rate: float) -> tuple[float, int]:
    """Seconds and bytes read of the second of two passes, in which kernels wait for what the reader has not read yet.

    window    a new one; afterwards it knows the most that it has held
    compute   seconds at each place of the window's order
    rate      bytes a second that the reader reads
    """
    clock = reader = 0.0                # when the kernels, and when the reader, are done with what they do
    ready: dict[int, float] = {}        # when each unit has been read
    read = 0
    for _ in range(2):
        began, read_before = clock, read
        for place, unit in enumerate(window.order):
            window.now = place
            reader = max(reader, clock)
            end = max(clock, ready[unit]) + compute[place] if unit in window.held else None
            while end is None or reader < end:
                fetch = window.next_fetch()
                if not fetch:
                    break
                fetched, _ = fetch
                reader += window.sizes[fetched] / rate
                ready[fetched] = reader
                read += window.sizes[fetched]
                if end is None and fetched == unit:
                    end = reader + compute[place]
            clock = end
    return clock - began, read - read_before
