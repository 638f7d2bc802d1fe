"""Recognises by its content which of the files that surround a model a path leads to."""
from __future__ import annotations

import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from ..errors import FormatError, LoraFastError
from .reader import GGUFFile

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
GGLA_MAGIC = b"algg"


class FileKind(Enum):
    """What a file is; the value completes the sentence "this is ..."."""

    MODEL = "a base model"
    CHECKPOINT = "a training checkpoint"
    GGUF_ADAPTER = "a GGUF adapter"
    GGLA = "a legacy ggla adapter"
    PEFT = "a PEFT adapter"


def file_kind(path: str | os.PathLike) -> FileKind:
    """The kind of the file or folder at `path`. Raises FormatError where it is none of these, LoraFastError where it
    cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        if (path / PEFT_CONFIG).exists():
            return FileKind.PEFT
        raise FormatError(f"{path}: is a folder without {PEFT_CONFIG}, so not a PEFT adapter")
    if path.name in (PEFT_CONFIG, PEFT_WEIGHTS):
        return FileKind.PEFT
    try:
        with open(path, "rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LoraFastError(f"cannot read {path}: {error.strerror or error}") from error
    if magic == GGLA_MAGIC:
        return FileKind.GGLA
    if magic == b"lcgg":
        raise FormatError(f"{path}: is a ggcl checkpoint from before GGUF; convert it with "
                          "convert-finetune-checkpoint-to-gguf.py of llama.cpp before July 2024")
    if magic != b"GGUF":
        raise FormatError(f"{path}: is neither a checkpoint nor an adapter: it begins with {magic!r}")
    return gguf_kind(GGUFFile(path).metadata)


def is_data(path: str | os.PathLike) -> bool:
    """Whether the file or folder exists and is, by its beginning, none of these kinds: training data, if anything."""
    path = Path(path)
    if path.is_dir():
        return not (path / PEFT_CONFIG).exists()
    if not path.exists() or path.name in (PEFT_CONFIG, PEFT_WEIGHTS):
        return False
    with open(path, "rb") as file:
        return file.read(4) not in (b"GGUF", GGLA_MAGIC, b"lcgg")


def gguf_kind(metadata: Mapping[str, Any]) -> FileKind:
    """The kind of a GGUF file by its metadata."""
    if metadata.get("general.type") == "adapter" or "adapter.type" in metadata:
        return FileKind.GGUF_ADAPTER
    if any(key.startswith("training.") for key in metadata):
        return FileKind.CHECKPOINT
    return FileKind.MODEL
