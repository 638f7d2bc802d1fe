"""The plan of a run: where every byte will go and how long a step will take, known before anything large is allocated.

A budget of memory is shared out to what a run cannot do without, then to what saves time. What can be traded is in
network.trainer.Strategy (keep activations or compute them again, logits of how many tokens and how many sequences at a
time) and the part of the weights that stays in memory (residency.py). The plan takes the fastest combination that fits,
by sizes that follow from shapes, and by times that are measured (speed.py).
"""
from __future__ import annotations

import functools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from ..data.lengths import SharedRows
from ..data.memory import DataMemory, data_memory
from ..data.options import data_options
from ..errors import LoraFastError
from ..gguf.reader import GGUFFile
from ..kernels.linear import linear_scratch_bytes
from ..network.buffers import nbytes_of, sized
from ..network.decoder import decoder_bytes
from ..network.linear import Group
from ..network.lora import Adapter, Ranks
from ..network.model_files import ModelFiles
from ..network.network import Network
from ..network.pass_sums import stores_needed
from ..network.residency import least_capacity, nbytes
from ..network.shared_prompts import PromptKeys
from ..network.trainer import (
    Activations,
    Strategy,
    first_kept,
    layers_with_stores,
    scratch_floats,
    weight_order,
)
from ..network.window import Window
from ..options.finetune import FinetuneConfig
from ..options.outputs import megabytes
from ..tokenizer import Tokenizer
from .budget import Budget, read_budget
from .plan import CACHE, Item, Job, Plan, Timing
from .routing import EVEN, UNPACKING_TOKENS, measure_routing
from .sharing import ALONE, Sharing
from .speed import MEASURED_TOKENS, Speed, follow, measure_disk, measure_optimiser, measure_speed

RESERVE = 6 << 20
"""Bytes for what is too small to be listed: what libraries take when they are used, short-lived arrays, page edges.
Runs of models from 135 to 1100 million parameters took 2 to 4 MB of it."""

CACHE_RESERVE = 24 << 20
"""Bytes that reading leaves in the system's cache around the weights, which count under a cgroup's limit
(model_files.py)."""

HEAD_TOKENS = (128, 64, 32, 16)
"""Tokens whose logits exist at a time, to choose from. More than the first bring no time, fewer cost some."""

PRODUCTS_BY_PIECES = 3 / 2
"""Products of the output by pieces, of those of the whole (see head_pieces.py)."""

SHORTLIST = 40
"""Number of strategies that seem fastest and are followed through a pass, to find the one that is."""

SLOW_DISK = 0.8
"""A choice counts on this share of the disk's measured rate: others read too."""

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


@dataclass(frozen=True)
class Forced:
    """What the options decide (see Strategy); None leaves it to the plan. kept: all blocks, or (False) one."""

    kept: bool | None = None
    input_every: int | None = None
    head_tokens: int | None = None
    micro_batch: int | None = None

    @property
    def options(self) -> dict[str, str]:
        """What the user wrote, by field."""
        kept = {True: "--no-checkpointing", False: "--use-checkpointing"}
        numbers = {"input_every": "--checkpoint-every", "head_tokens": "--head-tokens", "micro_batch": "--micro-batch"}
        return ({"kept": kept[self.kept]} if self.kept is not None else {}) | {
            field: f"{option} {getattr(self, field)}" for field, option in numbers.items() if getattr(self, field)}


def plan_run(config: FinetuneConfig, gguf: GGUFFile, files: ModelFiles, tokenizer: Tokenizer, network: Network,
             adapter: Adapter, sharing: Sharing = ALONE, shared: SharedRows | None = None,
             data: DataMemory | None = None) -> Plan:
    """The plan for `lorafast finetune` with these options. LoraFastError, which says what would fit, if there is none.

    adapter  without values yet, unless they are those of --init-lora
    sharing  the ranks that this is one of
    shared   see Job
    data     None where it is still to be estimated
    """
    data = data or data_memory(data_options(config), tokenizer, gguf.metadata, config.ctx)
    base_bytes = files.resident_bytes_without() - (adapter.params.nbytes if config.init_lora else 0)
    job = Job(config.batch, config.ctx, config.n_acc, config.adam_iter, config.n_threads, data, config.pack,
              copies=5 if config.lora_dropout else 4, generates=bool(config.sample_prompt or config.eval_score),
              shared=shared,
              may_choose_pairs=not (config.init_lora or os.path.lexists(config.checkpoint_in)), sharing=sharing)

    def at_most(given: int | None, all_of_them: int) -> int | None:
        return given and min(given, all_of_them)

    forced = Forced(None if config.use_checkpointing is None else not config.use_checkpointing,
                    at_most(config.checkpoint_every, len(network.blocks)),
                    at_most(config.head_tokens, config.batch * config.ctx), at_most(config.micro_batch, config.batch))
    budget = read_budget(config.mem_limit).shared(sharing.n_on_host, gguf.nbytes)
    return Planner(gguf, files, network, adapter, job, budget, base_bytes).plan(forced)


