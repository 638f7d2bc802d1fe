"""The ranks of a run, and what they tell each other.

Every rank calls `gather` at the same places of the program. An error of one rank goes to all others at the next of
them, wherever that is, so that all end with the same one line.
"""
from __future__ import annotations

import os
import pickle
import platform
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from ..errors import LoraFastError, UsageError
from ..words import visible
from .transport import Alone, LostRanks, Transport

Item = TypeVar("Item")
Value = TypeVar("Value")

SHORT = 248
"""Bytes that go with the first message of a gathering; what is longer takes a second one."""


class AgreedError(LoraFastError):
    """An error that all ranks know of and raise."""


class AgreedUsageError(AgreedError, UsageError):
    """An error that all ranks agree on: the command line is wrong."""


@dataclass(frozen=True)
class Failure:
    """What a rank sends in place of a value: why it cannot go on."""

    message: str
    exit_status: int


class World:
    """All ranks, as one of them sees it.

    hosts          name of each rank's host
    communicating  seconds that this rank has spent in exchanges so far, waiting for slower ranks included
    sent           bytes that it has sent
    """

    def __init__(self, transport: Transport) -> None:
        self.transport, self.rank, self.size = transport, transport.rank, transport.size
        self.begin_counting()
        self.hosts: tuple[str, ...] = (platform.node(),) * self.size
        self.hosts = tuple(self.gather(platform.node()))

    def begin_counting(self) -> None:
        """Sets `communicating` and `sent` to 0."""
        self.communicating, self.sent = 0.0, 0

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that logs and saves."""
        return self.rank == 0

    @property
    def n_local(self) -> int:
        """Ranks on this host."""
        return self.hosts.count(self.hosts[self.rank])

    def name(self, rank: int) -> str:
        """`rank 2 on host`."""
        return f"rank {rank} on {self.hosts[rank]}"

    def share(self, n: int, rank: int | None = None) -> range:
        """Which of `n` pieces of work, in order, a rank does; None: this one."""
        rank = self.rank if rank is None else rank
        return range(n * rank // self.size, n * (rank + 1) // self.size)

    def exchange(self, outgoing: Sequence[np.ndarray], incoming: Sequence[np.ndarray]) -> None:
        """See Transport."""
        began = time.perf_counter()
        self.transport.exchange(outgoing, incoming)
        self.communicating += time.perf_counter() - began
        self.sent += sum(array.nbytes for rank, array in enumerate(outgoing) if rank != self.rank)

    def gather(self, value: Value | Failure) -> list[Value]:
        """The value of each rank, on every rank. AgreedError, on every rank, if one has failed."""
        values = [value] if self.size == 1 else self._gathered(value)
        failures = [(rank, each) for rank, each in enumerate(values) if isinstance(each, Failure)]
        if failures:
            rank, failure = failures[0]
            alike = {each.message for _, each in failures} == {failure.message} and len(failures) == self.size
            text = failure.message if alike or self.size == 1 else f"{self.name(rank)}: {failure.message}"
            raise (AgreedUsageError if failure.exit_status == UsageError.exit_status else AgreedError)(text)
        return [each for each in values if not isinstance(each, Failure)]

    def _gathered(self, value: Any) -> list[Any]:
        """The values of all ranks. They travel as pickles, which is safe: all ranks are processes of this program."""
        data = pickle.dumps(value)
        head = np.zeros(8 + SHORT, np.uint8)
        head[:8] = np.array([len(data)], "<u8").view(np.uint8)
        head[8:8 + min(SHORT, len(data))] = np.frombuffer(data[:SHORT], np.uint8)
        heads = np.empty((self.size, len(head)), np.uint8)
        heads[self.rank] = head
        self.exchange([head] * self.size, list(heads))
        sizes = [int(size) for size in heads[:, :8].copy().view("<u8").ravel()]
        rest = np.frombuffer(data[SHORT:], np.uint8)
        rests = [np.empty(max(0, size - SHORT), np.uint8) for size in sizes]
        if max(sizes) > SHORT:
            self.exchange([rest] * self.size, rests)
        rests[self.rank] = rest
        return [pickle.loads(head[8:8 + min(SHORT, size)].tobytes() + rest.tobytes())
                for head, rest, size in zip(heads, rests, sizes)]

    def in_turn(self, items: Iterable[Item], compute: Callable[[Item], Value]) -> list[Value]:
        """What `compute` makes of each item, in order; the ranks take them in turn."""
        own, n = [], 0
        for n, item in enumerate(items, 1):
            if (n - 1) % self.size == self.rank:
                own.append(compute(item))
        of_ranks = self.gather(own)
        return [of_ranks[i % self.size][i // self.size] for i in range(n)]

    def from_first(self, value: Value | None) -> Value | None:
        """The first rank's value."""
        return self.gather(value if self.is_first else None)[0]

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """An error in the block ends all ranks: by AgreedError everywhere, or by force where ranks are lost."""
        if self.size == 1:
            yield
            return
        try:
            yield
        except AgreedError:
            raise
        except LostRanks as error:
            names = " and ".join(map(self.name, error.ranks))
            self._abort(f"{names}: no answer for {error.seconds:g} s (--rank-timeout); what was saved is good: resume "
                        "on the others", error.exit_status)
        except Exception as error:
            self._tell(error)
        except BaseException:               # a second signal
            self._abort("interrupted", 130)

    def _tell(self, error: Exception) -> None:
        """Sends an error of this rank to the others. Raises AgreedError."""
        if os.environ.get("LORAFAST_DEBUG"):
            traceback.print_exc()
        failure = Failure(str(error) if isinstance(error, LoraFastError) else f"{type(error).__name__}: {error}",
                          getattr(error, "exit_status", 1))
        try:
            self.gather(failure)
        except AgreedError:
            raise
        except Exception:                   # they don't answer, or MPI itself has failed
            self._abort(failure.message, failure.exit_status)

    def _abort(self, message: str, exit_status: int) -> None:
        print(f"lorafast: error: {self.name(self.rank)}: {visible(message)}", file=sys.stderr, flush=True)
        self.transport.abort(exit_status)


def alone() -> World:
    """The world of a process that was started by itself."""
    return World(Alone())
