"""Released models: the keys and tensors of their GGUF files, without values. `plans.py` writes them with holes for
weights, `models.py` with random ones.

Sources: the configurations that the models were published with, llama.cpp's converters.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from lorafast.gguf.types import GGMLType, GGUFValueType
from lorafast.gguf.writer import TensorToWrite

F32, Q4_K, Q6_K, Q8_0, MXFP4 = (GGMLType[name] for name in ("F32", "Q4_K", "Q6_K", "Q8_0", "MXFP4"))
U32, FLOAT, STRING, ARRAY = (GGUFValueType[name] for name in ("UINT32", "FLOAT32", "STRING", "ARRAY"))
PLAIN = ("ffn_gate_inp", "shortconv.conv", "ssm_conv1d")
"""Matrices that stay in F32."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Release:
    """A model's file.

    keys     under the architecture's prefix, beside those that all have
    blocks   of each, the shapes of its tensors by name
    others   tensors outside of blocks, beside embedding, final norm and output
    experts  the type of experts where it is a special one; the other matrices are Q8_0 then
    """

    arch: str
    n_vocab: int
    n_embd: int
    keys: dict[str, Any]
    blocks: Sequence[Shapes]
    tied: bool = False
    others: Shapes = field(default_factory=dict)
    experts: GGMLType | None = None
    final_norm: str = "output_norm"

    def tensors(self, type: GGMLType | None = None) -> list[TensorToWrite]:
        """Without data. type: that of all matrices; None: those of Q4_K_M, in the mean."""
        return [TensorToWrite(name, self._type(name, shape, type), shape, ()) for name, shape in self._shapes()]

    def _shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        C, V = self.n_embd, self.n_vocab
        output: Shapes = {} if self.tied else {"output": (V, C)}
        outside: Shapes = {"token_embd": (V, C), self.final_norm: (C,)} | self.others | output
        yield from ((_with_suffix(name), shape) for name, shape in outside.items())
        for layer, block in enumerate(self.blocks):
            yield from ((f"blk.{layer}.{_with_suffix(name)}", shape) for name, shape in block.items())

    def _type(self, name: str, shape: tuple[int, ...], type: GGMLType | None) -> GGMLType:
        if len(shape) == 1 or name.endswith(".bias") or any(plain in name for plain in PLAIN):
            return F32
        if self.experts:
            return self.experts if "_exps" in name else Q8_0
        if shape[-1] % Q4_K.block_size:
            return Q8_0
        is_fine = name in ("token_embd.weight", "output.weight") or (
            ("attn_v." in name or "ffn_down" in name) and int(name.split(".")[1]) % 2)
        return type or (Q6_K if is_fine else Q4_K)

    def metadata(self) -> list[tuple[str, Any, Any]]:
        """With a vocabulary of as many made-up words."""
        keys = {"context_length": 32768, "embedding_length": self.n_embd, "block_count": len(self.blocks),
                "attention.layer_norm_rms_epsilon": 1e-6, **self.keys}
        tokens, merges = words(self.n_vocab)
        return [
            ("general.architecture", STRING, self.arch), ("general.file_type", U32, 15),
            *((f"{self.arch}.{key}", _value_type(value), value) for key, value in keys.items()),
            ("tokenizer.ggml.model", STRING, "gpt2"), ("tokenizer.ggml.pre", STRING, "qwen2"),
            ("tokenizer.ggml.tokens", (ARRAY, STRING), tokens),
            ("tokenizer.ggml.token_type", (ARRAY, GGUFValueType.INT32),
             np.array([1] * (len(tokens) - 1) + [3], np.int32)),
            ("tokenizer.ggml.merges", (ARRAY, STRING), merges),
            ("tokenizer.ggml.eos_token_id", U32, len(tokens) - 1)]


@cache
def words(n: int) -> tuple[list[str], list[str]]:
    """Tokens, and the merges that make them: all pairs of the bytes' characters, and pairs with a third."""
    characters = [chr(code) for code in (*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100),
                                         *range(0x100, 0x144))]
    merges = [f"{a} {b}" for a in characters for b in characters]
    merges += [f"{a}{b} {c}" for a in characters[:5] for b in characters for c in characters]
    merges = merges[:n - len(characters) - 1]
    return [*characters, *(text.replace(" ", "") for text in merges), "<|endoftext|>"], merges


def _with_suffix(name: str) -> str:
    return name if name.endswith((".bias", "ssm_a")) else f"{name}.weight"


def _value_type(value: Any) -> Any:
    if isinstance(value, list):
        return ARRAY, _value_type(value[0])
    return {bool: GGUFValueType.BOOL, int: U32, float: FLOAT, str: STRING}[type(value)]


# --------------------------------------------------------------------------------------------------- parts of blocks

