"""Architectures with experts, short convolutions or gated delta nets, one row each, as in dense.py."""
from __future__ import annotations

from architectures import files
from architectures.dense import FOUR_NORMS, GELU, PLAIN, QK_NORMS, TIED, WINDOW, YARN
from architectures.small_models import Row

ROUTER = {"mlp.gate": "ffn_gate_inp"}
EXPERTS = {"mlp.experts.gate_up_proj": "ffn_gate_up_exps", "mlp.experts.down_proj": "ffn_down_exps"}
SHARED = {"mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
          "mlp.shared_expert.down_proj": "ffn_down_shexp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp"}
FIVE = dict(num_experts=5, num_experts_per_tok=2)
FIVE_LOCAL = dict(num_local_experts=5, num_experts_per_tok=2)

MOE = {
    "mixtral": Row("llama", "MixtralForCausalLM", FIVE_LOCAL, {**ROUTER, **EXPERTS}, permuted=True, keys=files.mixtral,
                   rearrange=files.split_gate_and_up),
    "qwen3moe": Row("qwen3moe", "Qwen3MoeForCausalLM",
                    dict(**FIVE, head_dim=14, moe_intermediate_size=36, norm_topk_prob=True),
                    {**QK_NORMS, **ROUTER, **EXPERTS}, keys=files.qwen_moe, rearrange=files.split_gate_and_up),
    "qwen2moe": Row("qwen2moe", "Qwen2MoeForCausalLM",
                    dict(**FIVE, moe_intermediate_size=36, shared_expert_intermediate_size=28),
                    {**ROUTER, **EXPERTS, **SHARED}, keys=files.qwen_moe, rearrange=files.split_gate_and_up),
    "olmoe": Row("olmoe", "OlmoeForCausalLM", dict(**FIVE, num_key_value_heads=6),
                 {**QK_NORMS, **ROUTER, **EXPERTS}, keys=files.experts, rearrange=files.split_gate_and_up),
    "granitemoe": Row("granitemoe", "GraniteMoeSharedForCausalLM",
                      dict(**FIVE_LOCAL, shared_intermediate_size=28, attention_multiplier=0.2,
                           embedding_multiplier=3.0, residual_multiplier=0.4, logits_scaling=1.7),
                      {"block_sparse_moe.router": "ffn_gate_inp",
                       "block_sparse_moe.experts.gate_up_proj": "ffn_gate_up_exps",
                       "block_sparse_moe.experts.down_proj": "ffn_down_exps",
                       "shared_mlp.input_linear": "ffn_gate_up_shexp", "shared_mlp.output_linear": "ffn_down_shexp"},
                      permuted=True, keys=files.granite_moe, rearrange=files.split_gate_and_up,
                      peft=False),      # gate and up of the shared expert are one module there
    "ernie4_5-moe": Row("ernie4_5-moe", "Ernie4_5_MoeForCausalLM",
                        dict(moe_num_experts=5, moe_k=2, moe_intermediate_size=36, moe_layer_start_index=1, **TIED),
                        {**ROUTER, **EXPERTS, "mlp.gate.moe_statics.e_score_correction_bias": "exp_probs_b.bias",
                         "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
                         "mlp.shared_experts.up_proj": "ffn_up_shexp",
                         "mlp.shared_experts.down_proj": "ffn_down_shexp"},
                        keys=files.ernie_moe, rearrange=files.split_gate_and_up,
                        peft=False),    # PEFT 0.21 takes every gate_proj of this model for one of the experts' own
    "gpt-oss": Row("gpt-oss", "GptOssForCausalLM",
                   dict(**FIVE_LOCAL, head_dim=32, num_hidden_layers=4, sliding_window=WINDOW,
                        rope_parameters={**YARN, "beta_fast": 32.0, "beta_slow": 1.0}),
                   {"post_attention_layernorm": "post_attention_norm", "self_attn.sinks": "attn_sinks",
                    "mlp.router": "ffn_gate_inp", "mlp.experts.gate_up_proj": "ffn_gate_up_exps",
                    "mlp.experts.gate_up_proj_bias": "ffn_gate_up_exps.bias",
                    "mlp.experts.down_proj": "ffn_down_exps", "mlp.experts.down_proj_bias": "ffn_down_exps.bias"},
                   keys=files.gpt_oss, rearrange=files.gpt_oss_experts),
}

LFM2_NAMES = {"operator_norm": "attn_norm", "ffn_norm": "ffn_norm", "self_attn.out_proj": "attn_output",
              "self_attn.q_layernorm": "attn_q_norm", "self_attn.k_layernorm": "attn_k_norm",
              "conv.conv": "shortconv.conv", "conv.in_proj": "shortconv.in_proj",
              "conv.out_proj": "shortconv.out_proj", "feed_forward.w1": "ffn_gate", "feed_forward.w3": "ffn_up",
              "feed_forward.w2": "ffn_down"}
