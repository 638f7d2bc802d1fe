"""A sequence that grows, with keys and values kept in caches: generation, and logits of a text."""
from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .buffers import Scratch, empty, sized
from .lora import Adapter, Ranks
from .network import Network
from .passes import Pass, Rows
from .shared_keys import CachedKeys
from .weights import MAPPED, Weights

CHUNK = 64
"""Tokens that are read at a time."""


class Decoder:
    """One sequence of up to n_ctx tokens: logits of its newest tokens."""

    def __init__(self, network: Network, adapter: Adapter, n_ctx: int, n_threads: int, chunk: int = CHUNK,
                 weights: Weights = MAPPED) -> None:
        self.network, self.adapter, self.n_ctx, self.n_threads = network, adapter, n_ctx, n_threads
        self.weights, self.chunk = weights, min(chunk, n_ctx)
        self.caches = [block.new_caches(n_ctx, self.chunk, empty) for block in network.blocks]
        self.n_past = 0
        self.shared = [CachedKeys() for _ in network.shared_widths]
        self.per_layer = network.new_per_layer(self.chunk, empty)
        ranks, C = Ranks(adapter), network.hparams.n_embd
        self.inputs = [empty(self.chunk, C) for _ in range(2)]
        of_shape = {block.shape: block for block in network.blocks}
        self.saved = {shape: block.saved(self.chunk, empty, ranks) for shape, block in of_shape.items()}
        self.scratch = Scratch(max(network.scratch_below(self.chunk),
                                   *(block.scratch(self.chunk, adapter) for block in of_shape.values())))

    def append(self, tokens: np.ndarray) -> np.ndarray:
        """Adds tokens int32 (n,), n >= 1; returns the logits (n_vocab,) of what follows the last one.

        Raises ValueError when they don't fit n_ctx.
        """
        *_, x = self.outputs(tokens)
        return self.logits(x[-1:])[0]

    def outputs(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        """Adds tokens as `append` does; yields the last block's output (n, C) for some of them at a time, to be used at
        once."""
        if self.n_past + len(tokens) > self.n_ctx:
            raise ValueError(f"{self.n_past} + {len(tokens)} tokens do not fit a context of {self.n_ctx}")
        for begin in range(0, len(tokens), self.chunk):
            yield self._append_chunk(np.ascontiguousarray(tokens[begin:begin + self.chunk], np.int32))

    def rewind(self, n_past: int) -> int:
        """Forgets all tokens but the first `n_past`, or all where a cache no longer holds what those after them see.
        Returns how many are left."""
        if n_past < self.n_past:
            caches = [cache for of_block in self.caches for cache in of_block if cache is not None]
            self.n_past = n_past if all(cache.can_rewind(n_past) for cache in caches) else 0
            for cache in caches:
                cache.rewind(self.n_past)
        return self.n_past

    def logits(self, x: np.ndarray) -> np.ndarray:
        """(n, n_vocab) of the last block's output x (n, C)."""
        return self.network.head.logits(x, self._pass(np.zeros(len(x), np.int32)))

    def _pass(self, tokens: np.ndarray) -> Pass:
        T = len(tokens)
        rows = Rows(np.arange(self.n_past, self.n_past + T, dtype=np.int32), np.array([0, T], np.int32))
        return Pass(tokens, rows, self.adapter, self.scratch, self.n_threads, weights=self.weights, shared=self.shared,
                    per_layer=[of_block[:T] for of_block in self.per_layer])

    def _append_chunk(self, tokens: np.ndarray) -> np.ndarray:
        pass_, T = self._pass(tokens), len(tokens)
        x, out = (array[:T] for array in self.inputs)
        saved = {shape: of_block.first(T) for shape, of_block in self.saved.items()}
        self.network.embed(x, pass_)
        for block, caches in zip(self.network.blocks, self.caches, strict=True):
            block.forward(out, x, saved[block.shape], pass_, caches)
            x, out = out, x
        self.n_past += T
        return x


def decoder_bytes(network: Network, adapter: Adapter, chunk: int = CHUNK) -> int:
    """Memory of a Decoder over all the positions that the network was made for."""
    caches = [cache for block in network.blocks for cache in block.new_caches(network.n_positions, chunk, sized)
              if cache is not None]
    of_shape = {block.shape: block for block in network.blocks}
    saved = [block.saved(chunk, sized, Ranks(adapter)) for block in of_shape.values()]
    return (sum(cache.nbytes for cache in caches) + sum(of_block.nbytes for of_block in saved)
            + sum(of_block.nbytes for of_block in network.new_per_layer(chunk, sized))
            + 4 * max(network.scratch_below(chunk), *(block.scratch(chunk, adapter) for block in of_shape.values())))
