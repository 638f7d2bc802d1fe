"""The architectures: how each differs from the others, a row each, as data.

How these facts are computed with stands in the branches (attention.py, feed_forward.py). Sources of every row:
llama.cpp (src/llama-model.cpp, src/models/), which decides what a GGUF file means, and the modelling code of
transformers.
"""
from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from ..errors import LoraFastError

PEFT_MODULES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_down": "mlp.down_proj", "ffn_up": "mlp.up_proj",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj", "ffn_down_shexp": "mlp.shared_expert.down_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "output": "lm_head", "token_embd": "embed_tokens",
}
"""The module that Hugging Face's llama has for each role: below `model.layers.<n>` for those of a block, below `model`
for the embedding."""

ALL_LOCAL = 1 << 30
"""A period of which no model reaches the end."""


@dataclass(frozen=True)
class Sliding:
    """Which blocks see only a window of the newest positions, where `attention.sliding_window` gives its length.

    period     block i is local when i mod period < period - 1; 0: only an array in the file makes blocks local
    window     its length where the file gives none; 0: then no block is local
    rope_base  of local blocks where the file has no `rope.freq_base_swa`; None: that of the others
    scaled     whether `rope.scaling` holds in local blocks too
    only_n_layer  models with this many blocks have windows; 0: all have
    """

    period: int = 0
    window: int = 0
    rope_base: float | None = None
    scaled: bool = False
    only_n_layer: int = 0


@dataclass(frozen=True)
class Mixture:
    """Experts in the place of the feed-forward branch, in files that have `expert_count`.

    gating   what the router's outputs become: "softmax", "sigmoid", the "softmax of chosen" ones, or what the "key"
             `expert_gating_func` says (see router.py)
    normed   the weights of the chosen experts are divided by their sum
    n_ff     an expert's width: `feed_forward_length` ("same"), or `expert_feed_forward_length` and, where that is
             missing, ("own") an error or ("divided") the k-th part of `feed_forward_length`
    shared   an expert that all tokens see: "never", "key" where `expert_shared_feed_forward_length` gives its width,
             "gated" always, times a gate of its own
    choice_bias  "may" or "must" there be a bias with which experts are chosen; "" for none
    biases   router and experts have biases
    """

    gating: Literal["softmax", "sigmoid", "softmax of chosen", "key"] = "softmax"
    normed: bool = True
    n_ff: Literal["same", "own", "divided"] = "own"
    shared: Literal["never", "key", "gated"] = "never"
    choice_bias: Literal["", "may", "must"] = ""
    biases: bool = False


