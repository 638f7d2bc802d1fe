"""Ranks that are threads of the test's own process: what they compute together, without MPI."""
from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lorafast.distributed.transport import LostRanks
from lorafast.distributed.world import World


class ThreadTransport:
    """Queues between threads. pairs: by (from, to)."""

    def __init__(self, rank: int, size: int, pairs: dict[tuple[int, int], queue.Queue[bytes]], timeout: float) -> None:
        self.rank, self.size, self.pairs, self.timeout = rank, size, pairs, timeout
        self.aborted = 0

    def exchange(self, outgoing: Sequence[np.ndarray], incoming: Sequence[np.ndarray]) -> None:
        others = [rank for rank in range(self.size) if rank != self.rank]
        for rank in others:
            if outgoing[rank].nbytes:
                self.pairs[self.rank, rank].put(outgoing[rank].tobytes())
        for rank in others:
            if incoming[rank].nbytes:
                try:
                    data = self.pairs[rank, self.rank].get(timeout=self.timeout)
                except queue.Empty:
                    raise LostRanks([rank], self.timeout) from None
                assert len(data) == incoming[rank].nbytes
                incoming[rank][:] = np.frombuffer(data, incoming[rank].dtype)

    def abort(self, exit_status: int) -> None:
        self.aborted = exit_status


def on_ranks(size: int, run: Callable[[World], Any], timeout: float = 60) -> list[Any]:
    """What `run` returns, or the exception it raises, on each of so many ranks."""
    pairs: dict[tuple[int, int], queue.Queue[bytes]] = {
        (begin, end): queue.Queue() for begin in range(size) for end in range(size)}
    results: list[Any] = [None] * size

    def rank(number: int) -> None:
        try:
            results[number] = run(World(ThreadTransport(number, size, pairs, timeout)))
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
