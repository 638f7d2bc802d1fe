"""The transport of MPI, by mpi4py. It is imported only where a launcher has started several processes.

What goes to another rank goes in pieces, of which some are under way at a time. Where two ranks have much to send to
each other, whole arrays would go one after the other: MPI's word that a rank is ready for the second would wait on the
connection behind the first.
"""
from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import LoraFastError
from .transport import LostRanks

PIECE, UNDER_WAY = 2**20, 2**23
"""Bytes of a piece at most, and of all that are under way in each direction."""

SHORTEST_WAIT, LONGEST_WAIT = 5e-5, 1e-3
"""Seconds between two looks at what has arrived, while nothing does. MPI's own waiting would keep a core busy, which
kernels need: those of a slower rank on this host."""

FLOWING = 0.02
"""Seconds after an arrival in which a rank looks without a pause: MPI moves bytes only when it is asked."""

give_way: Callable[[], object] = getattr(os, "sched_yield", lambda: time.sleep(0))


class Stream:
    """Pieces that go one way, in order.

    under_way  rank, bytes and request of each that has been begun
    """

    def __init__(self, begin: Callable[[list[Any], int], Any], byte: Any,
                 pieces: Iterator[tuple[int, memoryview]]) -> None:
        """begin: Isend or Irecv; byte: MPI's type."""
        self.begin, self.byte, self.waiting = begin, byte, deque(pieces)
        self.under_way: list[tuple[int, int, Any]] = []
        self._begin_some()

    def advance(self) -> bool:
        """Whether a piece has come through since the last call."""
        before = len(self.under_way)
        self.under_way = [piece for piece in self.under_way if not piece[2].Test()]
        if len(self.under_way) == before:
            return False
        self._begin_some()
        return True

    def _begin_some(self) -> None:
        nbytes = sum(nbytes for _, nbytes, _ in self.under_way)
        while self.waiting and nbytes < UNDER_WAY:
            rank, piece = self.waiting.popleft()
            self.under_way.append((rank, len(piece), self.begin([piece, self.byte], rank)))
            nbytes += len(piece)


def pieces_of(arrays: Sequence[np.ndarray], ranks: Sequence[int]) -> Iterator[tuple[int, memoryview]]:
    """Rank and bytes of each piece, of the arrays of these ranks in this order."""
    for rank in ranks:
        if arrays[rank].nbytes:
            whole = arrays[rank].data.cast("B")
            for begin in range(0, len(whole), PIECE):
                yield rank, whole[begin:begin + PIECE]


class MPITransport:
    """All processes of the launcher."""

    def __init__(self, launched_size: int, timeout: float) -> None:
        """LoraFastError where mpi4py is missing, or speaks to another MPI than the launcher's."""
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            raise LoraFastError(f"started by an MPI launcher with {launched_size} ranks, but mpi4py does not load: "
                                f"{error}; pip install 'lorafast[mpi]', and an MPI of the launcher's kind") from None
        self._mpi: Any = MPI
        self._comm = MPI.COMM_WORLD.Dup()
        self.rank, self.size, self.timeout = self._comm.Get_rank(), self._comm.Get_size(), timeout
        if self.size != launched_size:
            raise LoraFastError(f"the launcher started {launched_size} ranks, but mpi4py's MPI "
                                f"({MPI.get_vendor()[0]}) sees {self.size}: use the launcher of that MPI")

    def exchange(self, outgoing: Sequence[np.ndarray], incoming: Sequence[np.ndarray]) -> None:
        """See Transport."""
        after = [(self.rank + i) % self.size for i in range(1, self.size)]      # each sends to another one first
        arriving = Stream(self._comm.Irecv, self._mpi.BYTE, pieces_of(incoming, after[::-1]))
        leaving = Stream(self._comm.Isend, self._mpi.BYTE, pieces_of(outgoing, after))
        began = last = time.monotonic()
        wait = SHORTEST_WAIT
        while arriving.under_way or leaving.under_way:
            some = arriving.advance() | leaving.advance()
            now = time.monotonic()
            if some:
                last, wait = now, SHORTEST_WAIT
            elif now - last > self.timeout:
                raise LostRanks(sorted({rank for rank, *_ in arriving.under_way + leaving.under_way}), self.timeout)
            elif began < last and now - last < FLOWING:
                give_way()
            else:
                time.sleep(wait)
                wait = min(1.1 * wait, LONGEST_WAIT)

    def abort(self, exit_status: int) -> None:
        """See Transport. Does not return."""
        self._comm.Abort(exit_status)
