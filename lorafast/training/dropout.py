"""Dropout for LoRA: in each iteration every pair of a matrix sees only some of its inputs.

The inputs that it does not see are the same for all tokens of the iteration: dropping input k is then zeroing column k
of A (and its gradient), which costs r·K instead of T·K operations and no memory for activations. Masks follow from the
seed and the number of the iteration alone, so they are the same for any number of threads and in a resumed run. With
DoRA the norms of an iteration are those of the matrix as it sees it, too.

Source: Lin et al., "LoRA Dropout as a Sparsity Regularizer for Overfitting Control" (2024).
"""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..network.lora import Adapter, Gradients


class Dropout:
    """`thinned` is the adapter as an iteration sees it, laid out like it."""

    def __init__(self, adapter: Adapter, rate: float, seed: int) -> None:
        self.adapter, self.rate, self.seed = adapter, rate, seed
        self.thinned = Adapter(adapter.specs, adapter.alpha, adapter.r)
        self.masks: dict[str, np.ndarray] = {}

    def draw(self, iteration: int) -> None:
        """Takes over the adapter's parameters and drops inputs; those that stay are scaled by 1 / (1 - rate)."""
        self.restore()
        self.masks = dict(self._masks(iteration))
        for name, mask in self.masks.items():
            self.thinned.A(name)[:] *= mask

    def _masks(self, iteration: int) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the mask of each pair of a matrix, float32 (K,): 0, or 1 / (1 - rate)."""
        random = np.random.Philox(key=[self.seed, iteration])
        for spec in self.adapter.specs:
            if spec.kind == "linear":
                stays = random.random_raw(spec.n_in) >= np.uint64(self.rate * 2.0**64)
                yield spec.name, stays.astype(np.float32) / np.float32(1 - self.rate)

    def backward(self, gradients: Gradients) -> None:
        """Makes the gradients of `thinned`, once they are complete, those of the adapter. forward: A_thinned = A ·
        mask."""
        for name, mask in self.masks.items():
            gradients.dA(name)[:] *= mask

    def restore(self) -> None:
        """All inputs are seen again, for evaluation."""
        np.copyto(self.thinned.params, self.adapter.params)