def attention(C: int, n_head: int, n_head_kv: int, D: int, norms: tuple[int, int] | None = None) -> Shapes:
    """norms: sizes of those of q and k."""
    shapes = {"attn_norm": (C,), "attn_q": (n_head * D, C), "attn_k": (n_head_kv * D, C), "attn_v": (n_head_kv * D, C),
              "attn_output": (C, n_head * D)}
    return shapes | ({"attn_q_norm": (norms[0],), "attn_k_norm": (norms[1],)} if norms else {})


def feed_forward(C: int, F: int, norm: str = "ffn_norm") -> Shapes:
    return {norm: (C,), "ffn_gate": (F, C), "ffn_up": (F, C), "ffn_down": (C, F)}


def experts(C: int, F: int, E: int, norm: str = "ffn_norm") -> Shapes:
    return {norm: (C,), "ffn_gate_inp": (E, C), "ffn_gate_exps": (E, F, C), "ffn_up_exps": (E, F, C),
            "ffn_down_exps": (E, C, F)}


def attention_keys(n_head: int, n_head_kv: int | list[int], D: int, base: float) -> dict[str, Any]:
    return {"attention.head_count": n_head, "attention.head_count_kv": n_head_kv, "attention.key_length": D,
            "attention.value_length": D, "rope.freq_base": base}


def expert_keys(F: int, E: int, n_used: int) -> dict[str, Any]:
    return {"expert_count": E, "expert_used_count": n_used, "expert_feed_forward_length": F}


# ------------------------------------------------------------------------------------------------------------- models

def llama2(C: int, n_layer: int, n_head: int, n_head_kv: int, F: int) -> Release:
    D = C // n_head
    block = attention(C, n_head, n_head_kv, D) | feed_forward(C, F)
    return Release("llama", 32000, C, attention_keys(n_head, n_head_kv, D, 1e4)
                   | {"feed_forward_length": F, "rope.dimension_count": D}, [block] * n_layer)


def llama2_7b() -> Release:
    return llama2(4096, 32, 32, 32, 11008)


def llama2_70b() -> Release:
    return llama2(8192, 80, 64, 8, 28672)


def qwen3(C: int, n_layer: int, n_head: int, F: int, tied: bool = True) -> Release:
    D, n_head_kv = 128, 8
    block = attention(C, n_head, n_head_kv, D, (D, D)) | feed_forward(C, F)
    return Release("qwen3", 151936, C, attention_keys(n_head, n_head_kv, D, 1e6) | {"feed_forward_length": F},
                   [block] * n_layer, tied)


def qwen3_30b_a3b(n_layer: int = 48) -> Release:
    C, F, E, D = 2048, 768, 128, 128
    block = attention(C, 32, 4, D, (D, D)) | experts(C, F, E)
    return Release("qwen3moe", 151936, C, attention_keys(32, 4, D, 1e6) | expert_keys(F, E, 8), [block] * n_layer)


def olmoe() -> Release:
    C, F, E = 2048, 1024, 64
    block = attention(C, 16, 16, 128, (C, C)) | experts(C, F, E)
    return Release("olmoe", 50304, C, attention_keys(16, 16, 128, 1e4) | expert_keys(F, E, 8)
                   | {"feed_forward_length": F}, [block] * 16)


