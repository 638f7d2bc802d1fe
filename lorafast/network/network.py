"""The network: embedding, blocks, output. The forward pass from top to bottom of this file, the backward pass upwards.

Weights stay in the file's mapping; gradients flow only to the adapter, and only as far down as something is adapted.
"""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..data.batches import Batch
from ..gguf.reader import GGUFFile
from ..kernels.cross_entropy import cross_entropy_forward_backward
from .block import Block, KVCache, Rows, Saved, Widths, attention_outputs
from .buffers import Buffers, New, Scratch, empty, sized
from .dora import Gain
from .hparams import HParams
from .linear import Embedding, Norm, Projections
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
        self.embedding.gain.forget()
        for block in self.blocks:
            block.merge(adapter)
        self.output_norm.merge(adapter)
        self.head.forget_gains()

    def dora_gains(self) -> dict[str, Gain]:
        """Of every matrix, by the name under which it is adapted."""
        groups = [group for block in self.blocks for group in block.groups] + [self.head]
        return {self.embedding.name: self.embedding.gain,
                **{name: gain for group in groups for name, gain in zip(group.names, group.gains)}}


@dataclass(frozen=True)
class Strategy:
    """What of a step is kept in memory, and what is computed again (memory.py chooses). The results are the same.

    n_kept       blocks, counted from the top, whose forward pass is kept for backward. The others keep their input only and
                 are computed again: gradient checkpointing (Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016)
    input_every  of those, each so-many-th keeps its input; between them even the inputs are computed again. Above 1, n_kept is 1
    keeps_attention  of what is kept, attention's outputs too; else they are computed again, which is cheap for short sequences
    head_tokens  tokens whose logits exist at a time
    micro_batch  long sequences of a batch that are worked on at a time, or more that are shorter; None: all
    """

    n_kept: int
    input_every: int = 1
    head_tokens: int = 128
    micro_batch: int | None = None
    keeps_attention: bool = True

    def max_tokens(self, batch: int, ctx: int) -> int:
        """Tokens worked on at a time, at most, of batches of `batch` sequences of up to `ctx`."""
        return min(batch, self.micro_batch or batch) * ctx


ORIGINALS_FLOOR = 1e-9
"""Under the probabilities in the original's loss, -ln(p (1 - floor) + floor): no token's loss is above 20.72."""


