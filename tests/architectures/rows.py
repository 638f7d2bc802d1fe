"""The architectures, one row each: how the model of transformers is made and how its file is written.

Sources: transformers, models/*/modeling_*.py and configuration_*.py; llama.cpp, conversion/*.py and src/models/*.cpp.
"""
from __future__ import annotations

from typing import Any

from architectures.small_models import Row

BIASES_OF_QKV = dict(attention_bias=True)
QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def rotary_dimensions(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def llama(config: Any) -> dict[str, Any]:
    return {"rope.dimension_count": rotary_dimensions(config)}


ROWS = {
    "llama": Row("llama", "LlamaForCausalLM", permuted=True, keys=llama),
    "qwen2": Row("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Row("qwen3", "Qwen3ForCausalLM", dict(head_dim=14), QK_NORMS),
}
