"""How long the samples of a run are, and the most that a pass can hold: what a plan by real lengths starts from."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .samples import Samples, Sequences


@dataclass(frozen=True)
class LongestBatch:
    """The largest pass that any order of the samples can lead to.

    tokens   of all its rows
    rows     that share these tokens
    longest  tokens of its longest row
    """

    tokens: int
    rows: int
    longest: int


def row_lengths(samples: Samples, ctx: int) -> np.ndarray:
    """Tokens that each sample is computed with, int64 (S,): the inputs of a record, and `ctx` of a text's samples."""
    if isinstance(samples, Sequences):
        return samples.n_inputs
    return np.broadcast_to(np.int64(ctx), samples.begin.shape)


def longest_batch(samples: Samples, ctx: int, batch: int, *, pack: bool = False) -> LongestBatch:
    """The longest pass of `batch` samples, or, with `pack`, of as many as fit batch * ctx tokens."""
    lengths = row_lengths(samples, ctx)
    if not isinstance(samples, Sequences):
        return LongestBatch(batch * ctx, batch, ctx)
    n = min(batch, len(lengths))
    longest = np.partition(lengths, len(lengths) - n)[len(lengths) - n:]
    tokens = int(longest.sum())
    if pack:
        total = int(lengths.sum())
        tokens = min(batch * ctx, total)
        n = int(np.searchsorted(np.cumsum(np.sort(lengths)), tokens, side="right"))
    return LongestBatch(tokens, n, int(longest.max()))
