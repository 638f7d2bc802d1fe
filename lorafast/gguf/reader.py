"""Reads GGUF files (versions 2 and 3, little-endian) through a read-only memory mapping: no tensor is ever copied.

A file is: header, metadata (typed key-value pairs), tensor infos, padding to the alignment, tensor data.
Nothing in it is trusted: each count, length and offset is checked against the file's size before it is used, so that a
broken file is a FormatError of one line, with the byte offset or the name of the key or tensor.
Source: the GGUF specification (docs/gguf.md of ggml).
"""
from __future__ import annotations

import mmap
import os
import re
import stat
import struct
from array import array
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import FormatError, LoraFastError
from ..system.hub import local_path
from ..system.mounts import file_system
from . import checksum
from .quants import dequantize
from .strings import Strings
from .types import GGMLType, GGUFValueType

DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_ARRAY_DEPTH = 4      # arrays of arrays are allowed by the format; deeper ones than this only in hostile files

SCALAR_DTYPES: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<u1", GGUFValueType.INT8: "<i1", GGUFValueType.UINT16: "<u2", GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4", GGUFValueType.INT32: "<i4", GGUFValueType.FLOAT32: "<f4", GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8", GGUFValueType.INT64: "<i8", GGUFValueType.FLOAT64: "<f8",
}
"""NumPy's name for each fixed-size value type. The remaining two are STRING and ARRAY."""

KIND_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "a bool", list: "a list",
              np.ndarray: "an array of numbers"}
"""What a value of that Python type is called in messages."""

