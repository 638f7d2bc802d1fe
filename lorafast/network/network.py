"""The network: embedding, blocks, output. Weights stay in the file's mapping."""
from __future__ import annotations

from collections import Counter

import numpy as np

from ..gguf.reader import GGUFFile
from ..words import count
from .assembly import build_blocks, norm_of, per_layer_embedding, there
from .buffers import New
from .dora import Gain
from .embedding import Embedding
from .head import Head
from .hparams import HParams
from .linear import Group
from .lora import Adapter
from .passes import Pass
from .tensors import final_norm_of


class Network:
    """A model file, ready to run on up to `n_positions` positions a sequence, with products in a `precision`."""

    def __init__(self, gguf: GGUFFile, hparams: HParams, n_positions: int, precision: str = "int16") -> None:
        self.hparams, self.n_positions, self.precision = hparams, n_positions, precision
        self.embedding = Embedding(gguf.tensors["token_embd.weight"], hparams.embedding_scale, precision)
        self.blocks = build_blocks(gguf, hparams, n_positions, precision)
        norm = there(norm_of(gguf, hparams, final_norm_of(gguf, hparams.architecture)))
        matrix = gguf.tensors["token_embd.weight" if hparams.tied else "output.weight"]
        self.head = Head(norm, matrix, gguf.tensors.get("output.bias"), hparams.logit_scale, hparams.logit_soft_cap,
                         precision)

        self.shared_widths = hparams.shared_widths
        """Widths of keys and values that several blocks attend to, in the order of Pass.shared."""
        self.per_layer = per_layer_embedding(gguf, hparams, precision)

    @property
    def key_widths(self) -> tuple[int, int] | None:
        """Columns of the widest keys and values; None where sequences cannot share their beginning."""
        widths = [branch.key_widths for block in self.blocks for branch in block.branches]
        given = [pair for pair in widths if pair is not None]
        return None if len(given) < len(widths) else (max(k for k, _ in given), max(v for _, v in given))

    @property
    def groups(self) -> list[Group]:
        """The matrices, from below the first block to the output."""
        return [*self.groups_below, *(group for block in self.blocks for group in block.groups), self.head.group]

    @property
    def groups_below(self) -> list[Group]:
        """The groups that are used before the first block."""
        return [self.per_layer.group] if self.per_layer else []

    def embed(self, x: np.ndarray, pass_: Pass) -> None:
        """x (T, C) of the pass's tokens, and what pass_.per_layer holds."""
        self.embedding.forward(x, pass_)
        if self.per_layer:
            self.per_layer.forward(pass_.per_layer, x, pass_)

    def new_per_layer(self, T: int, new: New) -> list[np.ndarray]:
        """Memory for what pass_.per_layer holds of T tokens."""
        return self.per_layer.new(T, new) if self.per_layer else []

    def scratch_below(self, T: int) -> int:
        """Floats of Scratch that `embed` uses."""
        return self.per_layer.scratch(T) if self.per_layer else 0

    def arithmetic(self) -> str:
        """What the products are made of: where the precision gains nothing, that is something else."""
        matrices = Counter(name for group in self.groups for name in group.product_kinds)
        return ", ".join(f"{count(n, 'matrix', 'matrices')} in {name}" for name, n in matrices.most_common())

    def refresh(self, adapter: Adapter) -> None:
        """Takes over the adapter's present values; to be called after each change of its parameters."""
        self.embedding.gain.forget()
        for block in self.blocks:
            block.refresh(adapter)
        self.head.refresh(adapter)

    def dora_gains(self) -> dict[str, Gain]:
        """DoRA's gain of every matrix, by the name under which it is adapted."""
        gains = {linear.name: linear.gain for group in self.groups for linear in group.linears}
        return {self.embedding.name: self.embedding.gain, **gains}

    def lowest_block(self, adapter: Adapter) -> int:
        """No gradient is needed below this block; the number of blocks if none is needed in any."""
        if self.embedding.name in adapter:
            return 0
        return next((layer for layer, block in enumerate(self.blocks) if block.is_adapted(adapter)), len(self.blocks))
