"""A beginning that knows the data: A of each matrix holds the directions in which most of its inputs lie.

Paischer et al., "One Initialization to Rule them All: Fine-tuning via Explained Variance Adaptation" (2024). The inputs
are those of the base model on the first batches of the data; B is 0, so that training starts at the base model, too.
The right singular vectors of the inputs, not centred, are brought up to date batch by batch (Ross et al., "Incremental
Learning for Robust Visual Tracking", 2008).
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..data.batches import Batch
from ..network.linear import Group
from ..network.lora import Adapter
from ..network.network import Network
from ..network.trainer import Trainer

ROWS = 256
"""Inputs of a batch that are looked at, evenly spaced: neighbours tell little that is new."""

MORE = 8
"""Directions beside the wanted ones that are kept from batch to batch."""


def initialise(adapter: Adapter, trainer: Trainer, batches: Iterable[Batch]) -> None:
    """Gives A of every adapted matrix its principal directions; those of norms and embeddings stay as they are. Where
    there are fewer directions than ranks, the rest stays too."""
    network = trainer.network
    network.refresh(trainer.adapter)
    directions = {id(group): Directions(group, adapter) for group in network.groups if group.is_adapted(adapter)}
    with _watching(network, directions):
        for batch in batches:
            trainer.losses(batch)
    for group in network.groups:
        if id(group) in directions:
            found = directions[id(group)].basis()
            for linear in group.linears:
                if linear.name in adapter:
                    a = adapter.A(linear.name)
                    n = min(len(a), len(found))
                    a[:n] = found[:n]


class Directions:
    """The right singular vectors of a group's inputs so far, each times its singular value."""

    def __init__(self, group: Group, adapter: Adapter) -> None:
        self.n = MORE + max(len(adapter.A(linear.name)) for linear in group.linears if linear.name in adapter)
        self.scaled: np.ndarray | None = None

    def add(self, x: np.ndarray) -> None:
        """x: float32 (T, K)."""
        x = x[::max(1, len(x) // ROWS)]
        if self.scaled is not None:
            x = np.concatenate([self.scaled, x])
        _, values, vectors = np.linalg.svd(x, full_matrices=False)
        self.scaled = values[:self.n, None] * vectors[:self.n]

    def basis(self) -> np.ndarray:
        """Unit vectors (n, K), the largest first; the largest entry of each is positive."""
        if self.scaled is None:
            return np.zeros((0, 0), np.float32)
        lengths = np.linalg.norm(self.scaled, axis=1)
        found = self.scaled[lengths > 1e-6 * lengths.max()]
        peak = np.take_along_axis(found, np.abs(found).argmax(axis=1)[:, None], 1)
        return found / (np.linalg.norm(found, axis=1, keepdims=True) * np.sign(peak))


@contextmanager
def _watching(network: Network, directions: dict[int, Directions]) -> Iterator[None]:
    """Shows the groups' inputs to `directions`."""
    groups = [group for group in network.groups if id(group) in directions]
    for group in groups:
        group.forward = _watched(group, directions[id(group)])     # type: ignore[method-assign]
    try:
        yield
    finally:
        for group in groups:
            del group.forward


def _watched(group: Group, directions: Directions) -> Any:
    forward = group.forward

    def watched(ys: Any, h: Any, x: np.ndarray, *more: Any, **named: Any) -> None:
        directions.add(x)
        forward(ys, h, x, *more, **named)

    return watched
