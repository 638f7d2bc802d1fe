"""llama-finetune's own adapter files, magic "ggla", usually `.bin`.

    u32 magic 0x67676C61, u32 version 1, u32 r, u32 alpha
    per tensor: u32 n_dims, u32 length of the name, u32 type, u32 ne[n_dims], the name, zeros up to a multiple of 32,
                the data

Per pair `<base>.loraA` with ne [r, n_in] and `<base>.loraB` with ne [r, n_out], the rank fastest; B of a norm has
n_out = 1 and so only one dimension. The file ends with the last tensor's data. Its reader in llama.cpp (until 2024)
added alpha / r · B·A to the weights, with the header's alpha and r for every pair, norms and token embedding included.
"""
from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, LoraFastError
from ..gguf.file_form import FileForm
from ..gguf.roles import split_name
from ..network.lora import Pair
from ..system.atomic import atomic_write
from .adapter_file import AdapterFile, refuse_magnitudes

MAGIC = 0x67676C61
VERSION = 1
ALIGNMENT = 32
MAX_NAME = 63       # ggml's limit
TYPES: dict[int, np.dtype[Any]] = {0: np.dtype("<f4"), 1: np.dtype("<f2")}


def write_ggla(path: str | os.PathLike, adapter: AdapterFile) -> None:
    """Writes a ggla file atomically. LoraFastError for an alpha that is no whole number, and for DoRA's magnitudes: it
    has no place for them.
    """
    refuse_magnitudes(adapter, FileForm.GGLA)
    header, tensors = _layout(adapter)
    with atomic_write(path) as file:
        file.write(header)
        for tensor_header, data in tensors:
            file.write(tensor_header)
            file.write(np.ascontiguousarray(data).data)


def _layout(adapter: AdapterFile) -> tuple[bytes, list[tuple[bytes, np.ndarray]]]:
    """The file's header, and header and data of each tensor in order."""
    r = adapter.r or max(len(a) for a, _ in adapter.pairs.values())
    alpha = r if adapter.alpha is None else adapter.alpha
    if alpha != int(alpha):
        raise LoraFastError(f"a ggla file holds whole numbers as alpha, not {alpha:g}; write a .gguf instead")
    header = struct.pack("<4I", MAGIC, VERSION, r, int(alpha))
    position = len(header)
    tensors = []
    for base, pair in adapter.ordered():
        for suffix, part in zip(("loraA", "loraB"), pair):
            data = part.T                       # (n, r): the rank is the fastest axis
            ne = data.shape[::-1] if len(data) > 1 else data.shape[1:]
            name = f"{base}.{suffix}".encode()
            tensor_header = struct.pack(f"<3I{len(ne)}I", len(ne), len(name), 0, *ne) + name
            tensor_header += bytes(-(position + len(tensor_header)) % ALIGNMENT)
            tensors.append((tensor_header, data))
            position += len(tensor_header) + data.nbytes
    return header, tensors


def read_ggla(path: str | os.PathLike) -> AdapterFile:
    """Reads a ggla file; the arrays are views of the mapped file. FormatError for a broken one."""
    path = Path(path)
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:      # ValueError: an empty file
        raise LoraFastError(f"cannot read {path}: {error}") from error
    magic, version, r, alpha = _unpack(path, data, "<4I", 0)
    if magic != MAGIC:
        raise FormatError(f"{path}: is not a ggla adapter: it begins with {bytes(data[:4])!r}")
    if version != VERSION:
        raise FormatError(f"{path}: ggla version {version}, but only {VERSION} is known (byte 4)")
    if r == 0:
        raise FormatError(f"{path}: the rank in the header is 0 (byte 8); the file is broken")
    parts: dict[str, dict[str, np.ndarray]] = {}
    for position, name, values in _tensors(path, data):
        base, _, suffix = name.rpartition(".")
        if suffix not in ("loraA", "loraB") or not split_name(base)[1]:
            raise FormatError(f"{path}: tensor {name!r} (byte {position}) is not one that lorafast knows")
        parts.setdefault(base, {})[suffix] = values
    return AdapterFile({base: _pair(path, base, pair) for base, pair in parts.items()}, float(alpha), r)


def _tensors(path: Path, data: np.ndarray) -> Iterator[tuple[int, str, np.ndarray]]:
    """Position, name and values (n, r) of each tensor up to the end of the file."""
    position = 16
    while position < len(data):
        start = position
        n_dims, name_length, type = _unpack(path, data, "<3I", position)
        if n_dims not in (1, 2) or type not in TYPES or name_length > MAX_NAME:
            raise FormatError(f"{path}: a tensor with {n_dims} dimensions of type {type} and a name of {name_length} "
                              f"bytes (byte {start}), instead of 1 or 2 dimensions of F32 or F16 and at most "
                              f"{MAX_NAME} bytes; the file is broken")
        ne = _unpack(path, data, f"<{n_dims}I", position + 12)
        position += 12 + 4 * n_dims
        name = bytes(data[position:position + name_length]).decode("utf-8", "backslashreplace")
        position += name_length
        position += -position % ALIGNMENT
        n, r = ne[1] if n_dims == 2 else 1, ne[0]
        end = position + n * r * TYPES[type].itemsize
        if end > len(data) or n * r == 0:
            raise FormatError(f"{path}: tensor {name!r} (byte {start}) reaches to byte {end}, but the file has "
                              f"{len(data)}; it is broken or incomplete")
        values = data[position:end].view(np.ndarray).view(TYPES[type]).reshape(n, r)
        yield start, name, values.astype(np.float32, copy=False)
        position = end


def _pair(path: Path, base: str, parts: dict[str, np.ndarray]) -> Pair:
    if len(parts) != 2:
        missing = "loraB" if "loraA" in parts else "loraA"
        raise FormatError(f"{path}: lacks tensor '{base}.{missing}'; the file is incomplete")
    a, b = parts["loraA"].T, parts["loraB"].T
    if len(a) != len(b):
        raise FormatError(f"{path}: '{base}' has rank {len(a)} in its loraA, {len(b)} in its loraB; the file is broken")
    return a, b


def _unpack(path: Path, data: np.ndarray, fmt: str, position: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(fmt, data.data, position)
    except struct.error:
        raise FormatError(f"{path}: ends at byte {len(data)}, in the middle of a header; it is incomplete") from None
