"""How fast this machine is at the parts of a step, and how long a step takes when reading goes on beside computing."""
from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType

import numpy as np

from ..kernels.adam import adam_step
from ..network.block import Block, BlockSaved
from ..network.buffers import sized
from ..network.experts import ExpertsSaved
from ..network.linear import Group
from ..network.lora import Adapter, Gradients
from ..network.model_files import ModelFiles
from ..network.network import Network
from ..network.passes import Pass, Rows
from ..network.residency import Residency, least_capacity
from ..network.trainer import Activations, Strategy, Trainer, weight_order
from ..network.weights import MAPPED
from ..network.window import Window
from .routing import EVEN, Routing, share_of

MEASURED_TOKENS = 512
"""A measurement takes as many sequences as fit in this, or so much of one; the rest is in proportion, attention's
growth with the length of a sequence included."""

FEWEST, ENOUGH, LONG = 4, 0.1, 0.3
"""Runs of what is measured, at least; seconds for more; and seconds that make one run enough."""

BACKWARD_OF_ATTENTION = 2.5
"""Products in attention's backward pass, of those in its forward pass."""

NO_TOKENS, NOTHING = np.zeros(0, np.int32), MappingProxyType[int, float]({})

MEASURED_BYTES, MEASURED_SECONDS = 256 << 20, 0.5
"""What is read at most to learn how fast the disk is."""


@dataclass(frozen=True)
class BlockSpeed:
    """Seconds for a pass over one block: forward, with what follows from the adapter's present values; forward again
    for backward (without what that does not need); backward; and what is cheap to compute again, alone.
    """

    forward: float
    again: float
    backward: float
    cheap: float


@dataclass(frozen=True)
class Speed:
    """Seconds for a pass of `tokens` tokens: of a block by its shape; of the output, both ways, `head_tokens` at a
    time, whole or (head_pieces) by pieces."""

    tokens: int
    head_tokens: int
    blocks: dict[tuple, BlockSpeed]
    head: float
    head_pieces: bool = False


