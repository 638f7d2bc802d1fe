"""The transport of MPI, by mpi4py. It is imported only where a launcher has started several processes."""
from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import LoraFastError
from .transport import LostRanks

SHORTEST_WAIT, LONGEST_WAIT = 5e-5, 1e-3
"""Seconds between two looks at what has arrived: the first keeps the latency low; what takes long needs no more, and
cores are left to kernels. MPI's own waiting would keep a core busy."""


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
        others = [rank for rank in range(self.size) if rank != self.rank]
        receiving = {rank: self._comm.Irecv([incoming[rank], self._mpi.BYTE], rank) for rank in others
                     if incoming[rank].nbytes}
        sending = {rank: self._comm.Isend([outgoing[rank], self._mpi.BYTE], rank) for rank in others
                   if outgoing[rank].nbytes}
        last_arrival, wait = time.monotonic(), SHORTEST_WAIT
        while receiving or sending:
            before = len(receiving) + len(sending)
            receiving = {rank: request for rank, request in receiving.items() if not request.Test()}
            sending = {rank: request for rank, request in sending.items() if not request.Test()}
            if len(receiving) + len(sending) < before:
                last_arrival, wait = time.monotonic(), SHORTEST_WAIT
            elif time.monotonic() - last_arrival > self.timeout:
                raise LostRanks(sorted({*receiving, *sending}), self.timeout)
            else:
                time.sleep(wait)
                wait = min(1.1 * wait, LONGEST_WAIT)

    def abort(self, exit_status: int) -> None:
        """See Transport. Does not return."""
        self._comm.Abort(exit_status)
