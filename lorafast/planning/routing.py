"""How many experts a pass over the data needs, by a look at what the lowest routers make of the data's beginning.

A text that repeats itself needs fewer experts than one that does not.
"""
from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from ..network.experts import ExpertGroup, ExpertsSaved
from ..network.linear import Group
from ..network.lora import Adapter
from ..network.model_files import ModelFiles
from ..network.network import Network
from ..network.passes import Pass, Rows
from ..network.residency import Residency, least_capacity
from ..network.trainer import Strategy, Trainer
from ..network.weights import MAPPED

UNPACKING_TOKENS = 32
"""Unpacking weights costs about as much as computing with so many tokens: in a pass of few tokens, each costs more."""

MOST_TOKENS, MOST_SECONDS = 512, 10.0
"""Tokens of the data whose experts are looked at; and seconds, at most, that this takes beyond the lowest router."""

FEW_TOKENS = 128
"""Of passes so small that two of them do not have more tokens, two are looked at: the second needs much of what the
first needed."""


class Routing:
    """chosen  int (n, k) by group, experts of tokens that follow each other in the data, in blocks from the lowest one
    up: those above are taken to choose as the uppermost of these. Of none, experts are taken to be chosen evenly"""

    def __init__(self, chosen: Mapping[Group, np.ndarray] | None = None) -> None:
        self.chosen = dict(chosen or {})
        self.uppermost = next(reversed(self.chosen.values()), None)
        self._known: dict[tuple[Group, int], tuple[float, float]] = {}

    def share(self, group: Group, T: int) -> float:
        """The share of a group's matrices that a pass of T tokens needs."""
        return self._shares(group, T)[0]

    def needed_again(self, group: Group, T: int) -> float:
        """The share of what a pass needs that the next one needs too."""
        return self._shares(group, T)[1]

    def _shares(self, group: Group, T: int) -> tuple[float, float]:
        if not isinstance(group, ExpertGroup):
            return 1.0, 1.0
        if (group, T) not in self._known:
            n, sets, chosen = 1, list[set[int]](), self.chosen.get(group, self.uppermost)
            if chosen is not None:
                n = min(T, len(chosen))
                sets = [set(piece.flat) for piece in np.split(chosen, range(n, len(chosen), n)) if len(piece) == n]
            of_n = float(np.mean([len(each) for each in sets] or [group.n_used])) / group.n_parts
            share = 1 - (1 - of_n) ** (T / n)
            again = [len(before & after) / len(after) for before, after in pairwise(sets)]
            self._known[group, T] = share, float(np.mean(again)) if again else share
        return self._known[group, T]

    def work(self, group: Group, T: int, share: float | None = None) -> float:
        """The work of computing with a group in a pass of T tokens, in a unit of its own. share: what the pass needs,
        where that is known."""
        rows = T * group.n_used / group.n_parts if isinstance(group, ExpertGroup) else T
        return group.n_values * (rows + UNPACKING_TOKENS * (self.share(group, T) if share is None else share))


def share_of(chosen: np.ndarray, n_experts: int) -> float:
    """The share of experts that are among the chosen."""
    return len(np.unique(chosen)) / n_experts


EVEN = Routing()


def measure_routing(network: Network, tokens: np.ndarray, T: int, ctx: int, n_threads: int,
                    files: ModelFiles | None = None) -> Routing:
    """Runs the blocks from the lowest one up, for a while. tokens: int32, of the data; a pass has T of them.

    With `files` no more of the weights is in memory at a time than must be.
    """
    T = min(T, len(tokens), MOST_TOKENS)
    length = min(ctx, T, network.n_positions)
    has_experts = any(group.n_parts for group in network.groups)
    if not has_experts or length == 0:
        return EVEN
    T = T // length * length
    order = [group for block in network.blocks for group in block.groups]
    residency = Residency(files, order, least_capacity(order)) if files else None
    chosen = list[dict[Group, np.ndarray]]()
    try:
        strategy, weights = Strategy(n_kept=1, head_tokens=1), residency or MAPPED
        trainer = Trainer(network, Adapter([], 1, 1), T, strategy, n_threads, weights=weights)
        for at in range(0, min(2 * T, max(T, FEW_TOKENS), len(tokens)) // T * T, T):
            chosen.append(_chosen(trainer, tokens[at:at + T], length, chosen[0] if chosen else None))
    finally:
        if residency:
            residency.close()
    return Routing({group: np.concatenate([each[group] for each in chosen if group in each]) for group in chosen[0]})


def _chosen(trainer: Trainer, tokens: np.ndarray, length: int,
            known: Mapping[Group, np.ndarray] | None) -> dict[Group, np.ndarray]:
    """The experts that these tokens choose, int (T, k), in samples of `length`. known: of another pass; blocks above
    those it has seen are left out."""
    network, T = trainer.network, len(tokens)
    rows = Rows.of(np.arange(0, T + 1, length, dtype=np.int32))
    pass_ = Pass(tokens, rows, trainer.adapter, trainer.scratch, trainer.n_threads, None, trainer.weights,
                 *trainer.buffers.beside(T))
    x, saved_of = trainer.buffers.input, trainer.buffers.saved_of
    network.embed(x(0), pass_)
    chosen, most = dict[Group, np.ndarray](), len(network.blocks) if known is None else len(known)
    end = time.perf_counter() + MOST_SECONDS
    for layer, block in enumerate(network.blocks):
        if chosen and (len(chosen) == most or time.perf_counter() > end):
            break
        block.forward(x(layer + 1), x(layer), saved_of(layer), pass_)
        chosen |= {group: saved.router.chosen.copy() for saved in saved_of(layer).branches
                   if isinstance(saved, ExpertsSaved) for group in block.groups if group.n_parts}
    return chosen