KNOWN_TYPES: dict[str, type] = {
    **dict.fromkeys(("general.architecture", "general.type", "general.name", "general.repo_url", "adapter.type",
                     "training.type", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template"), str),
    **dict.fromkeys(("general.file_type", "split.no", "split.count", "split.tensors.count"), int),
    **dict.fromkeys(("tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_space_prefix"),
                    bool),
}
"""Keys that are read in many places, and what each must hold where it is there: checked once, when a file is opened."""

_OTHER_FILES: dict[bytes, str] = {
    b"algg": "a legacy LoRA adapter (ggla) and not a model",
    b"lmgg": "a ggml file from before GGUF; convert the model again with a current llama.cpp",
    b"fmgg": "a ggml file from before GGUF; convert the model again with a current llama.cpp",
    b"tjgg": "a ggml file from before GGUF; convert the model again with a current llama.cpp",
    b"PK\x03\x04": "a zip or PyTorch file; convert the model to GGUF with llama.cpp's convert_hf_to_gguf.py",
    b"vers": "probably a Git LFS pointer; fetch the real file with `git lfs pull`",
}


MAPPED_AROUND = 2 << 20
"""Bytes on each side of a part of a file that reading it may map: the system caches and maps pieces of up to this."""


@dataclass(frozen=True)
class Tensor:
    """One tensor of a mapped file. `shape` is NumPy's order, `(N, K)` for a weight whose GGUF `ne` is `[K, N]`."""

    name: str
    type: GGMLType
    shape: tuple[int, ...]
    offset: int                     # absolute, in bytes
    nbytes: int
    path: Path                      # of the part, where a model is split over several files
    mapping: mmap.mmap = field(repr=False)

    @property
    def data(self) -> np.ndarray:
        """The tensor as stored: a read-only uint8 view of the mapping, (rows, bytes per row); (1, bytes) for 1-D."""
        stored = np.frombuffer(self.mapping, np.uint8, self.nbytes, self.offset)
        return stored.reshape(prod(self.shape[:-1]), -1)

    def rows(self, begin: int, end: int) -> Tensor:
        """Some rows of a matrix, as a tensor of the same name."""
        row_bytes = self.nbytes // self.shape[0]
        return replace(self, shape=(end - begin, *self.shape[1:]), offset=self.offset + begin * row_bytes,
                       nbytes=(end - begin) * row_bytes)

    def to_float32(self) -> np.ndarray:
        """A dequantised float32 copy, for small tensors. Raises FormatError for an untrainable type."""
        if not self.type.is_trainable:
            raise FormatError(f"{self.path}: tensor '{self.name}' has type {self.type.label}, which lorafast cannot "
                              "compute with; use a model in F16, Q8_0 or a K-quant")
        values = dequantize(self.data, self.type).reshape(self.shape)
        self._unmap_around()
        return values

    def _unmap_around(self) -> None:
        """Takes pages that reading the tensor has mapped out of this process again; those in use come back."""
        if hasattr(mmap, "MADV_DONTNEED"):
            begin = max(0, self.offset - MAPPED_AROUND) // mmap.PAGESIZE * mmap.PAGESIZE
            end = min(len(self.mapping), self.offset + self.nbytes + MAPPED_AROUND)
            self.mapping.madvise(mmap.MADV_DONTNEED, begin, end - begin)


class GGUFFile:
    """A mapped GGUF file.

    path       as given
    mapping    the whole file
    mappings   by path, of all files that `open_model` merged
    version    2 or 3
    alignment  of the tensor data, bytes
    nbytes     size of the file (of all parts, if `open_model` merged several)
    metadata   values by key, in file order: int, float, bool, str (undecodable bytes as surrogate escapes),
               ndarray for arrays of numbers and bools, Strings for arrays of strings, list for arrays of arrays
    value_types  (type, element type or None) by key, in file order
    tensors    by name, in file order

    Raises FormatError for a broken file and LoraFastError for one that cannot be opened.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.mapping = _map(self.path)
        self.mappings = {self.path: self.mapping}
        self.nbytes = len(self.mapping)
        self.metadata: dict[str, Any] = {}
        self.value_types: dict[str, tuple[GGUFValueType, GGUFValueType | None]] = {}
        self.tensors: dict[str, Tensor] = {}
        self._checksum_end = 0
        cursor = _Cursor(self.path, self.mapping)
        self.version = _read_version(cursor)
        n_tensors, n_values = cursor.read("<QQ", "the counts of tensors and metadata values")
        for index in range(cursor.checked_count(n_values, 8 + 4 + 1, "metadata values")):
            self._read_value(cursor, index)
        for key, known in KNOWN_TYPES.items():
            self.get(key, known)
        self.alignment = self._read_alignment()
        n_tensors = cursor.checked_count(n_tensors, 8 + 4 + 8 + 4 + 8, "tensors")
        infos = [_read_tensor_info(cursor) for _ in range(n_tensors)]
        data_start = -(-cursor.position // self.alignment) * self.alignment
        for name, type, shape, relative_offset, position in infos:
            self._add_tensor(name, type, shape, data_start, relative_offset, position)
        self._refuse_overlaps()

    def _read_value(self, cursor: _Cursor, index: int) -> None:
        at = cursor.position
        key = cursor.read_string(f"the key of metadata value {index}")
        if key in self.metadata:
            raise cursor.error(f"the metadata key '{key}' occurs twice", at)
        what = f"the value of '{key}'"
        type = cursor.read_value_type(what)
        element_type = cursor.peek_value_type(what) if type is GGUFValueType.ARRAY else None
        self.value_types[key] = (type, element_type)
        self.metadata[key] = cursor.read_value(type, what)
        if key == checksum.KEY:
            self._checksum_end = cursor.position

    def refuse_damage(self) -> None:
        """FormatError if the file holds a checksum and is not what was written. Reads all of it."""
        if checksum.KEY in self.metadata:
            stored = self.get(checksum.KEY, int)
            checksum.refuse_damage(self.path, self.mapping, (self._checksum_end - 4, self._checksum_end), stored)

    def get(self, key: str, type: type | tuple[type, ...], default: Any = None) -> Any:
        """The value of `key`, `default` where there is none. FormatError, naming the key, for a value of another
        type."""
        value = self.metadata.get(key, default)
        if value is default:
            return value
        if not isinstance(value, type) or (isinstance(value, bool) and type is not bool):
            wanted = " or ".join(KIND_NAMES[each] for each in (type if isinstance(type, tuple) else (type,)))
            raise FormatError(f"{self.path}: {key} is {repr(value)[:40]}, but should be {wanted}; the file is broken")
        return value

    def _read_alignment(self) -> int:
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        is_power_of_2 = isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0
        if not is_power_of_2 or alignment is True:
            raise FormatError(f"{self.path}: 'general.alignment' is {alignment!r}, but must be a power of two; "
                              "the file is broken")
        return alignment

    def _add_tensor(self, name: str, type: GGMLType, shape: tuple[int, ...], data_start: int, relative_offset: int,
                    position: int) -> None:
        def error(what: str) -> FormatError:
            return FormatError(f"{self.path}: tensor '{name}' (info at byte {position}) {what}; "
                               "the file is broken or incomplete: fetch it again")

        if name in self.tensors:
            raise error("occurs twice")
        if shape[-1] % type.block_size:
            raise error(f"has rows of {shape[-1]} values, not a multiple of the {type.block_size} in a block of "
                        f"{type.label}")
        nbytes = prod(shape[:-1]) * type.row_bytes(shape[-1])
        if relative_offset % self.alignment:
            raise error(f"begins at byte {relative_offset} of the data, not a multiple of the alignment "
                        f"{self.alignment}")
        offset = data_start + relative_offset
        if offset + nbytes > self.nbytes:
            raise error(f"reaches to byte {offset + nbytes}, but the file has only {self.nbytes} bytes")
        self.tensors[name] = Tensor(name, type, shape, offset, nbytes, self.path, self.mapping)

    def _refuse_overlaps(self) -> None:
        ordered = sorted(self.tensors.values(), key=lambda tensor: tensor.offset)
        for tensor, following in pairwise(ordered):
            if tensor.offset + tensor.nbytes > following.offset:
                raise FormatError(f"{self.path}: tensors '{tensor.name}' and '{following.name}' overlap at byte "
                                  f"{following.offset}; the file is broken: fetch it again")


def open_model(path: str | os.PathLike) -> GGUFFile:
    """The model at `path`. One that llama.cpp's gguf-split divided (`name-00001-of-00003.gguf`) is opened by its first
    part, and has the metadata of that and the tensors of all parts. `hf:org/name[:file]` is fetched from Hugging Face.
    """
    path = local_path(os.fspath(path))
    refuse_folder(path)
    model = GGUFFile(path)
    count = model.metadata.get("split.count", 1)
    if count == 1:
        return model
    match = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})\.gguf", model.path.name)
    if model.metadata.get("split.no") != 0 or match is None or int(match[3]) != count:
        raise FormatError(f"{path}: is a part of a model split into {count} files; "
                          f"name the first, which ends in -00001-of-{count:05}.gguf")
    for number in range(1, count):
        part = GGUFFile(model.path.with_name(f"{match[1]}-{number + 1:05}-of-{match[3]}.gguf"))
        if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (number, count):
            raise FormatError(f"{part.path}: is not part {number + 1} of {count} by its 'split.no' and 'split.count'; "
                              "fetch it again")
        for name, tensor in part.tensors.items():
            if model.tensors.setdefault(name, tensor) is not tensor:
                raise FormatError(f"{part.path}: tensor '{name}' is also in {model.tensors[name].path.name}")
        model.mappings.update(part.mappings)
        model.nbytes += part.nbytes
    expected = model.metadata.get("split.tensors.count", len(model.tensors))
    if len(model.tensors) != expected:
        raise FormatError(f"{path}: its {count} parts hold {len(model.tensors)} tensors, not the {expected} that "
                          "'split.tensors.count' promises; fetch the parts again")
    return model


def refuse_folder(path: str | os.PathLike) -> None:
    """FormatError, with the command that converts it, where `path` is a model in Hugging Face's form, or part of
    one."""
    given = Path(path)
    folder = given.parent if given.suffix == ".safetensors" or given.name == "config.json" else given
    if folder.is_dir() and (folder is not given or (given / "config.json").exists()
                            or any(given.glob("*.safetensors"))):
        raise FormatError(f"{given}: is a model in Hugging Face's form, not a GGUF file. {how_to_convert(folder)}")
    if given.is_dir():
        raise FormatError(f"{given}: is a folder; name the GGUF file of the model")


def how_to_convert(folder: str | os.PathLike) -> str:
    """The command of llama.cpp that makes a GGUF file of a model in Hugging Face's form."""
    return f"Convert it with llama.cpp: python convert_hf_to_gguf.py {folder} --outfile model.gguf"


def _map(path: Path) -> mmap.mmap:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):     # opening a pipe would wait for a writer
            raise LoraFastError(f"cannot read {path}: it is a folder or a device, not a file")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise FormatError(f"{path}: is empty, not a GGUF file")
            try:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except OSError as error:
                raise LoraFastError(f"cannot map {path} into memory: {error.strerror}; its file system "
                                    f"({file_system(path) or 'unknown'}) may not be able to: "
                                    "copy it to another disk") from error
    except OSError as error:
        raise LoraFastError(f"cannot read {path}: {error.strerror or error}") from error


def _read_version(cursor: _Cursor) -> int:
    magic = cursor.mapping[:4]
    if magic != b"GGUF":
        what = _OTHER_FILES.get(magic, f"not a GGUF file; it begins with {magic!r} instead of b'GGUF'")
        raise FormatError(f"{cursor.path}: is {what}")
    cursor.position = 4
    version, = cursor.read("<I", "the version")
    if version & 0xFFFF == 0:
        raise cursor.error("a big-endian GGUF file; convert the model again for a little-endian machine", 4)
    if version not in (2, 3):
        advice = "convert the model again with a current llama.cpp" if version < 2 else "a newer lorafast may read it"
        raise cursor.error(f"GGUF version {version}, but only 2 and 3 are supported; {advice}", 4)
    return version


def _read_tensor_info(cursor: _Cursor) -> tuple[str, GGMLType, tuple[int, ...], int, int]:
    """Name, type, shape, offset within the data section, and the info's own position in the file."""
    position = cursor.position
    name = cursor.read_string("a tensor's name")
    what = f"the info of tensor '{name}'"
    n_dims, = cursor.read("<I", what)
    if not 1 <= n_dims <= MAX_DIMS:
        raise cursor.error(f"tensor '{name}' has {n_dims} dimensions, but 1 to {MAX_DIMS} are possible; "
                           "the file is broken", position)
    *ne, type, offset = cursor.read(f"<{n_dims}QIQ", what)
    if 0 in ne:
        raise cursor.error(f"tensor '{name}' is empty: ne is {ne}; the file is broken", position)
    try:
        return name, GGMLType(type), tuple(reversed(ne)), offset, position
    except ValueError:
        raise cursor.error(f"tensor '{name}' has the unknown type {type}; "
                           "the file is broken or newer than this program", position) from None


class _Cursor:
    """A position in the mapping that moves forward as header fields are read, and never beyond the end."""

    def __init__(self, path: Path, mapping: mmap.mmap) -> None:
        self.path = path
        self.mapping = mapping
        self.position = 0

    def error(self, what: str, position: int) -> FormatError:
        return FormatError(f"{self.path}: {what} (byte {position})")

    def beyond_the_end(self, what: str) -> FormatError:
        return self.error(f"{what} reaches beyond the end of the file, which has {len(self.mapping)} bytes; "
                          "it is broken or incomplete: fetch it again", self.position)

    def checked_count(self, count: int, min_bytes: int, what: str) -> int:
        """`count`, after a check that so many items of at least `min_bytes` each can still follow."""
        if count * min_bytes > len(self.mapping) - self.position:
            raise self.beyond_the_end(f"a count of {count} {what}")
        return count

    def read(self, fmt: str, what: str) -> tuple:
        try:
            values = struct.unpack_from(fmt, self.mapping, self.position)
        except struct.error:
            raise self.beyond_the_end(what) from None
        self.position += struct.calcsize(fmt)
        return values

    def read_string(self, what: str) -> str:
        return self.read_strings(1, what)[0]

    def read_strings(self, count: int, what: str) -> Strings:
        """`count` strings, each a u64 length and so many bytes. Vocabularies have 10^5 of them: a lean loop."""
        mapping, size, position = self.mapping, len(self.mapping), self.position
        read_length = struct.Struct("<Q").unpack_from
        data, begins = bytearray(), array("I" if size < 1 << 32 else "Q", [0])
        for _ in range(count):
            begin = position + 8
            if begin > size:
                self.position = position
                raise self.beyond_the_end(what)
            length, = read_length(mapping, position)
            if begin + length > size:
                self.position = position
                raise self.beyond_the_end(f"{what}, a string of {length} bytes,")
            position = begin + length
            data += mapping[begin:position]
            begins.append(len(data))
        self.position = position
        return Strings(bytes(data), begins)

    def read_value_type(self, what: str) -> GGUFValueType:
        type = self.peek_value_type(what)
        self.position += 4
        return type

    def peek_value_type(self, what: str) -> GGUFValueType:
        number, = self.read("<I", what)
        self.position -= 4
        try:
            return GGUFValueType(number)
        except ValueError:
            raise self.error(f"{what} has the unknown type {number}; the file is broken or newer than this program",
                             self.position) from None

    def read_value(self, type: GGUFValueType, what: str, depth: int = 0) -> Any:
        if type is GGUFValueType.STRING:
            return self.read_string(what)
        if type is GGUFValueType.ARRAY:
            return self._read_array(what, depth)
        return self._read_numbers(type, 1, what)[0].item()

    def _read_array(self, what: str, depth: int) -> np.ndarray | Strings | list:
        if depth == MAX_ARRAY_DEPTH:
            raise self.error(f"{what} is an array nested more than {MAX_ARRAY_DEPTH} deep", self.position)
        element_type = self.read_value_type(what)
        count, = self.read("<Q", what)
        if element_type is GGUFValueType.STRING:
            return self.read_strings(self.checked_count(count, 8, f"strings in {what}"), what)
        if element_type is GGUFValueType.ARRAY:
            return [self._read_array(what, depth + 1)
                    for _ in range(self.checked_count(count, 4 + 8, f"arrays in {what}"))]
        return self._read_numbers(element_type, count, what)

    def _read_numbers(self, type: GGUFValueType, count: int, what: str) -> np.ndarray:
        dtype = np.dtype(SCALAR_DTYPES[type])
        nbytes = self.checked_count(count, dtype.itemsize, f"numbers in {what}") * dtype.itemsize
        stored = self.mapping[self.position:self.position + nbytes]
        if type is GGUFValueType.BOOL and stored.strip(b"\0\1"):
            raise self.error(f"{what} is a bool other than 0 and 1; the file is broken", self.position)
        self.position += nbytes
        return np.frombuffer(stored, dtype)
