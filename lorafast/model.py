"""The network: embedding, blocks, output. The forward pass from top to bottom of this file, the backward pass upwards.

Weights stay in the file's mapping; gradients flow only to the adapter, and only as far down as something is adapted.
"""
from __future__ import annotations

import numpy as np

from .block import Block, Gradients, KVCache, Rows, Saved
from .buffers import Buffers, empty
from .gguf import GGUFFile
from .hparams import HParams
from .kernels.cross_entropy import cross_entropy_forward_backward
from .layers import Embedding, Norm, Projections
from .lora import Adapter
from .rope_tables import rope_tables
from .sampler import Batch


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
    """Loss and gradients of batches of at most `max_tokens` tokens, with buffers allocated once.

    checkpointing  keep only the input of each block and compute the rest again for backward (Chen et al., Training Deep Nets
                   with Sublinear Memory Cost, 2016): a third more work, a fraction of the memory
    head_tokens    tokens whose logits exist at a time
    """

    def __init__(self, model: Model, adapter: Adapter, max_tokens: int, *, checkpointing: bool, n_threads: int,
                 head_tokens: int = 128) -> None:
        hp = model.hparams
        self.model, self.adapter, self.n_threads, self.checkpointing = model, adapter, n_threads, checkpointing
        self.buffers = _Activations(model, adapter, max_tokens, n_saved=1 if checkpointing else hp.n_layer)
        self.logits = empty(min(max_tokens, head_tokens), hp.n_vocab)
        adapted = [layer for layer, block in enumerate(model.blocks) if block.is_adapted(adapter)]
        self.embedding_is_adapted = model.embedding.name in adapter
        self.lowest = 0 if self.embedding_is_adapted else min(adapted, default=hp.n_layer)
        """No gradient is needed below this block."""

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, the adapter's own arrays not counted."""
        return self.buffers.nbytes + self.logits.nbytes

    def loss_and_gradients(self, batch: Batch, token_weight: float) -> float:
        """Sum of the losses in nats of the targets that count; adds `token_weight` times its gradients to the adapter's."""
        model, adapter, n_threads = self.model, self.adapter, self.n_threads
        buffers, rows = self.buffers.first(len(batch.tokens)), Rows.of(batch.begin)
        x, saved, gradients = buffers.x, buffers.saved, buffers.gradients
        if self.checkpointing:
            saved *= len(model.blocks)                                      # all blocks share one

        model.embedding.forward(x[0], batch.tokens, adapter, n_threads)
        for layer, block in enumerate(model.blocks):
            block.forward(x[layer + 1], x[layer], saved[layer], gradients, rows, adapter, n_threads)

        loss = self._head(buffers, batch.targets, token_weight)

        last = len(model.blocks) - 1
        for layer in range(last, self.lowest - 1, -1):
            block = model.blocks[layer]
            if self.checkpointing and layer != last:
                block.forward(None, x[layer], saved[layer], gradients, rows, adapter, n_threads)
            block.backward(buffers.dx, x[layer], saved[layer], gradients, rows, adapter, n_threads,
                           need_dx=self.embedding_is_adapted or layer > self.lowest)
        model.embedding.backward(buffers.dx, batch.tokens, adapter)
        return loss

    def _head(self, buffers: _Activations, targets: np.ndarray, token_weight: float) -> float:
        """Norm, logits, loss, and back to buffers.dx, the gradient of the last block's output; a chunk of tokens at a time."""
        model, adapter, n_threads = self.model, self.adapter, self.n_threads
        normed, d_normed, x, dx = buffers.normed, buffers.gradients.d_normed, buffers.x[-1], buffers.dx
        need_dx = self.lowest < len(model.blocks) or model.output_norm.name in adapter
        model.output_norm.forward(normed, buffers.rstd, x, n_threads)
        d_normed.fill(0)
        total = 0.0
        counted = np.flatnonzero(targets >= 0)
        for begin in range(0, len(counted), len(self.logits)):
            index = counted[begin:begin + len(self.logits)]
            n = len(index)
            has_gaps = index[-1] - index[0] != n - 1
            chunk = index if has_gaps else slice(index[0], index[-1] + 1)
            x_head, dx_head = normed[chunk], d_normed[chunk]                # views, or gathered copies where there are gaps
            logits, loss = self.logits[:n], empty(n)
            h = [empty(n, rank) for rank in model.head.ranks(adapter)]
            model.head.forward([logits], h, x_head, adapter, n_threads)
            cross_entropy_forward_backward(loss, logits, targets[chunk], np.full(n, token_weight, np.float32), n_threads)
            total += float(loss.sum(dtype=np.float64))
            model.head.backward(dx_head if need_dx else None, [logits], x_head, h, adapter, n_threads)
            if has_gaps:
                d_normed[chunk] = dx_head
        dx.fill(0)
        if need_dx:
            model.output_norm.backward(dx, d_normed, x, buffers.rstd, adapter, n_threads)
        return total


class _Activations(Buffers):
    """Activations and gradients of a Trainer."""

    def __init__(self, model: Model, adapter: Adapter, T: int, n_saved: int) -> None:
        hp = model.hparams
        self.x = [empty(T, hp.n_embd) for _ in range(hp.n_layer + 1)]          # the input of each block, and the last output
        self.dx, self.normed, self.rstd = empty(T, hp.n_embd), empty(T, hp.n_embd), empty(T)
        self.saved = [Saved(model.blocks[0], T, adapter) for _ in range(n_saved)]
        self.gradients = Gradients(hp, T)

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
        x, out = empty(2, T, model.hparams.n_embd)
        saved, gradients = Saved(model.blocks[0], T, adapter), Gradients(model.hparams, T)
        model.embedding.forward(x, tokens, adapter, n_threads)
        for block, cache in zip(model.blocks, self.caches):
            block.forward(out, x, saved, gradients, rows, adapter, n_threads, cache)
            x, out = out, x
        self.n_past = end
        return x

    def _logits(self, x: np.ndarray) -> np.ndarray:
        model, T = self.model, len(x)
        normed, logits = np.empty_like(x), empty(T, model.hparams.n_vocab)
        model.output_norm.forward(normed, empty(T), x, self.n_threads)
        h = [empty(T, rank) for rank in model.head.ranks(self.adapter)]
        model.head.forward([logits], h, normed, self.adapter, self.n_threads)
        return logits[0]
