"""Which tensors the network of a file has, and whether the file has them, of the right shape and type."""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ..errors import FormatError
from ..gguf.reader import GGUFFile
from ..gguf.types import TRAINABLE_NAMES
from .architectures import Architecture
from .block_params import BlockParams
from .mixture import expert_tensors

ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
EVERYWHERE = ("attn_q", "attn_k", "attn_v", "attn_qkv")
"""Roles that may have a bias in every architecture."""

Shapes = dict[str, tuple[int, ...]]


def final_norm_of(gguf: GGUFFile, arch: Architecture) -> str:
    """The name of the norm before the output, without `.weight`."""
    usual = "output_norm"
    return usual if f"{usual}.weight" in gguf.tensors else arch.final_norm


def expected_tensors(gguf: GGUFFile, arch: Architecture, C: int, V: int, blocks: Sequence[BlockParams],
                     n_per_layer: int = 0) -> Shapes:
    """Shape of every tensor of the network, by name: those that it needs, and those that it may have and the file
    has. n_per_layer: values of the embedding that each block has of its own."""
    final_norm = final_norm_of(gguf, arch)
    shapes: Shapes = {"token_embd.weight": (V, C), f"{final_norm}.weight": (C,)}
    if arch.norm == "layer" and f"{final_norm}.bias" in gguf.tensors:
        shapes[f"{final_norm}.bias"] = (C,)
    if "output.weight" in gguf.tensors:
        shapes["output.weight"] = (V, C)
        if "output.bias" in gguf.tensors:
            shapes["output.bias"] = (V,)
    if n_per_layer:
        width = len(blocks) * n_per_layer
        shapes |= {"per_layer_token_embd.weight": (V, width), "per_layer_model_proj.weight": (width, C),
                   "per_layer_proj_norm.weight": (n_per_layer,)}
    for layer, block in enumerate(blocks):
        sizes = {"1": 1, "C": C, "3C": 3 * C, "n": n_per_layer, **block.sizes}
        present = {name.removeprefix(f"blk.{layer}.") for name in gguf.tensors if name.startswith(f"blk.{layer}.")}
        for name, symbols in _block_tensors(arch, block, present, n_per_layer > 0):
            shapes[f"blk.{layer}.{name}"] = tuple(sizes[symbol] for symbol in symbols)
    for name in ROPE_FACTORS:
        n_rot = {block.rope.n_rot for block in blocks if block.rope}
        if name in gguf.tensors and n_rot:
            shapes[name] = (max(n_rot) // 2,)
    return shapes


def _block_tensors(arch: Architecture, block: BlockParams, present: set[str],
                   per_layer: bool) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and shape, in symbols, of a block's tensors. present: names that the file has of this block."""
    matrices = _mixing_matrices(arch, block, present)
    if per_layer:
        matrices |= {"inp_gate": ("n", "C"), "proj": ("C", "n")}
        yield "post_norm.weight", ("C",)
    if arch.per_layer and "layer_output_scale.weight" in present:
        yield "layer_output_scale.weight", ("1",)
    if block.experts and arch.mixture:
        yield from expert_tensors(arch.mixture, block.experts, present)
    else:
        matrices |= _feed_forward_matrices(arch, present)
    for name, shape in matrices.items():
        yield f"{name}.weight", shape
        may_have_bias = name in EVERYWHERE or name in arch.biases
        if name in arch.needed_biases or (may_have_bias and f"{name}.bias" in present):
            yield f"{name}.bias", shape[:1]
    norms = [arch.attn_norm, arch.attn_post_norm, arch.ffn_norm, arch.ffn_post_norm]
    for name in filter(None, norms):
        if name == arch.ffn_norm and arch.parallel == "without ffn_norm" and f"{name}.weight" not in present:
            continue
        yield f"{name}.weight", ("C",)
        if arch.norm == "layer" and f"{name}.bias" in present:
            yield f"{name}.bias", ("C",)
    if arch.sinks:
        yield "attn_sinks.weight", ("H",)
    if block.delta:
        yield from {"ssm_conv1d.weight": ("DeltaQKV", "L"), "ssm_dt.bias": ("n_v",), "ssm_a": ("n_v",),
                    "ssm_norm.weight": ("DeltaDV",)}.items()
    elif block.conv_width:
        yield "shortconv.conv.weight", ("C", "L")
    yield from _inner_norms(arch, block, present)


def _mixing_matrices(arch: Architecture, block: BlockParams, present: set[str]) -> dict[str, tuple[str, ...]]:
    """The tensors of attention, or of what stands in its place."""
    if block.delta:
        return {"attn_qkv": ("DeltaQKV", "C"), "attn_gate": ("DeltaV", "C"), "ssm_beta": ("n_v", "C"),
                "ssm_alpha": ("n_v", "C"), "ssm_out": ("C", "DeltaV")}
    if block.conv_width:
        return {"shortconv.in_proj": ("3C", "C"), "shortconv.out_proj": ("C", "C")}
    if "attn_qkv.weight" in present:
        return {"attn_output": ("C", "H*DV"), "attn_qkv": ("QKV", "C")}
    matrices: dict[str, tuple[str, ...]] = {
        "attn_output": ("C", "H*DV"), "attn_q": ("2H*D" if arch.gated_attention else "H*D", "C")}
    if block.keys_from is None or "attn_k.weight" in present:           # a file may have matrices that serve nothing
        matrices["attn_k"] = ("HKV*D", "C")
    if not arch.value_norms or "attn_v.weight" in present:
        matrices["attn_v"] = ("HKV*DV", "C")
    return matrices


def _feed_forward_matrices(arch: Architecture, present: set[str]) -> dict[str, tuple[str, ...]]:
    if arch.gated and not (arch.fused_gate_up and "ffn_gate.weight" not in present):
        return {"ffn_down": ("C", "F"), "ffn_gate": ("F", "C"), "ffn_up": ("F", "C")}
    return {"ffn_down": ("C", "F"), "ffn_up": ("2F" if arch.gated else "F", "C")}


def _inner_norms(arch: Architecture, block: BlockParams, present: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Norms inside of the branches."""
    shapes = {"head": (("D",), ("D",)), "row": (("H*D",), ("HKV*D",)), "heads": (("H", "D"), ("HKV", "D"))}
    if arch.qk_norm and not block.conv_width and (arch.qk_norm != "heads" or "attn_q_norm.weight" in present):
        of_q, of_k = shapes[arch.qk_norm]
        yield "attn_q_norm.weight", of_q
        if block.keys_from is None or "attn_k_norm.weight" in present:
            yield "attn_k_norm.weight", of_k
    if arch.sub_norms:
        yield "attn_sub_norm.weight", ("C",)
        yield "ffn_sub_norm.weight", ("F",)


def check_tensors(gguf: GGUFFile, arch: Architecture, shapes: Mapping[str, tuple[int, ...]], n_layer: int,
                  n_ahead: int) -> None:
    """FormatError for a tensor that is missing, of another shape, of a type that cannot be trained on, or not known.

    n_ahead: blocks behind the network's own, which predict tokens further ahead
    """
    for name, shape in shapes.items():
        tensor = gguf.tensors.get(name)
        if tensor is None:
            raise FormatError(f"{gguf.path}: tensor '{name}' is missing; is this a whole model?")
        if tensor.shape != shape:
            raise FormatError(f"{gguf.path}: tensor '{name}' has shape {tensor.shape}, wanted {shape}")
        if not tensor.type.is_trainable:
            raise FormatError(f"{gguf.path}: tensor '{name}' has type {tensor.type.label}, which lorafast cannot "
                              f"train on; use a file in {TRAINABLE_NAMES}")
    predicting = {_block_of(name) for name in gguf.tensors if ".nextn." in name} | {*range(n_layer, n_layer + n_ahead)}
    for name in gguf.tensors:
        if name in shapes or name in ROPE_FACTORS:
            continue
        layer = _block_of(name)
        if layer >= n_layer and layer not in predicting:
            raise FormatError(f"{gguf.path}: key '{arch.name}.block_count' counts {n_layer + n_ahead} blocks, but the "
                              f"file has tensors of more, such as '{name}'; correct the key or convert the model again")
        if layer < n_layer:
            is_expert = re.search(r"_exps?\b|gate_inp", name)
            detail = " (a bias)" if name.endswith(".bias") else " (experts)" if is_expert else ""
            raise FormatError(f"{gguf.path}: tensor '{name}'{detail} does not belong to architecture '{arch.name}' as "
                              "lorafast knows it; such a model is not supported")


def _block_of(name: str) -> int:
    """The number of a tensor's block; -1 outside of blocks."""
    match = re.match(r"blk\.([0-9]{1,9})\.", name)
    return int(match[1]) if match else -1
