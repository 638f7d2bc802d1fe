"""What lies below the lowest trained block never changes: its output is kept on disk, row by row of the data.

The file: MAGIC, a digest of all that the numbers follow from, a byte for each row that tells whether it is there, and
the rows' values (T, C) at their places. It is read and written in pieces, never mapped, so that it takes no memory of
the process. The bytes that tell what is there reach the disk after the values.
"""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import LoraFastError

MAGIC = b"lorafast prefix\n"
NAME = "prefix.bin"
TYPES = {"float32": np.float32, "float16": np.float16}


class PrefixCache:
    """The input of the lowest trained block for each row. To be closed at the end.

    lowest  that block; the number of blocks where only the head is trained
    """

    def __init__(self, folder: str, digest: str, lengths: np.ndarray, n_embd: int, lowest: int,
                 dtype: str = "float32", name: str = NAME) -> None:
        """
        digest   64 hexadecimal digits
        lengths  int64 (R,), tokens of each row
        LoraFastError where the folder cannot be written, holds values of other data or model, or the disk has no room.
        """
        self.path, self.lowest, self.dtype, self.n_embd = Path(folder) / name, lowest, TYPES[dtype], n_embd
        head = MAGIC + digest.encode()
        self.flags_at, self.begin = len(head), len(head) + len(lengths) + np.concatenate(
            [[0], np.cumsum(lengths)]) * n_embd * np.dtype(self.dtype).itemsize
        try:
            os.makedirs(folder, exist_ok=True)
            is_new = not self.path.exists()
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            if is_new:
                self._check_room(folder)
                os.pwrite(self.file, head, 0)
                os.ftruncate(self.file, int(self.begin[-1]))
        except FileExistsError:
            raise LoraFastError(f"--prefix-cache {folder}: is a file, not a folder") from None
        except OSError as error:
            raise LoraFastError(f"--prefix-cache {folder}: {error.strerror}") from None
        if os.pread(self.file, len(head), 0) != head or os.fstat(self.file).st_size != self.begin[-1]:
            os.close(self.file)
            raise LoraFastError(f"--prefix-cache {folder}: {self.path} is of other data, another model or other "
                                "options; delete it, or name another folder")
        self.there = np.frombuffer(os.pread(self.file, len(lengths), self.flags_at), np.uint8).copy()

    def _check_room(self, folder: str) -> None:
        system = os.statvfs(folder)
        free = system.f_bavail * system.f_frsize
        if self.nbytes > free:
            os.close(self.file)
            self.path.unlink()
            raise LoraFastError(f"--prefix-cache {folder}: it needs {self.nbytes / 1e6:.0f} MB, and the disk has "
                                f"{free / 1e6:.0f} MB left")

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return int(self.begin[-1])

    def holds(self, rows: np.ndarray) -> bool:
        """Whether all of these are there."""
        return bool(self.there[rows].all())

    def read(self, rows: np.ndarray, x: np.ndarray) -> None:
        """Fills x (T, C) with these rows, one after the other. LoraFastError where the file cannot be read."""
        at = 0
        for row, n_bytes, n_tokens in self._extents(rows):
            data = os.pread(self.file, n_bytes, int(self.begin[row]))
            if len(data) != n_bytes:
                raise LoraFastError(f"{self.path} has become shorter; delete it")
            x[at:at + n_tokens] = np.frombuffer(data, self.dtype).reshape(n_tokens, self.n_embd)
            at += n_tokens

    def write(self, rows: np.ndarray, x: np.ndarray) -> None:
        """Keeps those of these rows that are not there yet. LoraFastError where the file cannot be written."""
        at = 0
        for row, _, n_tokens in self._extents(rows):
            if not self.there[row]:
                values = np.ascontiguousarray(x[at:at + n_tokens], self.dtype)
                try:
                    os.pwrite(self.file, values.data, int(self.begin[row]))
                except OSError as error:
                    raise LoraFastError(f"cannot write {self.path}: {error.strerror}") from None
                self.there[row] = 1
            at += n_tokens

    def _extents(self, rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
        """Each row, its bytes and its tokens."""
        size = np.dtype(self.dtype).itemsize * self.n_embd
        for row in rows.tolist():
            n_bytes = int(self.begin[row + 1] - self.begin[row])
            yield row, n_bytes, n_bytes // size

    def close(self) -> None:
        """Has what is there reach the disk, and says so in the file."""
        os.fsync(self.file)
        os.pwrite(self.file, self.there, self.flags_at)
        os.close(self.file)
