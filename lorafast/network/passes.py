"""What travels through a pass: where the rows belong, the adapter, memory, threads."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .buffers import Scratch
from .lora import Adapter, Gradients
from .shared_keys import SharedKeys
from .shared_prompts import SharedPrompts
from .weights import MAPPED, Weights


@dataclass(frozen=True)
class Rows:
    """Where the T rows of a batch belong. Rows of one sequence follow each other; sequences don't see each other.

    positions   int32 (T,), place within the sequence
    q_begin     int32 (n_seq + 1,), first row of each sequence
    prompts     what sequences share with those before them; None: nothing
    """

    positions: np.ndarray
    q_begin: np.ndarray
    prompts: SharedPrompts | None = None

    @staticmethod
    def of(begin: np.ndarray, prompts: SharedPrompts | None = None) -> Rows:
        """Sequences, the i-th from row begin[i] to begin[i + 1]: whole, but for the prompts that they share."""
        first = begin[:-1] - prompts.shared if prompts else begin[:-1]
        positions = np.arange(begin[-1], dtype=np.int32) - np.repeat(first, np.diff(begin))
        return Rows(positions.astype(np.int32), begin, prompts)


@dataclass(frozen=True)
class Pass:
    """Built once for a pass over some tokens, and handed to every part of the network.

    tokens     int32 (T,)
    scratch    working memory that the parts use in turn
    gradients  None in a pass without a way back
    weights    where their bytes come from
    shared     keys and values that several blocks attend to
    per_layer  (T, n) of each block: its own embedding of the tokens; empty where the model has none
    """

    tokens: np.ndarray
    rows: Rows
    adapter: Adapter
    scratch: Scratch
    n_threads: int
    gradients: Gradients | None = None
    weights: Weights = MAPPED
    shared: Sequence[SharedKeys] = ()
    per_layer: Sequence[np.ndarray] = ()

    @property
    def into(self) -> Gradients:
        """The gradients, which the way back adds to."""
        assert self.gradients is not None, "a pass without a way back"
        return self.gradients

    def with_scratch(self, begin: int) -> Pass:
        """This pass with scratch that begins behind so many floats of this one's."""
        return replace(self, scratch=self.scratch.behind(begin))
