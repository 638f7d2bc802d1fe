"""Small random models whose blocks are not all alike: by architecture, keys and the shapes of a block's tensors."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from make_models import spm_vocabulary

from lorafast.gguf.types import GGMLType, GGUFValueType
from lorafast.gguf.writer import TensorToWrite, write_gguf

Shape = tuple[int, ...]
C, F, V = 32, 48, 270
HEADS, HEADS_KV, HEAD = 4, 2, 8
ATTENTION = {"attn_norm": (C,), "attn_q": (HEADS * HEAD, C), "attn_k": (HEADS_KV * HEAD, C),
             "attn_v": (HEADS_KV * HEAD, C), "attn_output": (C, HEADS * HEAD), "attn_q_norm": (HEAD,),
             "attn_k_norm": (HEAD,)}
FEED_FORWARD = {"ffn_norm": (C,), "ffn_gate": (F, C), "ffn_up": (F, C), "ffn_down": (C, F)}
SHORT_CONVOLUTION = {"attn_norm": (C,), "shortconv.in_proj": (3 * C, C), "shortconv.conv": (C, 3),
                     "shortconv.out_proj": (C, C)}
N_K, N_V, STATE = 2, 4, 8
DELTA_NET = {"attn_norm": (C,), "attn_qkv": ((2 * N_K + N_V) * STATE, C), "attn_gate": (N_V * STATE, C),
             "ssm_beta": (N_V, C), "ssm_alpha": (N_V, C), "ssm_dt.bias": (N_V,), "ssm_a": (N_V,),
             "ssm_conv1d": ((2 * N_K + N_V) * STATE, 4), "ssm_norm": (STATE,), "ssm_out": (C, N_V * STATE)}
GATED_ATTENTION = ATTENTION | {"attn_q": (2 * HEADS * HEAD, C)}
N_PER_LAYER, GLOBAL_HEAD = 4, 12
GEMMA4 = {**ATTENTION, **FEED_FORWARD, "post_attention_norm": (C,), "post_ffw_norm": (C,), "layer_output_scale": (1,)}
GEMMA4_GLOBAL = {**GEMMA4, "attn_q": (HEADS * GLOBAL_HEAD, C), "attn_output": (C, HEADS * GLOBAL_HEAD),
                 "attn_k": (HEADS_KV * GLOBAL_HEAD, C), "attn_q_norm": (GLOBAL_HEAD,), "attn_k_norm": (GLOBAL_HEAD,)}
OWN_VALUES = {"attn_v": (HEADS_KV * GLOBAL_HEAD, C)}
PER_LAYER = {"inp_gate": (N_PER_LAYER, C), "proj": (C, N_PER_LAYER), "post_norm": (C,)}
GEMMA4_KEYS = {"attention.key_length": GLOBAL_HEAD, "attention.value_length": GLOBAL_HEAD,
               "attention.key_length_swa": HEAD, "attention.value_length_swa": HEAD, "attention.sliding_window": 20,
               "rope.dimension_count": GLOBAL_HEAD, "rope.dimension_count_swa": HEAD}


def without(shapes: Mapping[str, Shape], *names: str) -> dict[str, Shape]:
    return {name: shape for name, shape in shapes.items() if name not in names}


N_EXPERTS, EXPERT_F = 6, 16
MIXTURE = {"post_attention_norm": (C,), "ffn_gate_inp": (N_EXPERTS, C), "ffn_gate_exps": (N_EXPERTS, EXPERT_F, C),
           "ffn_up_exps": (N_EXPERTS, EXPERT_F, C), "ffn_down_exps": (N_EXPERTS, C, EXPERT_F)}
SHARED_EXPERT = {"ffn_gate_inp_shexp": (C,), "ffn_gate_shexp": (EXPERT_F, C), "ffn_up_shexp": (EXPERT_F, C),
                 "ffn_down_shexp": (C, EXPERT_F)}
QWEN35_KEYS = {"ssm.conv_kernel": 4, "ssm.state_size": STATE, "ssm.group_count": N_K, "ssm.time_step_rank": N_V,
               "ssm.inner_size": N_V * STATE, "full_attention_interval": 2, "rope.dimension_count": 4}
KEYS = ("attn_k", "attn_v", "attn_k_norm")
QWEN35_FEED_FORWARD = without(FEED_FORWARD, "ffn_norm") | {"post_attention_norm": (C,)}


@dataclass(frozen=True)
class Hybrid:
    """One architecture: keys under its prefix beside those of all, blocks, and tensors outside of them."""

    keys: Mapping[str, Any]
    blocks: tuple[Mapping[str, Shape], ...]
    others: Mapping[str, Shape] = field(default_factory=lambda: {"output_norm": (C,)})


HYBRIDS = {
    "lfm2": Hybrid({"attention.head_count_kv": [0, HEADS_KV, 0, HEADS_KV], "shortconv.l_cache": 3},
                   (SHORT_CONVOLUTION | FEED_FORWARD, ATTENTION | FEED_FORWARD) * 2, {"token_embd_norm": (C,)}),
    "qwen35": Hybrid(QWEN35_KEYS, (DELTA_NET | QWEN35_FEED_FORWARD, GATED_ATTENTION | QWEN35_FEED_FORWARD) * 2),
    "qwen35moe": Hybrid({**QWEN35_KEYS, "expert_count": N_EXPERTS, "expert_used_count": 2,
                         "expert_feed_forward_length": EXPERT_F, "expert_shared_feed_forward_length": EXPERT_F},
                        (DELTA_NET | MIXTURE | SHARED_EXPERT, GATED_ATTENTION | MIXTURE | SHARED_EXPERT) * 2),
    # The last two blocks attend to keys and values of the two below.
    "gemma4": Hybrid({**GEMMA4_KEYS, "attention.shared_kv_layers": 2, "embedding_length_per_layer_input": N_PER_LAYER,
                      "attention.sliding_window_pattern": [True, False] * 3},
                     ((GEMMA4 | PER_LAYER, GEMMA4_GLOBAL | OWN_VALUES | PER_LAYER) * 2
                      + (without(GEMMA4, *KEYS) | PER_LAYER, without(GEMMA4_GLOBAL, *KEYS) | PER_LAYER)),
                     {"output_norm": (C,), "per_layer_token_embd": (V, 6 * N_PER_LAYER),
                      "per_layer_model_proj": (6 * N_PER_LAYER, C), "per_layer_proj_norm": (N_PER_LAYER,)}),
    # Keys serve as values in global blocks.
    "gemma4 dense": Hybrid({**GEMMA4_KEYS, "attention.sliding_window_pattern": [True, False, True, False]},
                           (GEMMA4, without(GEMMA4_GLOBAL, "attn_v")) * 2),
}


def make_hybrid(path: Path, name: str, seed: int = 0) -> Path:
    """Writes the model of that name, its matrices in F32, and returns its path."""
    rng, model, arch = np.random.default_rng(seed), HYBRIDS[name], name.split()[0]
    shapes = {"token_embd.weight": (V, C)} | {name_of(name): shape for name, shape in model.others.items()}
    for layer, block in enumerate(model.blocks):
        shapes |= {name_of(f"blk.{layer}.{name}"): shape for name, shape in block.items()}
    keys = {"context_length": 128, "embedding_length": C, "block_count": len(model.blocks), "feed_forward_length": F,
            "attention.head_count": HEADS, "attention.head_count_kv": HEADS_KV, "attention.key_length": HEAD,
            "attention.value_length": HEAD, "attention.layer_norm_rms_epsilon": 1e-6, **model.keys}
    values = [("general.architecture", GGUFValueType.STRING, arch), ("general.file_type", GGUFValueType.UINT32, 0)]
    values += [(f"{arch}.{key}", value_type(value), value) for key, value in keys.items()]
    write_gguf(path, values + spm_vocabulary(V), [tensor(name, shape, rng) for name, shape in shapes.items()])
    return path


def name_of(name: str) -> str:
    """With `.weight`, unless it has a suffix of its own."""
    return name if name.endswith((".bias", "ssm_a")) else f"{name}.weight"


def tensor(name: str, shape: Shape, rng: np.random.Generator) -> TensorToWrite:
    if "norm" in name or "scale" in name:
        values = rng.uniform(0.5, 1.5, shape)
    elif name.endswith("ssm_a"):
        values = -rng.uniform(0.1, 2, shape)
    else:
        values = rng.standard_normal(shape) * (shape[-1]**-0.5 if len(shape) > 1 and "embd" not in name else 0.5)
    return TensorToWrite(name, GGMLType.F32, shape, np.ascontiguousarray(values, np.float32))


def value_type(value: Any) -> Any:
    if isinstance(value, list):
        return GGUFValueType.ARRAY, value_type(value[0])
    return {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32}[type(value)]
