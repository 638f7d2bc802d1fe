"""The network: embedding, blocks, output. The forward pass from top to bottom of this file, the backward pass upwards.

Weights stay in the file's mapping; gradients flow only to the adapter, and only as far down as something is adapted.
"""
from __future__ import annotations

import numpy as np

from .block import Block, Gradients, KVCache, Rows, Saved
from .gguf import GGUFFile
from .hparams import HParams
from .kernels.cross_entropy import cross_entropy_forward_backward
from .layers import Embedding, Norm, Projections
from .lora import Adapter
from .rope_tables import rope_tables


class Model:
    """A model file, ready to run on up to `n_positions` positions a sequence."""

    def __init__(self, gguf: GGUFFile, hparams: HParams, n_positions: int) -> None:
        factors = gguf.tensors.get("rope_freqs.weight")
        rope = rope_tables(n_positions, hparams.n_rot, hparams.rope_freq_base, hparams.rope_freq_scale,
                           factors.to_float32() if factors else None)
        self.hparams = hparams
        self.embedding = Embedding(gguf.tensors["token_embd.weight"])
        self.blocks = [Block(gguf, hparams, layer, rope) for layer in range(hparams.n_layer)]
        self.output_norm = Norm(gguf.tensors["output_norm.weight"], hparams.norm_rms_eps)
        head = "token_embd.weight" if hparams.tied else "output.weight"
        self.head = Projections([gguf.tensors[head]])
        if hparams.tied:                # the pair of token_embd acts on the input only
            self.head.names = ["output.weight"]

    def merge(self, adapter: Adapter) -> None:
        """Takes over the adapter's present gains; to be called after each change of its parameters."""
        for block in self.blocks:
            block.merge(adapter)
        self.output_norm.merge(adapter)


class Trainer:
    """Loss and gradients of batches of `n_rows` × `ctx` tokens, with buffers allocated once.

    checkpointing  keep only the input of each block and compute the rest again for backward (Chen et al., Training Deep Nets
                   with Sublinear Memory Cost, 2016): a third more work, a fraction of the memory
    head_tokens    tokens whose logits exist at a time
    """

    def __init__(self, model: Model, adapter: Adapter, n_rows: int, ctx: int, *, checkpointing: bool, n_threads: int,
                 head_tokens: int = 128) -> None:
        hp = model.hparams
        T = n_rows * ctx
        self.model, self.adapter, self.n_threads, self.checkpointing = model, adapter, n_threads, checkpointing
        self.rows = Rows.of_batch(n_rows, ctx)
        self.x = np.empty((hp.n_layer + 1, T, hp.n_embd), np.float32)      # the input of each block, and the last output
        n_saved = 1 if checkpointing else hp.n_layer
        self.saved = [Saved(model.blocks[0], T, adapter) for _ in range(n_saved)]
        self.gradients = Gradients(hp, T)
        self.dx = np.empty((T, hp.n_embd), np.float32)
        self.normed, self.rstd = np.empty_like(self.dx), np.empty(T, np.float32)
        self.logits = np.empty((min(T, head_tokens), hp.n_vocab), np.float32)
        self.loss = np.empty(T, np.float32)
        adapted = [layer for layer, block in enumerate(model.blocks) if block.is_adapted(adapter)]
        below = model.embedding.name in adapter
        self.lowest = 0 if below else min(adapted, default=hp.n_layer)    # no gradient is needed below this block
        self.below = below

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, the adapter's own arrays not counted."""
        arrays = self.x, self.dx, self.normed, self.rstd, self.logits, self.loss
        return sum(a.nbytes for a in arrays) + sum(s.nbytes for s in self.saved) + self.gradients.nbytes

    def loss_and_gradients(self, tokens: np.ndarray, targets: np.ndarray, weight: float = 1.0) -> float:
        """Mean loss in nats over the targets; adds `weight` times its gradients to the adapter's.

        tokens, targets   int32 (n_rows, ctx); a target of -1 does not count
        """
        tokens, targets = tokens.ravel(), targets.ravel()
        model, adapter, n_threads = self.model, self.adapter, self.n_threads
        model.embedding.forward(self.x[0], tokens, adapter, n_threads)
        for layer, block in enumerate(model.blocks):
            block.forward(self.x[layer + 1], self.x[layer], self._saved(layer), self.gradients, self.rows, adapter, n_threads)

        loss = self._head(targets, weight)

        last = len(model.blocks) - 1
        for layer in range(last, self.lowest - 1, -1):
            block, x, saved = model.blocks[layer], self.x[layer], self._saved(layer)
            if self.checkpointing and layer != last:
                block.forward(None, x, saved, self.gradients, self.rows, adapter, n_threads)
            block.backward(self.dx, x, saved, self.gradients, self.rows, adapter, n_threads,
                           need_dx=self.below or layer > self.lowest)
        if self.below:
            model.embedding.backward(self.dx, tokens, adapter)
        return loss

    def _saved(self, layer: int) -> Saved:
        return self.saved[0 if self.checkpointing else layer]

    def _head(self, targets: np.ndarray, weight: float) -> float:
        """Norm, logits, loss, and back to self.dx, the gradient of the last block's output; a chunk of tokens at a time."""
        model, adapter, n_threads = self.model, self.adapter, self.n_threads
        model.output_norm.forward(self.normed, self.rstd, self.x[-1], n_threads)
        counted = np.flatnonzero(targets >= 0)
        if len(counted) == 0:
            self.dx.fill(0)
            return 0.0
        need_dx = self.below or self.lowest < len(model.blocks) or model.output_norm.name in adapter
        d_normed = self.gradients.d_normed
        d_normed.fill(0)
        total = 0.0
        for begin in range(0, len(counted), len(self.logits)):
            index = counted[begin:begin + len(self.logits)]
            n = len(index)
            whole = index[-1] - index[0] == n - 1                          # without gaps: rows need not be gathered
            rows = slice(index[0], index[-1] + 1) if whole else index
            x, logits, loss = self.normed[rows], self.logits[:n], self.loss[:n]
            h = [np.empty((n, rank), np.float32) for rank in model.head.ranks(adapter)]
            model.head.forward([logits], h, x, adapter, n_threads)
            cross_entropy_forward_backward(loss, logits, targets[rows], np.full(n, weight / len(counted), np.float32), n_threads)
            total += float(loss.sum(dtype=np.float64))
            dx = d_normed[rows]                                             # a view, or a copy of gathered rows
            model.head.backward(dx if need_dx else None, [logits], x, h, adapter, n_threads)
            if not whole:
                d_normed[rows] = dx
        self.dx.fill(0)
        if need_dx:
            model.output_norm.backward(self.dx, d_normed, self.x[-1], self.rstd, adapter, n_threads)
        return total / len(counted)