class Trainer:
    """Loss and gradients of batches; at most `max_tokens` tokens are worked on at a time, with buffers allocated once.

    No sequence may have more.

    floor   under the probabilities in the loss; 0: none
    """

    def __init__(self, model: Model, adapter: Adapter, max_tokens: int, strategy: Strategy, n_threads: int) -> None:
        self.model, self.adapter, self.strategy, self.n_threads = model, adapter, strategy, n_threads
        self.max_tokens = max_tokens
        self.buffers = Activations(model, adapter, max_tokens, strategy)
        self.scratch = Scratch(scratch_floats(model, adapter, max_tokens, strategy.head_tokens))
        self.floor = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, the adapter's own arrays not counted."""
        return self.buffers.nbytes + self.scratch.memory.nbytes

    def loss(self, batch: Batch) -> float:
        """Sum of the losses in nats of the targets that count, without gradients."""
        n_layer = len(self.model.blocks)
        loss = 0.0
        for tokens, targets, begin in self._parts(batch):
            buffers = self._forward(tokens, Rows.of(begin))
            loss += self.head(buffers.input(n_layer), buffers.rstd, targets, None)
        return loss

    def loss_and_gradients(self, batch: Batch, token_weight: float) -> float:
        """Sum of the losses in nats of the targets that count; adds `token_weight` times its gradients to the adapter's."""
        return sum((self._pass(*part, token_weight) for part in self._parts(batch)), 0.0)

    def _parts(self, batch: Batch) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Tokens, targets and begins of as many sequences at a time as can be worked on."""
        first = 0
        while first + 1 < len(batch.begin):
            end = max(first + 2, int(np.searchsorted(batch.begin, batch.begin[first] + self.max_tokens, side="right")))
            begin = batch.begin[first:end]
            rows = slice(begin[0], begin[-1])
            yield batch.tokens[rows], batch.targets[rows], begin - begin[0]
            first = end - 1

    def _pass(self, tokens: np.ndarray, targets: np.ndarray, begin: np.ndarray, token_weight: float) -> float:
        model, adapter, n_threads, scratch = self.model, self.adapter, self.n_threads, self.scratch
        rows = Rows.of(begin)
        buffers = self._forward(tokens, rows)
        x, saved = buffers.input, buffers.saved_of
        last = len(model.blocks) - 1

        loss = self.head(x(last + 1), buffers.rstd, targets, token_weight)
        dx = x(last + 1)

        for layer in range(last, buffers.lowest - 1, -1):
            block = model.blocks[layer]
            for below in buffers.lost_inputs(layer):
                model.blocks[below].forward(x(below + 1), x(below), saved(below), scratch, rows, adapter, n_threads)
            if buffers.is_recomputed(layer):
                block.forward(None, x(layer), saved(layer), scratch, rows, adapter, n_threads)
            elif buffers.shares_attention and layer < last:
                s = saved(layer)
                block.attend(s, s.k, s.v, rows, n_threads)
            block.backward(dx, x(layer), saved(layer), scratch, rows, adapter, n_threads,
                           need_dx=layer > buffers.lowest or model.embedding.name in adapter)
        model.embedding.backward(dx, tokens, x(0), adapter, n_threads)
        return loss

    def _forward(self, tokens: np.ndarray, rows: Rows) -> Activations:
        """Runs the blocks; returns the buffers, with the input of each block and what is kept for backward."""
        buffers = self.buffers.first(len(tokens))
        x, saved = buffers.input, buffers.saved_of
        self.model.embedding.forward(x(0), tokens, self.adapter, self.n_threads)
        for layer, block in enumerate(self.model.blocks):
            block.forward(x(layer + 1), x(layer), saved(layer), self.scratch, rows, self.adapter, self.n_threads)
        return buffers

    def head(self, x: np.ndarray, rstd: np.ndarray, targets: np.ndarray, token_weight: float | None) -> float:
        """Norm, logits, loss, and back, a chunk of tokens at a time: x, the last block's output, becomes its gradient.

        With token_weight None there is no way back: only the loss.
        """
        model, adapter, n_threads = self.model, self.adapter, self.n_threads
        C, V = model.hparams.n_embd, model.hparams.n_vocab
        need_dx = self.buffers.lowest < len(model.blocks) or model.output_norm.name in adapter
        dora_widths = model.head.dora_widths(adapter)
        total = 0.0
        counted = np.flatnonzero(targets >= 0)
        for first in range(0, len(counted), self.strategy.head_tokens):
            index = counted[first:first + self.strategy.head_tokens]
            n = len(index)
            logits, normed, d_normed, x_head, dx_head, y = self.scratch.arrays(n, V, C, C, C, C, *dora_widths)
            np.take(x, index, axis=0, out=x_head)
            model.output_norm.forward(normed, rstd[:n], x_head, n_threads)
            h, loss = [empty(n, rank) for rank in model.head.ranks(adapter)], empty(n)
            model.head.forward([logits], h, normed, adapter, n_threads)
            y[:] = logits[:, :y.shape[1]]
            weights = np.full(n, token_weight or 0, np.float32)
            cross_entropy_forward_backward(loss, logits, targets[index], weights, self.floor, n_threads)
            total += float(loss.sum(dtype=np.float64))
            if token_weight is None:
                continue
            if need_dx:
                dx_head.fill(0)
            d_logits = model.head.gain_backward([logits], [y], adapter, n_threads)
            model.head.backward(d_normed if need_dx else None, d_logits, normed, h, adapter, n_threads)
            if need_dx:
                model.output_norm.backward(dx_head, d_normed, x_head, rstd[:n], adapter, n_threads)
                x[index] = dx_head
        x[targets < 0] = 0
        return total


class Activations(Buffers):
    """The inputs of the blocks, and what is kept of their forward passes, for a Trainer of T tokens."""

    def __init__(self, model: Model, adapter: Adapter, T: int, strategy: Strategy, new: New = empty) -> None:
        hp = model.hparams
        self.n_layer, self.input_every = hp.n_layer, strategy.input_every
        self.lowest = lowest_block(model, adapter)
        self.kept_inputs = [new(T, hp.n_embd) for _ in range(self.lowest, hp.n_layer, self.input_every)]
        self.passing_inputs = [new(T, hp.n_embd) for _ in range(self.input_every - 1)]
        self.below = [new(T, hp.n_embd)] if self.lowest else []
        self.output = new(T, hp.n_embd)                                     # of the last block; then every dx
        widths = Widths.of(model.blocks, adapter)
        self.shares_attention = not strategy.keeps_attention
        attention = attention_outputs(hp, T, new) if self.shares_attention else None
        self.saved = [Saved(hp, widths, T, new, attention)
                      for _ in range(max(1, min(strategy.n_kept, hp.n_layer - self.lowest)))]
        self.rstd = new(T)

    def input(self, layer: int) -> np.ndarray:
        """x (T, C), the input of a block or (layer = n_layer) the output of the last one."""
        if layer == self.n_layer:
            return self.output
        i = layer - self.lowest
        if i < 0:                                                   # two that alternate
            return self.input(self.lowest) if i % 2 == 0 else self.below[0]
        at, offset = divmod(i, self.input_every)
        return self.passing_inputs[offset - 1] if offset else self.kept_inputs[at]

    def lost_inputs(self, layer: int) -> range:
        """The blocks that must run again because backward, coming from above, now needs the inputs over a kept one."""
        i, n = layer - self.lowest, self.input_every
        return range(layer - n + 1, layer) if n > 1 and i % n == n - 1 and layer + 1 < self.n_layer else range(0)

    def saved_of(self, layer: int) -> Saved:
        """The top blocks have each their own; all others share the first, which the lowest of the top ones leaves to them."""
        return self.saved[max(0, layer - (self.n_layer - len(self.saved)))]

    def is_recomputed(self, layer: int) -> bool:
        return layer < self.n_layer - len(self.saved)


def lowest_block(model: Model, adapter: Adapter) -> int:
    """No gradient is needed below this block; n_layer if none is needed in any."""
    if model.embedding.name in adapter:
        return 0
    return next((layer for layer, block in enumerate(model.blocks) if block.is_adapted(adapter)), len(model.blocks))


def weight_order(model: Model, activations: Activations) -> list[Projections]:
    """The groups of matrices in the order in which a Trainer's pass reads them."""
    order = [group for block in model.blocks for group in block.groups]
    order += [model.head] * 2
    for layer in range(len(model.blocks) - 1, activations.lowest - 1, -1):
        order += [group for below in activations.lost_inputs(layer) for group in model.blocks[below].groups]
        *up_to_gate_up, down = model.blocks[layer].groups
        if activations.is_recomputed(layer):
            order += up_to_gate_up
        order += [down, *reversed(up_to_gate_up)]
    return order


