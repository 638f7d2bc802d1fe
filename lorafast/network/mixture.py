"""What a model file says about its experts: sizes, routing, and the tensors that follow."""
from __future__ import annotations

from collections.abc import Iterator

from .architectures import Architecture, Mixture
from .block_params import ExpertParams, Gating, GatingFunction
from .keys import Keys

GATING_FUNCTIONS: dict[int, GatingFunction] = {1: "softmax", 2: "sigmoid", 3: "softmax of chosen"}
"""Gating functions by the number that the key `expert_gating_func` holds."""


def read_experts(keys: Keys, arch: Architecture, n_layer: int) -> list[ExpertParams | None]:
    """The experts of each block; None for one without experts."""
    if arch.mixture is None or not keys.count("expert_count", 0):
        return [None] * n_layer
    first, step = keys.count("leading_dense_block_count", 0), keys.count("interleave_moe_layer_step", 1)
    params = _params(keys, arch.mixture, n_layer)
    return [params if layer >= first and (layer + 1) % step == 0 else None for layer in range(n_layer)]


def _params(keys: Keys, mixture: Mixture, n_layer: int) -> ExpertParams:
    E, n_used = keys.count("expert_count"), keys.count("expert_used_count")
    if n_used > E:
        raise keys.error("expert_used_count", f"is {n_used}, of {E} experts")
    if keys.count("expert_group_count", 1) > 1:
        raise keys.error("expert_group_count", "is above 1: lorafast does not choose groups of experts")
    default = {"same": 0, "own": None, "divided": 0}[mixture.n_ff]
    n_ff = 0 if mixture.n_ff == "same" else keys.count("expert_feed_forward_length", default)
    if not n_ff:
        whole = keys.counts("feed_forward_length", n_layer)[0]
        n_ff = whole if mixture.n_ff == "same" else whole // n_used
    n_ff_shared = 0
    if mixture.shared != "never":
        n_ff_shared = keys.count("expert_shared_feed_forward_length", 0)
    if mixture.shared == "gated" and not n_ff_shared:
        n_ff_shared = keys.counts("feed_forward_length", n_layer)[0]
    return ExpertParams(E, n_used, n_ff, n_ff_shared, _gating(keys, mixture))


def _gating(keys: Keys, mixture: Mixture) -> Gating:
    if mixture.gating != "key":
        return Gating(mixture.gating, mixture.normed)
    number = keys.count("expert_gating_func")
    if number not in GATING_FUNCTIONS:
        raise keys.error("expert_gating_func", f"is {number}, wanted one of {', '.join(map(str, GATING_FUNCTIONS))}")
    return Gating(GATING_FUNCTIONS[number], mixture.normed)


def expert_tensors(mixture: Mixture, experts: ExpertParams, present: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Name and shape, in symbols, of the tensors that a block has in the place of a feed-forward network's."""
    matrices = {"ffn_gate_inp": ("E", "C"), "ffn_down_exps": ("E", "C", "Fe")}
    if "ffn_gate_up_exps.weight" in present:
        matrices["ffn_gate_up_exps"] = ("E", "2Fe", "C")
    else:
        matrices |= {"ffn_gate_exps": ("E", "Fe", "C"), "ffn_up_exps": ("E", "Fe", "C")}
    for name, shape in matrices.items():
        yield f"{name}.weight", shape
        if mixture.biases:
            yield f"{name}.bias", shape[:-1]
    if mixture.choice_bias == "must" or (mixture.choice_bias and "exp_probs_b.bias" in present):
        yield "exp_probs_b.bias", ("E",)
    if experts.n_ff_shared:
        yield from ((f"ffn_{name}_shexp.weight", shape)
                    for name, shape in (("gate", ("Fs", "C")), ("up", ("Fs", "C")), ("down", ("C", "Fs"))))
    if mixture.shared == "gated":
        yield "ffn_gate_inp_shexp.weight", ("C",)
