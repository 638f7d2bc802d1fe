"""The dense architectures, one row each: how the model of transformers is made and how its file is written.

Sources: transformers, models/*/modeling_*.py and configuration_*.py; llama.cpp, conversion/*.py and src/models/*.cpp.
"""
from __future__ import annotations

from architectures import files
from architectures.small_models import Row

GELU = 1e-5
"""llama.cpp reads GELU from a table of float16, so that its logits differ more."""

WINDOW = 8
QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
POST_NORMS = {"post_attention_layernorm": "post_attention_norm", "post_feedforward_layernorm": "post_ffw_norm"}
FOUR_NORMS = {**POST_NORMS, "pre_feedforward_layernorm": "ffn_norm"}
GATE_AND_UP = {"mlp.gate_up_proj": "ffn_up"}
HEAD_NORMS = {f"self_attn.{name}_layernorm.norms.{head}": f"head_norm_{name}{head}"
              for name in "qk" for head in range(6)}

PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 512}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [1.0, 1.5, 3.0, 7.0],
            "short_factor": [1.0, 1.1, 1.3, 1.6]}
MINISTRAL = {**YARN, "original_max_position_embeddings": 16, "beta_fast": 4.0, "beta_slow": 0.5, "mscale": 1.0,
             "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
TIED = dict(tie_word_embeddings=True)

LLAMA = {
    "llama": Row("llama", "LlamaForCausalLM", permuted=True, keys=files.rotated),
    "llama-biases": Row("llama", "LlamaForCausalLM", dict(attention_bias=True, head_dim=14),
                        permuted=True, keys=files.rotated),
    "llama-llama3": Row("llama", "LlamaForCausalLM", dict(head_dim=16, rope_parameters=LLAMA3),
                        permuted=True, keys=files.rotated, constants=files.llama3_factors),
    "llama-yarn": Row("llama", "LlamaForCausalLM", dict(head_dim=32, rope_parameters=YARN),
                      permuted=True, keys=files.rotated),
    "llama-longrope": Row("llama", "LlamaForCausalLM",
                          dict(head_dim=8, rope_parameters={**LONGROPE, "factor": 8.0,
                                                            "original_max_position_embeddings": 16}),
                          permuted=True, keys=files.longrope, constants=files.long_and_short),
    "llama-fused": Row("llama", "LlamaForCausalLM", dict(attention_bias=True),
                       permuted=True, keys=files.rotated, rearrange=files.fused_qkv, peft=False),
    "smollm3": Row("smollm3", "SmolLM3ForCausalLM", dict(num_hidden_layers=5, **TIED),
                   permuted=True, keys=files.rotated),
    "granite": Row("granite", "GraniteForCausalLM",
                   dict(attention_multiplier=0.2, embedding_multiplier=3.0, residual_multiplier=0.4,
                        logits_scaling=1.7),
                   permuted=True, keys=files.granite),
    "mistral3": Row("mistral3", "Ministral3ForCausalLM", dict(head_dim=32, rope_parameters=MINISTRAL),
                    permuted=True, keys=files.mistral3),
    "arcee": Row("arcee", "ArceeForCausalLM", permuted=True, keys=files.rotated),
    "ernie4_5": Row("ernie4_5", "Ernie4_5ForCausalLM", dict(head_dim=14, **TIED)),
    # MiniCPM's own code is not in transformers: Granite's has the same scalars.
    "minicpm": Row("minicpm", "GraniteForCausalLM",
                   dict(attention_multiplier=10**-0.5, embedding_multiplier=3.0, residual_multiplier=0.4,
                        logits_scaling=1.7, **TIED),
                   permuted=True, keys=files.minicpm),
    # InternLM 2's own code is not in transformers: it is llama with other names.
    "internlm2": Row("internlm2", "LlamaForCausalLM", permuted=True, peft=False),
}

QWEN = {
    "qwen2": Row("qwen2", "Qwen2ForCausalLM"),
    "qwen3": Row("qwen3", "Qwen3ForCausalLM", dict(head_dim=14, **TIED), QK_NORMS),
    "qwen3-yarn": Row("qwen3", "Qwen3ForCausalLM", dict(head_dim=32, rope_parameters=YARN), QK_NORMS),
    "qwen2vl": Row("qwen2vl", "Qwen2VLForConditionalGeneration",
                   dict(rope_parameters={**PLAIN, "mrope_section": [1, 2, 2]}), keys=files.sections, vision=True),
    "qwen3vl": Row("qwen3vl", "Qwen3VLForConditionalGeneration",
                   dict(head_dim=14, rope_parameters={**PLAIN, "mrope_section": [3, 2, 2], "mrope_interleaved": True}),
                   QK_NORMS, keys=lambda config: {**files.sections(config), "n_deepstack_layers": 1}, vision=True),
    "seed_oss": Row("seed_oss", "SeedOssForCausalLM", dict(head_dim=14),
                    {"post_attention_layernorm": "post_attention_norm"}),
}

GEMMA = {
    "gemma": Row("gemma", "GemmaForCausalLM", dict(head_dim=14, **TIED), one_plus=True, llama_cpp=GELU),
    "gemma2": Row("gemma2", "Gemma2ForCausalLM",
                  dict(head_dim=14, num_hidden_layers=4, sliding_window=WINDOW, query_pre_attn_scalar=14,
                       attn_logit_softcapping=2.0, final_logit_softcapping=3.0, **TIED),
                  FOUR_NORMS, keys=files.gemma2, one_plus=True, llama_cpp=GELU),
    "gemma3": Row("gemma3", "Gemma3ForCausalLM",
                  dict(head_dim=14, num_hidden_layers=7, sliding_window=WINDOW, query_pre_attn_scalar=14, **TIED,
                       rope_parameters={
                           "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                           "sliding_attention": PLAIN}),
                  {**FOUR_NORMS, **QK_NORMS}, keys=files.window, one_plus=True, llama_cpp=GELU),
}

PHI3_NAMES = {**GATE_AND_UP, "self_attn.qkv_proj": "attn_qkv"}
PHI3 = {
    "phi3": Row("phi3", "Phi3ForCausalLM", dict(original_max_position_embeddings=128), PHI3_NAMES, keys=files.phi3),
    "phi3-long": Row("phi3", "Phi3ForCausalLM",
                     dict(original_max_position_embeddings=16, **TIED,
                          rope_parameters={**LONGROPE, "partial_rotary_factor": 0.8,
                                           "original_max_position_embeddings": 16}),
                     PHI3_NAMES, keys=files.phi3, constants=files.long_and_short),
    "phi3-short": Row("phi3", "Phi3ForCausalLM",
                      dict(max_position_embeddings=8192, original_max_position_embeddings=4096,
                           rope_parameters={**LONGROPE, "partial_rotary_factor": 0.8,
                                            "original_max_position_embeddings": 4096}),
                      PHI3_NAMES, keys=files.phi3, constants=files.long_and_short),
}

NORMS_ELSEWHERE = {
    "olmo2": Row("olmo2", "Olmo2ForCausalLM", {}, {**POST_NORMS, **QK_NORMS}),
    "olmo3": Row("olmo2", "Olmo3ForCausalLM",
                 dict(num_hidden_layers=5, hidden_size=64, num_attention_heads=2, num_key_value_heads=1,
                      sliding_window=WINDOW, rope_parameters={"full_attention": YARN, "sliding_attention": PLAIN}),
                 {**POST_NORMS, **QK_NORMS}, keys=files.window_pattern),
    "exaone4": Row("exaone4", "Exaone4ForCausalLM", dict(sliding_window=None, layer_types=["full_attention"] * 3),
                   {**POST_NORMS, **QK_NORMS}),
    # llama.cpp has a window and layers without RoPE only where there are 64.
    "exaone4-32b": Row("exaone4", "Exaone4ForCausalLM",
                       dict(num_hidden_layers=64, intermediate_size=44, sliding_window=WINDOW),
                       {**POST_NORMS, **QK_NORMS}, keys=files.window_pattern),
    "glm4": Row("glm4", "Glm4ForCausalLM",
                dict(head_dim=12, rope_parameters={**PLAIN, "partial_rotary_factor": 0.5}),
                {**GATE_AND_UP, "post_self_attn_layernorm": "post_attention_norm",
                 "post_attention_layernorm": "ffn_norm", "post_mlp_layernorm": "post_ffw_norm"}, keys=files.rotated),
    "hunyuan-dense": Row("hunyuan-dense", "HunYuanDenseV1ForCausalLM",
                         dict(head_dim=14, **TIED,
                              rope_parameters={**PLAIN, "rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0}),
                         {"self_attn.query_layernorm": "attn_q_norm", "self_attn.key_layernorm": "attn_k_norm"},
                         keys=files.hunyuan),
    "cohere2": Row("cohere2", "Cohere2ForCausalLM",
                   dict(num_hidden_layers=5, sliding_window=WINDOW, logit_scale=0.3, **TIED), keys=files.cohere2),
    "starcoder2": Row("starcoder2", "Starcoder2ForCausalLM", dict(sliding_window=None),
                      {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}, keys=files.starcoder2, llama_cpp=GELU),
    "stablelm": Row("stablelm", "StableLmForCausalLM",
                    dict(use_qkv_bias=True, rope_parameters={**PLAIN, "partial_rotary_factor": 0.4}),
                    keys=files.stablelm),
    "stablelm-12b": Row("stablelm", "StableLmForCausalLM",
                        dict(use_parallel_residual=True, qk_layernorm=True,
                             rope_parameters={**PLAIN, "partial_rotary_factor": 0.4}),
                        HEAD_NORMS, keys=files.stablelm, rearrange=files.stacked_head_norms),
    # llama.cpp gates with SiLU, transformers' default is the squared ReLU of the 2B model.
    "bitnet": Row("bitnet", "BitNetForCausalLM", dict(hidden_act="silu", **TIED),
                  {"self_attn.attn_sub_norm": "attn_sub_norm", "mlp.ffn_sub_norm": "ffn_sub_norm"}),
}

ROWS = {**LLAMA, **QWEN, **GEMMA, **PHI3, **NORMS_ELSEWHERE}
