"""GGUF adapters, which llama.cpp and everything built on it (llama-cpp-python, Ollama) load today.

`general.type` is `adapter`, `adapter.type` is `lora`, `adapter.lora.alpha` is the only number. Per pair `<base>.lora_a`
(r, n_in) and `<base>.lora_b` (n_out, r), except for the token embedding, where both turn round: lora_a (n_vocab, r),
lora_b (n_embd, r). The runtime computes y = W x + s·B(A x) with s = alpha / r, where r is the pair's own rank, and
s = 1 where alpha is 0 or absent.

Source: llama.cpp, src/llama-adapter.cpp (what is loaded) and convert_lora_to_gguf.py (what is written).
"""
from __future__ import annotations

import os
from typing import Any

import numpy as np

from ..errors import FormatError, LoraFastError
from ..gguf.file_form import FileForm
from ..gguf.reader import GGUFFile, Tensor
from ..gguf.roles import EXPERTS_ARE_FROZEN, is_of_experts, split_name
from ..gguf.types import GGMLType, GGUFValueType
from ..gguf.writer import TensorToWrite, ValueType, write_gguf
from .adapter_file import AdapterFile, BaseModel, fold, refuse_magnitudes, refuse_norms

TOKEN_EMBD = "token_embd.weight"


def write_gguf_adapter(path: str | os.PathLike, adapter: AdapterFile, base: BaseModel) -> None:
    """Writes a GGUF adapter in F32, atomically.

    LoraFastError for what the format cannot carry: pairs of norms, DoRA's magnitudes, and a pair of the token embedding
    on a model whose embedding serves as output matrix too (llama.cpp would load it, then abort at the output product).
    """
    write_gguf(path, *_contents(adapter, base), summed=True)


def _contents(adapter: AdapterFile, base: BaseModel) -> tuple[list[tuple[str, ValueType, Any]], list[TensorToWrite]]:
    refuse_norms(adapter.pairs, "GGUF adapter")
    refuse_magnitudes(adapter, FileForm.GGUF)
    if base.tied and TOKEN_EMBD in adapter.pairs:
        raise LoraFastError("a GGUF adapter cannot carry the pair of token_embd for a model that uses this matrix for "
                            "its output too: llama.cpp aborts; leave it out with --targets, or write a PEFT folder or "
                            "a .bin")
    alpha, _, pairs = adapter.with_runtime_alpha()
    metadata: list[tuple[str, ValueType, Any]] = [
        ("general.type", GGUFValueType.STRING, "adapter"),
        ("general.architecture", GGUFValueType.STRING, base.architecture),
        ("adapter.type", GGUFValueType.STRING, "lora"),
        ("adapter.lora.alpha", GGUFValueType.FLOAT32, alpha),
        ("general.file_type", GGUFValueType.UINT32, 0),
    ]
    if base.name:
        metadata += [
            ("general.name", GGUFValueType.STRING, f"{base.name} LoRA"),
            ("general.base_model.count", GGUFValueType.UINT32, 1),
            ("general.base_model.0.name", GGUFValueType.STRING, base.name),
        ]
    tensors = []
    for name, (a, b) in pairs:
        lora_a, lora_b = (b.T, a.T) if name == TOKEN_EMBD else (a, b.T)
        tensors += [TensorToWrite(f"{name}.lora_a", GGMLType.F32, lora_a.shape, lora_a),
                    TensorToWrite(f"{name}.lora_b", GGMLType.F32, lora_b.shape, lora_b)]
    return metadata, tensors


READ_KEYS = ("adapter.type", "adapter.lora.alpha", "adapter.lora.task_name", "adapter.lora.prompt_prefix")
"""Keys of an adapter that are read, or only describe it. Another one, as that of activation tokens, would change what
it does.
"""


def read_gguf_adapter(path: str | os.PathLike) -> AdapterFile:
    """Reads a GGUF adapter by the rules of llama.cpp's loader. FormatError for what that refuses.

    Where ranks differ, the difference is folded into B, so that alpha / r is the scale of every pair.
    """
    file = GGUFFile(path)
    file.refuse_damage()
    if file.metadata.get("adapter.type") != "lora":
        raise FormatError(f"{path}: is no LoRA adapter: its adapter.type is {file.metadata.get('adapter.type')!r}")
    unread = [key for key in file.metadata if key.startswith("adapter.") and key not in READ_KEYS]
    if unread:
        raise FormatError(f"{path}: has {', '.join(unread)}, which lorafast does not support")
    parts: dict[str, dict[str, np.ndarray]] = {}
    warnings = []
    for name, tensor in file.tensors.items():
        base, _, suffix = name.rpartition(".")
        role = split_name(base)[1]
        if name.endswith("_norm.weight") or role.endswith("norm"):
            warnings.append(f"{path}: {name!r} is left out: what reads a GGUF adapter adapts matrices only")
        elif is_of_experts(base):
            raise FormatError(f"{path}: tensor '{name}': {EXPERTS_ARE_FROZEN}")
        elif suffix not in ("lora_a", "lora_b") or not role or len(tensor.shape) != 2:
            raise FormatError(f"{path}: tensor {name!r} does not belong to an adapter that lorafast knows")
        else:
            parts.setdefault(base, {})[suffix] = _values(tensor)
    pairs = {}
    for base, pair in parts.items():
        if len(pair) != 2:
            raise FormatError(f"{path}: '{base}' has only one of lora_a and lora_b; the file is incomplete")
        lora_a, lora_b = pair["lora_a"], pair["lora_b"]
        a, b = (lora_b.T, lora_a.T) if base == TOKEN_EMBD else (lora_a, lora_b.T)
        if len(a) != len(b):
            raise FormatError(f"{path}: '{base}': lora_a {lora_a.shape} and lora_b {lora_b.shape} have no rank in "
                              "common; was a ggla adapter or checkpoint renamed without transposing?")
        pairs[base] = a, b
    alpha = float(file.get("adapter.lora.alpha", (int, float), 0))
    if alpha == 0 or not pairs:
        return AdapterFile(pairs, metadata=file.metadata, warnings=warnings)
    ranks = [len(a) for a, _ in pairs.values()]
    r = max(ranks, key=ranks.count)
    folded = {name: (a, fold(b, r, len(a))) for name, (a, b) in pairs.items()}
    return AdapterFile(folded, alpha, r, file.metadata, warnings)


def _values(tensor: Tensor) -> np.ndarray:
    """A view of the mapping for F32, a dequantised copy for any other type."""
    if tensor.type is GGMLType.F32:
        return tensor.data.view(np.float32).reshape(tensor.shape)
    return tensor.to_float32()
