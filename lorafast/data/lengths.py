"""How long the samples of a run are: what a plan by real lengths starts from."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..words import is_or_are
from .samples import Samples, Sequences


@dataclass(frozen=True)
class SharedRows:
    """What passes compute of samples whose rows begin with the same prompt, which is computed once.

    most_share  rows of a sample over its tokens, at most
    mean_share  rows of all samples over their tokens
    """

    most_share: float
    mean_share: float


def cut_to_context(n: int, n_samples: int, ctx: int, longest: int) -> str:
    """The warning about n samples that lose their ends."""
    verb = is_or_are(n)
    return (f"{n} of {n_samples} samples {verb} longer than the context of {ctx} tokens and {verb} cut "
            f"(the longest has {longest})")


def row_lengths(samples: Samples, ctx: int) -> np.ndarray:
    """Tokens that each sample is computed with, int64 (S,): the inputs of a record, and `ctx` of a text's samples."""
    if isinstance(samples, Sequences):
        return samples.n_inputs
    return np.broadcast_to(np.int64(ctx), samples.begin.shape)


def shared_rows(parts: Sequence[Samples]) -> SharedRows | None:
    """Of all samples of these parts together; None where nothing is shared."""
    of_records = [samples for samples in parts if isinstance(samples, Sequences)]
    if not of_records:
        return None
    tokens = np.concatenate([samples.n_inputs for samples in of_records])
    rows = tokens - np.concatenate([samples.n_shared for samples in of_records])
    if np.array_equal(rows, tokens):
        return None
    return SharedRows(float((rows / tokens).max()), float(rows.sum() / tokens.sum()))
