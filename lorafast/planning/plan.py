"""A plan of a run, and how it is shown: where every byte will go, how long a step will take, and why it was so
chosen."""
from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..data.lengths import SharedRows
from ..data.memory import DataMemory
from ..errors import LoraFastError
from ..network.linear import Group
from ..network.model_files import ModelFiles
from ..network.residency import Residency
from ..network.trainer import Strategy
from ..options.outputs import megabytes
from ..words import count
from .budget import Budget
from .sharing import ALONE, Sharing

NOTE_WIDTH = 24
"""Columns of the table's notes, so that it fits a terminal of 80."""

CACHE = "the system's cache beside the weights"
"""The name of what counts in a cgroup, but not as the process's."""


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
    data        what the training data takes
    packs       short samples share rows
    copies      arrays of the size of the adapter: parameters, gradients, two moments, and more with dropout
    generates   texts are generated now and then
    shared      what is computed of rows that begin with the prompt of the row before; None: all rows are whole
    may_choose_pairs  the adapter is a new one, and not that of a file
    passes      of a step, all ranks together
    sharing     the ranks
    """

    batch: int
    ctx: int
    passes: int
    iterations: int | None
    n_threads: int
    data: DataMemory = DataMemory()
    packs: bool = False
    copies: int = 4
    generates: bool = False
    shared: SharedRows | None = None
    may_choose_pairs: bool = True
    sharing: Sharing = ALONE

    @property
    def own_passes(self) -> int:
        """Passes of the rank that has most."""
        return -(-self.passes // self.sharing.n_ranks)

    @property
    def tokens(self) -> float:
        """Tokens of a pass, in the mean, had each row all its tokens: by these a pass is split."""
        row = self.ctx if self.packs or self.data.sample_tokens is None else self.data.sample_tokens
        return self.batch * row

    @property
    def rows(self) -> float:
        """Those of them that are computed."""
        return self.tokens * (self.shared.mean_share if self.shared else 1)

    def most_rows(self, tokens: int) -> int:
        """Rows that are computed of so many tokens, at most."""
        return math.ceil(tokens * self.shared.most_share) if self.shared else tokens


@dataclass(frozen=True)
class Timing:
    """What a step takes: seconds in all, bytes read from disk, bytes of weights in memory at most, and of the seconds
    those in which ranks exchange gradients."""

    seconds: float
    bytes_read: int
    most_held: int
    exchange: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What was chosen and what follows from it.

    items     where the bytes go, the last one the weights in memory
    capacity  bytes of weights that may be in memory at a time, where they stream; None where the whole model stays
    reasons   why the strategy is not the fastest one, or which options decided; empty where neither is so
    forward   seconds that a token takes in a pass without a way back
    besides   lines on what the run does before its first step, or keeps on disk
    """

    job: Job
    budget: Budget
    strategy: Strategy
    items: tuple[Item, ...]
    capacity: int | None
    reasons: tuple[str, ...]
    timing: Timing
    forward: float = 0.0
    besides: tuple[str, ...] = ()

    def with_reference(self, n_tokens: int, n_rows: int) -> Plan:
        """This plan for a run that first computes the log-probabilities of so many rows."""
        line = (f"{n_rows} log-probabilities under the reference, once before the first step: "
                f"{_duration(self.forward * n_tokens)}, {megabytes(8 * n_rows)}")
        return replace(self, besides=(*self.besides, line))

    def with_prefix_cache(self, nbytes: int, lowest: int) -> Plan:
        """This plan for a run that keeps so many bytes on disk of what the blocks below `lowest` make."""
        line = f"{megabytes(nbytes)} on disk: the input of block {lowest} for each row (--prefix-cache)"
        return replace(self, besides=(*self.besides, line))

    def with_most_parameters(self, n: int) -> Plan:
        """This plan for a run that finds its ranks by the data, and has so many parameters at most."""
        line = f"at most {n:,} parameters: eva redistributes the ranks before the first step (--eva-rho)"
        return replace(self, besides=(*self.besides, line))

    def after_reading(self, peak: int) -> Plan:
        """This plan of a run that took so many bytes at most while it read its data. LoraFastError if that was more
        than --mem-limit allows."""
        if self.budget.is_asked and peak > self.budget.nbytes:
            raise LoraFastError(f"reading the data took {megabytes(peak)}, but the run may take "
                                f"{megabytes(self.budget.nbytes)} ({self.budget.source}): cut its longest records into "
                                "several, or have --data-cache FILE written without a limit, and run again with both")
        if peak <= self.nbytes:
            return self
        reading = Item("reading the data, before training", peak - self.nbytes, "at its peak")
        return replace(self, items=(*self.items[:-1], reading, self.items[-1]))

    def for_iterations(self, n: int) -> Plan:
        """This plan, once it is known how many iterations the run has."""
        return replace(self, job=replace(self.job, iterations=n))

    def __repr__(self) -> str:
        return f"<Plan {megabytes(self.nbytes)}, {'; '.join(self._times())}>"

    @property
    def nbytes(self) -> int:
        return sum(item.nbytes for item in self.items)

    @property
    def tokens_per_second(self) -> float:
        return self.job.rows * self.job.passes / self.timing.seconds

    def stream(self, files: ModelFiles, order: Sequence[Group]) -> Residency | None:
        """Starts what brings the weights into memory, in this order, where they do not fit; to be closed at the end."""
        return None if self.capacity is None else Residency(files, order, self.capacity)

    def table(self) -> list[str]:
        """The plan in full, in lines."""
        lines = [f"Memory, of at most {megabytes(self.budget.nbytes)} ({self.budget.source}):"]
        items = *self.items, Item("in all", self.nbytes)
        for item in items:
            note = textwrap.wrap(item.note, NOTE_WIDTH) or [""]
            lines.append(f"  {item.name:<40}{megabytes(item.nbytes):>11}   {note[0]}".rstrip())
            lines += [f"{'':56}{more}" for more in note[1:]]
        lines += ["Choices:", *(f"  {reason}" for reason in self.reasons or ["the fastest ones: everything fits"])]
        lines += ["Time, measured on this machine just now:", *(f"  {line}" for line in self._times())]
        return lines + (["Besides:", *(f"  {line}" for line in self.besides)] if self.besides else [])

    def summary(self) -> list[str]:
        """The plan in a few lines."""
        times = self._times()
        return [f"memory: {megabytes(self.nbytes)} of at most {megabytes(self.budget.nbytes)} ({self.budget.source})",
                *self.reasons, *self.besides, "; ".join(times)]

    def _times(self) -> list[str]:
        timing = self.timing
        lines = [f"{_duration(timing.seconds)} a step, {self.tokens_per_second:.1f} tokens/s"]
        if self.job.iterations is not None:
            lines.append(f"{_duration(timing.seconds * self.job.iterations)} for "
                         f"{count(self.job.iterations, 'step')}")
        if self.job.sharing.n_ranks > 1:
            lines.append(self._of_ranks())
        if timing.bytes_read:
            lines.append(f"{timing.bytes_read / 1e9:.2f} GB read from disk a step")
        return lines

    def _of_ranks(self) -> str:
        sharing, timing = self.job.sharing, self.timing
        busy = self.job.passes / (self.job.own_passes * sharing.n_ranks)
        efficiency = busy * (timing.seconds - timing.exchange) / timing.seconds
        return (f"{sharing.n_ranks} ranks over {sharing.link.name}: {_duration(timing.exchange)} of a step for "
                f"gradients, {efficiency:.0%} efficiency")

    def comparison(self, peak: int, measured: Measured) -> str:
        """What was measured beside what was planned. peak: bytes in memory at most."""
        resident = sum(item.nbytes for item in self.items if item.name != CACHE)
        text = (f"memory {megabytes(peak)} (planned {megabytes(resident)}), "
                f"a step {_duration(measured.seconds)} (planned {_duration(self.timing.seconds)})")
        if self.capacity is not None:
            text += f", read {measured.bytes_read / 1e9:.2f} GB a step (planned {self.timing.bytes_read / 1e9:.2f})"
        return text


class Measured:
    """Means over the steps of a run: without the first, which finds nothing in memory yet, if there are others."""

    def __init__(self) -> None:
        self.n_steps, self.sums, self.first = 0, (0.0, 0), (0.0, 0)

    def add(self, seconds: float, bytes_read: int) -> None:
        """A step."""
        if self.n_steps == 0:
            self.first = seconds, bytes_read
        self.n_steps += 1
        self.sums = self.sums[0] + seconds, self.sums[1] + bytes_read

    @property
    def seconds(self) -> float:
        return self._mean(0)

    @property
    def bytes_read(self) -> float:
        return self._mean(1)

    def _mean(self, i: int) -> float:
        return (self.sums[i] - self.first[i]) / (self.n_steps - 1) if self.n_steps > 1 else self.sums[i]


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"
