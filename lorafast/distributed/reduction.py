"""The gradients of all ranks' passes, summed in the tree of network/pass_sums.py: the same bits for any number of
ranks.

Each rank sums one slice of the parameters for all. First it gets that slice of every part of the tree that another rank
has added up (reduce-scatter), then all get each other's sums (all-gather): every rank sends and receives 2 (N - 1) / N
times the gradients, as many bytes as in a ring, in two rounds instead of 2 (N - 1).

The optimiser then runs on every rank. To shard it (ZeRO-1: Rajbhandari et al., 2020) would send as many bytes, and
spare time and memory of the size of an adapter, which is little beside a step and a model.
"""
from __future__ import annotations

import itertools

import numpy as np

from ..network.pass_sums import PassSums, nodes_within, sum_of_nodes
from .wire import Float32, Wire
from .world import World

ALIGNMENT = 16
"""Values of a cache line: slices begin on one."""

EXACT = Float32()


def slices(n: int, n_ranks: int) -> list[slice]:
    """Which of `n` values each rank sums."""
    n_lines = -(-n // ALIGNMENT)
    bounds = [min(n, ALIGNMENT * (n_lines * rank // n_ranks)) for rank in range(n_ranks + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(bounds)]


def sum_over_ranks(world: World, sums: PassSums, n_passes: int, wire: Wire = EXACT) -> None:
    """Puts the sum over all passes into the first store of `sums`, on every rank.

    sums  what this rank added up: those of `world.share(n_passes)`
    """
    if world.size == 1:
        return
    total = sums.stores[0].flat
    mine = sums.sums()
    places = slices(len(total), world.size)
    here = places[world.rank]
    n_here = here.stop - here.start
    nodes = [nodes_within(world.share(n_passes, rank), range(n_passes)) for rank in range(world.size)]

    outgoing = [_joined([wire.packed(part[place]) for part in mine.values()], wire) for place in places]
    incoming = [wire.buffer(n_here * len(nodes[rank])) for rank in range(world.size)]
    world.exchange(outgoing, incoming)
    incoming[world.rank] = outgoing[world.rank]         # a view of the sum's place: it may be added up there
    parts = {node: wire.unpacked(incoming[rank][i * n_here:(i + 1) * n_here])
             for rank in range(world.size) for i, node in enumerate(nodes[rank])}
    summed = wire.packed(sum_of_nodes(parts, range(n_passes)))

    total[here] = wire.unpacked(summed)
    in_place = wire.itemsize == total.itemsize
    arrived = [total[place] if in_place else wire.buffer(place.stop - place.start) for place in places]
    world.exchange([summed] * world.size, arrived)
    if not in_place:
        arrived[world.rank] = summed
        for place, values in zip(places, arrived):
            total[place] = wire.unpacked(values)


def _joined(arrays: list[np.ndarray], wire: Wire) -> np.ndarray:
    if len(arrays) == 1:
        return arrays[0]
    return np.concatenate(arrays) if arrays else wire.buffer(0)


def bytes_sent(n_params: int, n_ranks: int, itemsize: int = 4) -> float:
    """Bytes that each rank sends for a step, where each sums its passes to one part of the tree."""
    return 2 * (n_ranks - 1) / n_ranks * n_params * itemsize
