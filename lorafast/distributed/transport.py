"""How bytes come from rank to rank: one operation, from which all others are made."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..errors import LoraFastError


class LostRanks(LoraFastError):
    """Ranks that have sent nothing for too long.

    ranks  their numbers
    """

    def __init__(self, ranks: Sequence[int], seconds: float) -> None:
        super().__init__(f"no answer from rank {', '.join(map(str, ranks))} in {seconds:g} s")
        self.ranks, self.seconds = tuple(ranks), seconds


class Transport(Protocol):
    """What connects this rank to the others.

    rank, size  its number, and how many there are
    timeout     seconds without any byte after which a rank counts as lost
    """

    rank: int
    size: int
    timeout: float

    def exchange(self, outgoing: Sequence[np.ndarray], incoming: Sequence[np.ndarray]) -> None:
        """Sends outgoing[r] to rank r and receives incoming[r] from it, for all ranks but this one.

        Both are C-contiguous and of any type; what rank r sends here has the bytes of incoming[r]. An empty array is
        not sent. All ranks call this, in the same order. LostRanks names those that did not.
        """

    def abort(self, exit_status: int) -> None:
        """Ends all ranks at once, as far as that is possible."""


class Alone:
    """The transport of a process that is the only rank."""

    rank, size, timeout = 0, 1, 0.0

    def exchange(self, outgoing: Sequence[np.ndarray], incoming: Sequence[np.ndarray]) -> None:
        """Nobody is there."""

    def abort(self, exit_status: int) -> None:
        """The caller ends this process as it ends others."""
