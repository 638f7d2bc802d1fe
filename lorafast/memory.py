"""The plan of a run: where every byte will go and how long a step will take, known before anything large is allocated.

A budget of memory is shared out to what a run cannot do without, then to what saves time. What can be traded is in
model.Strategy (keep activations or compute them again, the logits of how many tokens at a time, how many sequences at a time) and
the part of the weights that stays in memory (residency.py). The plan takes the fastest combination that fits, by sizes that follow
from shapes, and by times that are measured on this machine: one block, the output, the optimiser, the disk.
"""
from __future__ import annotations

import copy
import functools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from .block import Rows
from .buffers import sized
from .config import FinetuneConfig
from .errors import LoraFastError, UsageError
from .files import megabytes
from .gguf import GGUFFile
from .kernels.adam import adam_step
from .kernels.attention import attention_scratch_bytes
from .kernels.linear import linear_scratch_bytes
from .layers import Projections
from .lora import Adapter
from .model import Activations, Model, Strategy, Trainer, lowest_block, scratch_floats, sequence_bytes, weight_order
from .process import resident_bytes
from .residency import ModelFiles, Residency, Window, least_capacity, nbytes

RESERVE = 12 << 20
"""Bytes for what is too small to be listed: the allocator's and the thread library's own, short-lived arrays, page edges."""

CACHE = "the system's cache beside the weights"
CACHE_RESERVE = 24 << 20
"""Under a cgroup's limit, bytes of the system's cache that reading leaves around the weights in memory (see residency.py)."""

DATA_BYTES = 15
"""Memory for a byte of text: at about 3 bytes a token, 4 bytes for the token and up to 40 for a sample that begins there."""


Result = TypeVar("Result")


def cached(method: Callable[..., Result]) -> Callable[..., Result]:
    """A method that computes once for each set of arguments, and remembers as long as its object lives."""
    @functools.wraps(method)
    def wrapped(self: Any, *arguments: Any) -> Result:
        known = vars(self).setdefault("_" + method.__name__, {})
        if arguments not in known:
            known[arguments] = method(self, *arguments)
        return known[arguments]
    return wrapped


# --- The budget ---------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Budget:
    """How many bytes may be resident, mapped pages included, and who says so.

    cgroup  limit of the control group around this process, in which the system's cache counts too; None if there is none
    """

    nbytes: int
    source: str
    cgroup: int | None = None


def read_budget(limit: str = "", root: Path = Path("/")) -> Budget:
    """The budget by --mem-limit (`1.5G`, `800M`, `50%` of what there is); without one, what there is.

    There is: what the system calls available, with what this process has already, or the cgroup's limit if that is less.
    root: the folder under which sys and proc are found. UsageError for a limit that is none.
    """
    cgroup = cgroup_limit(root)
    available = _available(root)
    known = [(n, text) for n, text in ((cgroup, "the limit of this process's cgroup"), (available, "the memory that is available"))
             if n is not None]
    there_is, source = min(known, default=(2**63, "no limit is known"))
    if limit:
        asked = parse_limit(limit, there_is)
        if cgroup is None or asked <= cgroup:
            return Budget(asked, f"--mem-limit {limit}", cgroup)
    return Budget(there_is, source, cgroup)


