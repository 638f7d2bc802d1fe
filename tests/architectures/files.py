"""What a row says of its file beyond the names of tensors: further keys, tensors that are no weights, fused ones.

Each function takes transformers' configuration. Source: llama.cpp, conversion/*.py.
"""
from __future__ import annotations

import math
from typing import Any

import numpy as np
from architectures.small_models import Tensors

# ------------------------------------------------------------------------------------ keys beside those that all have

def head_size(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def rotated(config: Any) -> dict[str, Any]:
    part = (config.rope_parameters or {}).get("partial_rotary_factor", 1.0)
    return {"rope.dimension_count": int(part * head_size(config))}


def window(config: Any) -> dict[str, Any]:
    return {"attention.sliding_window": config.sliding_window}


def window_pattern(config: Any) -> dict[str, Any]:
    return {"attention.sliding_window": config.sliding_window,
            "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types]}


def gemma2(config: Any) -> dict[str, Any]:
    return {**window(config), "attn_logit_softcapping": config.attn_logit_softcapping,
            "final_logit_softcapping": config.final_logit_softcapping}


def granite(config: Any) -> dict[str, Any]:
    return {**minicpm(config), **rotated(config), "attention.scale": config.attention_multiplier}


def minicpm(config: Any) -> dict[str, Any]:
    return {"embedding_scale": config.embedding_multiplier, "residual_scale": config.residual_multiplier,
            "logit_scale": config.logits_scaling}


def mistral3(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    return {**rotated(config), "rope.scaling.yarn_log_multiplier": rope["mscale_all_dim"],
            "rope.scaling.yarn_beta_fast": rope["beta_fast"], "rope.scaling.yarn_beta_slow": rope["beta_slow"],
            "attention.temperature_scale": rope["llama_4_scaling_beta"]}


def hunyuan(config: Any) -> dict[str, Any]:
    rope, size = config.rope_parameters, head_size(config)
    return {"rope.freq_base": rope["rope_theta"] * rope["alpha"] ** (size / (size - 2)), "rope.scaling.type": "none",
            "rope.scaling.factor": 1.0}


def phi3(config: Any) -> dict[str, Any]:
    n0 = config.original_max_position_embeddings
    stretch = config.max_position_embeddings / n0
    attn_factor = math.sqrt(1 + math.log(stretch) / math.log(n0)) if stretch > 1 else 1.0
    factor = {"rope.scaling.attn_factor": attn_factor} if "long_factor" in config.rope_parameters else {}
    return {**rotated(config), "rope.scaling.original_context_length": n0, **factor,
            "attention.sliding_window": config.sliding_window or 0}


def longrope(config: Any) -> dict[str, Any]:
    rope = config.rope_parameters
    n0 = rope["original_max_position_embeddings"]
    return {**rotated(config), "rope.scaling.type": "longrope", "rope.scaling.original_context_length": n0,
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(rope["factor"]) / math.log(n0))}


def cohere2(config: Any) -> dict[str, Any]:
    return {**window(config), **rotated(config), "logit_scale": config.logit_scale, "rope.scaling.type": "none"}


def starcoder2(config: Any) -> dict[str, Any]:
    return {"attention.layer_norm_epsilon": config.norm_epsilon}


def stablelm(config: Any) -> dict[str, Any]:
    return {**rotated(config), "use_parallel_residual": config.use_parallel_residual}


def sections(config: Any) -> dict[str, Any]:
    return {"rope.dimension_sections": [*config.rope_parameters["mrope_section"], 0]}


# ----------------------------------------------------------------------------------------- tensors beside the weights

def long_and_short(config: Any) -> Tensors:
    rope = config.rope_parameters
    return {f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"]) for kind in ("long", "short")
            if f"{kind}_factor" in rope}


def llama3_factors(config: Any) -> Tensors:
    """What transformers divides the frequencies by: 1 below a wavelength, `factor` above another, smooth in between."""
    rope, size = config.rope_parameters, head_size(config)
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, size, 2) / size)
    low, high, n0 = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    smooth = np.clip((n0 / wavelengths - low) / (high - low), 0, 1)
    return {"rope_freqs.weight": 1 / ((1 - smooth) / rope["factor"] + smooth)}


