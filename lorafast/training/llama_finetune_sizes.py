"""Sizes in bytes that follow from the shapes alone, by the formulas of llama-finetune (of July 2024).

`lora_size`, `opt_size`, `input_size` and `work_size` are what its log prints under these names. They describe its ggml
contexts, not lorafast's memory; they are printed so that logs can be compared.
"""
from __future__ import annotations

from collections.abc import Sequence

from ..network.lora import PairSpec

TENSOR = 368
"""A ggml tensor's bookkeeping on a 64-bit machine: struct 336, object header 32."""

ALIGNMENT = 32


def pad(n: int, alignment: int = ALIGNMENT) -> int:
    """`n` rounded up to a multiple of `alignment`."""
    return -(-n // alignment) * alignment


def data_size(specs: Sequence[PairSpec]) -> int:
    """Every A, B and magnitude in float32, each padded."""
    return sum(pad(4 * n) for spec in specs for n in (spec.rank * spec.n_in, spec.rank * spec.n_out, spec.n_magnitudes))


def n_tensors(specs: Sequence[PairSpec]) -> int:
    """A, B and with DoRA a magnitude of each."""
    return sum(3 if spec.n_magnitudes else 2 for spec in specs)


def lora_size(specs: Sequence[PairSpec]) -> int:
    """The adapter's context: parameters and their gradients, tensors and data, and the slack to align the buffer."""
    return 2 * (n_tensors(specs) * TENSOR + data_size(specs)) + ALIGNMENT


def opt_size(n_params: int, past: int) -> int:
    """The optimiser's context: g, m and v as one float32 vector each, and the last `past` losses (--opt-past)."""
    objects = 3 * 16 + 3 * TENSOR + 3 * 4 * n_params
    if past > 0:
        objects += 16 + TENSOR + 4 * past
    return pad(objects, 16)


def input_size(ctx: int, batch: int, n_vocab: int) -> int:
    """Token ids, and targets one-hot in float32, of one pass."""
    return pad(4 * ctx * batch) + pad(4 * n_vocab * ctx * batch) + ALIGNMENT


def work_size(n_threads: int, n_vocab: int) -> int:
    """Scratch memory of the operation that needs most, the cross entropy: a row of logits and a sum for each thread."""
    return 4 * n_threads * (n_vocab + 1) + 64 * (n_threads - 1) + ALIGNMENT


def checkpoint_bound(specs: Sequence[PairSpec]) -> int:
    """No checkpoint is larger: weights, two moments, 128 bytes for each tensor's name, shape and padding, metadata."""
    return 3 * 4 * _n_params(specs) + 128 * n_tensors(specs) + 65536


def adapter_bound(specs: Sequence[PairSpec]) -> int:
    """No adapter of any form is larger: weights, 256 bytes for each tensor's name, shape and padding, metadata."""
    return 4 * _n_params(specs) + 256 * n_tensors(specs) + 65536


def _n_params(specs: Sequence[PairSpec]) -> int:
    return sum(spec.n_params for spec in specs)
