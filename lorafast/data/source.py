"""Where data comes from: a file, a pipe, something compressed, a folder; each read from the beginning exactly once.

What cannot be read twice (a pipe) or mapped (compressed data) is first copied to a temporary file that vanishes with
the process. Everything after this module sees files only.
"""
from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import PurePath
from typing import IO, Any

from ..errors import FormatError, LoraFastError

GZIP = b"\x1f\x8b"
HEAD_BYTES = 1 << 16
"""Bytes at the beginning of a file by which its form is recognised."""


@dataclass(frozen=True)
class Source:
    """Data as it can be opened, as often as needed.

    name    the path as the user wrote it, which messages and the samples' hash use
    path    the file, or folder, to open
    suffix  `.csv`; of `x.csv.gz` as well; in lower case
    stamp   size and time of a file when it was opened; None of what cannot change: a copy
    """

    name: str
    path: str
    suffix: str
    stamp: tuple[int, int] | None = None

    def refuse_change(self) -> None:
        """LoraFastError if the file was written to since: half of what was read is old then."""
        if self.stamp is None:
            return
        try:
            stamp = stamp_of(os.stat(self.path))
        except OSError as error:
            raise unreadable(self.name, error) from None
        if stamp != self.stamp:
            raise LoraFastError(f"training data '{self.name}' was changed while it was read: start again when it is "
                                "complete")

    @property
    def is_folder(self) -> bool:
        return os.path.isdir(self.path)

    @property
    def size(self) -> int:
        """Bytes, of a folder those of its files."""
        names = [os.path.join(self.path, name) for name in os.listdir(self.path)] if self.is_folder else [self.path]
        return sum(os.path.getsize(name) for name in names)

    def head(self) -> bytes:
        """The beginning of the file. LoraFastError when it cannot be read."""
        try:
            with open(self.path, "rb") as file:
                return file.read(HEAD_BYTES)
        except OSError as error:
            raise unreadable(self.name, error) from None


_COPIES: dict[tuple[int, int], IO[bytes]] = {}
"""Temporary files, by device and inode of what they are a copy of: a pipe is empty when it has been read."""


def open_source(name: str) -> Source:
    """The data of this name. LoraFastError when it cannot be read, FormatError when it is broken gzip."""
    path = PurePath(name)
    suffix = path.suffix.lower()
    try:
        status = os.stat(name)
        if os.path.isdir(name):
            return Source(name, name, "")
        is_file = os.path.isfile(name)
        key = status.st_dev, status.st_ino
        if is_file:
            with open(name, "rb") as file:
                is_gzip = file.read(2) == GZIP
            if not is_gzip:
                return Source(name, name, suffix, stamp_of(status))
            suffix = PurePath(path.stem).suffix.lower() if suffix == ".gz" else suffix
        if key not in _COPIES or (not is_file and _COPIES[key].closed):
            _COPIES[key] = _copy(name)
    except OSError as error:
        raise unreadable(name, error) from None
    return Source(name, _COPIES[key].name, suffix)


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """What shows that a file was changed: its size and its time of writing."""
    return status.st_size, status.st_mtime_ns


def _copy(name: str) -> IO[bytes]:
    """A temporary file with the contents of a pipe, uncompressed, or of a compressed file."""
    with open(name, "rb") as file:
        copy: IO[Any] = tempfile.NamedTemporaryFile(prefix="lorafast-")
        try:
            is_gzip = file.peek(2)[:2] == GZIP
            shutil.copyfileobj(gzip.GzipFile(fileobj=file) if is_gzip else file, copy, 1 << 20)
            copy.flush()
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            copy.close()
            raise FormatError(f"training data '{name}' is broken gzip: {error}") from None
        except OSError as error:
            copy.close()
            raise LoraFastError(f"cannot copy '{name}' to {tempfile.gettempdir()}: {error.strerror}; name another "
                                "folder in the variable TMPDIR") from None
    return copy


def unreadable(name: str, error: OSError) -> LoraFastError:
    return LoraFastError(f"cannot read the data '{name}': {error.strerror}")
