"""How a process finds the ranks that it belongs to."""
from __future__ import annotations

import functools

from .launcher import launched_size
from .world import World, alone

TIMEOUT = 600.0
"""Seconds without an answer after which a rank counts as lost, where nothing else is said."""


@functools.cache
def world() -> World:
    """The ranks that a launcher started together with this process; this one alone without a launcher. MPI is started
    at the first call.
    """
    size = launched_size()
    if size == 1:
        return alone()
    from .mpi import MPITransport

    return World(MPITransport(size, TIMEOUT))