def scratch_floats(model: Model, adapter: Adapter, T: int, head_tokens: int) -> int:
    """Size of a Trainer's Scratch."""
    C, V = model.hparams.n_embd, model.hparams.n_vocab
    head = Scratch.floats(min(T, head_tokens), V, C, C, C, C, *model.head.dora_widths(adapter))
    return max(model.blocks[0].scratch_floats(T), head)


class Sequence:
    """One sequence that grows: logits of its newest tokens, with keys and values kept in a cache (generation)."""

    def __init__(self, model: Model, adapter: Adapter, n_ctx: int, n_threads: int, chunk: int = 64) -> None:
        self.model, self.adapter, self.n_ctx, self.n_threads = model, adapter, n_ctx, n_threads
        self.chunk = min(chunk, n_ctx)
        self.caches = [KVCache(model.hparams, n_ctx) for _ in model.blocks]
        self.n_past = 0
        self.inputs = [empty(self.chunk, model.hparams.n_embd) for _ in range(2)]
        self.saved = Saved(model.hparams, Widths.of(model.blocks, adapter), self.chunk)
        self.scratch = Scratch(model.blocks[0].scratch_floats(self.chunk))

    def append(self, tokens: np.ndarray) -> np.ndarray:
        """Adds tokens int32 (n,), n >= 1; returns the logits (n_vocab,) of what follows the last one.

        Raises ValueError when they don't fit n_ctx.
        """
        for x in self.outputs(tokens):
            pass
        return self.logits(x[-1:])[0]

    def outputs(self, tokens: np.ndarray) -> Iterator[np.ndarray]:
        """Adds tokens as `append` does; yields the last block's output (n, C) for some of them at a time, to be used at once."""
        if self.n_past + len(tokens) > self.n_ctx:
            raise ValueError(f"{self.n_past} + {len(tokens)} tokens do not fit a context of {self.n_ctx}")
        for begin in range(0, len(tokens), self.chunk):
            yield self._append_chunk(np.ascontiguousarray(tokens[begin:begin + self.chunk], np.int32))

    def rewind(self, n_past: int) -> None:
        """Forgets all tokens but the first `n_past`."""
        self.n_past = min(n_past, self.n_past)

    def logits(self, x: np.ndarray) -> np.ndarray:
        """(n, n_vocab) of the last block's output x (n, C)."""
        model, T = self.model, len(x)
        normed, logits = np.empty_like(x), empty(T, model.hparams.n_vocab)
        model.output_norm.forward(normed, empty(T), x, self.n_threads)
        h = [empty(T, rank) for rank in model.head.ranks(self.adapter)]
        model.head.forward([logits], h, normed, self.adapter, self.n_threads)
        return logits

    def _append_chunk(self, tokens: np.ndarray) -> np.ndarray:
        adapter, n_threads, T = self.adapter, self.n_threads, len(tokens)
        end = self.n_past + T
        rows = Rows(np.arange(self.n_past, end, dtype=np.int32), np.array([0, T], np.int32), np.array([0, end], np.int32))
        x, out = (array[:T] for array in self.inputs)
        saved = self.saved.first(T)
        self.model.embedding.forward(x, tokens, adapter, n_threads)
        for block, cache in zip(self.model.blocks, self.caches):
            block.forward(out, x, saved, self.scratch, rows, adapter, n_threads, cache)
            x, out = out, x
        self.n_past = end
        return x


def sequence_bytes(model: Model, adapter: Adapter, chunk: int = 64) -> int:
    """Memory of a Sequence over all the positions that the model was opened for."""
    n_ctx = len(model.blocks[0].cos)
    caches = KVCache(model.hparams, n_ctx, sized)
    saved = Saved(model.hparams, Widths.of(model.blocks, adapter), chunk, sized)
    return len(model.blocks) * (caches.k.nbytes + caches.v.nbytes) + saved.nbytes + 4 * model.blocks[0].scratch_floats(chunk)
