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