class Planner:
    """Finds the plan for a job. Nothing large is allocated: sizes come from arrays that have a shape, but no memory."""

    def __init__(self, gguf: GGUFFile, files: ModelFiles, network: Network, adapter: Adapter, job: Job, budget: Budget,
                 base_bytes: int) -> None:
        """base_bytes: what this process takes already, pages of the model not counted."""
        self.gguf, self.files, self.network, self.adapter = gguf, files, network, adapter
        self.job, self.budget, self.base_bytes = job, budget, base_bytes
        self.measured_tokens = 0
        """Tokens of the passes that were measured: the memory that the kernels took for them they keep."""
        self.routing = EVEN
        """How a router spreads tokens over experts; known with the speed."""

    def plan(self, forced: Forced = Forced()) -> Plan:
        """The fastest strategy that fits. LoraFastError, with what would fit, if there is none."""
        candidates = list(self._candidates(forced))
        best = self._fitting(candidates, forced)[0]
        if best != candidates[0] or self._capacity(best) is not None:
            self._speed()
            shortlist = sorted(self._fitting(candidates, forced), key=self._estimate)[:SHORTLIST]
            best = min(shortlist, key=lambda strategy: self._timing(strategy, SLOW_DISK * self._disk()).seconds)
        capacity = self._capacity(best)
        timing = self._timing(best, self._disk() if capacity is not None else 0.0)
        items = (*self._items(best), self._weights(capacity, timing.most_held))
        return Plan(self.job, self.budget, best, items, capacity, tuple(self._reasons(best, forced, capacity)), timing,
                    self._forward())

    # Bytes

    def _items(self, strategy: Strategy) -> list[Item]:
        """Everything but the weights."""
        job, params, tokens = self.job, 4 * self.adapter.n_params, self._tokens(strategy)
        T = job.most_rows(tokens)
        inputs, kept = self._activation_bytes(T, strategy.n_kept, strategy.input_every, strategy.keeps_cheap)
        n_blocks = len(self._trained)
        n_kept = min(strategy.n_kept, n_blocks)
        of_blocks = f"of {n_kept} blocks of {n_blocks}" + ", the others compute them again" * (n_kept < n_blocks)
        items = [
            Item("Python, libraries, tokenizer", self.base_bytes),
            Item("training data", job.data.kept, job.data.note),
            Item("adapter", params * (job.copies - 3)),
            Item("its gradients", params * stores_needed(job.own_passes),
                 "of several passes until they are summed" * (job.own_passes > 1)),
            Item("gradients of other ranks", params if job.sharing.n_ranks > 1 else 0),
            Item("its moments", 2 * params),
            Item("DoRA's norms and gains", 2 * 4 * self.adapter.n_magnitudes, "for DoRA"),
            Item("inputs of the blocks", inputs),
            Item("activations kept for backward", kept, of_blocks),
            Item("keys and values of shared prompts", self._prompt_bytes(tokens) if job.shared else 0),
            Item("working arrays, logits", self._scratch_bytes(T, strategy) + self._row_bytes(T),
                 f"of {strategy.head_tokens} tokens at a time" + ", by pieces" * strategy.head_pieces),
            Item("packed operands and tiles of the kernels", self._kernel_bytes(max(T, self.measured_tokens))),
            Item("generating texts", decoder_bytes(self.network, self.adapter) if job.generates else 0),
            Item("reserve", RESERVE),
            Item(CACHE, CACHE_RESERVE if self._counts_cache else 0, "counts in the cgroup, not as resident"),
        ]
        return [item for item in items if item.nbytes or item.note == job.data.note]

    def _prompt_bytes(self, T: int) -> int:
        return PromptKeys(T, self.network.key_widths or (0, 0), sized).nbytes

    def _bytes(self, strategy: Strategy) -> int:
        return sum(item.nbytes for item in self._items(strategy))

    def _weights(self, capacity: int | None, most_held: int) -> Item:
        name, size = "weights in memory", f"of {megabytes(self.gguf.nbytes)}"
        if capacity is not None:
            return Item(name, most_held, f"{size}, the rest is read when it is needed")
        if self.network.per_layer:
            return Item(name, self._weight_bytes, f"{size}, but for embeddings of the blocks, which are read by rows")
        tied = self.network.hparams.tied
        return Item(name, self._weight_bytes,
                    "the whole model" if tied else f"{size}, but for the embedding, which is read by rows")

    def _left(self, strategy: Strategy) -> int:
        """Bytes of the budget that all but weights leave."""
        return self.budget.nbytes - self._bytes(strategy)

    def _capacity(self, strategy: Strategy) -> int | Literal[False] | None:
        """Bytes that are left for weights; None if all find room, False if there is not enough for them to stream."""
        left = self._left(strategy)
        if left >= self._weight_bytes:
            return None
        return left if left >= self._least_capacity(strategy.head_pieces) else False

    def _tokens(self, strategy: Strategy) -> int:
        return strategy.max_tokens(self.job.batch, self.job.ctx)

    @cached
    def _activation_bytes(self, T: int, n_kept: int, input_every: int, keeps_cheap: bool) -> tuple[int, int]:
        """Bytes of the blocks' inputs, and of what blocks keep for backward."""
        blocks = self.network.blocks
        layers = layers_with_stores(blocks, first_kept(len(blocks), self._trained.start, n_kept))
        first_of = {blocks[layer].shape: layer for layer in reversed(layers)}
        stores = Counter(blocks[layer].shape for layer in layers)
        saved = 0
        for shape, n in stores.items():
            dear, cheap = self._saved_bytes(T, first_of[shape])
            saved += n * dear + (n if keeps_cheap else 1) * cheap
        return self._input_bytes(T, input_every), saved

    @cached
    def _input_bytes(self, T: int, input_every: int) -> int:
        activations = Activations(self.network, self.adapter, T, Strategy(1, input_every), new=sized)
        return activations.nbytes - activations.saved_nbytes

    @cached
    def _saved_bytes(self, T: int, layer: int) -> tuple[int, int]:
        """Bytes of what a block keeps for backward: what is dear to compute again, and what is cheap."""
        saved = self.network.blocks[layer].saved(T, sized, self._ranks)
        in_all = nbytes_of(saved)
        for branch in saved.branches:
            branch.cheap = None
        return nbytes_of(saved), in_all - nbytes_of(saved)

    @functools.cached_property
    def _ranks(self) -> Ranks:
        return Ranks(self.adapter)

    def _scratch_bytes(self, T: int, strategy: Strategy) -> int:
        return self._scratch_bytes_of(T, strategy.head_tokens, strategy.head_pieces)

    @cached
    def _scratch_bytes_of(self, T: int, head_tokens: int, head_pieces: bool) -> int:
        strategy = Strategy(1, head_tokens=head_tokens, head_pieces=head_pieces)
        return 4 * scratch_floats(self.network, self.adapter, T, strategy)

    @cached
    def _kernel_bytes(self, T: int) -> int:
        n_threads, network = self.job.n_threads, self.network
        shapes = {(weight.K, weight.N) for group in network.groups for weight in group.weights}
        branches = {branch.shape: branch for block in network.blocks for branch in block.branches}
        dora_tokens = [spec.rank for spec in self.adapter.specs if spec.n_magnitudes]       # the rows of A
        return (max(linear_scratch_bytes(max(T, *dora_tokens, 0), K, N, n_threads) for K, N in shapes)
                + max(branch.kernel_bytes(T, n_threads) for branch in branches.values()))

    def _row_bytes(self, T: int) -> int:
        """Bytes of the embedding's rows for T tokens, as stored."""
        per_layer = self.network.per_layer
        tables = [self.network.embedding.tensor, *([per_layer.table] if per_layer else [])]
        return sum(min(T, tensor.shape[0]) * tensor.data.shape[1] for tensor in tables)

    @property
    def _counts_cache(self) -> bool:
        return self.budget.cgroup is not None and self.budget.nbytes > self.budget.cgroup - CACHE_RESERVE

    @cached
    def _order(self, strategy: Strategy) -> list[Group]:
        return weight_order(self.network, self._activations(strategy), strategy.head_pieces)

    @cached
    def _least_capacity(self, head_pieces: bool) -> int:
        return min(self._weight_bytes, least_capacity(self._order(Strategy(1, head_pieces=head_pieces))))

    @functools.cached_property
    def _weight_bytes(self) -> int:
        """Bytes of all weights that products are computed with."""
        return sum(nbytes(group) for group in set(self._order(Strategy(1))))

    @property
    def _trained(self) -> range:
        """The blocks that gradients reach."""
        return range(self.network.lowest_block(self.adapter), len(self.network.blocks))

    # Choices

    def _candidates(self, forced: Forced) -> Iterator[Strategy]:
        """Strategies in the order of what they cost, roughly; the first is the fastest if memory does not matter."""
        yield from self._with_whole_head(forced)
        if self.network.head.has_pieces(self.adapter):
            yield from (replace(strategy, head_pieces=True) for strategy in self._with_whole_head(forced))

    def _with_whole_head(self, forced: Forced) -> Iterator[Strategy]:
        job, n_blocks = self.job, len(self._trained)
        for micro_batch in [min(forced.micro_batch, job.batch)] if forced.micro_batch else _halves(job.batch):
            T = micro_batch * job.ctx
            sizes = [forced.head_tokens or min(n, T) for n in HEAD_TOKENS]
            for head_tokens in dict.fromkeys(sizes):
                micro = micro_batch if micro_batch < job.batch else None
                if (forced.input_every or 1) == 1:
                    kept = {None: range(max(1, n_blocks), 0, -1), True: [max(1, n_blocks)], False: [1]}[forced.kept]
                    for n_kept in kept:
                        yield Strategy(n_kept, 1, head_tokens, micro)
                        if n_kept > 1 and not forced.kept:
                            yield Strategy(n_kept, 1, head_tokens, micro, keeps_cheap=False)
                if not forced.kept and forced.input_every != 1:
                    every = [forced.input_every] if forced.input_every else range(2, int(n_blocks**0.5) + 2)
                    yield from (Strategy(1, n, head_tokens, micro) for n in every)

    def _reasons(self, chosen: Strategy, forced: Forced, capacity: int | None) -> Iterator[str]:
        """Each choice that is not the fastest one, or that an option made, and why."""
        n_blocks, samples = max(1, len(self._trained)), chosen.micro_batch or self.job.batch
        given = forced.options
        usual = min(HEAD_TOKENS[0], self._tokens(chosen))

        def why(field: str, **fastest: Any) -> str:
            saved = self._bytes(replace(chosen, **fastest)) - self._bytes(chosen)
            return given.get(field, f"saves {megabytes(saved)}")

        if "micro_batch" in given or chosen.micro_batch:
            yield (f"of the {self.job.batch} samples of a pass, {samples} are worked on at a time: "
                   + why("micro_batch", micro_batch=None))
        if "kept" in given or (chosen.n_kept < n_blocks and chosen.input_every == 1):
            others = ", the others are computed again" if chosen.n_kept < n_blocks else ""
            yield (f"activations of {chosen.n_kept} of {n_blocks} blocks are kept{others}: "
                   + why("kept", n_kept=n_blocks))
        if not chosen.keeps_cheap:
            yield "attention's outputs in these are computed again: " + why("", keeps_cheap=True)
        if chosen.input_every > 1:
            yield (f"of {chosen.input_every} blocks one keeps its input, the others compute even that again: "
                   + why("input_every", input_every=1, n_kept=n_blocks))
        if "head_tokens" in given or chosen.head_tokens < usual:
            yield f"logits exist of {chosen.head_tokens} tokens at a time: " + why("head_tokens", head_tokens=usual)
        if chosen.head_pieces:
            yield "the output is computed by pieces, twice: " + why("", head_pieces=False)
        if capacity is not None:
            yield (f"{megabytes(capacity)} of the model's {megabytes(self.gguf.nbytes)} are in memory at a time, the "
                   f"rest is read when it is needed: that is what is left of {megabytes(self.budget.nbytes)} "
                   f"({self.budget.source})")
            if kept := self.files.kept_by_system():
                yield (f"but the system has all of {kept} in memory anyway: a limit saves memory if the model is on "
                       "a disk")

    def _fitting(self, candidates: Sequence[Strategy], forced: Forced) -> list[Strategy]:
        """The strategies that fit; if there are any, only those that add up gradients in the order that a run without a
        limit has, whose results therefore have its bits. LoraFastError, with what would fit, if none does."""
        fitting = [strategy for strategy in candidates if self._capacity(strategy) is not False]
        if not fitting:
            raise LoraFastError(self._refusal(candidates, forced))
        first = candidates[0]
        same = [strategy for strategy in fitting if strategy.micro_batch == first.micro_batch
                and strategy.head_tokens == first.head_tokens]
        return same or fitting

    # Times

    @cached
    def _speed(self) -> Speed:
        """Measured with the largest micro-batch that fits."""
        fitting = (s for s in self._candidates(Forced()) if self._capacity(s) is not False)
        largest = max(fitting, key=lambda strategy: (self._tokens(strategy), strategy.head_tokens))
        T = self._tokens(largest)
        measured = sum(nbytes(group) for group in (*self.network.blocks[0].groups, self.network.head.group))
        is_tight = self._left(replace(largest, n_kept=1)) < measured
        beginning, all_fits = self.job.data.beginning, self._capacity(largest) is None
        self.routing = measure_routing(self.network, beginning, T, self.job.ctx, self.job.n_threads,
                                       None if all_fits else self.files)
        speed = measure_speed(self.network, self.adapter, T, self.job.ctx, largest.head_tokens, self.job.n_threads,
                              self.files if is_tight else None, largest.head_pieces, self.routing, beginning)
        self.files.let_go_pages()
        self.measured_tokens = min(T, MEASURED_TOKENS)
        return speed

    @cached
    def _optimiser(self) -> float:
        return measure_optimiser(self.adapter.n_params, self.job.n_threads)

    @cached
    def _disk(self) -> float:
        by_pieces = self.network.head.has_pieces(self.adapter)
        rate = measure_disk(self.files, self._order(Strategy(1, head_pieces=by_pieces)))
        self.files.let_go_pages()
        return rate

    def _compute(self, strategy: Strategy) -> float:
        """Seconds of computing of a pass over one micro-batch."""
        speed = self._speed()
        T = self.job.rows / self._parts(strategy)
        head = speed.head * (1 + UNPACKING_TOKENS / strategy.head_tokens) / (1 + UNPACKING_TOKENS / speed.head_tokens)
        head *= PRODUCTS_BY_PIECES ** (strategy.head_pieces - speed.head_pieces)
        seconds = head + sum(self._seconds_by_block(strategy))
        return seconds * (T + UNPACKING_TOKENS) / (speed.tokens + UNPACKING_TOKENS)

    def _forward(self) -> float:
        """Seconds a token of a pass without a way back. Of the output, both ways, a third is forward."""
        speed = self._speed()
        return (speed.head / 3 + sum(speed.blocks[block.shape].forward for block in self.network.blocks)) / speed.tokens

    def _seconds_by_block(self, strategy: Strategy) -> Iterator[float]:
        """Seconds of a pass, block by block, as its parts were measured."""
        activations = self._activations(strategy)
        lost = Counter(below for layer in self._trained for below in activations.lost_inputs(layer))
        for layer, block in enumerate(self.network.blocks):
            speed = self._speed().blocks[block.shape]
            yield speed.forward * (1 + lost[layer])
            if layer in self._trained:
                yield speed.backward
                if activations.is_recomputed(layer):
                    yield speed.again
                elif activations.has_lost_cheap(layer):
                    yield speed.cheap

    @cached
    def _activations(self, strategy: Strategy) -> Activations:
        """The activations of a Trainer with this strategy, without memory: what it keeps and what it computes again."""
        return Activations(self.network, self.adapter, 1, strategy, new=sized)

    def _parts(self, strategy: Strategy) -> int:
        """Micro-batches of a batch."""
        return math.ceil(self.job.tokens / self._tokens(strategy))

    def _estimate(self, strategy: Strategy) -> float:
        """Seconds of a step, by sums: reading overlaps computing, and what is there at the turns need not be read."""
        capacity, seconds = self._capacity(strategy), self._compute(strategy)
        if capacity is not None:
            seconds = max(seconds, 2 * (self._weight_bytes - capacity) / (SLOW_DISK * self._disk()))
        return seconds * self._parts(strategy) * self.job.own_passes

    def _timing(self, strategy: Strategy, disk: float) -> Timing:
        """The timing of a step, found by following the reader and the kernels place by place; disk: bytes a second."""
        compute, capacity = self._compute(strategy), self._capacity(strategy)
        seconds, read, most_held = compute, 0, self._weight_bytes
        if capacity is not None:
            order = self._order(strategy)
            groups = list(dict.fromkeys(order))
            T, routing = self._tokens(strategy), self.routing
            work = [routing.work(group, T) for group in order]
            sizes = [math.ceil(nbytes(group) * routing.share(group, T)) for group in groups]
            partial = [unit for unit, group in enumerate(groups) if group.n_parts]
            window = Window(sizes, [groups.index(group) for group in order], capacity, partial)
            again = {unit: routing.needed_again(groups[unit], T) for unit in partial}
            seconds, read = follow(window, [compute * part / sum(work) for part in work], disk, again)
            most_held = window.most_held
        passes, sharing = self._parts(strategy) * self.job.own_passes, self.job.sharing
        exchange = sharing.link.seconds(self.adapter.n_params * sharing.itemsize, sharing.n_ranks)
        return Timing(seconds * passes + self._optimiser() + exchange, read * passes, most_held, exchange)

    # Refusal

    def _refusal(self, candidates: Sequence[Strategy], forced: Forced) -> str:
        smallest = min(candidates, key=lambda s: self._bytes(s) + self._least_capacity(s.head_pieces))
        items = [*self._items(smallest),
                 Item("the least of weights in memory", self._least_capacity(smallest.head_pieces))]
        least = sum(item.nbytes for item in items)
        largest = sorted(items, key=lambda item: -item.nbytes)[:3]
        parts = "; ".join(f"{megabytes(item.nbytes)} {item.name}" for item in largest)
        ways = list(self._ways_to_fit(forced))
        ways.append(f"--mem-limit {-(-least // 2**20)}M" if self.budget.is_asked else f"{megabytes(least)} of memory")
        return (f"this run needs at least {megabytes(least)} ({parts}; ...), but may take "
                f"{megabytes(self.budget.nbytes)} "
                f"({self.budget.source}). What would fit: {', or '.join(ways)}")

    def _fits(self, forced: Forced) -> bool:
        return any(self._capacity(strategy) is not False for strategy in self._candidates(forced))

    def _ways_to_fit(self, forced: Forced) -> Iterator[str]:
        """Changes of the options by which the run would fit, those of one kind only once."""
        without = f" without {' and '.join(forced.options.values())}"
        if self._fits(Forced()):
            yield "the same" + without
            without, least_forced = "", forced
        else:
            least_forced = Forced()
        found = set()
        for option, value, planner in self._smaller_jobs():
            if option not in found and planner._fits(least_forced):
                found.add(option)
                yield f"{option} {value}" + without * (not planner._fits(forced))

    def _smaller_jobs(self) -> Iterator[tuple[str, int | str, Planner]]:
        """Option, value and planner of jobs that take less memory; of an option, the least change comes first."""
        for ctx in (n for n in _halves(self.job.ctx)[1:] if n >= 16):
            yield "--ctx", ctx, self._with(job=replace(self.job, ctx=ctx))
        if self.job.data.overlaps:
            data = replace(self.job.data, kept=self.job.data.kept // self.job.ctx)
            yield "--stride", self.job.ctx, self._with(job=replace(self.job, data=data))
        if not self.job.may_choose_pairs:
            return
        fewer = [spec for spec in self.adapter.specs if spec.name not in ("token_embd.weight", "output.weight")]
        if 0 < len(fewer) < len(self.adapter.specs):
            yield "--targets", "attn,ffn", self._with(adapter=Adapter(fewer, self.adapter.alpha, self.adapter.r))
        for r in _halves(self.adapter.r)[1:]:
            narrow = [replace(spec, rank=min(r, spec.rank)) for spec in self.adapter.specs]
            yield "--lora-r", r, self._with(adapter=Adapter(narrow, r, r))

    def _with(self, **changes: object) -> Planner:
        names = "gguf", "files", "network", "adapter", "job", "budget", "base_bytes"
        return Planner(**{**{name: getattr(self, name) for name in names}, **changes})


def _halves(n: int) -> list[int]:
    """n, and its halves down to 1, rounded up."""
    halves = [n]
    while halves[-1] > 1:
        halves.append(-(-halves[-1] // 2))
    return halves
