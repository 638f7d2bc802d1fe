"""The element order of Adam's moments in a checkpoint of llama-finetune.

m and v are stored as one flat vector each, in the order in which llama-finetune's graph happened to visit the
parameters: from the loss back, of the two operands of each operation either the left or the right first, whichever
needed less memory. The file does not say which. So the order is recognised from the data.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from ..gguf.roles import file_order, split_name
from ..network.lora import Pair

RIGHT_TO_LEFT = "RIGHT_TO_LEFT"
LEFT_TO_RIGHT = "LEFT_TO_RIGHT"
ORDERS = (RIGHT_TO_LEFT, LEFT_TO_RIGHT)
"""The names that llama-finetune prints as "evaluation order". A fresh run writes the first: it is what llama-finetune
itself chooses for models of practical size with gradient checkpointing, its default, and so expects on resuming."""


def parameter_order(names: Iterable[str], order: str) -> list[tuple[str, str]]:
    """The sequence of (base tensor, "A" or "B") in the flat vector, for those of `names` that occur in it."""
    present = set(names)
    upwards = sorted({split_name(name)[0] for name in present} - {-1})
    downwards = upwards[::-1]

    def block(layers: list[int], *roles: str) -> list[str]:
        return [f"blk.{layer}.{role}.weight" for layer in layers for role in roles]

    if order == RIGHT_TO_LEFT:
        parts = "BA"
        sequence = ["token_embd.weight",
                    *block(upwards, "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output",
                           "ffn_norm", "ffn_up", "ffn_gate", "ffn_down"),
                    "output_norm.weight", "output.weight"]
    else:
        parts = "AB"
        sequence = ["output.weight", "output_norm.weight",
                    *block(downwards, "ffn_down", "ffn_gate", "ffn_norm", "attn_output", "attn_norm"),
                    "token_embd.weight",
                    *block(upwards, "attn_v", "attn_k", "attn_q", "ffn_up")]
    # llama-finetune knew no other tensors: those come last
    sequence += sorted(present - set(sequence), key=file_order)
    return [(name, part) for name in sequence if name in present for part in parts]


def chunks(moments: Mapping[str, Pair], order: str) -> Iterator[np.ndarray]:
    """The flat vector in pieces, each (n, r): within a piece the rank is the fastest axis.

    moments  for each base tensor those of A (r, K) and of B (r, N)
    """
    for name, part in parameter_order(moments, order):
        yield moments[name]["AB".index(part)].T


def pieces(stored: np.ndarray, pairs: Mapping[str, Pair], order: str) -> Iterator[tuple[str, str, np.ndarray]]:
    """The inverse of `chunks`: (base tensor, "A" or "B", its moments as (r, K) or (r, N)), views of `stored`.

    stored  (n_params,), the flat vector
    pairs   A and B, for their shapes
    """
    at = 0
    for name, part in parameter_order(pairs, order):
        r, n = pairs[name]["AB".index(part)].shape
        yield name, part, stored[at:at + r * n].reshape(n, r).T
        at += r * n


def agreement(pairs: Mapping[str, Pair], m: np.ndarray, v: np.ndarray, order: str) -> float:
    """Share of the parameters that agree with their moments if these are read in `order`, 0 to 1.

    B starts at zero and moves against m. So an element of B is still exactly zero where it never had a gradient, v = 0
    (columns of token_embd's B whose token never occurred), and elsewhere its sign is mostly that of -m. Before the
    first step with a learning rate every B is zero, hence dA = 0, and it is A's moments that must be zero.
    """
    b_has_moved = any(b.any() for _, b in pairs.values())
    agreeing = total = 0
    for (name, part, m_part), (_, _, v_part) in zip(pieces(m, pairs, order), pieces(v, pairs, order)):
        if b_has_moved and part == "B":
            b = pairs[name][1]
            agrees = ((b == 0) == (v_part == 0)) & (b * m_part <= 0)
        elif not b_has_moved and part == "A":
            agrees = v_part == 0
        else:
            continue
        agreeing += int(agrees.sum())
        total += agrees.size
    return agreeing / total


def recognise(pairs: Mapping[str, Pair], m: np.ndarray, v: np.ndarray) -> tuple[str, str]:
    """The order of m and v (n_params,), and in words how clear it is. Where all moments are zero it does not matter."""
    shares = {order: agreement(pairs, m, v, order) for order in ORDERS}
    best, other = sorted(ORDERS, key=lambda order: -shares[order])
    return best, (f"recognised: read so, {shares[best]:.0%} of the moments agree with the parameters, "
                  f"in the other order {shares[other]:.0%}")
