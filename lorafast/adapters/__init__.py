"""Adapter files: one module a format, one form in memory (`AdapterFile`)."""
from __future__ import annotations

import os

from ..errors import FormatError
from ..gguf.file_form import FileForm
from ..gguf.recognise import form_of_file
from .adapter_file import AdapterFile, BaseModel
from .checkpoint import read_checkpoint
from .ggla import read_ggla, write_ggla
from .gguf import read_gguf_adapter, write_gguf_adapter
from .mlx import read_mlx
from .peft import read_peft, write_peft

__all__ = ["AdapterFile", "BaseModel", "read_adapter", "write_adapter"]


def read_adapter(path: str | os.PathLike, base: BaseModel | None = None) -> AdapterFile:
    """The adapter at `path`: a ggla file, a GGUF adapter, a checkpoint, or a folder of PEFT or mlx-lm, recognised by
    its content.

    base  the model it will be used with; adapters of PEFT and mlx-lm for q or k need it

    Raises FormatError for a broken file or one of another kind, LoraFastError for one that cannot be read.
    """
    kind = form_of_file(path)
    if kind is FileForm.MODEL:
        raise FormatError(f"{path}: is {kind.phrase}, not an adapter; pass it to --model-base")
    if kind is FileForm.CHECKPOINT:
        checkpoint = read_checkpoint(path)
        return AdapterFile(checkpoint.pairs, checkpoint.alpha, checkpoint.r, magnitudes=checkpoint.magnitudes)
    if kind is FileForm.GGLA:
        return read_ggla(path)
    if kind is FileForm.GGUF:
        return read_gguf_adapter(path)
    if kind is FileForm.MLX:
        return read_mlx(path, base)
    return read_peft(path, base)


def write_adapter(form: FileForm, path: str | os.PathLike, adapter: AdapterFile, base: BaseModel) -> None:
    """Writes the adapter atomically in the given form. LoraFastError for what the form cannot carry."""
    if form is FileForm.GGLA:
        write_ggla(path, adapter)
    elif form is FileForm.GGUF:
        write_gguf_adapter(path, adapter, base)
    else:
        write_peft(path, adapter, base)
