"""What several ranks do to a plan: they share a host's memory, or the passes of a step over a network.

The exchange of gradients (distributed/reduction.py) takes two rounds, in each of which every rank sends and receives
(N - 1) / N of the gradients, and two more of few bytes, in which ranks tell losses and what was asked of them. A large
message is announced, asked for and sent, and so takes three latencies.
"""
from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import UsageError

PAYLOAD = 0.94
"""Share of a network's rate that TCP leaves for data, of frames of 1500 bytes."""

LATENCIES = ((2.0, 1e-4), (20.0, 5e-5), (float("inf"), 3e-5))
"""Seconds that a message takes besides its bytes, on Ethernet of up to so many Gbit/s."""

LATENCIES_A_STEP = 2 * 1 + 2 * 3
"""Latencies of a step: of the rounds of few bytes, and of those of gradients."""

WAKING = 1e-3
"""Seconds a step until a rank that waits looks again: twice half of LONGEST_WAIT in distributed/mpi.py."""


@dataclass(frozen=True)
class Link:
    """What connects ranks. rate: bytes a second, in each direction; latency: seconds."""

    rate: float
    latency: float
    name: str

    def seconds(self, nbytes: int, n_ranks: int) -> float:
        """Seconds to sum so many bytes of gradients over ranks, on every rank."""
        if n_ranks == 1:
            return 0.0
        return 2 * (n_ranks - 1) / n_ranks * nbytes / self.rate + LATENCIES_A_STEP * self.latency + WAKING


IN_MEMORY = Link(2e9, 1e-5, "memory")
"""The link between ranks of one host."""


def link_of(text: str) -> Link:
    """`1G`, `2.5G`, `25G`: bits a second of an Ethernet; `1G,1ms` with another latency. UsageError for other texts."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)G(?:,([0-9]+(?:\.[0-9]+)?)ms)?", text)
    if not match or not float(match[1]):
        raise UsageError(f"--network {text}: must be bits a second such as 1G, 10G or 25G, or with a latency 1G,0.5ms")
    gigabits = float(match[1])
    usual = next(latency for most, latency in LATENCIES if gigabits <= most)
    return Link(PAYLOAD * gigabits * 1e9 / 8, float(match[2]) / 1000 if match[2] else usual, text)


@dataclass(frozen=True)
class Sharing:
    """The ranks of a run.

    n_ranks    that share the passes of a step
    n_on_host  of them on one host, which share its memory; the pages of the model are there once for all
    itemsize   bytes of a gradient on its way
    """

    n_ranks: int = 1
    n_on_host: int = 1
    link: Link = IN_MEMORY
    itemsize: int = 4


ALONE = Sharing()
