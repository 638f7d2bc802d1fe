"""Writes GGUF files: complete or not at all (atomic.py), tensors streamed so that none has to fit in memory.

The bytes are those of llama.cpp's own writer for the same keys and tensors in the same order: no key is added,
gaps are zeros, and every tensor's data, the last included, is padded to the alignment.
"""
from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

import numpy as np

from ..system.atomic import atomic_write
from . import checksum
from .reader import DEFAULT_ALIGNMENT, SCALAR_DTYPES
from .strings import Strings
from .types import GGMLType, GGUFValueType

ValueType = GGUFValueType | tuple[GGUFValueType, GGUFValueType | None]
"""A value's type, or (ARRAY, type of the elements), or (type, None) as in GGUFFile.value_types."""

_STRUCT_LETTERS: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "B", GGUFValueType.INT8: "b", GGUFValueType.UINT16: "H", GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I", GGUFValueType.INT32: "i", GGUFValueType.FLOAT32: "f", GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q", GGUFValueType.INT64: "q", GGUFValueType.FLOAT64: "d",
}

Chunks = Iterable[bytes | memoryview | np.ndarray]


@dataclass(frozen=True)
class TensorToWrite:
    """A tensor for write_gguf. `shape` is NumPy's order, `(N, K)` for `ne` = `[K, N]`.

    `data`, the bytes as stored: one array of any type and shape with exactly so many bytes (uint8 blocks, float32
    values), or chunks of them that are written as they come, or a function that is called for the chunks in their turn.
    """

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    data: np.ndarray | Chunks | Callable[[], Chunks]

    @property
    def nbytes(self) -> int:
        if self.shape[-1] % self.type.block_size:
            raise ValueError(f"tensor '{self.name}': {self.shape[-1]} values a row are not a multiple of the "
                             f"{self.type.block_size} in a block of {self.type.label}")
        return prod(self.shape[:-1]) * self.type.row_bytes(self.shape[-1])


def write_gguf(path: str | os.PathLike, metadata: Sequence[tuple[str, ValueType, Any]],
               tensors: Sequence[TensorToWrite], alignment: int = DEFAULT_ALIGNMENT, version: int = 3, *,
               summed: bool = False) -> None:
    """Writes `path` atomically: metadata (key, type, value) and tensors in the order given.

    `alignment` is recorded under `general.alignment` where it is not the default and `metadata` lacks the key; where
    the key is given, it decides. summed: with a checksum (checksum.py) as the last key, but not into a pipe, where no
    written byte can be changed. Raises ValueError for a value that does not fit its type or data of a wrong size, and
    LoraFastError for failures of the file system.
    """
    given_alignment = {key: value for key, _, value in metadata}.get("general.alignment")
    if given_alignment is not None:
        alignment = given_alignment
    elif alignment != DEFAULT_ALIGNMENT:
        metadata = [*metadata, ("general.alignment", GGUFValueType.UINT32, alignment)]
    with atomic_write(path) as file:
        if not (summed and file.seekable()):
            _write_contents(file, metadata, tensors, alignment, version)
            return
        metadata = [*metadata, (checksum.KEY, GGUFValueType.UINT32, 0)]
        with checksum.SummedFile(file) as summing:
            _write_contents(summing, metadata, tensors, alignment, version)
            file.seek(len(header(metadata, [], alignment, version)) - 4)
            file.write(struct.pack("<I", summing.crc32()))


def _write_contents(file: BinaryIO | checksum.SummedFile, metadata: Sequence[tuple[str, ValueType, Any]],
                    tensors: Sequence[TensorToWrite], alignment: int, version: int) -> None:
    before = header(metadata, tensors, alignment, version)
    file.write(before)
    file.write(_padding(len(before), alignment))
    for tensor in tensors:
        _write_data(file, tensor)
        file.write(_padding(tensor.nbytes, alignment))


def header(metadata: Sequence[tuple[str, ValueType, Any]], tensors: Sequence[TensorToWrite],
           alignment: int = DEFAULT_ALIGNMENT, version: int = 3) -> bytes:
    """What stands before the tensors' data, as write_gguf has it, without the padding up to `alignment`."""
    parts = [b"GGUF", struct.pack("<IQQ", version, len(tensors), len(metadata))]
    for key, value_type, value in metadata:
        type, element_type = value_type if isinstance(value_type, tuple) else (value_type, None)
        try:
            parts += _string(key), struct.pack("<I", type), _value(type, element_type, value)
        except (struct.error, OverflowError, TypeError) as error:
            raise ValueError(f"metadata '{key}': {value!r:.60} is no {type.label}: {error}") from error
    offset = 0
    for tensor in tensors:
        ne = tensor.shape[::-1]
        parts += _string(tensor.name), struct.pack(f"<I{len(ne)}QIQ", len(ne), *ne, tensor.type, offset)
        offset += tensor.nbytes + len(_padding(tensor.nbytes, alignment))
    return b"".join(parts)


def _string(text: str | bytes) -> bytes:
    encoded = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(encoded)) + encoded


def _value(type: GGUFValueType, element_type: GGUFValueType | None, value: Any) -> bytes:
    if type is GGUFValueType.STRING:
        return _string(value)
    if type is GGUFValueType.ARRAY:
        return _array(element_type, value)
    return struct.pack("<" + _STRUCT_LETTERS[type], value)


def _array(element_type: GGUFValueType | None, values: Any) -> bytes:
    if element_type is None:
        raise TypeError("an array needs the type of its elements")
    head = struct.pack("<IQ", element_type, len(values))
    if element_type is GGUFValueType.STRING:
        return head + b"".join(map(_string, values))
    if element_type is GGUFValueType.ARRAY:
        return head + b"".join(_array(_type_of_elements(inner), inner) for inner in values)
    return head + np.asarray(values, SCALAR_DTYPES[element_type]).tobytes()


def _type_of_elements(values: np.ndarray | Strings | list) -> GGUFValueType:
    """The element type of an inner array as the reader returns it, or with a list of strings."""
    if isinstance(values, np.ndarray):
        return next(type for type, dtype in SCALAR_DTYPES.items() if values.dtype == dtype)
    is_strings = isinstance(values, Strings) or (values and isinstance(values[0], str))
    return GGUFValueType.STRING if is_strings else GGUFValueType.ARRAY


def _write_data(file: BinaryIO | checksum.SummedFile, tensor: TensorToWrite) -> None:
    if isinstance(tensor.data, np.ndarray):
        chunks: Chunks = [tensor.data]
    else:
        chunks = tensor.data() if callable(tensor.data) else tensor.data
    written = 0
    for chunk in chunks:
        stored = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data if isinstance(chunk, np.ndarray) else chunk
        written += file.write(stored)
    if written != tensor.nbytes:
        raise ValueError(f"tensor '{tensor.name}': {written} bytes of data, but its shape {tensor.shape} takes "
                         f"{tensor.nbytes} in {tensor.type.label}")


def _padding(nbytes: int, alignment: int) -> bytes:
    return bytes(-nbytes % alignment)
