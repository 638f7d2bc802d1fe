"""How many experts a pass over the data needs, by a look at what the lowest router makes of the data's beginning.

Routers go by the token more than by what stands around it: a text that repeats itself needs fewer experts than one that
does not, in each block alike.
"""
from __future__ import annotations

import copy

import numpy as np

from ..network.experts import ExpertGroup, Experts, ExpertsSaved
from ..network.linear import Group
from ..network.lora import Adapter
from ..network.network import Network
from ..network.passes import Pass, Rows
from ..network.residency import ModelFiles, Residency, least_capacity
from ..network.trainer import Strategy, Trainer

UNPACKING_TOKENS = 32
"""Unpacking weights costs about as much as computing with so many tokens: in a pass of few tokens, each costs more."""

MOST_TOKENS = 512
"""Of the data, whose experts are looked at."""


class Routing:
    """chosen  int (n, k), experts of tokens that follow each other in the data; None where that is not known: then they
    are taken to be chosen evenly"""

    def __init__(self, chosen: np.ndarray | None = None) -> None:
        self.chosen = chosen
        self._known: dict[tuple[int, int], float] = {}

    def share(self, group: Group, T: int) -> float:
        """Of a group's matrices, what a pass of T tokens needs."""
        if not isinstance(group, ExpertGroup):
            return 1.0
        if (group.n_parts, T) not in self._known:
            n, of_n = 1, group.n_used / group.n_parts
            if self.chosen is not None:
                n = min(T, len(self.chosen))
                pieces = self.chosen[:len(self.chosen) // n * n].reshape(-1, n * self.chosen.shape[1])
                of_n = float(np.mean([len(np.unique(piece)) for piece in pieces])) / group.n_parts
            self._known[group.n_parts, T] = 1 - (1 - of_n) ** (T / n)
        return self._known[group.n_parts, T]

    def work(self, group: Group, T: int) -> float:
        """Of computing with a group in a pass of T tokens, in a unit of its own."""
        rows = T * group.n_used / group.n_parts if isinstance(group, ExpertGroup) else T
        return group.n_values * (rows + UNPACKING_TOKENS * self.share(group, T))


EVEN = Routing()


def measure_routing(network: Network, tokens: np.ndarray, ctx: int, n_threads: int, files: ModelFiles) -> Routing:
    """Runs the blocks up to the lowest one with experts. tokens: int32, of the data."""
    lowest = next((layer for layer, block in enumerate(network.blocks)
                   if any(isinstance(branch, Experts) for branch in block.branches)), None)
    length = min(ctx, MOST_TOKENS, len(tokens))
    if lowest is None or length == 0:
        return EVEN
    T = min(len(tokens), MOST_TOKENS) // length * length
    below, none = copy.copy(network), Adapter([], 1, 1)
    below.blocks = network.blocks[:lowest + 1]
    order = [group for block in below.blocks for group in block.groups]
    residency = Residency(files, order, least_capacity(order))
    try:
        trainer = Trainer(below, none, T, Strategy(n_kept=1, head_tokens=1), n_threads, weights=residency)
        begin = np.arange(0, T + 1, length, dtype=np.int32)
        pass_ = Pass(tokens[:T], Rows.of(begin), none, trainer.scratch, n_threads, None, residency,
                     *trainer.buffers.beside(T))
        x, saved_of = trainer.buffers.input, trainer.buffers.saved_of
        below.embed(x(0), pass_)
        for layer, block in enumerate(below.blocks):
            block.forward(x(layer + 1), x(layer), saved_of(layer), pass_)
    finally:
        residency.close()
    saved = next(saved for saved in saved_of(lowest).branches if isinstance(saved, ExpertsSaved))
    return Routing(saved.router.chosen.copy())
