"""What llama.cpp's model loader prints about a file, line by line, and facts about it for others who describe it."""
from __future__ import annotations

import itertools
from collections import Counter
from math import prod
from typing import TYPE_CHECKING, Any

from ..gguf.types import FILE_TYPE_NAMES, GGUFValueType

if TYPE_CHECKING:
    from ..gguf.reader import GGUFFile
    from ..network.hparams import HParams
    from ..tokenizer import Tokenizer


def loader_lines(gguf: GGUFFile) -> list[str]:
    """What llama.cpp's model loader prints: every metadata key, and the number of tensors of each type."""
    head = "llama_model_loader: "
    lines = [head + f"loaded meta data with {len(gguf.metadata)} key-value pairs and {len(gguf.tensors)} tensors from "
             f"{gguf.path} (version {version(gguf)})"]
    for i, (key, (kind, item)) in enumerate(gguf.value_types.items()):
        value = gguf.metadata[key]
        type_name = kind.label
        if item is not None:
            type_name = f"arr[{item.label},{len(value)}]"
        lines.append(head + f"- kv {i:3d}: {key:>42} {type_name:<16} = {shorten(show_value(value, kind, item))}")
    for type, n in sorted(Counter(tensor.type for tensor in gguf.tensors.values()).items()):
        lines.append(head + f"- type {type.label:>4}: {n:4d} tensors")
    return lines


def show_value(value: Any, kind: GGUFValueType, item: GGUFValueType | None = None) -> str:
    """A metadata value as text; of an array, no more elements than `shorten` can show."""
    if kind is GGUFValueType.ARRAY and item is not None:
        shown = [show_value(v, item) for v in itertools.islice(value, SHOWN_VALUE)]
        if item is GGUFValueType.STRING:
            shown = ['"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in shown]
        return "[" + ", ".join(shown) + "]"
    if kind is GGUFValueType.BOOL:
        return "true" if value else "false"
    if kind in (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64):
        return f"{value:f}"
    return str(value).replace("\n", "\\n")


SHOWN_VALUE = 40
"""Longest text of a metadata value that is shown in full."""


def shorten(text: str) -> str:
    return text if len(text) <= SHOWN_VALUE else text[:SHOWN_VALUE - 3] + "..."


def version(gguf: GGUFFile) -> str:
    return f"GGUF V{gguf.version}" + (" (latest)" if gguf.version == 3 else "")


def file_type(gguf: GGUFFile) -> str:
    """What most matrices are stored as, by the file's own word."""
    return FILE_TYPE_NAMES.get(gguf.metadata.get("general.file_type", -1), "unknown")


def size_facts(gguf: GGUFFile) -> tuple[str, str]:
    """Number of parameters and bytes of all tensors, each with its unit; after the bytes, bits per weight."""
    n_params = sum(prod(tensor.shape) for tensor in gguf.tensors.values())
    nbytes = sum(tensor.nbytes for tensor in gguf.tensors.values())
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n_params >= unit or letter == "K":
            break
    size = f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.2f} MiB"
    return f"{n_params / unit:.2f} {letter}", f"{size} ({nbytes * 8 / n_params:.2f} BPW)"


def describe_size(gguf: GGUFFile) -> str:
    n_params, size = size_facts(gguf)
    return f"{n_params} parameters in {size}"


def special_tokens(gguf: GGUFFile, tokenizer: Tokenizer) -> list[tuple[str, int, str]]:
    """Name, id and text of those that the vocabulary has."""
    known = (("BOS", tokenizer.bos_id), ("EOS", tokenizer.eos_id), ("UNK", tokenizer.unk_id),
             ("PAD", gguf.metadata.get("tokenizer.ggml.padding_token_id")), ("LF", tokenizer.linefeed_id))
    return [(name, token, tokenizer.token_text(token)) for name, token in known
            if token is not None and 0 <= token < tokenizer.n_vocab]


def meta_lines(gguf: GGUFFile, tokenizer: Tokenizer, hparams: HParams) -> list[str]:
    """The summary of a model that llama.cpp prints. Facts that only other architectures have are zero, as there."""
    n_gqa = hparams.n_head // hparams.n_head_kv
    n_params, size = size_facts(gguf)
    experts = hparams.experts
    finetuned = gguf.metadata.get(f"{hparams.arch}.rope.scaling.finetuned")
    facts: list[tuple[str, object]] = [
        ("format", version(gguf)), ("arch", hparams.arch), ("vocab type", tokenizer.vocab_type),
        ("n_vocab", hparams.n_vocab), ("n_merges", tokenizer.n_merges), ("n_ctx_train", hparams.n_ctx_train),
        ("n_embd", hparams.n_embd), ("n_head", hparams.n_head), ("n_head_kv", hparams.n_head_kv),
        ("n_layer", hparams.n_layer), ("n_rot", hparams.n_rot), ("n_swa", 0),
        ("n_embd_head_k", hparams.n_embd_head_k), ("n_embd_head_v", hparams.n_embd_head_v), ("n_gqa", n_gqa),
        ("n_embd_k_gqa", hparams.n_embd_head_k * hparams.n_head_kv),
        ("n_embd_v_gqa", hparams.n_embd_head_v * hparams.n_head_kv),
        ("f_norm_eps", "0.0e+00"), ("f_norm_rms_eps", f"{hparams.norm_rms_eps:.1e}"), ("f_clamp_kqv", "0.0e+00"),
        ("f_max_alibi_bias", "0.0e+00"), ("f_logit_scale", "0.0e+00"), ("n_ff", hparams.n_ff),
        ("n_expert", experts.E if experts else 0), ("n_expert_used", experts.n_used if experts else 0),
        ("causal attn", 1), ("pooling type", 0), ("rope type", 0),
        ("rope scaling", hparams.rope_scaling_type), ("freq_base_train", f"{hparams.rope_freq_base:.1f}"),
        ("freq_scale_train", f"{hparams.rope_freq_scale:g}"), ("n_ctx_orig_yarn", hparams.n_ctx_train),
        ("rope_finetuned", "unknown" if finetuned is None else "yes" if finetuned else "no"),
        ("ssm_d_conv", 0), ("ssm_d_inner", 0), ("ssm_d_state", 0), ("ssm_dt_rank", 0),
        ("model type", hparams.model_type), ("model ftype", file_type(gguf)),
        ("model params", n_params), ("model size", size), ("general.name", gguf.metadata.get("general.name", "n/a")),
        *((f"{name} token", f"{token} '{text}'") for name, token, text in special_tokens(gguf, tokenizer)),
        ("max token length", tokenizer.max_token_length),
    ]
    return [f"llm_load_print_meta: {name:<16} = {fact}" for name, fact in facts]