@dataclass(frozen=True)
class Architecture:
    """How one `general.architecture` differs from the others.

    rope        which values of a head RoPE turns together: "norm" (2j, 2j + 1), "neox" (j, j + n_rot / 2)
    permuted    rows of q and k lie in another order than in Hugging Face's model, which pairs halves
    norm        "rms", or "layer": the mean is subtracted, and there may be biases
    attn_norm, ffn_norm            names of the norms before a branch; "" without
    attn_post_norm, ffn_post_norm  names of the norms behind it; "" without
    final_norm  name of the norm before the output; `output_norm` is taken where a file has that in its place
    mixer       what stands in attention's place in some blocks: "short_conv" where `attention.head_count_kv` is 0,
                "delta_net" where `attention.recurrent_layers` says so, or in all but every fourth
    value_norms  heads of values have norms without weights, and blocks may share keys and values (shared_attention.py)
    local_heads  blocks with a window have heads of their own size (`attention.key_length_swa` and the like)
    attention_scale  of scores; 0: as the key or the head's size says
    per_layer   blocks may have embeddings of their own (per_layer.py), and a factor at their end
    gated_attention  `attn_q` holds, head by head, the rows of the query and of a gate of the output
    qk_norm     norms of q and k: of each "head", of all heads of a "row" together, of each head by weights of its own
                ("heads")
    qk_norm_after_rope  they come after RoPE
    sub_norms   norms before the last matrix of each branch (attn_sub_norm, ffn_sub_norm)
    parallel    both branches read the block's input; "without ffn_norm": they do where there is no ffn_norm
    activation  "silu", "gelu" (by tanh), "relu_squared" or "clamped_silu"
    mixture     the experts that its files may have; None: there is no such file
    sinks       each head has a sink: a score beside those of the keys, without a value
    gated       the feed-forward's activation is multiplied by `ffn_up`; otherwise there is no gate
    fused_gate_up  `ffn_up` holds the rows of gate, then those of up
    biases      roles that may have a bias beside q, k and v, which always may
    needed_biases  those of them that are never missing
    tied        the output matrix: "always" the embedding, "never", or as the "file" has it
    scales      keys that are read: "embedding_scale", "residual_scale", "logit_scale", "attention.scale"
    embedding_scale  "sqrt": the embedding is multiplied by the root of its width
    logit_scale_divides  the logits are divided by the key, otherwise multiplied
    default_scales   of keys that may be missing, as functions of (n_embd, n_layer)
    has_rope_switch  without `rope.scaling.finetuned` there is no RoPE
    longrope    `rope_factors_long` and `_short` are read: where rope.scaling.type is "longrope", or "always"
    sliding     which blocks have a window; None: none, whatever the file says
    rope_every  blocks i with (i + 1) mod rope_every = 0 have no RoPE; 0: all have
    rope_only   "local": only blocks with a window have RoPE (where any has one)
    attention_soft_cap, logit_soft_cap   of scores and logits where the file has no key; 0: none; None: no key is read
    wide_n_layer   models with this many blocks scale scores by (n_embd / n_head)^-0.5, not by the head's size
    yarn_betas, yarn_log   whether the keys of YaRN's betas and of its log multiplier are read
    peft        modules other than Hugging Face's llama's, by role; "" where there is none of its own
    peft_root   where the text's part lies in Hugging Face's model
    """

    name: str
    rope: Literal["norm", "neox"] = "neox"
    permuted: bool = False
    norm: Literal["rms", "layer"] = "rms"
    attn_norm: str = "attn_norm"
    attn_post_norm: str = ""
    ffn_norm: str = "ffn_norm"
    ffn_post_norm: str = ""
    final_norm: str = "output_norm"
    mixer: Literal["", "short_conv", "delta_net"] = ""
    gated_attention: bool = False
    value_norms: bool = False
    local_heads: bool = False
    attention_scale: float = 0.0
    per_layer: bool = False
    qk_norm: Literal["", "head", "row", "heads"] = ""
    qk_norm_after_rope: bool = False
    sub_norms: bool = False
    parallel: bool | Literal["without ffn_norm"] = False
    activation: Literal["silu", "gelu", "relu_squared", "clamped_silu"] = "silu"
    mixture: Mixture | None = None
    sinks: bool = False
    gated: bool = True
    fused_gate_up: bool = False
    biases: tuple[str, ...] = ()
    needed_biases: tuple[str, ...] = ()
    tied: Literal["always", "never", "file"] = "file"
    scales: tuple[str, ...] = ()
    embedding_scale: Literal["", "sqrt"] = ""
    logit_scale_divides: bool = True
    default_scales: str = ""
    has_rope_switch: bool = False
    longrope: Literal["", "longrope", "always"] = ""
    sliding: Sliding | None = None
    rope_every: int = 0
    rope_only: Literal["", "local"] = ""
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    wide_n_layer: int = 0
    yarn_betas: bool = False
    yarn_log: bool = False
    peft: dict[str, str] = field(default_factory=dict, hash=False)
    peft_root: str = "model"

    def module(self, role: str, layer: int = -1) -> str:
        """Hugging Face's name of the module that a role's tensor is. LoraFastError where it is no module of its own."""
        name = {**PEFT_MODULES, **self.peft}[role]
        if not name:
            raise LoraFastError(f"'{role}' is half of a matrix in Hugging Face's model of architecture '{self.name}': "
                                "PEFT cannot carry its pair; leave the role out, or use the adapter in GGUF")
        if layer >= 0:
            return f"{self.peft_root}.layers.{layer}.{name}"
        return f"{self.peft_root}.{name}" if role == "token_embd" else name

    def role_of_module(self, module: str) -> str | None:
        """The role of a module, without what stands before its name in a layer; None for one that is not known."""
        return next((role for role, name in (PEFT_MODULES | self.peft).items() if name == module), None)


