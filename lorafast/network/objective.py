"""What a pass minimises: a function of the losses that the model has on its targets, in nats: -log p of each.

Whatever the function, its gradient enters the network at the head, as a factor of each token's cross entropy:

    d objective / d logits[t] = (d objective / d loss[t]) · (d loss[t] / d logits[t])

For the mean loss these factors are known beforehand. For preferences they follow from the log-probabilities of whole
sequences, so that the head first finds the losses, without a way back, and then the gradients.
"""
from __future__ import annotations

from typing import Protocol

import numpy as np

from ..data.batches import Batch


class Objective(Protocol):
    """A sum over the parts of a step.

    together      rows of a batch that belong together, of which no pass parts them: 1, or 2 of pairs
    needs_losses  the factors depend on the losses
    """

    together: int
    needs_losses: bool

    def weights(self, batch: Batch, losses: np.ndarray | None) -> np.ndarray:
        """The objective's derivative by the loss of each token, float32 (T,).

        losses  float32 (n,), of the targets that count; None where they are not needed
        """

    def value(self, batch: Batch, losses: np.ndarray, at_a_time: int) -> float:
        """What this part adds to the objective, before the factor that all parts share.

        at_a_time  losses that are added up at a time
        """


class TokenSum:
    """factor · Σ w_t loss_t, with the weights w of the batch: the mean loss where factor is 1 / (tokens that count)."""

    together, needs_losses = 1, False

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def weights(self, batch: Batch, losses: np.ndarray | None) -> np.ndarray:
        weights = np.full(len(batch.targets), self.factor, np.float32)
        return weights if batch.weights is None else weights * batch.weights

    def value(self, batch: Batch, losses: np.ndarray, at_a_time: int) -> float:
        """The sum of these losses, without the factor."""
        if batch.weights is not None:
            losses = losses * batch.weights[batch.targets >= 0]
        return sum_of(losses, at_a_time)


def sum_of(losses: np.ndarray, at_a_time: int) -> float:
    """Σ losses, float32 (n,), in float64, as chunk after chunk of the head brings them."""
    return sum((float(losses[first:first + at_a_time].sum(dtype=np.float64))
                for first in range(0, len(losses), at_a_time)), 0.0)
