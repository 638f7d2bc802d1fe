"""By what a model is known again, whatever its file is called and however it is split."""
from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..errors import LoraFastError
from .reader import GGUFFile

SAMPLE = 256
"""Bytes from the middle of each tensor that count."""


def fingerprint(model: GGUFFile) -> str:
    """16 hexadecimal digits of the architecture's values, the tensors' names, types and shapes, and a piece of each.

    Names, chat template and tokenizer are left out: they may be mended without changing what is computed. The pieces
    are read, not mapped, so that the pages do not count as memory of the process.
    LoraFastError when the file cannot be read any more.
    """
    digest = hashlib.blake2b(digest_size=8)
    architecture = str(model.metadata.get("general.architecture", ""))
    for key, value in sorted(model.metadata.items()):
        if key.startswith(f"{architecture}."):
            shown = value.tolist() if isinstance(value, np.ndarray) else value
            digest.update(f"{key} {shown!r}\n".encode("utf-8", "replace"))
    with ExitStack() as stack:
        files: dict[Path, BinaryIO] = {}
        for name, tensor in sorted(model.tensors.items()):
            try:
                if tensor.path not in files:
                    files[tensor.path] = stack.enter_context(open(tensor.path, "rb", buffering=0))
                file = files[tensor.path]
                file.seek(tensor.offset + max(0, tensor.nbytes - SAMPLE) // 2)
                piece = file.read(min(SAMPLE, tensor.nbytes))
            except OSError as error:
                raise LoraFastError(f"cannot read {tensor.path}: {error.strerror}") from None
            digest.update(f"{name} {tensor.type.label} {tensor.shape}\n".encode("utf-8", "replace") + piece)
    return digest.hexdigest()