LLAMA = Architecture("llama", rope="norm", permuted=True, biases=("attn_output", "ffn_gate", "ffn_up", "ffn_down"),
                     longrope="longrope", mixture=Mixture(n_ff="same"))
DENSE_LLAMA = replace(LLAMA, mixture=None)
QWEN2 = Architecture("qwen2")
QWEN3 = Architecture("qwen3", qk_norm="head")
GEMMA = Architecture("gemma", activation="gelu", embedding_scale="sqrt")
GEMMA2 = replace(GEMMA, name="gemma2", attn_post_norm="post_attention_norm", ffn_post_norm="post_ffw_norm",
                 sliding=Sliding(period=2, window=4096, scaled=True), attention_soft_cap=50.0, logit_soft_cap=30.0,
                 wide_n_layer=46)
GEMMA3 = replace(GEMMA2, name="gemma3", qk_norm="head", sliding=Sliding(period=6, rope_base=10000.0),
                 attention_soft_cap=None, logit_soft_cap=0.0, wide_n_layer=62)
GEMMA4 = replace(GEMMA2, name="gemma4", qk_norm="head", sliding=Sliding(rope_base=10000.0), attention_soft_cap=None,
                 wide_n_layer=0, value_norms=True, local_heads=True, attention_scale=1.0, per_layer=True,
                 peft={"inp_gate": "per_layer_input_gate", "proj": "per_layer_projection"})
POST_NORMS_ONLY = Architecture("", attn_norm="", ffn_norm="", attn_post_norm="post_attention_norm",
                               ffn_post_norm="post_ffw_norm")
GRANITE_SCALES = ("embedding_scale", "residual_scale", "logit_scale")
LFM2_MODULES = {"attn_output": "self_attn.out_proj", "shortconv.in_proj": "conv.in_proj",
                "shortconv.out_proj": "conv.out_proj", "ffn_gate": "feed_forward.w1", "ffn_up": "feed_forward.w3",
                "ffn_down": "feed_forward.w2"}
LFM2 = Architecture("lfm2", final_norm="token_embd_norm", mixer="short_conv", qk_norm="head",
                    sliding=Sliding(period=ALL_LOCAL, scaled=True), peft=LFM2_MODULES)
DELTA_NET_MODULES = {"attn_qkv": "linear_attn.in_proj_qkv", "attn_gate": "linear_attn.in_proj_z",
                     "ssm_beta": "linear_attn.in_proj_b", "ssm_alpha": "linear_attn.in_proj_a",
                     "ssm_out": "linear_attn.out_proj"}
QWEN35 = Architecture("qwen35", ffn_norm="post_attention_norm", qk_norm="head", mixer="delta_net",
                      gated_attention=True, peft=DELTA_NET_MODULES)

