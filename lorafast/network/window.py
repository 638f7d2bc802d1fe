"""Which matrices are in memory while a pass goes through a model that is larger: what to read next, and what to let go.

A pass goes up through the layers and down again, so their order of use is known. What will not be needed for the
longest time is let go (Belady, A study of replacement algorithms, 1966). In the zigzag of passes these are the layers
just left behind, until the order turns: so the layers at both turns stay, and a window of a share f of the model spares
that share of the reading.
"""
from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Sequence


class Window:
    """Decides what to read and what to let go; the plan runs it without reading anything.

    sizes     bytes of each unit
    order     units in the order of use, which repeats for ever: a pass
    capacity  bytes of units that may be in memory; at least the largest one
    partial   units of which a pass needs parts: which ones is not known until it says so (`learn`)
    """

    def __init__(self, sizes: Sequence[int], order: Sequence[int], capacity: int,
                 partial: Collection[int] = ()) -> None:
        if max(sizes) > capacity:
            raise ValueError(f"a window of {capacity} bytes cannot hold a unit of {max(sizes)}")
        self.sizes, self.order, self.capacity, self.partial = list(sizes), order, capacity, frozenset(partial)
        self.known: set[int] = set()
        """The partial units whose parts this pass has named."""
        self.remains: dict[int, int] = {}
        """Bytes in memory of partial units that have to be fetched, since more parts are needed now."""
        self.uses = [[place for place, used in enumerate(order) if used == unit] for unit in range(len(sizes))]
        self.now = 0
        """Place in the order of the unit that is in use."""
        self.held: set[int] = set()
        """Units in memory, or being read."""
        self.most_held = 0
        """Bytes of them, at most so far."""

    def use(self, unit: int) -> None:
        """Moves on to the next place where the order has this unit; using a unit several times is one use."""
        if self.order[self.now] != unit:
            self.move(self.now + self.distance(unit))

    def move(self, place: int) -> None:
        """Moves on to a place in the order; beyond its end a new pass begins, whose parts are not known."""
        if place >= len(self.order):
            self.known.clear()
        self.now = place % len(self.order)

    def learn(self, unit: int, size: int, remaining: int | None = None) -> None:
        """The bytes of the parts of a partial unit that this pass needs. remaining: where these are others than were
        held, the bytes of those among them that are in memory."""
        self.known.add(unit)
        self.sizes[unit] = size
        if remaining is not None:
            self.held.discard(unit)
            self.remains[unit] = remaining

    def _is_fetched(self, ahead: int) -> bool:
        """Whether what is used so many places from now is in memory, or cannot be fetched yet."""
        place = self.now + ahead
        unit = self.order[place % len(self.order)]
        unknown = unit in self.partial and (place >= len(self.order) or unit not in self.known)
        return unknown or unit in self.held

    def distance(self, unit: int) -> int:
        """Places from now to the next use of a unit; 0 if it is in use."""
        uses = self.uses[unit]
        at = bisect_left(uses, self.now)
        return (uses[at] if at < len(uses) else uses[0] + len(self.order)) - self.now

    def next_fetch(self) -> tuple[int, list[int]] | None:
        """The unit to read now, after letting go those listed. None if all is there, or what is there is needed
        sooner."""
        n = len(self.order)
        ahead = next((i for i in range(n) if not self._is_fetched(i)), None)
        if ahead is None:
            return None
        unit = self.order[(self.now + ahead) % n]
        in_memory = self.remains | {held: self.sizes[held] for held in self.held}
        in_memory.pop(unit, None)
        room = self.capacity - sum(in_memory.values())
        leaving = []
        for held in sorted(in_memory, key=self.distance, reverse=True):
            if room >= self.sizes[unit]:
                break
            if self.distance(held) < ahead:
                return None
            leaving.append(held)
            room += in_memory[held]
        for gone in (unit, *leaving):
            self.remains.pop(gone, None)
        self.held -= set(leaving)
        self.held.add(unit)
        self.most_held = max(self.most_held, sum(self.sizes[held] for held in self.held))
        return unit, leaving
