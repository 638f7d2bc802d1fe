"""Where values that are not finite came from: the pass is repeated with a look at what each branch of each block makes.

A weight that is not finite means a damaged model; a value that overflows where all weights are finite, a rate that is
too high.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from ..gguf.quants import dequantize
from ..gguf.reader import Tensor
from ..network.branch import Branch
from ..network.lora import Adapter, Gradients
from ..network.network import Network

CHUNK = 2**20
"""Values of a matrix that are looked at a time."""


def first_fault(network: Network, tensors: dict[str, Tensor], adapter: Adapter, gradients: Gradients,
                repeat: Callable[[], object]) -> str:
    """What first was not finite, in words.

    tensors    of the model, by name
    gradients  that `repeat` fills, which does the pass again
    """
    for name, pair in adapter.pairs.items():
        if not all(np.isfinite(part).all() for part in pair):
            return f"the adapter's pair of {name} was not finite before the pass"
    if not _is_finite(tensors["token_embd.weight"]):
        return "token_embd.weight of the model holds values that are not finite: the file is damaged, fetch it again"
    found: list[str] = []
    with _watching(network, tensors, found), suppress(ArithmeticError):
        repeat()
    if found:
        return found[0]
    for name, parts in adapter.views(gradients.flat).items():
        if not all(np.isfinite(part).all() for part in parts):
            return f"the gradient of {name} overflowed in the backward pass; all of the forward pass was finite"
    return "all blocks were finite: it appeared in the output or the loss"


@contextmanager
def _watching(network: Network, tensors: dict[str, Tensor], found: list[str]) -> Iterator[None]:
    """Enters into `found` the first branch whose output is not finite."""
    branches = [(layer, branch) for layer, block in enumerate(network.blocks) for branch in block.branches]
    for layer, branch in branches:
        branch.forward = _watched(branch, layer, tensors, found)        # type: ignore[method-assign]
    try:
        yield
    finally:
        for _, branch in branches:
            del branch.forward


def _watched(branch: Branch, layer: int, tensors: dict[str, Tensor], found: list[str]) -> Callable[..., None]:
    forward = branch.forward

    def watched(out: np.ndarray | None, *arguments: Any) -> None:
        forward(out, *arguments)
        if out is not None and not found and not np.isfinite(out).all():
            found.append(_described(branch, layer, tensors))

    return watched


def _described(branch: Branch, layer: int, tensors: dict[str, Tensor]) -> str:
    where = f"first in block {layer}, {type(branch).__name__}"
    names = [name for group in branch.groups for name in (linear.name for linear in group.linears)]
    for name in (*names, f"blk.{layer}.attn_norm.weight", f"blk.{layer}.ffn_norm.weight"):
        if name in tensors and not _is_finite(tensors[name]):
            return f"{where}: {name} of the model holds values that are not finite: the file is damaged, fetch it again"
    return f"{where}, whose weights are finite: its values overflowed"


def _is_finite(tensor: Tensor) -> bool:
    step = max(1, CHUNK // tensor.shape[-1])
    return all(np.isfinite(dequantize(tensor.data[begin:begin + step], tensor.type)).all()
               for begin in range(0, len(tensor.data), step))
