"""PEFT adapters (Hugging Face): a folder with `adapter_config.json` and `adapter_model.safetensors`.

Per pair `<module>.lora_A.weight` (r, n_in) and `<module>.lora_B.weight` (n_out, r); for the embedding
`<module>.lora_embedding_A` (r, n_vocab) and `.lora_embedding_B` (n_embd, r). The scale is alpha / r with the pair's own
rank, or alpha / sqrt(r) with rsLoRA. With DoRA (`use_dora`) each pair has a `<module>.lora_magnitude_vector` (n_out,),
the embedding's (n_embd,).

Some rows and columns lie in another order than in GGUF: see row_order.py.

Source: huggingface/peft, src/peft/tuners/lora and utils/save_and_load.py.
"""
from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, LoraFastError
from ..gguf.recognise import PEFT_CONFIG, PEFT_WEIGHTS
from ..gguf.roles import EXPERTS_ARE_FROZEN, split_name
from ..gguf.safetensors import read_safetensors, read_safetensors_metadata, write_safetensors
from ..network.architectures import Architecture, architecture_of
from ..network.lora import Pair
from ..system.atomic import atomic_dir
from .adapter_file import AdapterFile, BaseModel, fold, refuse_norms
from .patterns import ends_with
from .row_order import columns_to_gguf, columns_to_hf, rows_to_gguf, rows_to_hf
from .whole_matrices import compare_with_base

