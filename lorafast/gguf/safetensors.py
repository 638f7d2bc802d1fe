"""The safetensors format, as far as an adapter needs it.

    u64 length of the header, the header (JSON, padded with spaces to a multiple of 8), the tensors' raw data

The header gives `dtype`, `shape` and `data_offsets` (begin and end, counted from the end of the header) by name. That
is all there is, so a reader and writer of our own spares every user a dependency.

Source: huggingface/safetensors, "Format".
"""
from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, LoraFastError
from . import checksum
from .quants import dequantize
from .types import GGMLType

FLOAT_TYPES = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}
BLANK = "0" * 8
"""Stands for the checksum while it is not known."""


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray],
                      metadata: Mapping[str, str] | None = None) -> None:
    """Writes float32 tensors, with a checksum (checksum.py) and what else the header's `__metadata__` is to say. Not
    atomic: it is called for a file in a folder that `atomic_dir` will put in place.
    """
    # "pt": PyTorch
    header: dict[str, dict] = {"__metadata__": {checksum.KEY: BLANK, "format": "pt", **(metadata or {})}}
    end = 0
    for name, values in tensors.items():
        begin, end = end, end + values.nbytes
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    begin, end = _blank(encoded)
    summed = encoded[:begin] + bytes(end - begin) + encoded[end:]
    with open(path, "wb") as file, checksum.SummedFile(file) as summing:
        summing.write(struct.pack("<Q", len(encoded)) + summed)
        for values in tensors.values():
            summing.write(np.ascontiguousarray(values, np.float32))
        file.seek(8 + begin)
        file.write(f"{summing.crc32():08x}".encode())


def _blank(header: bytes) -> tuple[int, int]:
    """Where the eight hexadecimal digits of the checksum stand in a header that has one."""
    begin = header.index(f'"{checksum.KEY}":"'.encode()) + len(checksum.KEY) + 4
    return begin, begin + len(BLANK)


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file in float32: views of the mapped file for F32, copies for F16 and BF16.

    Raises FormatError for a broken file or another type, LoraFastError for a file that cannot be read.
    """
    path = Path(path)
    data, header, start = _open(path)
    try:
        infos = {name: (info["dtype"], tuple(info["shape"]), *info["data_offsets"])
                 for name, info in header.items() if name != "__metadata__"}
        for dtype, shape, begin, end in infos.values():
            if not isinstance(dtype, str) or any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
                raise ValueError(f"shape {shape} at bytes {begin} to {end}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path}: its header is not a safetensors header ({error}); it is broken") from error
    _refuse_damage(path, data, header, start)
    return {name: _values(path, name, data[start:], *info) for name, info in infos.items()}


def read_safetensors_metadata(path: str | os.PathLike) -> dict[str, str]:
    """What the header's `__metadata__` says; errors as in `read_safetensors`."""
    said = _open(Path(path))[1].get("__metadata__")
    return said if isinstance(said, dict) else {}


def _open(path: Path) -> tuple[np.ndarray, dict[str, Any], int]:
    """The mapped file, its header, and where the data begins."""
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:      # ValueError: an empty file
        raise LoraFastError(f"cannot read {path}: {error}") from error
    length = struct.unpack_from("<Q", data.data)[0] if len(data) >= 8 else len(data)
    start = 8 + length
    if start > len(data):
        raise FormatError(f"{path}: its header would reach to byte {start}, but the file has {len(data)}; "
                          "it is broken or incomplete")
    try:
        header = json.loads(bytes(data[8:start]))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: its header is not a safetensors header ({error}); it is broken") from error
    if not isinstance(header, dict):
        raise FormatError(f"{path}: its header is not a safetensors header; it is broken")
    return data, header, start


def _refuse_damage(path: Path, data: np.ndarray, header: Mapping[str, Any], start: int) -> None:
    said = header.get("__metadata__")
    stored = said.get(checksum.KEY) if isinstance(said, dict) else None
    if stored is None:
        return
    try:
        begin, end = _blank(bytes(data[8:start]))
        stored = int(stored, 16)
    except (ValueError, TypeError):     # another program has written the header anew, and its own way
        return
    checksum.refuse_damage(path, data, (8 + begin, 8 + end), stored)


def _values(path: Path, name: str, data: np.ndarray, dtype: str, shape: tuple[int, ...], begin: int,
            end: int) -> np.ndarray:
    if dtype not in FLOAT_TYPES:
        raise FormatError(f"{path}: tensor {name!r} is of type {dtype!r}, but only {', '.join(FLOAT_TYPES)} are read")
    type = FLOAT_TYPES[dtype]
    if not (begin <= end <= len(data) and end - begin == prod(shape) * type.type_size):
        raise FormatError(f"{path}: tensor {name!r} of shape {shape} lies at bytes {begin} to {end} of {len(data)}; "
                          "the file is broken or incomplete")
    stored = data[begin:end].view(np.ndarray)
    if type is GGMLType.F32 and stored.ctypes.data % 4 == 0:
        return stored.view(np.float32).reshape(shape)
    return dequantize(stored.reshape(1, -1), type).reshape(shape)