def parse_limit(text: str, there_is: int) -> int:
    """`1.5G`, `800M`, `1500000K`, `50%` in bytes; units are of 1024. UsageError for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?:([KMGT])(?:i?B)?|(%))", text.strip(), re.IGNORECASE)
    if not match or not 0 < float(match[1]) or (match[3] and float(match[1]) > 100):
        raise UsageError(f"--mem-limit {text}: must be a size such as 1.5G or 800M, or a share such as 50%")
    unit = there_is / 100 if match[3] else 2 ** (10 * (1 + "KMGT".index(match[2].upper())))
    return int(float(match[1]) * unit)


def cgroup_limit(root: Path = Path("/")) -> int | None:
    """The lowest memory limit of the cgroups around this process (versions 1 and 2), bytes; None if there is none."""
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    limits = []
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        group = top / path.lstrip("/")
        # In a container the path may be the host's; what holds there is then mounted at the top.
        for folder in (group, *group.parents):
            try:
                text = (folder / ("memory.limit_in_bytes" if controllers else "memory.max")).read_text().strip()
                if text != "max":
                    limits.append(int(text))
            except (OSError, ValueError):
                pass
            if folder == top:
                break
    limit = min(limits, default=2**62)
    return limit if limit < 2**60 else None             # version 1 writes a huge number for "none"


def _available(root: Path) -> int | None:
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return kilobytes[0] * 1024 + resident_bytes() if kilobytes else None


# --- What the machine does in which time --------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Speed:
    """Seconds for a pass of `tokens` tokens: of one block forward, forward again for backward (without its last product), and
    backward; of the output, both ways.
    """

    tokens: int
    forward: float
    again: float
    backward: float
    head: float


UNPACKING_TOKENS = 32
"""Unpacking weights costs about as much time as computing with so many tokens: a pass of few tokens is slower for each of them."""

HEAD_TOKENS = (128, 64, 32, 16)
"""Tokens whose logits exist at a time, to choose from. More than the first brings no time, fewer cost some."""

SHORTLIST = 40
"""So many of the strategies that seem fastest are followed through a pass, to find the one that is."""

SLOW_DISK = 0.8
"""A choice counts on this share of the disk's measured rate: others read too."""

MEASURED_TOKENS = 1024
"""A measurement takes as many whole sequences as fit in this, or one; the rest is in proportion."""


