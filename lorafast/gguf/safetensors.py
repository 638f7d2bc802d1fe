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

import numpy as np

from ..errors import FormatError, LoraFastError
from .quants import dequantize
from .types import GGMLType

FLOAT_TYPES = {"F32": GGMLType.F32, "F16": GGMLType.F16, "BF16": GGMLType.BF16}


def write_safetensors(path: str | os.PathLike, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes float32 tensors. Not atomic: it is called for a file in a folder that `atomic_dir` will put in place."""
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}     # "pt": for use with PyTorch
    end = 0
    for name, values in tensors.items():
        begin, end = end, end + values.nbytes
        header[name] = {"dtype": "F32", "shape": list(values.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values, np.float32))


def read_safetensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The tensors of a file in float32: views of the mapped file for F32, copies for F16 and BF16.

    Raises FormatError for a broken file or another type, LoraFastError for a file that cannot be read.
    """
    path = Path(path)
    try:
        data = np.memmap(path, np.uint8, "r")
    except (OSError, ValueError) as error:      # ValueError: an empty file
        raise LoraFastError(f"cannot read {path}: {error}") from error
    length = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else len(data)
    start = 8 + length
    if start > len(data):
        raise FormatError(f"{path}: its header would reach to byte {start}, but the file has {len(data)}; "
                          "it is broken or incomplete")
    try:
        header = json.loads(bytes(data[8:start]))
        infos = {name: (info["dtype"], tuple(info["shape"]), *info["data_offsets"])
                 for name, info in header.items() if name != "__metadata__"}
        for _, shape, begin, end in infos.values():
            if any(type(n) is not int or n < 0 for n in (*shape, begin, end)):
                raise ValueError(f"shape {shape} at bytes {begin} to {end}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path}: its header is no safetensors header ({error}); it is broken") from error
    return {name: _values(path, name, data[start:], *info) for name, info in infos.items()}


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
