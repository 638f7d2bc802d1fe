"""A checksum against damage: a flipped bit in a file that lorafast wrote is noticed when the file is read.

It is the CRC-32 of the whole file, with zeros in place of the checksum itself: in GGUF under the key `lorafast.crc32`,
in safetensors under the same name in the header's `__metadata__`. A file without it, as other programs write them, is
not checked.
"""
from __future__ import annotations

import os
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, TypeAlias

from ..errors import FormatError

KEY = "lorafast.crc32"

Buffer: TypeAlias = Any
"""Bytes, a mapped file, or an array of bytes."""

CHUNK = 2**22
"""Bytes that are summed up at a time: few enough that the pages of a mapped file can go again."""


WORTH_A_THREAD = 2**16
"""Bytes of a piece that another thread sums up: a few take less time than handing them over."""


class SummedFile:
    """Writes to `file` and sums up on another thread what is written, so that the disk does not wait for the processor.

    What is written must not change until `crc32` is called.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self._pool = ThreadPoolExecutor(1)
        self._sum: Future[int] | int = 0

    def write(self, data: Buffer) -> int:
        before = self.crc32()                                   # so that no more than one piece is kept
        small = memoryview(data).nbytes < WORTH_A_THREAD
        self._sum = zlib.crc32(data, before) if small else self._pool.submit(zlib.crc32, data, before)
        return self.file.write(data)

    def crc32(self) -> int:
        """The checksum of all that was written."""
        return self._sum if isinstance(self._sum, int) else self._sum.result()

    def __enter__(self) -> SummedFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown()


def crc32(data: Buffer, blank: tuple[int, int]) -> int:
    """The checksum of a file with zeros from blank[0] to before blank[1]."""
    begin, end = blank
    total = _add(0, data, 0, begin)
    total = zlib.crc32(bytes(end - begin), total)
    return _add(total, data, end, len(data))


def _add(total: int, data: Buffer, begin: int, end: int) -> int:
    for start in range(begin, end, CHUNK):
        total = zlib.crc32(data[start:min(start + CHUNK, end)], total)
    return total


def refuse_damage(path: str | os.PathLike, data: Buffer, blank: tuple[int, int],
                  stored: int) -> None:
    """FormatError if the file is not what it was when it was written."""
    found = crc32(data, blank)
    if found != stored:
        raise FormatError(f"{path}: is damaged: its checksum is {found:08x}, but {stored:08x} was written; take "
                          "another copy, or an earlier checkpoint")