def gpt_oss_20b() -> Release:
    C, F, E, D = 2880, 2880, 32, 64
    shapes = attention(C, 64, 8, D) | {"attn_sinks": (64,)} | experts(C, F, E, "post_attention_norm")
    biases = {f"{name}.bias": shape[:-1] for name, shape in shapes.items() if len(shape) > 1}
    scaling = {"rope.scaling.type": "yarn", "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 4096}
    return Release("gpt-oss", 201088, C, attention_keys(64, 8, D, 150000.0) | expert_keys(F, E, 4) | scaling
                   | {"attention.sliding_window": 128}, [shapes | biases] * 24, experts=MXFP4)


def lfm2_8b_a1b() -> Release:
    C, F, D = 2048, 1792, 64
    convolution = {"attn_norm": (C,), "shortconv.in_proj": (3 * C, C), "shortconv.conv": (C, 3),
                   "shortconv.out_proj": (C, C)}
    of_experts = experts(C, F, 32) | {"exp_probs_b.bias": (32,)}
    n_head_kv = [8 if layer in (2, 6, 10, 14, 18, 21) else 0 for layer in range(24)]
    blocks = [(attention(C, 32, 8, D, (D, D)) if n else convolution)
              | (feed_forward(C, 7168) if layer < 2 else of_experts) for layer, n in enumerate(n_head_kv)]
    return Release("lfm2moe", 65536, C, attention_keys(32, n_head_kv, D, 1e6) | expert_keys(F, 32, 4)
                   | {"feed_forward_length": 7168, "leading_dense_block_count": 2, "expert_gating_func": 2,
                      "shortconv.l_cache": 3}, blocks, tied=True, final_norm="token_embd_norm")


def qwen35(C: int, n_layer: int, n_head_kv: int, branch: Shapes, arch: str, keys: dict[str, Any]) -> Release:
    """branch: the feed-forward network or experts of a block."""
    n_head, D, n_k, n_v, S = 16, 256, 16, 32, 128
    inner, qkv = n_v * S, (2 * n_k + n_v) * S
    delta_net = {"attn_norm": (C,), "attn_qkv": (qkv, C), "attn_gate": (inner, C), "ssm_beta": (n_v, C),
                 "ssm_alpha": (n_v, C), "ssm_dt.bias": (n_v,), "ssm_a": (n_v,), "ssm_conv1d": (qkv, 4),
                 "ssm_norm": (S,), "ssm_out": (C, inner)}
    gated = attention(C, n_head, n_head_kv, D, (D, D)) | {"attn_q": (2 * n_head * D, C)}
    blocks = [(delta_net if (layer + 1) % 4 else gated) | branch for layer in range(n_layer)]
    return Release(arch, 248320, C, attention_keys(n_head, n_head_kv, D, 1e7) | keys
                   | {"ssm.conv_kernel": 4, "ssm.state_size": S, "ssm.group_count": n_k, "ssm.time_step_rank": n_v,
                      "ssm.inner_size": inner, "full_attention_interval": 4, "rope.dimension_count": 64}, blocks)


def qwen35_9b() -> Release:
    return qwen35(4096, 32, 4, feed_forward(4096, 12288, "post_attention_norm"), "qwen35",
                  {"feed_forward_length": 12288})


def qwen35_35b_a3b() -> Release:
    C, F = 2048, 512
    shared = {"ffn_gate_inp_shexp": (C,), "ffn_gate_shexp": (F, C), "ffn_up_shexp": (F, C), "ffn_down_shexp": (C, F)}
    return qwen35(C, 40, 2, experts(C, F, 256, "post_attention_norm") | shared, "qwen35moe",
                  expert_keys(F, 256, 8) | {"expert_shared_feed_forward_length": F})


def gemma4(C: int, n_layer: int, n_head_kv: int, F: int, n_shared: int, period: int, widening: int) -> Release:
    """widening: of the feed-forward network in blocks that share keys and values."""
    V, n, n_head, D, D_global = 262144, 256, 8, 256, 512
    own, blocks = n_layer - n_shared, []
    is_local = [bool((layer + 1) % period) for layer in range(n_layer)]
    widths = [F if layer < own else widening * F for layer in range(n_layer)]
    for layer, (local, width) in enumerate(zip(is_local, widths, strict=True)):
        head = D if local else D_global
        block = attention(C, n_head, n_head_kv, head, (head, head)) | feed_forward(C, width)
        if layer >= own:
            block = {name: shape for name, shape in block.items() if name not in ("attn_k", "attn_v", "attn_k_norm")}
        blocks.append(block | {"post_attention_norm": (C,), "post_ffw_norm": (C,), "layer_output_scale": (1,),
                               "inp_gate": (n, C), "proj": (C, n), "post_norm": (C,)})
    return Release("gemma4", V, C, attention_keys(n_head, n_head_kv, D_global, 1e6) | {
        "attention.key_length_swa": D, "attention.value_length_swa": D, "attention.sliding_window": 512,
        "attention.sliding_window_pattern": is_local, "attention.shared_kv_layers": n_shared,
        "embedding_length_per_layer_input": n, "rope.dimension_count": D_global, "rope.dimension_count_swa": D,
        "feed_forward_length": widths, "final_logit_softcapping": 30.0}, blocks, tied=True,
        others={"per_layer_token_embd": (V, n_layer * n), "per_layer_model_proj": (n_layer * n, C),
                "per_layer_proj_norm": (n,)})


RELEASES = {
    "Qwen3-0.6B": qwen3(1024, 28, 16, 3072),
    "Qwen3-1.7B": qwen3(2048, 28, 16, 6144),
    "Qwen3-4B": qwen3(2560, 36, 32, 9728),
    "Qwen3-8B": qwen3(4096, 36, 32, 12288, tied=False),
    "Gemma-4-E2B": gemma4(1536, 35, 1, 6144, 20, 5, 2),
    "Gemma-4-E4B": gemma4(2560, 42, 2, 10240, 18, 6, 1),
    "OLMoE-1B-7B": olmoe(),
    "LFM2-8B-A1B": lfm2_8b_a1b(),
    "Qwen3.5-9B": qwen35_9b(),
    "gpt-oss-20b": gpt_oss_20b(),
    "Qwen3-30B-A3B": qwen3_30b_a3b(),
    "Qwen3.5-35B-A3B": qwen35_35b_a3b(),
}