def fused_qkv(config: Any, tensors: Tensors) -> Tensors:
    """One attn_qkv for attn_q, attn_k and attn_v, as the converter's --fuse-qkv writes it."""
    fused: Tensors = {}
    for name, values in tensors.items():
        if ".attn_q." in name:
            parts = [values, *(tensors[name.replace("attn_q", part)] for part in ("attn_k", "attn_v"))]
            fused[name.replace("attn_q", "attn_qkv")] = np.concatenate(parts)
        elif ".attn_k." not in name and ".attn_v." not in name:
            fused[name] = values
    return fused


def stacked_head_norms(config: Any, tensors: Tensors) -> Tensors:
    """StableLM 2 12B: a norm for each head, (H, D)."""
    stacked = {name: values for name, values in tensors.items() if "_norm.0." not in name and ".head_norm" not in name}
    for layer in range(config.num_hidden_layers):
        for name, n_head in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            stacked[f"blk.{layer}.attn_{name}_norm.weight"] = np.stack(
                [tensors[f"blk.{layer}.head_norm_{name}{head}.weight"] for head in range(n_head)])
    return stacked


# ------------------------------------------------------------------------------------------------- experts and hybrids

def experts(config: Any) -> dict[str, Any]:
    n_experts = getattr(config, "num_experts", None) or config.num_local_experts
    return {"expert_count": n_experts, "expert_used_count": config.num_experts_per_tok}


def qwen_moe(config: Any) -> dict[str, Any]:
    shared = getattr(config, "shared_expert_intermediate_size", None)
    return {**experts(config), "expert_feed_forward_length": config.moe_intermediate_size,
            **({"expert_shared_feed_forward_length": shared} if shared else {})}


def mixtral(config: Any) -> dict[str, Any]:
    return {**experts(config), **rotated(config)}


def granite_moe(config: Any) -> dict[str, Any]:
    return {**granite(config), **experts(config), "expert_shared_feed_forward_length": config.shared_intermediate_size}


def ernie_moe(config: Any) -> dict[str, Any]:
    return {"expert_count": config.moe_num_experts, "expert_used_count": config.moe_k,
            "interleave_moe_layer_step": config.moe_layer_interval,
            "leading_dense_block_count": config.moe_layer_start_index,
            "expert_feed_forward_length": config.moe_intermediate_size,
            "expert_shared_count": config.moe_num_shared_experts,
            "expert_shared_feed_forward_length": config.moe_num_shared_experts * config.moe_intermediate_size}


def gpt_oss(config: Any) -> dict[str, Any]:
    return {**window(config), **experts(config), "expert_feed_forward_length": config.intermediate_size}


def lfm2(config: Any) -> dict[str, Any]:
    return {"attention.head_count_kv": [config.num_key_value_heads * (kind != "conv") for kind in config.layer_types],
            "attention.layer_norm_rms_epsilon": config.norm_eps, "shortconv.l_cache": config.conv_L_cache}


def lfm2moe(config: Any) -> dict[str, Any]:
    return {**lfm2(config), **experts(config), "expert_feed_forward_length": config.moe_intermediate_size,
            "leading_dense_block_count": config.num_dense_layers, "expert_gating_func": 2}


def qwen35(config: Any) -> dict[str, Any]:
    sections = [*config.rope_parameters["mrope_section"], 0]
    return {**rotated(config), "rope.dimension_sections": sections, "ssm.conv_kernel": config.linear_conv_kernel_dim,
            "ssm.state_size": config.linear_key_head_dim, "ssm.group_count": config.linear_num_key_heads,
            "ssm.time_step_rank": config.linear_num_value_heads,
            "ssm.inner_size": config.linear_value_head_dim * config.linear_num_value_heads,
            "attention.recurrent_layers": [kind == "linear_attention" for kind in config.layer_types],
            "full_attention_interval": 4}


def qwen35moe(config: Any) -> dict[str, Any]:
    return {**qwen35(config), **qwen_moe(config), "feed_forward_length": config.moe_intermediate_size}