def measure_speed(network: Network, adapter: Adapter, T: int, ctx: int, head_tokens: int, n_threads: int,
                  files: ModelFiles | None = None, head_pieces: bool = False, routing: Routing = EVEN,
                  beginning: np.ndarray = NO_TOKENS) -> Speed:
    """Runs one block of each shape, the one in the middle, and the output, on some tokens. The adapter is not touched.

    With `files` no more of the weights is in memory at a time than must be. routing: what experts see of the tokens.
    beginning: of the data, int32
    """
    length = min(ctx, MEASURED_TOKENS, network.n_positions)     # ctx may be that of a pair of rows
    n_sequences = max(1, min(T, MEASURED_TOKENS) // length)
    begin = np.arange(0, n_sequences * length + 1, length, dtype=np.int32)
    some = beginning if len(beginning) else np.arange(min(network.hparams.n_vocab, 64), dtype=np.int32)
    tokens = np.resize(some, begin[-1])
    small = copy.copy(network)
    small.blocks = _one_of_each_shape(network)
    names = {linear.name for group in small.groups for linear in group.linears}
    part = Adapter([spec for spec in adapter.specs if spec.name in names], adapter.alpha, adapter.r)
    for magnitude in part.magnitudes.values():
        magnitude.fill(1)
    order = weight_order(small, Activations(small, part, 1, Strategy(1), new=sized), head_pieces)
    residency = Residency(files, order, least_capacity(order)) if files else None
    strategy = Strategy(n_kept=len(small.blocks), head_tokens=head_tokens, head_pieces=head_pieces)
    trainer = Trainer(small, part, len(tokens), strategy, n_threads, weights=residency or MAPPED)
    pass_ = Pass(tokens, Rows.of(begin), part, trainer.scratch, n_threads, Gradients(part), trainer.weights,
                 *trainer.buffers.beside(len(tokens)))
    blocks = {block.shape: _measure_block(block, trainer.buffers, layer, ctx, length, T, pass_, small, residency,
                                          routing) for layer, block in enumerate(small.blocks)}
    x, weights = trainer.buffers.output, np.full(len(tokens), 1e-6, np.float32)

    def output() -> None:
        small.refresh(part)
        trainer.head_losses(x, tokens, weights, True, pass_)

    head = T / len(tokens) * _usual_time(output, residency)
    if residency:
        residency.close()
    return Speed(T, head_tokens, blocks, head, head_pieces)


def _one_of_each_shape(network: Network) -> list[Block]:
    of_shape: dict[tuple, list[Block]] = {}
    for block in network.blocks:
        of_shape.setdefault(block.shape, []).append(block)
    return [blocks[len(blocks) // 2] for blocks in of_shape.values()]


def _growth(block: Block, saved: BlockSaved, measured: int, T: int, routing: Routing) -> float:
    """The growth of a pass's time from so many tokens to T. Experts see few of those that are measured, so that
    unpacking their weights takes its part; and how many of them see some depends on the block and its input."""
    shares = [share_of(s.router.chosen, s.router.p.shape[1]) for s in saved.branches if isinstance(s, ExpertsSaved)]
    if not shares:
        return T / measured
    few = sum(routing.work(group, measured, shares[0] if group.n_parts else None) for group in block.groups)
    return sum(routing.work(group, T) for group in block.groups) / few


def _measure_block(block: Block, buffers: Activations, layer: int, ctx: int, length: int, T: int, pass_: Pass,
                   network: Network, residency: Residency | None, routing: Routing) -> BlockSpeed:
    """The speed of one block in a pass of T tokens, on sequences of `length` tokens for those of `ctx`."""
    x, out, saved = buffers.input(buffers.lowest), buffers.output, buffers.saved_of(layer)
    network.embed(x, pass_)

    def forward() -> None:
        network.refresh(pass_.adapter)
        block.forward(out, x, saved, pass_)

    def cheap() -> None:
        for branch, s in zip(block.branches, saved.branches, strict=True):
            branch.recompute_cheap(s, pass_)

    forward()                                       # once before, so that the weights are there
    per_pass = _growth(block, saved, len(pass_.tokens), T, routing)
    seconds = [per_pass * _usual_time(run, residency) for run in (
        forward,
        lambda: block.forward(None, x, saved, pass_),
        lambda: block.backward(out, x, saved, pass_, need_dx=True),
        cheap)]
    more = seconds[3] * max(branch.cheap_growth(length, ctx) for branch in block.branches)
    return BlockSpeed(seconds[0] + more, seconds[1] + more, seconds[2] + BACKWARD_OF_ATTENTION * more,
                      seconds[3] + more)


def measure_optimiser(n_params: int, n_threads: int) -> float:
    """Seconds of an update."""
    param, m, v, grad = (np.ones(min(n_params, 1 << 18), np.float32) for _ in range(4))
    seconds = _usual_time(lambda: adam_step(param, m, v, grad, 1.0, 0.9, 0.999, 1e-3, 1.0, 1e-8, 0.0, n_threads))
    return n_params / len(param) * seconds


def measure_disk(files: ModelFiles, order: Sequence[Group]) -> float:
    """Bytes a second at which the weights are read, in the order of a pass, when the system's cache does not have
    them; every third of experts, which lie apart as those do that a small pass needs."""
    residency = Residency(files, order, least_capacity(order))
    began, seconds = time.perf_counter(), 0.0
    for group in order:
        if group.n_parts:
            residency.announce([group], np.arange(0, group.n_parts, 3))
        residency.wait_for(group)
        seconds = time.perf_counter() - began
        if residency.bytes_read > MEASURED_BYTES or seconds > MEASURED_SECONDS:
            break
    rate = residency.bytes_read / seconds
    residency.close()
    return rate


def _usual_time(run: Callable[[], object], residency: Residency | None = None) -> float:
    """The median of some runs, without waiting for the disk. The first one finds threads asleep and memory untouched:
    it counts only if there is no other, because it took long.
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


def follow(window: Window, compute: Sequence[float], rate: float,
           again: Mapping[int, float] = NOTHING) -> tuple[float, int]:
    """Seconds and bytes read of the second of two passes, in which kernels wait for what the reader has not read yet.

    window    a new one; afterwards it knows the most that it has held
    compute   seconds at each place of the window's order
    rate      bytes a second that the reader reads
    again     of partial units, the share of what a pass needs that the next one needs too
    """
    clock = reader = 0.0                # when the kernels, and when the reader, are done with what they do
    ready: dict[int, float] = {}        # when each unit has been read
    read = 0
    for _ in range(2):
        began, read_before = clock, read
        window.known.clear()
        for place, unit in enumerate(window.order):
            window.now = place
            for soon in window.order[place:place + 2]:      # a router has named what its experts use after it
                if soon in window.partial and soon not in window.known:
                    is_held, size = soon in window.held, window.sizes[soon]
                    window.learn(soon, size, int(size * again.get(soon, 1)) if is_held and soon in again else None)
            reader = max(reader, clock)
            end: float | None = max(clock, ready[unit]) + compute[place] if unit in window.held else None
            while end is None or reader < end:
                there = dict(window.remains)
                fetch = window.next_fetch()
                if not fetch:
                    break
                fetched, _ = fetch
                nbytes = window.sizes[fetched] - there.get(fetched, 0)
                reader += nbytes / rate
                ready[fetched] = reader
                read += nbytes
                if end is None and fetched == unit:
                    end = reader + compute[place]
            assert end is not None, "a unit that is used is read"
            clock = end
    return clock - began, read - read_before