PREFIX = "base_model.model."
MAGNITUDE = "lora_magnitude_vector"
CONFIG_CHECKSUM = "lorafast.config_crc32"
HARMLESS_INITS = (None, True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights whose first step leaves the base model's weights and output as they are."""

READ_KEYS = ("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
             "init_lora_weights")
KEYS_WITHOUT_EFFECT = (
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    "target_modules",
    "exclude_modules", "lora_dropout", "fan_in_fan_out", "layers_to_transform", "layers_pattern", "megatron_core",
    "loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config",
    "ensure_weight_tying")
"""Keys that say where and how the adapter was trained, but not what its tensors mean."""


def write_peft(path: str | os.PathLike, adapter: AdapterFile, base: BaseModel) -> None:
    """Writes a PEFT folder atomically, in float32. LoraFastError for pairs of norms, which PEFT cannot carry."""
    refuse_norms(adapter.pairs, "PEFT adapter")
    arch = architecture_of(base.architecture)
    alpha, r, pairs = adapter.with_runtime_alpha()
    tensors = {}
    for name, (a, b) in pairs:
        module, role = PREFIX + _module(name, arch), split_name(name)[1]
        if role == "token_embd":
            tensors[f"{module}.lora_embedding_A"] = b
            tensors[f"{module}.lora_embedding_B"] = a.T
        else:
            tensors[f"{module}.lora_A.weight"] = columns_to_hf(a, role, base)
            tensors[f"{module}.lora_B.weight"] = rows_to_hf(b.T, role, base)
        if name in adapter.magnitudes:
            tensors[f"{module}.{MAGNITUDE}"] = rows_to_hf(adapter.magnitudes[name], role, base)
    modules = _shortest_modules(adapter.pairs, base.n_layer, arch)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.source,
        "revision": None,
        "inference_mode": True,
        "r": r,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(set(modules.values())),
        "rank_pattern": {modules[name]: len(a) for name, (a, _) in pairs if len(a) != r},
        "alpha_pattern": {},
        "layers_to_transform": None,
        "layers_pattern": None,
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": bool(adapter.magnitudes),
    }
    with atomic_dir(path) as folder:
        (folder / PEFT_CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        write_safetensors(folder / PEFT_WEIGHTS, tensors, {CONFIG_CHECKSUM: _checksum(config)})


def _checksum(config: Mapping[str, Any]) -> str:
    """A checksum of what the config says about the tensors. The base model's name is no part of it, for people change
    that."""
    said = {key: value for key, value in config.items() if key not in ("base_model_name_or_path", "revision")}
    return f"{zlib.crc32(json.dumps(said, sort_keys=True).encode()):08x}"


def architecture_for(base: BaseModel | None) -> Architecture:
    """The base model's; llama, whose names most models share, without one."""
    return architecture_of(base.architecture if base else "llama")


def _module(name: str, arch: Architecture) -> str:
    """Hugging Face's name of the module that a base tensor is."""
    layer, role = split_name(name)
    return arch.module(role, layer)


def _shortest_modules(pairs: Mapping[str, Pair], n_layer: int, arch: Architecture) -> dict[str, str]:
    """How the config names each module: by its last part where all layers have it with one rank, otherwise in full."""
    ranks: dict[str, list[int]] = {}
    for name, (a, _) in pairs.items():
        ranks.setdefault(split_name(name)[1], []).append(len(a))
    alike = {role for role, of_role in ranks.items() if len(of_role) == n_layer and len(set(of_role)) == 1}
    return {name: arch.module(split_name(name)[1]).rpartition(".")[2] if split_name(name)[1] in alike
            else _module(name, arch) for name in pairs}


def read_peft(path: str | os.PathLike, base: BaseModel | None = None) -> AdapterFile:
    """Reads a PEFT folder, or the one that holds the file at `path`.

    base  the model it will be used with: its architecture and heads are needed to permute q and k

    Where scales differ, the difference is folded into B. Raises FormatError for a broken adapter or one that plain
    pairs and magnitudes cannot express (trained biases, whole modules), LoraFastError where q or k are adapted without
    `base`.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    config = _read_config(folder / PEFT_CONFIG)
    if not (folder / PEFT_WEIGHTS).exists():
        raise LoraFastError(f"{folder}: lacks {PEFT_WEIGHTS}; save the adapter with peft's save_pretrained")
    arch = architecture_for(base)
    parts: dict[str, dict[str, np.ndarray]] = {}
    magnitudes: dict[str, np.ndarray] = {}
    warnings = []
    for key, values in read_safetensors(folder / PEFT_WEIGHTS).items():
        if re.search(r"(^|\.)(embed_tokens|lm_head)(\.base_layer)?\.weight$", key):
            module = key.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".base_layer")
            warnings.append(compare_with_base(folder, key, base_tensor(module, arch), values, base))
            continue
        module, _, part = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
        name = base_tensor(module, arch)
        if name is not None and part == MAGNITUDE and values.ndim == 1:
            magnitudes[name] = values
            continue
        if name is None or not part.startswith("lora_") or values.ndim != 2:
            raise FormatError(f"{folder}: tensor {key!r} of shape {values.shape} does not belong to an adapter that "
                              "lorafast knows")
        parts.setdefault(name, {})[part] = values
    pairs = {name: _pair(folder, name, pair, base) for name, pair in parts.items()}
    if not pairs:
        raise FormatError(f"{folder}: {PEFT_WEIGHTS} holds no pairs")
    adapter = _with_one_scale(folder, config, pairs, arch)
    adapter.magnitudes = _magnitudes(folder, config, pairs, magnitudes, base)
    stored = read_safetensors_metadata(folder / PEFT_WEIGHTS).get(CONFIG_CHECKSUM)
    if stored is not None and stored != _checksum(config):
        warnings.append(f"{folder / PEFT_CONFIG}: was changed, or damaged, since it was written with these weights")
    adapter.warnings = warnings
    return adapter


def base_tensor(module: str, arch: Architecture) -> str | None:
    """The base tensor's name in GGUF for a PEFT module; None for one that is not known."""
    match = re.fullmatch(r"(?:model\.(?:language_model\.)?)?(?:layers\.([0-9]{1,9})\.)?(.+)", module)
    role = arch.role_of_module(match[2]) if match else None
    if match is None or role is None:
        return None
    name = f"blk.{match[1]}.{role}.weight" if match[1] else f"{role}.weight"
    return name if split_name(name)[1] else None


def _pair(folder: Path, name: str, parts: dict[str, np.ndarray], base: BaseModel | None) -> Pair:
    role = split_name(name)[1]
    if set(parts) == {"lora_A", "lora_B"}:
        a, rows = parts["lora_A"], parts["lora_B"]
        if role in ("attn_q", "attn_k") and base is None:
            raise LoraFastError(f"{folder}: adapts q or k, whose rows GGUF and Hugging Face order differently; "
                                "name the base model as well")
        a, b = columns_to_gguf(a, role, base), rows_to_gguf(rows, role, base).T
    elif set(parts) == {"lora_embedding_A", "lora_embedding_B"}:
        a, b = parts["lora_embedding_B"].T, parts["lora_embedding_A"]
    else:
        raise FormatError(f"{folder}: '{name}' has {', '.join(sorted(parts))}, but a pair is lora_A and lora_B")
    if len(a) != len(b):
        raise FormatError(f"{folder}: '{name}' has rank {len(a)} in its A, {len(b)} in its B; the file is broken")
    return a, b


def _magnitudes(folder: Path, config: Mapping[str, Any], pairs: Mapping[str, Pair], stored: Mapping[str, np.ndarray],
                base: BaseModel | None) -> dict[str, np.ndarray]:
    """DoRA's, in GGUF's order of rows: of all pairs or of none, as the config says."""
    arch, dora = architecture_for(base), bool(config.get("use_dora"))
    for name in pairs.keys() | stored.keys():
        if name not in pairs:
            raise FormatError(f"{folder}: '{_module(name, arch)}' has magnitudes, but no pair")
        if (name in stored) != dora:
            has, says = ("lacks", "uses") if dora else ("has", "does not use")
            raise FormatError(f"{folder}: '{_module(name, arch)}' {has} magnitudes, but {PEFT_CONFIG} {says} DoRA; "
                              "the files do not belong together")
    return {name: rows_to_gguf(stored[name], split_name(name)[1], base) for name in pairs if dora}


def _with_one_scale(folder: Path, config: Mapping[str, Any], pairs: dict[str, Pair], arch: Architecture) -> AdapterFile:
    """The pairs with alpha / r as the scale of all: a pair's own scale, where it differs, is folded into its B."""
    alpha, r = float(config["lora_alpha"]), config["r"]
    if config.get("use_rslora"):
        alpha *= math.sqrt(r)
    folded = {}
    for name, (a, b) in pairs.items():
        module, rank = _module(name, arch), len(a)
        expected = _pattern_value(folder, config, "rank_pattern", module, r)
        if rank != expected:
            raise FormatError(f"{folder}: '{module}' has rank {rank}, but {expected} by {PEFT_CONFIG}; "
                              "the files do not belong together")
        own_alpha = _pattern_value(folder, config, "alpha_pattern", module, config["lora_alpha"])
        scale = own_alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        folded[name] = a, fold(b, scale * r, alpha)
    return AdapterFile(folded, alpha, r, dict(config))


def _pattern_value(folder: Path, config: Mapping[str, Any], table: str, module: str, default: Any) -> Any:
    """The value of the first key in that table that is a regular expression for the end of the module's name."""
    for key, value in (config.get(table) or {}).items():
        try:
            if ends_with(key, module):
                return value
        except ValueError as error:
            raise FormatError(f"{folder}: {table} of {PEFT_CONFIG} has the pattern {key!r:.60}, which lorafast does "
                              f"not run: {error}; name the modules in full") from None
    return default


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise LoraFastError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is no JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise FormatError(f"{path}: describes no LoRA adapter (peft_type is not LORA)")
    for key, kind in (("r", int), ("lora_alpha", (int, float))):
        if not _is_positive(config.get(key), kind):
            raise FormatError(f"{path}: {key} is {config.get(key)!r:.40}, but should be a number above 0")
    for key in ("rank_pattern", "alpha_pattern"):
        table = config.get(key) or {}
        if not isinstance(table, dict) or not all(_is_positive(value, (int, float)) for value in table.values()):
            raise FormatError(f"{path}: {key} is {table!r:.40}, but should be a table of numbers above 0")
    if config.get("bias", "none") != "none":
        raise FormatError(f"{path}: trained biases (bias is '{config['bias']}'), which lorafast does not support")
    if config.get("target_parameters"):
        raise FormatError(f"{path}: target_parameters {config['target_parameters']!r:.60}: {EXPERTS_ARE_FROZEN}")
    unread = [key for key in config if config[key] and key not in (*READ_KEYS, *KEYS_WITHOUT_EFFECT, "bias")]
    if unread:
        raise FormatError(f"{path}: uses {', '.join(unread)}, which lorafast does not support; merge the adapter with "
                          f"peft (merge_and_unload) and convert the whole model")
    init = config.get("init_lora_weights")
    if init not in HARMLESS_INITS:
        raise FormatError(f"{path}: was initialised with {init!r}, which changes the base model; "
                          "convert it with peft's path_initial_model_for_weight_conversion")
    return config


def _is_positive(value: Any, kind: type[int] | tuple[type[int], type[float]]) -> bool:
    """A number of that kind above 0, and within what a float32 holds."""
    return isinstance(value, kind) and not isinstance(value, bool) and bool(0 < value < 1e38)