def split_gate_and_up(config: Any, tensors: Tensors) -> Tensors:
    """Gate rows and up rows of experts, which transformers holds in one parameter, gate first."""
    split: Tensors = {}
    for name, values in tensors.items():
        if "gate_up" in name:
            gate, up = np.split(values, 2, axis=-2)
            split |= {name.replace("gate_up", "gate"): gate, name.replace("gate_up", "up"): up}
        elif "ffn_gate_inp_shexp" in name:
            split[name] = values[0]
        elif "exp_probs_b" in name:
            split[name] = values.reshape(-1)
        else:
            split[name] = values
    return split


def gpt_oss_experts(config: Any, tensors: Tensors) -> Tensors:
    """Gate in even and up in odd columns of (E, C, 2F); down is (E, F, C)."""
    split: Tensors = {}
    for name, values in tensors.items():
        if "_exps.weight" in name:
            values = values.swapaxes(-1, -2)
        if "gate_up" in name:
            gate, up = (values[:, at::2] for at in (0, 1))
            split |= {name.replace("gate_up", "gate"): gate, name.replace("gate_up", "up"): up}
        else:
            split[name] = values
    return split


def short_convolution(config: Any, tensors: Tensors) -> Tensors:
    """The convolution's (C, 1, width) as (C, width)."""
    return {name: values.squeeze(1) if "shortconv.conv" in name else values
            for name, values in split_gate_and_up(config, tensors).items()}


def gated_delta_net(config: Any, tensors: Tensors) -> Tensors:
    """Value heads in tiled order, (m, n_k) in place of (n_k, m), and the decay's A as it is used."""
    n_k, size = config.linear_num_key_heads, config.linear_value_head_dim
    of_qk = 2 * n_k * config.linear_key_head_dim

    def tiled(rows: np.ndarray, size: int) -> np.ndarray:
        return rows.reshape(n_k, -1, size, *rows.shape[1:]).swapaxes(0, 1).reshape(rows.shape)

    result: Tensors = {}
    for name, values in split_gate_and_up(config, tensors).items():
        role = name.split(".", 2)[-1]
        if role in ("attn_qkv.weight", "ssm_conv1d.weight"):
            values = values.squeeze(1) if values.ndim == 3 else values
            values = np.concatenate([values[:of_qk], tiled(values[of_qk:], size)])
        elif role == "attn_gate.weight":
            values = tiled(values, size)
        elif role == "ssm_out.weight":
            values = tiled(values.T, size).T
        elif role in ("ssm_alpha.weight", "ssm_beta.weight", "ssm_dt.bias", "ssm_a.weight"):
            values = tiled(values, 1)
        if role == "ssm_a.weight":
            name, values = name.removesuffix(".weight"), -np.exp(values)
        result[name] = values
    return result


def gemma4(config: Any) -> dict[str, Any]:
    size, global_size = config.head_dim, global_head_size(config)
    own = config.num_hidden_layers - config.num_kv_shared_layers
    doubled = 2 if config.use_double_wide_mlp else 1
    n_head_kv = [config.per_layer_config[layer].num_key_value_heads for layer in range(config.num_hidden_layers)]
    return {**window_pattern(config), "attention.shared_kv_layers": config.num_kv_shared_layers,
            "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
            "attention.key_length": global_size, "attention.value_length": global_size,
            "attention.key_length_swa": size, "attention.value_length_swa": size,
            "rope.dimension_count": global_size, "rope.dimension_count_swa": size,
            "feed_forward_length": [config.intermediate_size * (1 if layer < own else doubled)
                                    for layer in range(config.num_hidden_layers)],
            "attention.head_count_kv": n_head_kv, "final_logit_softcapping": config.final_logit_softcapping}


def global_head_size(config: Any) -> int:
    return config.per_layer_config[config.num_hidden_layers - 1].head_dim


def proportional(config: Any) -> Tensors:
    """Divisors of global layers' frequencies: 1 for the first part of the pairs, 1e30 (no rotation) for the rest."""
    n = global_head_size(config) // 2
    n_turned = int(n * config.rope_parameters["full_attention"]["partial_rotary_factor"])
    return {"rope_freqs.weight": np.array([1.0] * n_turned + [1e30] * (n - n_turned))}
