"""Adapters of mlx-lm: a folder with `adapter_config.json` and `adapters.safetensors`. They are read, not written.

Per pair `<module>.lora_a` (n_in, r) and `<module>.lora_b` (r, n_out), for the embedding (n_vocab, r) and (r, n_embd);
with DoRA also `<module>.m` (n_out,). y = x·Wᵀ + scale·(x·lora_a)·lora_b, the scale being `lora_parameters.scale`
whatever the rank. Modules have the names of Hugging Face and the rows of q and k its order, as in PEFT's adapters.

Source: ml-explore/mlx-lm, mlx_lm/tuner/lora.py, dora.py, utils.py.
"""
from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, LoraFastError
from ..gguf.recognise import MLX_WEIGHTS, PEFT_CONFIG
from ..gguf.safetensors import read_safetensors
from ..network.lora import Pair, split_name
from .adapter_file import AdapterFile, BaseModel
from .peft import architecture_for, base_tensor
from .row_order import columns_to_gguf, rows_to_gguf

PARTS = ("lora_a", "lora_b", "m")
KINDS = ("lora", "dora")


def read_mlx(path: str | os.PathLike, base: BaseModel | None = None) -> AdapterFile:
    """Reads a folder of mlx-lm, or the one that holds the file at `path`.

    base  the model it will be used with: its architecture and heads are needed to permute q and k

    Raises FormatError for a broken adapter or one that is more than pairs and magnitudes, LoraFastError where q or k
    are adapted without `base`.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    kind, scale = _read_config(folder / PEFT_CONFIG)
    parts: dict[str, dict[str, np.ndarray]] = {}
    for key, values in read_safetensors(folder / MLX_WEIGHTS).items():
        module, _, part = key.rpartition(".")
        name = base_tensor(module, architecture_for(base))
        if name is None or part not in PARTS or values.ndim != (1 if part == "m" else 2):
            raise FormatError(f"{folder}: tensor {key!r} of shape {values.shape} does not belong to an adapter that "
                              "lorafast knows")
        parts.setdefault(name, {})[part] = values
    if not parts:
        raise FormatError(f"{folder}: {MLX_WEIGHTS} holds no pairs")
    pairs = {name: _pair(folder, name, of_name, kind, base) for name, of_name in parts.items()}
    ranks = [len(a) for a, _ in pairs.values()]
    r = max(ranks, key=ranks.count)
    adapter = AdapterFile(pairs, scale * r, r)
    for name, of_name in parts.items():
        if "m" in of_name:
            adapter.magnitudes[name] = rows_to_gguf(of_name["m"], split_name(name)[1], base)
    return adapter


def _pair(folder: Path, name: str, parts: Mapping[str, np.ndarray], kind: str, base: BaseModel | None) -> Pair:
    wanted = {*PARTS[:2], *(["m"] if kind == "dora" else [])}
    if set(parts) != wanted:
        raise FormatError(f"{folder}: '{name}' has {', '.join(sorted(parts))}, but {kind} has "
                          f"{', '.join(sorted(wanted))}; the files do not belong together")
    a, b = parts["lora_a"], parts["lora_b"]
    if a.shape[1] != len(b):
        raise FormatError(f"{folder}: '{name}' has rank {a.shape[1]} in its lora_a, {len(b)} in its lora_b; "
                          "the file is broken")
    role = split_name(name)[1]
    if role == "token_embd":
        return b, a.T
    if role in ("attn_q", "attn_k") and base is None:
        raise LoraFastError(f"{folder}: adapts q or k, whose rows GGUF and Hugging Face order differently; "
                            "name the base model as well")
    return columns_to_gguf(a.T, role, base), rows_to_gguf(b.T, role, base).T


def _read_config(path: Path) -> tuple[str, float]:
    """Kind of the adapter, and its scale. FormatError for what is no adapter."""
    try:
        config: Any = json.loads(path.read_text())
    except OSError as error:
        raise LoraFastError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise FormatError(f"{path}: is no JSON: {error}") from error
    config = config if isinstance(config, dict) else {}
    kind = config.get("fine_tune_type", "lora")
    if kind not in KINDS:
        raise FormatError(f"{path}: fine_tune_type is {kind!r}, which is not an adapter but a changed model; convert "
                          f"the whole model (mlx_lm.fuse, then convert_hf_to_gguf.py of llama.cpp)")
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not 0 < scale < np.inf:
        raise FormatError(f"{path}: lora_parameters.scale is {scale!r}, but should be a number above 0")
    return kind, float(scale)