LFM2_EXPERTS = {"feed_forward.gate": "ffn_gate_inp", "feed_forward.expert_bias": "exp_probs_b.bias",
                "feed_forward.experts.gate_up_proj": "ffn_gate_up_exps",
                "feed_forward.experts.down_proj": "ffn_down_exps"}
LFM2_GLOBAL = {"model.embedding_norm": "token_embd_norm"}
LFM2_LAYERS = dict(num_hidden_layers=4, layer_types=["conv", "full_attention", "conv", "full_attention"], **TIED)

QWEN35_NAMES = {**QK_NORMS, "post_attention_layernorm": "post_attention_norm", "linear_attn.dt_bias": "ssm_dt.bias",
                "linear_attn.A_log": "ssm_a", "linear_attn.conv1d": "ssm_conv1d", "linear_attn.norm": "ssm_norm",
                "linear_attn.out_proj": "ssm_out", "linear_attn.in_proj_qkv": "attn_qkv",
                "linear_attn.in_proj_z": "attn_gate", "linear_attn.in_proj_b": "ssm_beta",
                "linear_attn.in_proj_a": "ssm_alpha"}
QWEN35_SIZES = dict(num_hidden_layers=5, head_dim=16, linear_key_head_dim=12, linear_value_head_dim=12,
                    linear_num_key_heads=2, linear_num_value_heads=6,
                    layer_types=["linear_attention"] * 3 + ["full_attention", "linear_attention"],
                    rope_parameters={**PLAIN, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]})
BEYOND_A_CHUNK = 70

HYBRIDS = {
    "lfm2": Row("lfm2", "Lfm2ForCausalLM", dict(block_auto_adjust_ff_dim=False, **LFM2_LAYERS), LFM2_NAMES, LFM2_GLOBAL,
                keys=files.lfm2, rearrange=files.short_convolution),
    "lfm2moe": Row("lfm2moe", "Lfm2MoeForCausalLM",
                   dict(**FIVE, num_dense_layers=1, moe_intermediate_size=36, **LFM2_LAYERS),
                   {**LFM2_NAMES, **LFM2_EXPERTS}, LFM2_GLOBAL, keys=files.lfm2moe, rearrange=files.short_convolution),
    "qwen35": Row("qwen35", "Qwen3_5ForCausalLM", QWEN35_SIZES, QWEN35_NAMES, keys=files.qwen35, one_plus=True,
                  rearrange=files.gated_delta_net, n_tokens=BEYOND_A_CHUNK),
    "qwen35moe": Row("qwen35moe", "Qwen3_5MoeForCausalLM",
                     dict(**QWEN35_SIZES, **FIVE, moe_intermediate_size=36, shared_expert_intermediate_size=28),
                     {**QWEN35_NAMES, **ROUTER, **EXPERTS, **SHARED}, keys=files.qwen35moe, one_plus=True,
                     rearrange=files.gated_delta_net, n_tokens=BEYOND_A_CHUNK),
}

GEMMA4_NAMES = {**FOUR_NORMS, **QK_NORMS, "per_layer_input_gate": "inp_gate", "per_layer_projection": "proj",
                "post_per_layer_input_norm": "post_norm", "layer_scalar": "layer_output_scale"}
GEMMA4_GLOBAL = {"model.embed_tokens_per_layer": "per_layer_token_embd",
                 "model.per_layer_model_projection": "per_layer_model_proj",
                 "model.per_layer_projection_norm": "per_layer_proj_norm"}
LOCAL_AND_GLOBAL = ["sliding_attention", "full_attention"]

GEMMA4 = {
    # llama.cpp shares the last local and the last global layer of its own, in this order.
    "gemma4": Row("gemma4", "Gemma4ForCausalLM",
                  dict(num_hidden_layers=6, layer_types=LOCAL_AND_GLOBAL * 3, num_kv_shared_layers=2, head_dim=14,
                       global_head_dim=24, sliding_window=WINDOW, hidden_size_per_layer_input=12,
                       vocab_size_per_layer_input=387, final_logit_softcapping=3.0, use_double_wide_mlp=True, **TIED),
                  GEMMA4_NAMES, GEMMA4_GLOBAL, keys=files.gemma4, constants=files.proportional, llama_cpp=GELU),
    # Keys serve as values in global blocks, which have fewer of them.
    "gemma4-dense": Row("gemma4", "Gemma4ForCausalLM",
                        dict(num_hidden_layers=4, layer_types=LOCAL_AND_GLOBAL * 2, num_kv_shared_layers=0, head_dim=14,
                             global_head_dim=24, num_global_key_value_heads=1, attention_k_eq_v=True,
                             sliding_window=WINDOW, hidden_size_per_layer_input=0, final_logit_softcapping=3.0,
                             use_double_wide_mlp=False, **TIED),
                        GEMMA4_NAMES, keys=files.gemma4, constants=files.proportional, llama_cpp=GELU),
}

ROWS = {**MOE, **HYBRIDS, **GEMMA4}
