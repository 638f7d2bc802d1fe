"""Tokens on disk: written once as they come, then mapped, so that data larger than memory can be trained on.

The file: MAGIC, then little-endian tokens int32, sizes int64 (tokens of each sample), lines int64 (where each sample
stood in its source), a JSON description, and the description's length as uint64. It is a temporary one that vanishes
with the process, or one that the user names, to be found again by the next run.
"""
from __future__ import annotations

import json
import mmap
import os
import tempfile
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from ..errors import LoraFastError
from ..system.atomic import atomic_write

MAGIC = b"lorafast tokens\n"


@dataclass(frozen=True)
class StoredTokens:
    """tokens int32 (n,), mapped; size int64 (S,) adding up to n; line int64 (S,); facts: what `fill` returned."""

    tokens: np.ndarray
    size: np.ndarray
    line: np.ndarray
    facts: dict[str, Any]


class TokenWriter:
    """Takes samples token by token. Only their sizes and lines stay in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sizes, self._lines, self._size = array("q"), array("q"), 0

    def write(self, tokens: np.ndarray) -> None:
        """Appends int32 tokens to the present sample."""
        self._file.write(np.ascontiguousarray(tokens, "<i4").data)
        self._size += len(tokens)

    def end_sample(self, line: int = 0) -> None:
        self._sizes.append(self._size)
        self._lines.append(line)
        self._size = 0

    def finish(self, description: dict[str, Any]) -> None:
        sizes, lines = (np.array(numbers, "<i8") for numbers in (self._sizes, self._lines))
        text = json.dumps({"n_tokens": int(sizes.sum()), "n_samples": len(sizes), **description}).encode()
        for part in (sizes.data, lines.data, text, len(text).to_bytes(8, "little")):
            self._file.write(part)


def store_tokens(fill: Callable[[TokenWriter], dict[str, Any]], path: str = "", key: str = "") -> StoredTokens:
    """The tokens that `fill` writes; from the file `path` if it holds those of `key`, else anew, and to there.

    fill   writes all samples and returns facts about them (a JSON object)
    path   empty: a temporary file
    key    stands for all that the tokens follow from
    LoraFastError when `path` is some other file, or the disk is full.
    """
    if not path:
        try:
            with tempfile.TemporaryFile(prefix="lorafast-") as file:
                _write(file, fill, key)
                return _map(file)[1]
        except OSError as error:
            raise LoraFastError(f"cannot keep the tokenised data in {tempfile.gettempdir()}: {error.strerror}; name "
                                "a file with --data-cache, or another folder in the variable TMPDIR") from None
    if os.path.exists(path):
        stored_key, stored = _open(path)
        if stored_key == key:
            return stored
    with atomic_write(path) as file:
        _write(file, fill, key)
    return _open(path)[1]


def let_go(tokens: np.ndarray) -> None:
    """Takes the pages of mapped tokens out of this process; those that are read again come back. Others stay as they
    are."""
    owner: object = tokens
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        owner.madvise(mmap.MADV_DONTNEED)


def _write(file: BinaryIO, fill: Callable[[TokenWriter], dict[str, Any]], key: str) -> None:
    file.write(MAGIC)
    writer = TokenWriter(file)
    writer.finish({"facts": fill(writer), "key": key})
    file.flush()


def _open(path: str) -> tuple[str, StoredTokens]:
    try:
        with open(path, "rb") as file:
            return _map(file)
    except OSError as error:
        raise LoraFastError(f"cannot read --data-cache {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise LoraFastError(f"--data-cache {path} exists and is not tokenised data of lorafast, or is broken: delete "
                            "it, or name another file") from None


def _map(file: BinaryIO) -> tuple[str, StoredTokens]:
    """Key and contents of a stored file; ValueError, KeyError or TypeError where it is none."""
    file_size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(len(MAGIC)) != MAGIC:
        raise ValueError
    file.seek(file_size - 8)
    text_size = int(np.frombuffer(file.read(8), "<u8")[0])
    if text_size > file_size:
        raise ValueError
    file.seek(file_size - 8 - text_size)
    description = json.loads(file.read(text_size))
    n_tokens, n_samples = description["n_tokens"], description["n_samples"]
    begin = len(MAGIC) + 4 * n_tokens
    if begin + 16 * n_samples + text_size + 8 != file_size:
        raise ValueError
    tokens = np.zeros(0, np.int32)
    if n_tokens:
        tokens = np.memmap(file, "<i4", "r", len(MAGIC), (n_tokens,)).view(np.ndarray)
    file.seek(begin)
    size, line = np.frombuffer(file.read(16 * n_samples), "<i8").reshape(2, -1)
    if size.sum() != n_tokens:
        raise ValueError
    return description["key"], StoredTokens(tokens, size, line, description["facts"])
