"""Random small models of transformers and the GGUF files that say the same: the side that owes lorafast nothing.

A row of a table (dense.py) is all that an architecture needs. Tensors and keys have the names that llama.cpp's
converter gives them.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from make_models import spm_vocabulary
from torch.nn.functional import cross_entropy

from lorafast.gguf.types import GGMLType, GGUFValueType
from lorafast.gguf.writer import TensorToWrite, write_gguf

Tensors = dict[str, np.ndarray]

LLAMA_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GLOBAL_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}

RANK, ALPHA = 3, 6.0
N_TOKENS = 37


@dataclass(frozen=True)
class Row:
    """One architecture, or one form of it.

    arch       general.architecture
    model      its class in transformers
    config     what the class's configuration is made of, beside SIZES
    names      GGUF's role by the module's name within a layer, beside LLAMA_NAMES; `global_names` likewise for the rest
    keys       further keys, by their names under the architecture's prefix, of the configuration
    permuted   GGUF stores the rows of q and k so that RoPE turns neighbours, transformers so that it turns halves
    one_plus   transformers' norms multiply by 1 + weight, and the file holds that sum
    rearrange  what names alone cannot say: tensors in, tensors out; it must be linear, as gradients take this way too
    constants  tensors that are no weights of the model, such as RoPE's factors
    llama_cpp  most NMSE of llama.cpp's logits; None where it computes something else, which a comment then tells
    peft       whether transformers' class has the modules that PEFT adapters of this architecture name
    vision     the model is one with a vision tower, of which the file holds the text part only
    n_tokens   length of the test's sequence
    """

    arch: str
    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    global_names: Mapping[str, str] = field(default_factory=dict)
    keys: Callable[[Any], dict[str, Any]] = lambda config: {}
    permuted: bool = False
    one_plus: bool = False
    rearrange: Callable[[Any, Tensors], Tensors] = lambda config, tensors: tensors
    constants: Callable[[Any], Tensors] = lambda config: {}
    llama_cpp: float | None = 1e-9
    peft: bool = True
    vision: bool = False
    n_tokens: int = N_TOKENS


SIZES = dict(vocab_size=387, hidden_size=60, intermediate_size=100, num_hidden_layers=3, num_attention_heads=6,
             num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, pad_token_id=None,
             bos_token_id=1, eos_token_id=2)
"""No size is a multiple of a vector, but for what a format demands."""

SMALL_VISION = dict(depth=1, embed_dim=16, hidden_size=16, intermediate_size=16, out_hidden_size=60, num_heads=2,
                    num_position_embeddings=16, deepstack_visual_indexes=[0])


class SmallModel:
    """The model of a row in float64, its file in `folder`, and what PyTorch makes of both."""

    def __init__(self, row: Row, folder: Path, seed: int = 0) -> None:
        self.row, self.folder = row, folder
        self.rng = np.random.default_rng(seed)
        model_class = getattr(transformers, row.model)
        config = {**SIZES, **row.config}
        if row.vision:
            config = {"text_config": config, "vision_config": SMALL_VISION, "tie_word_embeddings": False}
        self.config = model_class.config_class(**config, attn_implementation="eager", experts_implementation="eager")
        self.model = model_class(self.config).double().eval()
        randomise(self.model, self.rng, row.one_plus)
        self.text_config = self.config.get_text_config()
        self.text_config.allow_global_per_layer_attribute_access = True         # Gemma 4's own head sizes
        self.tokens = self.rng.integers(3, self.text_config.vocab_size, row.n_tokens).astype(np.int32)

    def tensors_of(self, values: Mapping[str, torch.Tensor]) -> Tensors:
        """Values of the parameters (weights, or their gradients) under GGUF's names and in its order of rows."""
        tensors = {}
        for name, value in values.items():
            if (name == "lm_head.weight" and self.text_config.tie_word_embeddings) or ".visual." in name:
                continue
            tensors[gguf_name(self.row, name)] = value.detach().numpy()
        if self.row.permuted:
            heads = {"attn_q": self.text_config.num_attention_heads, "attn_k": self.text_config.num_key_value_heads}
            for name, rows in tensors.items():
                n_head = heads.get(name.split(".")[-2])
                if n_head:
                    tensors[name] = rows.reshape(n_head, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
        return self.row.rearrange(self.text_config, tensors)

    @cached_property
    def weights(self) -> Tensors:
        """What the file holds, float64."""
        weights = self.tensors_of(self.model.state_dict())
        if self.row.one_plus:
            weights = {name: value + 1 if multiplies_one_plus(name) else value for name, value in weights.items()}
        return {**weights, **self.row.constants(self.text_config)}

    @cached_property
    def path(self) -> Path:
        """The model as a file of F32."""
        return self.write("model.gguf", self.weights)

    @cached_property
    def logits(self) -> np.ndarray:
        """PyTorch's, (T, n_vocab)."""
        with torch.no_grad():
            return logits_of(self.model, self.tokens)

    @cached_property
    def pairs(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """A random adapter of all matrices of all layers: A (r, K) and B (r, N) by tensor, float32."""
        def draw(n: int) -> np.ndarray:
            return (self.rng.standard_normal((RANK, n)) * 0.5 * n**-0.5).astype(np.float32)

        return {name: (draw(w.shape[1]), draw(w.shape[0])) for name, w in self.weights.items() if is_matrix(name, w)}

    @cached_property
    def adapter(self) -> Path:
        """The pairs as a GGUF adapter."""
        tensors = {}
        for name, (a, b) in self.pairs.items():
            tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = a, np.ascontiguousarray(b.T)
        keys = {"general.type": "adapter", "general.architecture": self.row.arch, "adapter.type": "lora",
                "adapter.lora.alpha": ALPHA}
        return write(self.folder / "adapter.gguf", keys, [], tensors)

    @cached_property
    def path_without_adapter(self) -> Path:
        """The file to which the adapter has to be added to make the model: W - s·Bᵀ A."""
        weights = dict(self.weights)
        for name, (a, b) in self.pairs.items():
            weights[name] = weights[name] - ALPHA / RANK * b.T.astype(np.float64) @ a
        return self.write("base.gguf", weights)

    @cached_property
    def gradients(self) -> tuple[float, dict[str, tuple[np.ndarray, np.ndarray]]]:
        """The mean cross entropy of all next tokens, and by tensor dA (r, K) and dB (r, N).

        With W = W0 + s·Bᵀ A: dA = s·B dW, dB = s·A dWᵀ, dW being PyTorch's.
        """
        tokens = torch.from_numpy(self.tokens.astype(np.int64))
        self.model.zero_grad()
        loss = cross_entropy(self.model(tokens[None], use_cache=False).logits[0, :-1], tokens[1:])
        loss.backward()
        parameters = {name: parameter.grad for name, parameter in self.model.named_parameters()
                      if parameter.grad is not None}
        of_weights = self.tensors_of(parameters)
        return loss.item(), {name: (ALPHA / RANK * b @ of_weights[name], ALPHA / RANK * a @ of_weights[name].T)
                             for name, (a, b) in self.pairs.items()}

    def write(self, name: str, weights: Tensors) -> Path:
        keys = {**llama_keys(self.text_config), **self.row.keys(self.text_config)}
        keys = {"general.architecture": self.row.arch, "general.name": "small", "general.file_type": 0,
                **{f"{self.row.arch}.{key}": value for key, value in keys.items()}}
        return write(self.folder / name, keys, spm_vocabulary(self.text_config.vocab_size), weights)


def randomise(model: torch.nn.Module, rng: np.random.Generator, one_plus: bool) -> None:
    """Gives every parameter values that matter: gains around 1, biases that are felt, matrices that keep x's size."""
    parameters = dict(model.state_dict())               # the router's biases are buffers
    if parameters["lm_head.weight"].data_ptr() == embedding_of(model).data_ptr():
        del parameters["lm_head.weight"]
    with torch.no_grad():
        for name, parameter in parameters.items():
            shape = tuple(parameter.shape)
            if "embed_tokens" in name:
                values = rng.standard_normal(shape) * 0.5
            elif (is_norm(name) and name.endswith("weight")) or name.endswith("layer_scalar"):
                values = rng.uniform(0.5, 1.5, shape) - (one_plus and multiplies_one_plus(name))
            elif parameter.ndim == 1:
                values = rng.standard_normal(shape) * 0.3
            else:
                values = rng.standard_normal(shape) * shape[-1] ** -0.5
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def embedding_of(model: torch.nn.Module) -> torch.Tensor:
    return model.get_input_embeddings().weight


def logits_of(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    return model(torch.from_numpy(tokens[None].astype(np.int64)), use_cache=False).logits[0].double().numpy()


def gguf_name(row: Row, name: str) -> str:
    """GGUF's name of a parameter; KeyError where the row's names lack it.

    A parameter that is no module's weight or bias (`mlp.experts.down_proj`) is looked up whole.
    """
    module, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        module, suffix = name, "weight"
    layer = re.fullmatch(r"model\.(?:language_model\.)?layers\.(\d+)\.(.+)", module)
    if layer:
        role = {**LLAMA_NAMES, **row.names}[layer[2]]
        return f"blk.{layer[1]}.{role}" if role.endswith(".bias") else f"blk.{layer[1]}.{role}.{suffix}"
    return f"{({**GLOBAL_NAMES, **row.global_names})[module.replace('language_model.', '')]}.{suffix}"


def is_norm(name: str) -> bool:
    return "norm" in name


def multiplies_one_plus(name: str) -> bool:
    """Whether, in an architecture with such norms, the gain of this name is 1 + weight: not in a gated delta net."""
    return is_norm(name) and "ssm_norm" not in name and "linear_attn.norm" not in name


def is_matrix(name: str, values: np.ndarray) -> bool:
    """Whether an adapter has a pair for the tensor: experts, routers and convolutions have none."""
    return (name.startswith("blk.") and values.ndim == 2 and not is_norm(name)
            and not re.search(r"ffn_gate_inp|_exps\.|conv", name))


def llama_keys(config: Any) -> dict[str, Any]:
    """The keys that all architectures share, of transformers' configuration."""
    keys = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
    }
    keys |= rope_keys(getattr(config, "rope_parameters", None) or {})
    if getattr(config, "rms_norm_eps", None):
        keys["attention.layer_norm_rms_epsilon"] = float(config.rms_norm_eps)
    if getattr(config, "layer_norm_eps", None):
        keys["attention.layer_norm_epsilon"] = float(config.layer_norm_eps)
    if getattr(config, "head_dim", None):
        keys |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    return keys


def rope_keys(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Of transformers' rope_parameters, which may tell full and sliding attention apart."""
    full, sliding = parameters.get("full_attention", parameters), parameters.get("sliding_attention", {})
    keys: dict[str, Any] = {}
    if "rope_theta" in full:
        keys["rope.freq_base"] = float(full["rope_theta"])
    if "rope_theta" in sliding:
        keys["rope.freq_base_swa"] = float(sliding["rope_theta"])
    if full.get("rope_type") in ("linear", "yarn"):
        keys |= {"rope.scaling.type": full["rope_type"], "rope.scaling.factor": float(full["factor"])}
    if full.get("rope_type") == "yarn":
        keys["rope.scaling.original_context_length"] = full["original_max_position_embeddings"]
    return keys


def write(path: Path, keys: Mapping[str, Any], more: list[tuple[str, Any, Any]], tensors: Tensors) -> Path:
    """Writes a GGUF file, all its tensors in F32; the types of the keys are those of their values in Python."""
    def to_write(name: str, values: np.ndarray) -> TensorToWrite:
        data = np.ascontiguousarray(values, np.float32)
        return TensorToWrite(name, GGMLType.F32, data.shape, data)

    write_gguf(path, [(key, value_type(value), value) for key, value in keys.items()] + more,
               [to_write(name, values) for name, values in tensors.items()])
    return path


def value_type(value: Any) -> Any:
    if isinstance(value, list):
        return GGUFValueType.ARRAY, value_type(value[0])
    return {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, float: GGUFValueType.FLOAT32,
            str: GGUFValueType.STRING}[type(value)]