def measure_speed(model: Model, adapter: Adapter, T: int, ctx: int, head_tokens: int, n_threads: int,
                  files: ModelFiles | None = None) -> Speed:
    """Runs one block in the middle, and the output, on some tokens. The adapter is not touched.

    With `files` no more of the weights is in memory at a time than must be.
    """
    n_sequences = max(1, min(T, MEASURED_TOKENS) // ctx)
    begin = np.arange(0, n_sequences * ctx + 1, ctx, dtype=np.int32)
    block = model.blocks[len(model.blocks) // 2]
    one = copy.copy(model)
    one.hparams, one.blocks = replace(model.hparams, n_layer=1), [block]
    names = {name for group in (*block.groups, model.head) for name in group.names}
    part = Adapter([spec for spec in adapter.specs if spec.name in names], adapter.alpha, adapter.r, training=True)
    trainer = Trainer(one, part, n_sequences * ctx, Strategy(n_kept=1, head_tokens=head_tokens), n_threads)
    tokens = np.arange(begin[-1], dtype=np.int32) % min(model.hparams.n_vocab, 64)
    x, saved, common = trainer.buffers.input, trainer.buffers.saved_of(0), (trainer.scratch, Rows.of(begin), part, n_threads)
    order = weight_order(one, trainer.buffers)
    residency = files and Residency(files, one.embedding, order, least_capacity(order))
    one.embedding.forward(x(0), tokens, part, n_threads)
    seconds = [_least_time(run, residency) for run in (
        lambda: block.forward(x(1), x(0), saved, *common),
        lambda: block.forward(None, x(0), saved, *common),
        lambda: block.backward(x(1), x(0), saved, *common, need_dx=True),
        lambda: trainer.head(x(1), trainer.buffers.rstd, tokens, 1e-6))]
    if residency:
        residency.close()
    return Speed(T, *(T / len(tokens) * each for each in seconds))


def measure_optimiser(n_params: int, n_threads: int) -> float:
    """Seconds of an update."""
    arrays = [np.ones(min(n_params, 1 << 18), np.float32) for _ in range(4)]
    seconds = _least_time(lambda: adam_step(*arrays, 1.0, 0.9, 0.999, 1e-3, 1.0, 1e-8, 0.0, n_threads))
    return n_params / len(arrays[0]) * seconds


def measure_disk(files: ModelFiles, model: Model) -> float:
    """Bytes a second at which the model's file is read when the system's cache does not have it."""
    read, began = 0, time.perf_counter()
    for tensor in (tensor for block in model.blocks for group in block.groups for tensor in group.tensors):
        place = tensor.path, tensor.offset, tensor.offset + tensor.nbytes
        files.let_go(*place)
        files.populate(tensor)
        files.let_go(*place)
        read += tensor.nbytes
        seconds = time.perf_counter() - began
        if read > 256 << 20 or seconds > 0.5:
            break
    return read / seconds


def _least_time(run: Callable[[], object], residency: Residency | None = None) -> float:
    """Of two runs, without waiting for the disk: the first finds cold caches and pages that are not there yet."""
    seconds = []
    for _ in range(2):
        waited = residency.seconds_waited if residency else 0.0
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began - (residency.seconds_waited - waited if residency else 0.0))
    return min(seconds)


# --- The plan -----------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Item:
    """A line of the table: what takes so many bytes."""

    name: str
    nbytes: int
    note: str = ""


@dataclass(frozen=True)
class Job:
    """What a run is asked to do, as far as memory and time depend on it.

    iterations  of this run; None if that is not known yet
    data_bytes  size of the training data's files
    copies      arrays of the size of the adapter: parameters, gradients, two moments, and more with dropout
    continuation  texts are generated now and then
    """

    batch: int
    ctx: int
    passes: int
    iterations: int | None
    n_threads: int
    data_bytes: int = 0
    copies: int = 4
    continuation: bool = False


@dataclass(frozen=True)
class Forced:
    """What the options decide; None leaves it to the plan. See Strategy; kept: all blocks (True) or as few as possible."""

    kept: bool | None = None
    input_every: int | None = None
    head_tokens: int | None = None
    micro_batch: int | None = None


@dataclass(frozen=True)
class Timing:
    """Of a step: seconds in all, seconds of computing alone, bytes read from disk."""

    seconds: float
    compute: float
    bytes_read: int


@dataclass(frozen=True)
class Plan:
    """What was chosen and what follows from it.

    items     where the bytes go, the last one the weights in memory
    capacity  bytes of weights in memory at a time, where they stream; None where the whole model stays
    reasons   why the strategy is not the fastest one; empty if it is
    """

    job: Job
    budget: Budget
    strategy: Strategy
    items: tuple[Item, ...]
    capacity: int | None
    model_bytes: int
    reasons: tuple[str, ...]
    timing: Timing

    def for_iterations(self, n: int) -> Plan:
        """The same, once it is known how many iterations the run has."""
        return replace(self, job=replace(self.job, iterations=n))

    @property
    def nbytes(self) -> int:
        return sum(item.nbytes for item in self.items)

    @property
    def tokens_per_second(self) -> float:
        return self.job.batch * self.job.ctx * self.job.passes / self.timing.seconds

    def stream(self, files: ModelFiles, trainer: Trainer) -> Residency | None:
        """Starts what brings the weights into memory, where they do not fit; to be closed at the end of the run."""
        if self.capacity is None:
            return None
        return Residency(files, trainer.model.embedding, weight_order(trainer.model, trainer.buffers), self.capacity)

    def table(self) -> list[str]:
        """The plan in full, in lines."""
        lines = [f"Memory, of at most {megabytes(self.budget.nbytes)} ({self.budget.source}):"]
        lines += [f"  {item.name:<44}{megabytes(item.nbytes):>12}{'   ' * bool(item.note)}{item.note}" for item in self.items]
        lines.append(f"  {'in all':<44}{megabytes(self.nbytes):>12}")
        lines += ["Choices:", *(f"  {reason}" for reason in self.reasons or ["the fastest ones fit"])]
        lines += ["Time, measured on this machine just now:", *(f"  {line}" for line in self._times())]
        return lines

    def summary(self) -> list[str]:
        """The plan in a few lines."""
        times = self._times()
        return [f"memory: {megabytes(self.nbytes)} of at most {megabytes(self.budget.nbytes)} ({self.budget.source})",
                *self.reasons, "; ".join(times)]

    def _times(self) -> list[str]:
        timing = self.timing
        lines = [f"{_duration(timing.seconds)} a step, {self.tokens_per_second:.1f} tokens/s"]
        if self.job.iterations is not None:
            lines.append(f"{_duration(timing.seconds * self.job.iterations)} for {self.job.iterations} steps")
        if timing.bytes_read:
            lines.append(f"{timing.bytes_read / 1e9:.2f} GB read from disk a step")
        return lines

    def comparison(self, peak: int, seconds: float | None, bytes_read: int | None) -> str:
        """What was measured beside what was planned."""
        resident = sum(item.nbytes for item in self.items if item.name != CACHE)
        text = f"memory {megabytes(peak)} (planned {megabytes(resident)})"
        if seconds:
            text += f", a step {_duration(seconds)} (planned {_duration(self.timing.seconds)})"
        if bytes_read is not None and self.timing.bytes_read:
            text += f", read {bytes_read / 1e9:.2f} GB a step (planned {self.timing.bytes_read / 1e9:.2f})"
        return text


def plan_run(config: FinetuneConfig, gguf: GGUFFile, files: ModelFiles, model: Model, adapter: Adapter, base_bytes: int) -> Plan:
    """The plan for `lorafast finetune` with these options. Raises LoraFastError when there is none, and says what would fit.

    adapter     may still be without values
    base_bytes  what the process took before model and adapter were made
    """
    job = Job(config.batch, config.ctx, config.n_acc, config.adam_iter, config.n_threads,
              data_bytes=sum(os.path.getsize(path) for path in config.train_data if os.path.isfile(path)),
              copies=5 if config.lora_dropout else 4, continuation=bool(config.sample_prompt))
    forced = Forced(None if config.use_checkpointing is None else not config.use_checkpointing, config.checkpoint_every,
                    config.head_tokens, config.micro_batch)
    return Planner(gguf, files, model, adapter, job, read_budget(config.mem_limit), base_bytes).plan(forced)


class Planner:
    """Finds the plan for a job. Nothing large is allocated: sizes come from arrays that have a shape, but no memory."""

    def __init__(self, gguf: GGUFFile, files: ModelFiles, model: Model, adapter: Adapter, job: Job, budget: Budget,
                 base_bytes: int) -> None:
        """base_bytes: what this process takes already, pages of the model not counted."""
        self.gguf, self.files, self.model, self.adapter, self.job, self.budget = gguf, files, model, adapter, job, budget
        self.base_bytes = base_bytes

    def plan(self, forced: Forced = Forced()) -> Plan:
        """The fastest strategy that fits. LoraFastError, with what would fit, if there is none."""
        candidates = list(self._candidates(forced))
        self._fitting(candidates)
        best = candidates[0]
        if self._capacity(best) is not None:
            self._speed(), self._disk()
            self.base_bytes = self.files.resident_bytes_without()           # measuring has brought in libraries, and left its traces
            shortlist = sorted(self._fitting(candidates), key=self._estimate)[:SHORTLIST]
            best = min(shortlist, key=lambda strategy: self._timing(strategy, SLOW_DISK * self._disk()).seconds)
        capacity = self._capacity(best)
        return Plan(self.job, self.budget, best, (*self._items(best), self._weights(capacity)), capacity, self.gguf.nbytes,
                    tuple(self._reasons(candidates[0], best, capacity)), self._timing(best, self._disk() if capacity is not None else 0.0))

    # Bytes

    def _items(self, strategy: Strategy) -> list[Item]:
        """Everything but the weights."""
        job, params, T = self.job, 4 * self.adapter.n_params, self._tokens(strategy)
        inputs, block = self._activation_bytes(T, strategy.input_every)
        n_kept = min(strategy.n_kept, len(self._trained))
        of_blocks = f"of {n_kept} blocks of {len(self._trained)}" + ", the others compute them again" * (n_kept < len(self._trained))
        items = [
            Item("Python, libraries, tokenizer", self.base_bytes),
            Item("training data", DATA_BYTES * job.data_bytes, "estimate"),
            Item("adapter", params * (job.copies - 3)),
            Item("its gradients", params),
            Item("its moments", 2 * params),
            Item("inputs of the blocks", inputs),
            Item("activations kept for backward", n_kept * block, of_blocks),
            Item("working arrays, logits", 4 * scratch_floats(self.model, T, strategy), f"of {strategy.head_tokens} tokens at a time"),
            Item("packed operands and tiles of the kernels", self._kernel_bytes(T)),
            Item("generating texts", self.job.continuation and sequence_bytes(self.model, self.adapter)),
            Item("reserve", RESERVE),
            Item(CACHE, CACHE_RESERVE if self._counts_cache else 0, "counts in the cgroup, not as resident"),
        ]
        return [item for item in items if item.nbytes]

    def _weights(self, capacity: int | None) -> Item:
        if capacity is None:
            return Item("weights in memory", self.gguf.nbytes, "the whole model")
        return Item("weights in memory", capacity, f"of {megabytes(self.gguf.nbytes)}, the rest is read when it is needed")

    def _capacity(self, strategy: Strategy) -> int | None | Literal[False]:
        """Bytes that are left for weights; None if all find room, False if there is not enough for them to stream."""
        left = self.budget.nbytes - sum(item.nbytes for item in self._items(strategy))
        if left >= self.gguf.nbytes:
            return None
        return min(left, self._streamed_bytes) if left >= self._least_capacity else False

    def _tokens(self, strategy: Strategy) -> int:
        return strategy.max_tokens(self.job.batch, self.job.ctx)

    @cached
    def _activation_bytes(self, T: int, input_every: int) -> tuple[int, int]:
        """Bytes of the blocks' inputs, and of what one block keeps for backward."""
        activations = Activations(self.model, self.adapter, T, Strategy(1, input_every), new=sized)
        block = activations.saved[0].nbytes
        return activations.nbytes - block, block

    @cached
    def _kernel_bytes(self, T: int) -> int:
        n_threads, hp, size = self.job.n_threads, self.model.hparams, self.model.hparams.sizes
        C, F, V, heads = size["C"], size["F"], size["V"], size["H*D"]
        shapes = [(C, V), (C, heads), (size["H*DV"], C), (C, F), (F, C)]
        return (max(linear_scratch_bytes(T, K, N, n_threads) for K, N in shapes)
                + attention_scratch_bytes(T, hp.n_head, hp.n_embd_head_k, hp.n_embd_head_v, n_threads))

    @property
    def _counts_cache(self) -> bool:
        return self.budget.cgroup is not None and self.budget.nbytes > self.budget.cgroup - CACHE_RESERVE

    @cached
    def _order(self, strategy: Strategy) -> list[Projections]:
        return weight_order(self.model, Activations(self.model, self.adapter, 1, strategy, new=sized))

    @property
    def _least_capacity(self) -> int:
        return min(self.gguf.nbytes, least_capacity(self._order(Strategy(1))))

    @property
    def _streamed_bytes(self) -> int:
        return sum(nbytes(group) for group in set(self._order(Strategy(1))))

    @property
    def _trained(self) -> range:
        """The blocks that gradients reach."""
        return range(lowest_block(self.model, self.adapter), len(self.model.blocks))

    # Choices

    def _candidates(self, forced: Forced) -> Iterator[Strategy]:
        """Strategies in the order of what they cost, roughly; the first is the fastest if memory does not matter."""
        job, n_blocks = self.job, len(self._trained)
        for micro_batch in [min(forced.micro_batch, job.batch)] if forced.micro_batch else _halves(job.batch):
            T = micro_batch * job.ctx
            sizes = [forced.head_tokens or min(n, T) for n in HEAD_TOKENS]
            for head_tokens in dict.fromkeys(sizes):
                micro = micro_batch if micro_batch < job.batch else None
                if (forced.input_every or 1) == 1:
                    kept = {None: range(max(1, n_blocks), 0, -1), True: [max(1, n_blocks)], False: [1]}[forced.kept]
                    yield from (Strategy(n_kept, 1, head_tokens, micro) for n_kept in kept)
                if not forced.kept and forced.input_every != 1:
                    every = [forced.input_every] if forced.input_every else range(2, int(n_blocks**0.5) + 2)
                    yield from (Strategy(1, n, head_tokens, micro) for n in every)

    def _reasons(self, fastest: Strategy, chosen: Strategy, capacity: int | None) -> Iterator[str]:
        limit = f"{megabytes(self.budget.nbytes)} ({self.budget.source})"
        if chosen.micro_batch != fastest.micro_batch:
            yield f"of the {self.job.batch} samples of a pass, {chosen.micro_batch} are worked on at a time"
        if chosen.n_kept < fastest.n_kept:
            _, block = self._activation_bytes(self._tokens(chosen), 1)
            yield (f"activations of {chosen.n_kept} of {fastest.n_kept} blocks are kept, the others are computed again: all of them "
                   f"would take {megabytes((fastest.n_kept - chosen.n_kept) * block)} more")
        if chosen.input_every != fastest.input_every:
            yield f"of {chosen.input_every} blocks one keeps its input, and the others compute even that again"
        if chosen.head_tokens < min(fastest.head_tokens, self._tokens(chosen)):
            yield f"logits exist of {chosen.head_tokens} tokens at a time"
        if capacity is not None:
            yield (f"{megabytes(capacity)} of the model's {megabytes(self.gguf.nbytes)} are in memory at a time, the rest is read when it "
                   f"is needed: that is what is left of {limit}")

    def _fitting(self, candidates: Sequence[Strategy]) -> list[Strategy]:
        """Those that fit. LoraFastError, with what would fit, if none does."""
        fitting = [strategy for strategy in candidates if self._capacity(strategy) is not False]
        if not fitting:
            raise LoraFastError(self._refusal(candidates))
        return fitting

    # Times

    @cached
    def _speed(self) -> Speed:
        """Measured with the largest micro-batch that fits."""
        largest = max((s for s in self._candidates(Forced()) if self._capacity(s) is not False), key=self._tokens)
        T = self._tokens(largest)
        is_tight = self._capacity(largest) is not None
        speed = measure_speed(self.model, self.adapter, T, self.job.ctx, min(128, T), self.job.n_threads,
                              self.files if is_tight else None)
        self.files.let_go_pages()
        return speed

    @cached
    def _optimiser(self) -> float:
        return measure_optimiser(self.adapter.n_params, self.job.n_threads)

    @cached
    def _disk(self) -> float:
        return measure_disk(self.files, self.model)

    def _compute(self, strategy: Strategy) -> float:
        """Seconds of computing of a pass over one micro-batch."""
        speed, T, n_blocks = self._speed(), self._tokens(strategy), len(self._trained)
        again = n_blocks - min(strategy.n_kept, n_blocks)
        lost = len(self._order(strategy)) - len(self._order(replace(strategy, input_every=1)))
        forward = len(self.model.blocks) + lost / len(self.model.blocks[0].groups)
        seconds = speed.head + speed.forward * forward + speed.again * again + speed.backward * n_blocks
        return seconds * (T + UNPACKING_TOKENS) / (speed.tokens + UNPACKING_TOKENS)

    def _passes(self, strategy: Strategy) -> int:
        """In a step, over micro-batches."""
        return -(-self.job.batch // (strategy.micro_batch or self.job.batch)) * self.job.passes

    def _estimate(self, strategy: Strategy) -> float:
        """Seconds of a step, by sums: reading overlaps computing, and what is in memory at the turns need not be read."""
        capacity, seconds = self._capacity(strategy), self._compute(strategy)
        if capacity is not None:
            seconds = max(seconds, 2 * (self._streamed_bytes - capacity) / (SLOW_DISK * self._disk()))
        return seconds * self._passes(strategy)

    def _timing(self, strategy: Strategy, disk: float) -> Timing:
        """Of a step, by following the reader and the kernels place by place; disk: bytes a second."""
        compute, capacity = self._compute(strategy), self._capacity(strategy)
        seconds, read = compute, 0
        if capacity is not None:
            order = self._order(strategy)
            groups = list(dict.fromkeys(order))
            # A group's share of computing goes by its size: all are products with the same tokens.
            rate = compute / sum(nbytes(group) for group in order)
            window = Window([nbytes(group) for group in groups], [groups.index(group) for group in order], capacity)
            seconds, read = follow(window, [rate * nbytes(group) for group in order], disk)
        passes = self._passes(strategy)
        return Timing(seconds * passes + self._optimiser(), compute * passes + self._optimiser(), read * passes)

    # Refusal

    def _refusal(self, candidates: Sequence[Strategy]) -> str:
        least = min(sum(item.nbytes for item in self._items(strategy)) for strategy in candidates) + self._least_capacity
        text = (f"this run needs at least {megabytes(least)}, but may take {megabytes(self.budget.nbytes)} "
                f"({self.budget.source})")
        ways = [way for way, planner in self._smaller_jobs() if planner._fits()]
        ways.append(f"--mem-limit {-(-least // 2**20)}M" if self.budget.source.startswith("--mem-limit") else "more memory")
        return f"{text}. What would fit: {', or '.join(ways)}"

    def _fits(self) -> bool:
        return any(self._capacity(strategy) is not False for strategy in self._candidates(Forced()))

    def _smaller_jobs(self) -> Iterator[tuple[str, Planner]]:
        """Option and planner of jobs that take less memory."""
        yield "letting it choose (without --no-checkpointing, --head-tokens, --micro-batch)", self
        for ctx in (n for n in _halves(self.job.ctx)[1:] if n >= 16):
            smaller = self._with(job=replace(self.job, ctx=ctx))
            if smaller._fits():
                yield f"--ctx {ctx}", smaller
                break
        fewer = [spec for spec in self.adapter.specs if spec.name not in ("token_embd.weight", "output.weight")]
        if 0 < len(fewer) < len(self.adapter.specs):
            yield "--targets attn,ffn", self._with(adapter=Adapter(fewer, self.adapter.alpha, self.adapter.r))
        if self.adapter.r > 1:
            narrow = [replace(spec, rank=1) for spec in self.adapter.specs]
            yield "--lora-r 1", self._with(adapter=Adapter(narrow, 1, 1))

    def _with(self, **changes: object) -> Planner:
        given = {name: getattr(self, name) for name in ("gguf", "files", "model", "adapter", "job", "budget", "base_bytes")}
        return Planner(**{**given, **changes})


def follow(window: Window, compute: Sequence[float], rate: float) -> tuple[float, int]:
    """Seconds and bytes read of the second of two passes: the reader works beside the kernels, which wait for what they need.

    compute: seconds at each place of the window's order; rate: bytes a second.
    """
    clock = reader = 0.0                # when the kernels, and the reader, are done with what they do
    ready: dict[int, float] = {}
    read, passes = 0, []
    for _ in range(2):
        began, read_before = clock, read
        for place, unit in enumerate(window.order):
            window.now = place
            reader = max(reader, clock)
            end = None
            while end is None or reader < end:
                fetch = window.next_fetch()
                if fetch:
                    reader += window.sizes[fetch[0]] / rate
                    ready[fetch[0]] = reader
                    read += window.sizes[fetch[0]]
                if unit in window.held and end is None:
                    clock = max(clock, ready[unit])
                    end = clock + compute[place]
                if not fetch:
                    break
            clock = end
        passes.append((clock - began, read - read_before))
    return passes[-1]


def _halves(n: int) -> list[int]:
    """n, and its halves down to 1, rounded up."""
    halves = [n]
    while halves[-1] > 1:
        halves.append(-(-halves[-1] // 2))
    return halves


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
