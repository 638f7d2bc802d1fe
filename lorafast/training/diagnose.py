"""Where values that are not finite came from: the pass is repeated with a look at what each branch of each block makes.

A weight that is not finite means a damaged model; a value that overflows where all weights are finite, a rate that is
too high.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

Views = Mapping[str, Sequence[np.ndarray]]
"""Gradients of A and B by tensor."""


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
    views = adapter.views(gradients.flat)
    with _watching(network, tensors, views, found), suppress(ArithmeticError):
        repeat()
    if found:
        return found[0]
    broken = _broken(views, views)
    if broken:
        return f"the gradient of {broken} overflowed in the backward pass; all of the forward pass was finite"
    return "all blocks were finite: it appeared in the output or the loss"


@contextmanager
def _watching(network: Network, tensors: dict[str, Tensor], views: Views, found: list[str]) -> Iterator[None]:
    """Enters into `found` the first branch whose output is not finite, or what its backward pass makes."""
    branches = [(layer, branch) for layer, block in enumerate(network.blocks) for branch in block.branches]
    for layer, branch in branches:
        branch.forward = _watched(branch, layer, tensors, found)                # type: ignore[method-assign]
        branch.backward = _watched_backward(branch, layer, views, found)        # type: ignore[method-assign]
    try:
        yield
    finally:
        for _, branch in branches:
            del branch.forward, branch.backward


def _watched_backward(branch: Branch, layer: int, views: Views, found: list[str]) -> Callable[..., None]:
    backward = branch.backward
    where = f"block {layer}, {type(branch).__name__}"

    def watched(dx: np.ndarray, d_out: np.ndarray, *arguments: Any) -> None:
        if not found and not np.isfinite(d_out).all():
            found.append(f"first in the backward pass above {where}: the gradient of the output or the loss overflowed")
        backward(dx, d_out, *arguments)
        needs_dx = arguments[-1]
        if found:
            return
        if broken := _broken(views, _tensor_names(branch)):
            found.append(f"first in the backward pass of {where}: the gradient of {broken} overflowed")
        elif needs_dx and not np.isfinite(dx).all():
            found.append(f"first in the backward pass of {where}: the gradient of its input overflowed")

    return watched


def _broken(views: Views, names: Iterable[str]) -> str:
    """The first of these tensors whose gradients are not finite; empty if all are."""
    return next((name for name in names if not all(np.isfinite(part).all() for part in views.get(name, ()))), "")


def _tensor_names(branch: Branch) -> list[str]:
    return [linear.name for group in branch.groups for linear in group.linears]


def _watched(branch: Branch, layer: int, tensors: dict[str, Tensor], found: list[str]) -> Callable[..., None]:
    forward = branch.forward

    def watched(out: np.ndarray | None, *arguments: Any) -> None:
        forward(out, *arguments)
        if out is not None and not found and not np.isfinite(out).all():
            found.append(_described(branch, layer, tensors))

    return watched


def _described(branch: Branch, layer: int, tensors: dict[str, Tensor]) -> str:
    where = f"first in block {layer}, {type(branch).__name__}"
    for name in (*_tensor_names(branch), f"blk.{layer}.attn_norm.weight", f"blk.{layer}.ffn_norm.weight"):
        if name in tensors and not _is_finite(tensors[name]):
            return f"{where}: {name} of the model holds values that are not finite: the file is damaged, fetch it again"
    return f"{where}, whose weights are finite: its values overflowed"


def _is_finite(tensor: Tensor) -> bool:
    step = max(1, CHUNK // tensor.shape[-1])
    return all(np.isfinite(dequantize(tensor.data[begin:begin + step], tensor.type)).all()
               for begin in range(0, len(tensor.data), step))
