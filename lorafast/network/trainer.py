"""Loss and gradients of batches: what is kept of the forward pass, and what is computed again for the backward pass."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ..data.batches import Batch
from .block import Block, BlockSaved
from .buffers import Buffers, New, Scratch, empty, nbytes_of
from .distillation import Targets
from .head_pieces import PiecewiseLosses
from .linear import Group
from .lora import Adapter, Gradients, Ranks
from .network import Network
from .objective import Objective, TokenSum
from .passes import Pass, Rows
from .prefix_cache import PrefixCache
from .shared_keys import KeptKeys
from .shared_prompts import PromptKeys, SharedPrompts
from .weights import MAPPED, Weights


@dataclass(frozen=True)
class Strategy:
    """What of a step is kept in memory, and what is computed again (planning chooses). The results are the same.

    n_kept       blocks, counted from the top, whose forward pass is kept for backward. The others keep their input only
                 and are computed again: gradient checkpointing (Chen et al., Training Deep Nets with Sublinear Memory
                 Cost, 2016)
    input_every  of those, each so-many-th keeps its input; between them even the inputs are computed again. Above 1,
                 n_kept is 1
    keeps_cheap  of what is kept, also what is cheap to compute again (attention's outputs, for short sequences)
    head_tokens  tokens whose logits are in memory at a time
    micro_batch  long sequences of a batch that are worked on at a time, or more that are shorter; None: all
    head_pieces  logits exist of a piece of the vocabulary at a time, and the output matrix is used by pieces, twice
                 (head_pieces.py): of a head that `has_pieces`
    """

    n_kept: int
    input_every: int = 1
    head_tokens: int = 128
    micro_batch: int | None = None
    keeps_cheap: bool = True
    head_pieces: bool = False

    def max_tokens(self, batch: int, ctx: int) -> int:
        """Tokens worked on at a time, at most, of batches of `batch` sequences of up to `ctx`."""
        return min(batch, self.micro_batch or batch) * ctx


FEW_TOKENS = 4
"""Tokens of which a product has a core of its own (GEMV_TOKENS of kernels/gemv_body.h)."""

LLAMA_FINETUNE_FLOOR = 1e-9
"""The floor under probabilities in llama-finetune's loss, -ln(p (1 - floor) + floor): no token's loss is above
20.72."""


class Teacher(Protocol):
    """A teacher's word on the rows of the data to train on."""

    def targets(self, batch: Batch) -> Targets:
        """The teacher's probabilities at the targets of a batch that count."""


class Trainer:
    """Works on at most `max_tokens` tokens at a time, with buffers allocated once. No sequence may have more.

    adapter  as passes see it: with dropout not the one that is trained, but one laid out like it
    floor    under the probabilities in the loss; 0: none
    weights  where their bytes come from
    teacher  what else says which tokens should follow, beside the data
    prefix   where outputs of what is not trained are kept
    """

    def __init__(self, network: Network, adapter: Adapter, max_tokens: int, strategy: Strategy, n_threads: int, *,
                 floor: float = 0.0, weights: Weights = MAPPED, teacher: Teacher | None = None,
                 prefix: PrefixCache | None = None) -> None:
        self.network, self.adapter, self.strategy, self.n_threads = network, adapter, strategy, n_threads
        self.max_tokens, self.floor, self.weights = max_tokens, floor, weights
        self.teacher, self.prefix = teacher, prefix
        self.buffers = Activations(network, adapter, max_tokens, strategy)
        self.scratch = Scratch(scratch_floats(network, adapter, max_tokens, strategy))
        self.prompt_keys: PromptKeys | None = None
        """Made by the first batch whose rows share prompts."""

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, the adapter's own arrays not counted."""
        return self.buffers.nbytes + self.scratch.memory.nbytes + (self.prompt_keys.nbytes if self.prompt_keys else 0)

    def loss(self, batch: Batch) -> float:
        """Sum of the losses in nats of the targets that count, each times its weight, without gradients."""
        return self.value(batch, TokenSum())

    def value(self, batch: Batch, objective: Objective) -> float:
        """The objective's value, without gradients."""
        return sum((objective.value(part, self._losses(part), self.strategy.head_tokens)
                    for part in self._parts(batch, objective.together)), 0.0)

    def losses(self, batch: Batch) -> np.ndarray:
        """The losses in nats, float32 (n,), of the n targets that count, without gradients and weights."""
        return np.concatenate([self._losses(part) for part in self._parts(batch)])

    def loss_and_gradients(self, batch: Batch, token_weight: float, gradients: Gradients) -> float:
        """Sum of the losses in nats of the targets that count, each times its weight; adds `token_weight` times its
        gradients to `gradients`."""
        return self.minimise(batch, TokenSum(token_weight), gradients)

    def minimise(self, batch: Batch, objective: Objective, gradients: Gradients) -> float:
        """The objective's value; adds its gradients to `gradients`."""
        return sum((self._minimise(part, objective, gradients) for part in self._parts(batch, objective.together)), 0.0)

    def _parts(self, batch: Batch, together: int = 1) -> Iterator[Batch]:
        """Yields as many sequences at a time as can be computed; those that belong together stay together."""
        together = together if batch.shared is None else 2
        begin, first = batch.whole_begin[::together], 0
        while first + 1 < len(begin):
            end = max(first + 2, int(np.searchsorted(begin, begin[first] + self.max_tokens, side="right"))) - 1
            yield batch.part(first * together, end * together)
            first = end

    def _pass(self, batch: Batch, gradients: Gradients | None = None) -> Pass:
        rows = Rows.of(batch.begin, self._prompts(batch))
        return Pass(batch.tokens, rows, self.adapter, self.scratch, self.n_threads, gradients, self.weights,
                    *self.buffers.beside(len(batch.tokens)))

    def _prompts(self, batch: Batch) -> SharedPrompts | None:
        if batch.shared is None:
            return None
        if self.prompt_keys is None:
            assert self.network.key_widths, "such a network takes whole rows only"
            self.prompt_keys = PromptKeys(self.max_tokens, self.network.key_widths, empty)
        return SharedPrompts(batch.begin, batch.shared, batch.whole_begin, self.prompt_keys)

    def logits(self, batch: Batch) -> Iterator[np.ndarray]:
        """(n, V) at the targets that count, some at a time."""
        for part in self._parts(batch):
            pass_ = self._pass(part)
            counted = np.flatnonzero(part.targets >= 0)
            x = self._forward(pass_, part.rows).output
            for first in range(0, len(counted), self.strategy.head_tokens):
                yield self.network.head.logits(x[counted[first:first + self.strategy.head_tokens]], pass_)

    def _losses(self, batch: Batch) -> np.ndarray:
        pass_, read = self._pass(batch), self._rows_read(batch.targets)
        return self._head(self._forward(pass_, batch.rows, read), batch.targets, None, pass_, read)

    def _minimise(self, batch: Batch, objective: Objective, gradients: Gradients) -> float:
        pass_, read = self._pass(batch, gradients), self._rows_read(batch.targets)
        buffers = self._forward(pass_, batch.rows, read)
        losses = self._head(buffers, batch.targets, None, pass_, read) if objective.needs_losses else None
        taught = self.teacher.targets(batch) if self.teacher and batch.rows is not None else None
        losses = self._head(buffers, batch.targets, objective.weights(batch, losses), pass_, read, taught)
        self._backward(buffers, pass_, read)
        return objective.value(batch, losses, self.strategy.head_tokens)

    def _rows_read(self, targets: np.ndarray) -> np.ndarray | None:
        """The rows that the head reads, where the last block can leave out the others; None: all rows.

        Rows without a target get no gradient from the head: what they would add to the gradients is zero. Very few rows
        would change the bits: products of up to FEW_TOKENS have a core of their own.
        """
        counted = np.flatnonzero(targets >= 0)
        n_layer = len(self.network.blocks)
        is_kept_whole = self.prefix is not None and self.prefix.lowest == n_layer
        if is_kept_whole or not self.network.blocks[-1].can_omit_rows or not FEW_TOKENS < len(counted) < len(targets):
            return None
        return counted

    def _backward(self, buffers: Activations, pass_: Pass, read: np.ndarray | None) -> None:
        """Runs backward from the gradient of the last block's output, which the head left in its place."""
        network = self.network
        for keys in buffers.shared:
            keys.clear_gradients()
        x, saved, dx = buffers.input, buffers.saved_of, buffers.output
        for layer in range(len(network.blocks) - 1, buffers.lowest - 1, -1):
            block = network.blocks[layer]
            for below in buffers.lost_inputs(layer):
                network.blocks[below].forward(x(below + 1), x(below), saved(below), pass_)
            if buffers.is_recomputed(layer):
                block.forward(None, x(layer), saved(layer), pass_)
            elif buffers.has_lost_cheap(layer):
                for branch, s in zip(block.branches, saved(layer).branches, strict=True):
                    branch.recompute_cheap(s, pass_)
            block.backward(dx, x(layer), saved(layer), pass_,
                           need_dx=layer > buffers.lowest or network.embedding.name in self.adapter,
                           read=read if block is network.blocks[-1] else None)
        if network.embedding.name in self.adapter:
            network.embedding.backward(dx, x(0), pass_)

    def _forward(self, pass_: Pass, rows: np.ndarray | None = None, read: np.ndarray | None = None) -> Activations:
        """Runs the blocks; returns the buffers, with the input of each block and what is kept for backward.

        rows  see Batch.rows; what is known of them is not computed again
        read  see Block.forward
        """
        buffers = self.buffers.first(len(pass_.tokens))
        prefix, n_layer = self.prefix, len(self.network.blocks)
        if prefix is None or rows is None:
            self._run_blocks(buffers, 0, n_layer, pass_, read)
        elif prefix.holds(rows):
            if self.network.per_layer:                      # what blocks above take beside their input
                self.network.embed(buffers.input(0), pass_)
            prefix.read(rows, buffers.input(prefix.lowest))
            self._run_blocks(buffers, prefix.lowest, n_layer, pass_, read)
        else:
            self._run_blocks(buffers, 0, prefix.lowest, pass_)
            prefix.write(rows, buffers.input(prefix.lowest))
            self._run_blocks(buffers, prefix.lowest, n_layer, pass_, read)
        return buffers

    def _run_blocks(self, buffers: Activations, first: int, end: int, pass_: Pass,
                    read: np.ndarray | None = None) -> None:
        """Runs the blocks from `first` to before `end`; 0 begins with the embedding."""
        x, saved = buffers.input, buffers.saved_of
        if first == 0:
            self.network.embed(x(0), pass_)
        for layer in range(first, end):
            block = self.network.blocks[layer]
            block.forward(x(layer + 1), x(layer), saved(layer), pass_,
                          read=read if block is self.network.blocks[-1] else None)

    def _head(self, buffers: Activations, targets: np.ndarray, weights: np.ndarray | None, pass_: Pass,
              read: np.ndarray | None, taught: Targets | None = None) -> np.ndarray:
        head, n_layer = self.network.head, len(self.network.blocks)
        need_dx = (buffers.lowest < n_layer or head.norm.is_adapted(self.adapter)
                   or self.network.embedding.name in self.adapter)
        x = buffers.output
        if read is not None:
            x, targets, weights = x[:len(read)], targets[read], None if weights is None else weights[read]
        return self.head_losses(x, targets, weights, need_dx, pass_, taught)

    def head_losses(self, x: np.ndarray, targets: np.ndarray, weights: np.ndarray | None, need_dx: bool,
                    pass_: Pass, taught: Targets | None = None) -> np.ndarray:
        """Head.losses, as the strategy has it."""
        head, at_a_time = self.network.head, self.strategy.head_tokens
        if not self.strategy.head_pieces:
            return head.losses(x, targets, self.floor, at_a_time, weights, need_dx, pass_, taught)
        by_pieces = PiecewiseLosses(head, x, targets, at_a_time, pass_)
        losses = by_pieces.forward(self.floor)
        if weights is not None and need_dx:
            by_pieces.backward(self.floor, weights)
        return losses


def first_kept(n_layer: int, lowest: int, n_kept: int) -> int:
    """The lowest block that has its activations kept, of n_layer blocks that are trained from the `lowest` on."""
    return n_layer - max(1, min(n_kept, n_layer - lowest))


def layers_with_stores(blocks: Sequence[Block], first_kept: int) -> list[int]:
    """The blocks that have a store of their own for what backward needs: those from first_kept on, upwards; then the
    highest of each shape that is not among them, whose store the others of that shape share."""
    layers = list(range(first_kept, len(blocks)))
    shapes = {blocks[layer].shape for layer in layers}
    for layer in range(first_kept - 1, -1, -1):
        if blocks[layer].shape not in shapes:
            shapes.add(blocks[layer].shape)
            layers.append(layer)
    return layers


class Activations(Buffers):
    """The inputs of the blocks, and what is kept of their forward passes, for a Trainer of T tokens."""

    def __init__(self, network: Network, adapter: Adapter, T: int, strategy: Strategy, new: New = empty) -> None:
        blocks, C = network.blocks, network.hparams.n_embd
        self.n_layer, self.input_every = len(blocks), strategy.input_every
        self.lowest = network.lowest_block(adapter)
        self.kept_inputs = [new(T, C) for _ in range(self.lowest, self.n_layer, self.input_every)]
        self.passing_inputs = [new(T, C) for _ in range(self.input_every - 1)]
        self.below = [new(T, C)] if self.lowest else []
        self.output = new(T, C)                                             # of the last block; then every dx
        self.first_kept = first_kept(self.n_layer, self.lowest, strategy.n_kept)
        self.shares_cheap = not strategy.keeps_cheap
        self.shared = [KeptKeys(T, *widths, new) for widths in network.shared_widths]
        self.per_layer = network.new_per_layer(T, new)
        self.saved: list[BlockSaved] = []
        self.place: tuple[int, ...] = self._make_saved(network, T, new, Ranks(adapter))

    def beside(self, T: int) -> tuple[list[KeptKeys], list[np.ndarray]]:
        """Pass.shared and Pass.per_layer of T tokens."""
        return [keys.first(T) for keys in self.shared], [of_block[:T] for of_block in self.per_layer]

    def _make_saved(self, network: Network, T: int, new: New, ranks: Ranks) -> tuple[int, ...]:
        """Fills `saved`: the top blocks have each their own, all others share that of the lowest of them with their
        shape, or of the first below. Returns the place in it of each block's."""
        own, of_shape = layers_with_stores(network.blocks, self.first_kept), dict[tuple, int]()
        cheap: dict[tuple, Buffers] = {}
        for place, layer in enumerate(own):
            shape = network.blocks[layer].shape
            saved = network.blocks[layer].saved(T, new, ranks)
            if self.shares_cheap:
                for i, branch in enumerate(saved.branches):
                    branch.cheap = cheap.setdefault((shape, i), branch.cheap)
            of_shape.setdefault(shape, place)
            self.saved.append(saved)
        of_layer = {layer: place for place, layer in enumerate(own)}
        return tuple(of_layer.get(layer, of_shape[block.shape]) for layer, block in enumerate(network.blocks))

    @property
    def saved_nbytes(self) -> int:
        """The part of `nbytes` that is kept of the blocks' forward passes."""
        return nbytes_of(self.saved)

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

    def saved_of(self, layer: int) -> BlockSaved:
        return self.saved[self.place[layer]]

    def is_recomputed(self, layer: int) -> bool:
        return layer < self.first_kept

    def has_lost_cheap(self, layer: int) -> bool:
        """Whether a block above has used what this block shares with it."""
        return self.shares_cheap and layer + 1 < self.n_layer


def weight_order(network: Network, activations: Activations, head_pieces: bool = False) -> list[Group]:
    """The groups of matrices in the order in which a Trainer's pass reads them."""
    order = [*network.groups_below, *(group for block in network.blocks for group in block.groups)]
    order += network.head.groups(head_pieces) * 2
    for layer in range(len(network.blocks) - 1, activations.lowest - 1, -1):
        order += [group for below in activations.lost_inputs(layer) for group in network.blocks[below].groups]
        *all_but_last, last = network.blocks[layer].groups
        if activations.is_recomputed(layer):
            order += all_but_last
        order += [last, *reversed(all_but_last)]
    return order


def scratch_floats(network: Network, adapter: Adapter, T: int, strategy: Strategy) -> int:
    """Size of a Trainer's Scratch."""
    head = network.head
    return max(PiecewiseLosses.scratch(head, T, strategy.head_tokens) if strategy.head_pieces
               else head.scratch(min(T, strategy.head_tokens), adapter),
               network.scratch_below(T), *(block.scratch(T, adapter) for block in network.blocks))
