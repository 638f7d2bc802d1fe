"""Recognises by its content which of the forms around a model a file or folder has."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import FormatError, LoraFastError
from .file_form import FileForm
from .reader import GGUFFile, how_to_convert

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
MLX_WEIGHTS = "adapters.safetensors"
GGLA_MAGIC = b"algg"


def form_of_file(path: str | os.PathLike) -> FileForm:
    """The form of the file or folder at `path`, by its content. Raises FormatError where it has none of these,
    LoraFastError where it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _form_of_folder(path)
    if path.name in (PEFT_CONFIG, PEFT_WEIGHTS, MLX_WEIGHTS):
        return _form_of_folder(path.parent)
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LoraFastError(f"cannot read {path}: {error.strerror or error}") from error
    if magic == GGLA_MAGIC:
        return FileForm.GGLA
    if magic == b"lcgg":
        raise FormatError(f"{path}: is a ggcl checkpoint from before GGUF; convert it with "
                          "convert-finetune-checkpoint-to-gguf.py of llama.cpp before July 2024")
    if path.suffix == ".safetensors":
        raise FormatError(f"{path}: is a safetensors file by itself; an adapter is a folder with {PEFT_CONFIG} and "
                          f"{PEFT_WEIGHTS} (PEFT) or {MLX_WEIGHTS} (mlx-lm)")
    if magic != b"GGUF":
        raise FormatError(f"{path}: is neither a checkpoint nor an adapter: it begins with {magic!r}")
    return form_of_gguf(GGUFFile(path).metadata)


def _form_of_folder(folder: Path) -> FileForm:
    if not (folder / PEFT_CONFIG).exists():
        if (folder / "config.json").exists():
            raise FormatError(f"{folder}: is a folder without {PEFT_CONFIG}, so not a PEFT adapter: its config.json is "
                              f"a model's. " + how_to_convert(folder))
        raise FormatError(f"{folder}: is a folder without {PEFT_CONFIG}, so not a PEFT adapter")
    return FileForm.MLX if (folder / MLX_WEIGHTS).exists() and not (folder / PEFT_WEIGHTS).exists() else FileForm.PEFT


def is_data(path: str | os.PathLike) -> bool:
    """Whether the file or folder exists and has, by its beginning, none of these forms: training data, if anything."""
    path = Path(path)
    if path.is_dir():
        return not (path / PEFT_CONFIG).exists()
    if not path.exists() or path.name in (PEFT_CONFIG, PEFT_WEIGHTS, MLX_WEIGHTS):
        return False
    with open(path, "rb") as file:
        return file.read(4) not in (b"GGUF", GGLA_MAGIC, b"lcgg")


def form_of_gguf(metadata: Mapping[str, Any]) -> FileForm:
    """The form of a GGUF file by its metadata."""
    if metadata.get("general.type") == "adapter" or "adapter.type" in metadata:
        return FileForm.GGUF
    if any(key.startswith("training.") for key in metadata):
        return FileForm.CHECKPOINT
    return FileForm.MODEL