class Sequence:
    """One sequence that grows: logits of its newest tokens, with keys and values kept in a cache (generation)."""

    def __init__(self, model: Model, adapter: Adapter, n_ctx: int, n_threads: int, chunk: int = 64) -> None:
        self.model, self.adapter, self.n_ctx, self.n_threads, self.chunk = model, adapter, n_ctx, n_threads, chunk
        self.caches = [KVCache(model.hparams, n_ctx) for _ in model.blocks]
        self.n_past = 0

    def append(self, tokens: np.ndarray) -> np.ndarray:
        """Adds tokens int32 (n,), n >= 1; returns the logits (n_vocab,) of what follows the last one.

        Raises ValueError when they don't fit n_ctx.
        """
        if self.n_past + len(tokens) > self.n_ctx:
            raise ValueError(f"{self.n_past} + {len(tokens)} tokens do not fit a context of {self.n_ctx}")
        for begin in range(0, len(tokens), self.chunk):
            x = self._append_chunk(np.ascontiguousarray(tokens[begin:begin + self.chunk], np.int32))
        return self._logits(x[-1:])

    def _append_chunk(self, tokens: np.ndarray) -> np.ndarray:
        model, adapter, n_threads, T = self.model, self.adapter, self.n_threads, len(tokens)
        end = self.n_past + T
        rows = Rows(np.arange(self.n_past, end, dtype=np.int32), np.array([0, T], np.int32), np.array([0, end], np.int32))
        x, out = np.empty((2, T, model.hparams.n_embd), np.float32)
        saved, gradients = Saved(model.blocks[0], T, adapter), Gradients(model.hparams, T)
        model.embedding.forward(x, tokens, adapter, n_threads)
        for block, cache in zip(model.blocks, self.caches):
            block.forward(out, x, saved, gradients, rows, adapter, n_threads, cache)
            x, out = out, x
        self.n_past = end
        return x

    def _logits(self, x: np.ndarray) -> np.ndarray:
        model, T = self.model, len(x)
        normed, logits = np.empty_like(x), np.empty((T, model.hparams.n_vocab), np.float32)
        model.output_norm.forward(normed, np.empty(T, np.float32), x, self.n_threads)
        h = [np.empty((T, rank), np.float32) for rank in model.head.ranks(self.adapter)]
        model.head.forward([logits], h, normed, self.adapter, self.n_threads)
        return logits[0]
