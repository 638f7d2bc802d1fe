"""A beginning that knows the data: A of each matrix holds the directions in which most of its inputs lie.

Paischer et al., "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation" (2024). The inputs
are those of the base model on the first batches of the data; B is 0, so that training starts at the base model, too.
The right singular vectors of the inputs, not centred, are brought up to date batch by batch (Ross et al., "Incremental
Learning for Robust Visual Tracking", 2008).

Ranks can follow the inputs, too: those directions of all matrices that have the largest share of their matrix's inputs
(of the sum of their squares) become ranks, as many as there were before in all.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ..data.batches import Batch
from ..network.linear import Group
from ..network.lora import Adapter, PairSpec
from ..network.trainer import Trainer

ROWS = 256
"""Inputs of a batch that are looked at, evenly spaced: neighbours tell little that is new."""

MORE = 8
"""Directions beside the wanted ones that are kept from batch to batch."""


class Directions:
    """The right singular vectors of a group's inputs so far, each times its singular value.

    n      how many are wanted
    total  sum of the squares of all inputs that were looked at
    """

    def __init__(self, n: int) -> None:
        self.n, self.total = MORE + n, 0.0
        self.scaled: np.ndarray | None = None

    def add(self, x: np.ndarray) -> None:
        """x: float32 (T, K)."""
        x = x[::max(1, len(x) // ROWS)]
        self.total += float(np.square(x, dtype=np.float64).sum())
        if self.scaled is not None:
            x = np.concatenate([self.scaled, x])
        _, values, vectors = np.linalg.svd(x, full_matrices=False)
        self.scaled = values[:self.n, None] * vectors[:self.n]

    def _largest(self) -> tuple[np.ndarray, np.ndarray]:
        """Those that are not zero but for rounding, and their lengths."""
        if self.scaled is None:
            return np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
        lengths = np.linalg.norm(self.scaled, axis=1)
        kept = lengths > 1e-6 * lengths.max()
        return self.scaled[kept], lengths[kept]

    def basis(self) -> np.ndarray:
        """Unit vectors (n, K), the largest first; the largest entry of each is positive."""
        found, lengths = self._largest()
        if not len(found):
            return found
        peak = np.take_along_axis(found, np.abs(found).argmax(axis=1)[:, None], 1)
        return found / (lengths[:, None] * np.sign(peak))

    def shares(self) -> list[float]:
        """Of the inputs' squares, what lies in each direction, the largest first."""
        _, lengths = self._largest()
        return [float(length) ** 2 / self.total for length in lengths]


Found = Mapping[Group, Directions]
"""What was found of the groups that were looked at."""


def look(trainer: Trainer, ranks: Mapping[str, int], batches: Iterable[Batch]) -> Found:
    """Runs the base model over batches, and looks at the inputs of the matrices in `ranks`, which says how many
    directions each may have. trainer: its adapter leaves the model as it is."""
    network = trainer.network
    network.refresh(trainer.adapter)
    found: dict[Group, Directions] = {}
    for group in network.groups:
        wanted = [ranks[linear.name] for linear in group.linears if linear.name in ranks]
        if wanted:
            found[group] = Directions(max(wanted))
    with _watching(found):
        for batch in batches:
            trainer.losses(batch)
    return found


def initialise(adapter: Adapter, found: Found) -> None:
    """Gives A of every adapted matrix its principal directions; those of norms and embeddings stay as they are. Where
    there are fewer directions than ranks, the rest stays too."""
    for group, directions in found.items():
        basis = directions.basis()
        for linear in group.linears:
            if linear.name in adapter:
                a = adapter.A(linear.name)
                n = min(len(a), len(basis))
                a[:n] = basis[:n]


def most_ranks(specs: Sequence[PairSpec], rho: float) -> dict[str, int]:
    """The rank that each matrix may have at most, by name."""
    return {spec.name: round(rho * spec.rank) for spec in specs if spec.kind == "linear"}


def redistributed(specs: Sequence[PairSpec], found: Found, rho: float) -> dict[str, int]:
    """The rank of each matrix by what its directions explain, by name; 0 where others explain more. They are no more
    in all than those of `specs`. Of equal shares, as matrices with the same input have them, the first ones win."""
    most = most_ranks(specs, rho)
    shares = {linear.name: directions.shares() for group, directions in found.items() for linear in group.linears}
    candidates = [(-share, i, name) for name in most for i, share in enumerate(shares.get(name, [])[:most[name]])]
    candidates.sort(key=lambda candidate: candidate[:2])
    ranks = dict.fromkeys(most, 0)
    for _, _, name in candidates[:sum(spec.rank for spec in specs if spec.name in most)]:
        ranks[name] += 1
    return ranks


def largest(specs: Sequence[PairSpec], rho: float) -> list[PairSpec]:
    """Pairs with as many parameters as a redistribution can lead to: the largest matrices have the highest ranks."""
    most = most_ranks(specs, rho)
    left, ranks = sum(spec.rank for spec in specs if spec.name in most), dict[str, int]()
    for spec in sorted(specs, key=lambda spec: -(spec.n_in + spec.n_out)):
        if spec.name in most:
            ranks[spec.name] = max(1, min(most[spec.name], left))
            left -= ranks[spec.name]
    return [replace(spec, rank=ranks.get(spec.name, spec.rank)) for spec in specs]


@contextmanager
def _watching(found: Found) -> Iterator[None]:
    """Shows the groups' inputs to those who look at them."""
    for group, directions in found.items():
        group.forward = _watched(group, directions)     # type: ignore[method-assign]
    try:
        yield
    finally:
        for group in found:
            del group.forward


def _watched(group: Group, directions: Directions) -> Any:
    forward = group.forward

    def watched(ys: Any, h: Any, x: np.ndarray, *more: Any, **named: Any) -> None:
        directions.add(x)
        forward(ys, h, x, *more, **named)

    return watched
