"""The gradients of a step's passes, summed in a fixed order: a binary tree over the passes' numbers.

The passes begin up to end have the sum of two halves, the first of which has the largest power of two of passes that
leaves the second some:

    sum(0, 7) = sum(0, 4) + sum(4, 7) = ((g0 + g1) + (g2 + g3)) + ((g4 + g5) + g6)

Whoever has consecutive passes can add up what stands together in the tree, and whoever gets such parts the rest, so
that the bits of the sum do not depend on how many machines share the passes.
"""
from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .lora import Adapter, Gradients


def split(part: range) -> int:
    """Where the second half of a part of the tree, of at least two passes, begins."""
    return part.start + (1 << (len(part) - 1).bit_length() - 1)


def nodes_within(passes: range, of: range) -> list[range]:
    """The largest parts of the tree over `of` that lie within `passes`, in order."""
    if not passes or passes.stop <= of.start or of.stop <= passes.start:
        return []
    if passes.start <= of.start and of.stop <= passes.stop:
        return [of]
    middle = split(of)
    return nodes_within(passes, range(of.start, middle)) + nodes_within(passes, range(middle, of.stop))


def sum_of_nodes(parts: Mapping[range, np.ndarray], of: range) -> np.ndarray:
    """The sum of the tree over `of`, whose parts are given. It is computed in place, in the array of the first part."""
    if of in parts:
        return parts[of]
    middle = split(of)
    total = sum_of_nodes(parts, range(of.start, middle))
    total += sum_of_nodes(parts, range(middle, of.stop))
    return total


def stores_needed(n_passes: int) -> int:
    """Arrays of gradients that exist at a time while so many passes are summed."""
    return 1 + max(i.bit_count() for i in range(max(1, n_passes)))


class PassSums:
    """Sums the gradients of passes as they come: what stands together in the tree is added at once.

    stores  of the parts so far, in order, and of the pass under way
    parts   of the tree that are complete, or (the last) under way
    """

    def __init__(self, adapter: Adapter) -> None:
        self.adapter, self.stores = adapter, [Gradients(adapter)]
        self.parts: list[range] = []
        self.all, self.own = range(0), range(0)

    def begin(self, n_passes: int, own: range | None = None) -> None:
        """A step of so many passes begins, of which `own` come here, in order; None: all."""
        self.all, self.own = range(n_passes), range(n_passes) if own is None else own
        self.parts = []

    def next(self) -> Gradients:
        """Zeros, for the gradients of the next pass."""
        at = self.parts[-1].stop if self.parts else self.own.start
        self.parts.append(range(at, at + 1))
        if len(self.parts) > len(self.stores):
            self.stores.append(Gradients(self.adapter))
        store = self.stores[len(self.parts) - 1]
        store.clear()
        return store

    def add(self) -> None:
        """The gradients of that pass are complete."""
        parts = self.parts
        while len(parts) > 1 and len(nodes_within(both := range(parts[-2].start, parts[-1].stop), self.all)) == 1:
            parts[-2:] = [both]
            self.stores[len(parts) - 1].flat += self.stores[len(parts)].flat

    def sums(self) -> dict[range, np.ndarray]:
        """(n_params,) float32 of each part of the tree that the own passes make up."""
        return {part: store.flat for part, store in zip(self.parts, self.stores)}
