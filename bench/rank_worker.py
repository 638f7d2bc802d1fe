"""One rank of bench_ranks.py: `lorafast`, with a network's delays injected where ranks exchange bytes.

The environment variable BENCH_LINK holds the network as `--network` has it (1G,1ms); empty: no delay.
"""
from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence

import numpy as np

from lorafast import cli
from lorafast.distributed.mpi import MPITransport
from lorafast.planning.sharing import link_of

exchange = MPITransport.exchange


def delayed(self: MPITransport, outgoing: Sequence[np.ndarray], incoming: Sequence[np.ndarray]) -> None:
    """Takes as long as the link needs for the bytes of this rank, both ways at once, from when all are there."""
    exchange(self, outgoing, incoming)
    sizes = [sum(array.nbytes for rank, array in enumerate(arrays) if rank != self.rank)
             for arrays in (outgoing, incoming)]
    if max(sizes):
        time.sleep(LINK.latency + max(sizes) / LINK.rate)


if __name__ == "__main__":
    if os.environ.get("BENCH_LINK"):
        LINK = link_of(os.environ["BENCH_LINK"])
        MPITransport.exchange = delayed     # type: ignore[method-assign]
    sys.exit(cli.main(sys.argv[1:]))