ROWS = (
    LLAMA, QWEN2, QWEN3, GEMMA, GEMMA2, GEMMA3, GEMMA4,
    # Of their text alone, the positions are plain.
    replace(QWEN2, name="qwen2vl", peft_root="model.language_model"),
    replace(QWEN3, name="qwen3vl", peft_root="model.language_model"),
    Architecture("phi3", fused_gate_up=True, longrope="always", peft={"ffn_up": "mlp.gate_up_proj"}),
    replace(DENSE_LLAMA, name="smollm3", rope_every=4),
    replace(DENSE_LLAMA, name="granite", scales=(*GRANITE_SCALES, "attention.scale"), has_rope_switch=True),
    replace(DENSE_LLAMA, name="minicpm", scales=GRANITE_SCALES, default_scales="minicpm"),
    replace(DENSE_LLAMA, name="mistral3", yarn_betas=True, yarn_log=True),
    replace(DENSE_LLAMA, name="ernie4_5", permuted=False),
    replace(DENSE_LLAMA, name="internlm2", tied="never", longrope=""),
    replace(DENSE_LLAMA, name="arcee", activation="relu_squared", gated=False),
    Architecture("hunyuan-dense", qk_norm="head", qk_norm_after_rope=True),
    Architecture("seed_oss", ffn_norm="post_attention_norm"),
    replace(POST_NORMS_ONLY, name="olmo2", qk_norm="row", sliding=Sliding(), tied="never"),
    replace(POST_NORMS_ONLY, name="exaone4", qk_norm="head",
            sliding=Sliding(period=4, window=4096, scaled=True, only_n_layer=64), rope_only="local"),
    Architecture("glm4", rope="norm", attn_post_norm="post_attention_norm", ffn_post_norm="post_ffw_norm",
                 fused_gate_up=True, peft={"ffn_up": "mlp.gate_up_proj"}),
    Architecture("bitnet", sub_norms=True),
    Architecture("cohere2", rope="norm", norm="layer", ffn_norm="", parallel=True, rope_only="local",
                 sliding=Sliding(period=4, window=4096, scaled=True), scales=("logit_scale",),
                 logit_scale_divides=False),
    Architecture("starcoder2", norm="layer", gated=False, activation="gelu",
                 biases=("attn_output", "ffn_up", "ffn_down"), needed_biases=("attn_output", "ffn_up", "ffn_down"),
                 peft={"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
    LFM2,
    # Of text alone, the positions are plain.
    QWEN35,
    replace(QWEN35, name="qwen35moe", mixture=Mixture(shared="gated")),
    replace(QWEN2, name="qwen2moe", mixture=Mixture(normed=False, n_ff="divided", shared="gated"), tied="never"),
    replace(QWEN3, name="qwen3moe", mixture=Mixture(n_ff="divided")),
    replace(DENSE_LLAMA, name="granitemoe", scales=(*GRANITE_SCALES, "attention.scale"),
            mixture=Mixture(n_ff="same", shared="key"),
            peft={"ffn_gate_shexp": "", "ffn_up_shexp": "", "ffn_down_shexp": "shared_mlp.output_linear"}),
    replace(DENSE_LLAMA, name="ernie4_5-moe", permuted=False, mixture=Mixture(shared="key", choice_bias="may"),
            peft={f"ffn_{name}_shexp": f"mlp.shared_experts.{name}_proj" for name in ("gate", "up", "down")}),
    Architecture("gpt-oss", ffn_norm="post_attention_norm", biases=("attn_output",), needed_biases=("attn_output",),
                 sinks=True, sliding=Sliding(period=2, scaled=True), activation="clamped_silu",
                 mixture=Mixture(gating="softmax of chosen", normed=False, biases=True), tied="never"),
    Architecture("olmoe", qk_norm="row", mixture=Mixture(normed=False, n_ff="same"), tied="never"),
    replace(LFM2, name="lfm2moe", mixture=Mixture(gating="key", choice_bias="must")),
    Architecture("stablelm", norm="layer", parallel="without ffn_norm", qk_norm="heads", tied="never"),
)
ARCHITECTURES = {row.name: row for row in ROWS}
"""The rows by the value of `general.architecture`."""

FOREIGN = {
    **dict.fromkeys(("mamba", "mamba2", "jamba", "falcon-h1", "granitehybrid", "nemotron_h", "nemotron_h_moe",
                     "plamo2"), "blocks of Mamba"),
    **dict.fromkeys(("deepseek2", "minicpm3", "plm", "kimi-linear"), "keys and values of low rank"),
    **dict.fromkeys(("rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"), "blocks of RWKV"),
    "qwen3next": "delta nets whose heads lie in another order than those of Qwen 3.5",
    "gemma3n": "several residual streams",
}
"""What stands in the way of architectures that people ask for."""


def architecture_of(name: str) -> Architecture:
    """The row of an architecture. One that lorafast cannot train has llama's names and no permutation: its adapters can
    still be converted."""
    return ARCHITECTURES.get(name) or Architecture(name)
