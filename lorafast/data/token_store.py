"""Tokens on disk: written once as they come, then mapped, so that data larger than memory can be trained on.

The file: MAGIC, then little-endian tokens int32, sizes int64 (tokens of each sample), lines int64 (where each sample
stood in its source), labels int8 (what is said of each sample), the runs of tokens of equal weight (begins int64, then
weights float32), a JSON description, and the description's length as uint64. It is a temporary one that vanishes
with the process, or one that the user names, to be found again by the next run.
"""
from __future__ import annotations

import json
import mmap
import os
import tempfile
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np

from ..errors import LoraFastError
from ..system.atomic import atomic_write

MAGIC = b"lorafast tokens\n"


@dataclass(frozen=True)
class StoredTokens:
    """tokens int32 (n,), mapped; size int64 (S,) adding up to n; line int64 (S,); facts: what `fill` returned.

    label         int8 (S,), see TokenWriter.end_sample
    weight_begin  int64 (R,), ascending: from that token on each one's loss is multiplied by ...
    weight        float32 (R,); before the first by 1
    """

    tokens: np.ndarray
    size: np.ndarray
    line: np.ndarray
    facts: dict[str, Any]
    label: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))
    weight_begin: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    weight: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))


class TokenWriter:
    """Takes samples token by token. Only their sizes and lines stay in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sizes, self._lines, self._labels, self._size = array("q"), array("q"), array("b"), 0
        self._weight_begins, self._weights, self._n_tokens = array("q"), array("f"), 0

    def write(self, tokens: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Appends int32 tokens to the present sample. weights: factors of their losses, float32; None: 1 each."""
        self._file.write(np.ascontiguousarray(tokens, "<i4").data)
        last = self._weights[-1] if self._weights else 1.0
        if weights is not None or last != 1:
            weights = np.ones(len(tokens), np.float32) if weights is None else weights
            changes = np.flatnonzero(np.diff(weights, prepend=np.float32(last)))
            self._weight_begins.extend((self._n_tokens + changes).tolist())
            self._weights.extend(weights[changes].tolist())
        self._size += len(tokens)
        self._n_tokens += len(tokens)

    def end_sample(self, line: int = 0, label: int = 0) -> None:
        """label: 1 of an answer that is preferred or good, -1 of one that is not, 0 where nothing is said."""
        self._sizes.append(self._size)
        self._lines.append(line)
        self._labels.append(label)
        self._size = 0

    def finish(self, description: dict[str, Any]) -> None:
        sizes, lines = (np.array(numbers, "<i8") for numbers in (self._sizes, self._lines))
        begins, weights = np.array(self._weight_begins, "<i8"), np.array(self._weights, "<f4")
        text = json.dumps({"n_tokens": int(sizes.sum()), "n_samples": len(sizes), "n_runs": len(begins),
                           **description}).encode()
        for part in (sizes.data, lines.data, self._labels, begins.data, weights.data, text,
                     len(text).to_bytes(8, "little")):
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
    n_tokens, n_samples, n_runs = description["n_tokens"], description["n_samples"], description["n_runs"]
    begin = len(MAGIC) + 4 * n_tokens
    if begin + 17 * n_samples + 12 * n_runs + text_size + 8 != file_size:
        raise ValueError
    tokens = np.zeros(0, np.int32)
    if n_tokens:
        tokens = np.memmap(file, "<i4", "r", len(MAGIC), (n_tokens,)).view(np.ndarray)
    file.seek(begin)
    size, line = np.frombuffer(file.read(16 * n_samples), "<i8").reshape(2, -1)
    label = np.frombuffer(file.read(n_samples), np.int8)
    weight_begin, weight = np.frombuffer(file.read(8 * n_runs), "<i8"), np.frombuffer(file.read(4 * n_runs), "<f4")
    if size.sum() != n_tokens:
        raise ValueError
    return description["key"], StoredTokens(tokens, size, line, description["facts"], label, weight_begin, weight)
