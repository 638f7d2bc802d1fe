"""What is sent in which pieces, without MPI."""
from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import numpy as np

from lorafast.distributed.mpi import PIECE, UNDER_WAY, Stream, pieces_of


class Network:
    """Messages between ranks, which come through when both sides have begun them. sizes: of those sent, by pair."""

    def __init__(self) -> None:
        self.sent: dict[tuple[int, int], deque[Message]] = {}
        self.awaited: dict[tuple[int, int], deque[Message]] = {}

    def begin(self, begun: dict[tuple[int, int], deque[Message]], pair: tuple[int, int], piece: Any) -> Message:
        message = Message(piece)
        begun.setdefault(pair, deque()).append(message)
        if self.sent.get(pair) and self.awaited.get(pair):
            from_, to = self.sent[pair].popleft(), self.awaited[pair].popleft()
            assert len(from_.piece) == len(to.piece) <= PIECE
            to.piece[:] = from_.piece
            from_.is_through = to.is_through = True
        return message


class Message:
    def __init__(self, piece: memoryview) -> None:
        self.piece, self.is_through = piece, False

    def Test(self) -> bool:
        return self.is_through


def exchanged(sizes: np.ndarray) -> None:
    """All ranks exchange arrays of sizes[from, to] values, in the order that MPITransport has."""
    n, network = len(sizes), Network()
    sent = [[np.full(sizes[rank, to], 10 * rank + to, np.float32) for to in range(n)] for rank in range(n)]
    got = [[np.zeros(sizes[from_, rank], np.float32) for from_ in range(n)] for rank in range(n)]
    streams = []
    for rank in range(n):
        after = [(rank + i) % n for i in range(1, n)]
        streams.append(Stream(lambda piece, other, rank=rank: network.begin(network.awaited, (other, rank), piece[0]),
                              None, pieces_of(got[rank], after[::-1])))
        streams.append(Stream(lambda piece, other, rank=rank: network.begin(network.sent, (rank, other), piece[0]),
                              None, pieces_of(sent[rank], after)))
    while any(stream.under_way for stream in streams):
        assert all(sum(nbytes for _, nbytes, _ in stream.under_way) < UNDER_WAY + PIECE for stream in streams)
        assert any([stream.advance() for stream in streams]), "all wait for one another"
    for rank, other in itertools.permutations(range(n), 2):
        assert (got[rank][other] == 10 * other + rank).all()


def test_arrays_of_any_size_arrive():
    exchanged(np.array([[0, 3], [700_000, 0]]))
    exchanged(np.array([[0, 6_000_000], [5_000_001, 0]]))


def test_no_rank_waits_for_ever():
    sizes = np.random.default_rng(0).integers(0, 1_500_000, (5, 5))
    sizes[1, 3] = sizes[3, 2] = sizes[4, 0] = 0
    exchanged(sizes)
