"""The files behind a model's mappings: pages brought into memory and let go, and a plain end where a file changes.

The weights stay where they are, in the mapping of the file. "Reading" is to enter pages in the page table, which brings
them from disk into the system's cache; "letting go" is to take them out of both. So what is resident is known to the
page, nothing is copied, and a page that was let go too early would be read again, not lost.
"""
from __future__ import annotations

import errno
import mmap
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..errors import LoraFastError
from ..gguf.reader import GGUFFile, Tensor
from ..kernels.pages import let_go, on_bus_error, populate
from ..system.mounts import file_system
from ..system.process import resident_bytes

IN_MEMORY = ("tmpfs", "ramfs", "hugetlbfs")
"""File systems whose files lie in memory themselves."""

ASKED_AT_ONCE = 128 << 10
"""Bytes. Linux cuts a longer wish short, to the size of the disk's own read-ahead."""


def if_cut_short(name: str) -> None:
    """Has the process end, from now on, with a line about the file `name` if a mapped page can no longer be read."""
    on_bus_error(f"lorafast: error: {name[:200]} was cut short or cannot be read any more, in the middle of the run; "
                 "what was saved is good: restore the file and resume\n".encode(errors="surrogateescape"))


class ModelFiles:
    """The files behind a model's mappings, watched while a run depends on them. To be closed at the end.

    Raises LoraFastError when a file is not the one that was mapped.
    """

    def __init__(self, gguf: GGUFFile) -> None:
        self.mappings = gguf.mappings
        self.files = {}
        try:
            for path in self.mappings:
                self.files[path] = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise LoraFastError(f"cannot read {path}: {error.strerror}") from error
        self.stamps = {path: self._stamp(path) for path in self.files}
        for path, mapping in self.mappings.items():
            if self.stamps[path][0] != len(mapping):
                raise self._changed(path)
        if_cut_short(str(gguf.path))

    def resident_bytes_without(self) -> int:
        """Memory of this process, without pages of the model."""
        self.let_go_pages()
        return resident_bytes()

    def check(self) -> None:
        """LoraFastError if a file was changed since: its pages may be new ones, and the results would mean nothing."""
        for path, stamp in self.stamps.items():
            if self._stamp(path) != stamp:
                raise self._changed(path)

    def read_ahead(self, wanted: bool) -> None:
        """Whether a page that is touched brings others with it, as the system thinks best: where parts of a file are
        wanted, that may be megabytes of those that are not. Where it does not, `ask_for` comes before `populate`."""
        for mapping in self.mappings.values():
            mapping.madvise(mmap.MADV_NORMAL if wanted else mmap.MADV_RANDOM)

    def ask_for(self, path: Path, begin: int, end: int) -> None:
        """Has the system begin to read what lies between two places in a file."""
        for at in range(begin, end, ASKED_AT_ONCE):
            self._advise(path, at, min(ASKED_AT_ONCE, end - at), "WILLNEED")

    def populate(self, tensor: Tensor, begin: int = 0, end: int | None = None) -> None:
        """Reads a tensor, or its bytes between two places, or waits until they are read; enters their pages in the page
        table."""
        try:
            populate(tensor.data.reshape(-1)[begin:end])
        except OSError as error:
            self.check()
            reason = "its disk or file system fails to" if error.errno == errno.EFAULT else error.strerror
            raise LoraFastError(f"cannot read tensor '{tensor.name}' of {tensor.path}: {reason}") from error

    def unmap(self, path: Path, begin: int, end: int) -> None:
        """Takes the pages between two places in a file out of this process."""
        let_go(np.frombuffer(self.mappings[path], np.uint8)[begin:end])

    def let_go(self, path: Path, begin: int, end: int) -> None:
        """Takes them out of the system's cache as well, unless others map them."""
        self.unmap(path, begin, end)
        self.drop(path, begin, end - begin)

    def let_go_pages(self) -> None:
        """Takes all pages out of this process: opening the model has mapped some here and there."""
        for mapping in self.mappings.values():
            let_go(np.frombuffer(mapping, np.uint8))

    def let_go_all(self) -> None:
        """Takes all pages out of both."""
        self.let_go_pages()
        for path, mapping in self.mappings.items():
            self.drop(path, 0, len(mapping))

    def read_rows(self, tensor: Tensor, rows: np.ndarray) -> np.ndarray:
        """These rows of a matrix, as stored, copied from the file: uint8 (len(rows), bytes a row)."""
        row_bytes = tensor.data.shape[1]
        copy = np.empty((len(rows), row_bytes), np.uint8)
        begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1).tolist()    # where others than the next row begin
        runs = [(copy[begin:end], tensor.offset + int(rows[begin]) * row_bytes)
                for begin, end in zip(begins, [*begins[1:], len(rows)])]
        for into, offset in runs:                       # all are on their way before the first is waited for
            self.ask_for(tensor.path, offset, offset + into.nbytes)
        for into, offset in runs:
            if os.preadv(self.files[tensor.path], [into.data], offset) != into.nbytes:
                raise self._changed(tensor.path)
        return copy

    def kept_by_system(self) -> str:
        """The file system of a file that is in memory whatever is let go, and its path; empty if there is none."""
        types = ((file_system(path), path) for path in self.files)
        return next((f"{path} ({type})" for type, path in types if type in IN_MEMORY), "")

    def close(self) -> None:
        for file in self.files.values():
            os.close(file)

    def drop(self, path: Path, offset: int, nbytes: int) -> None:
        """Takes what no process maps out of the system's cache."""
        self._advise(path, offset, nbytes, "DONTNEED")

    def _advise(self, path: Path, offset: int, nbytes: int, advice: str) -> None:
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):             # of a file system that takes no advice
                os.posix_fadvise(self.files[path], offset, nbytes, getattr(os, f"POSIX_FADV_{advice}"))

    def _stamp(self, path: Path) -> tuple[int, int]:
        try:
            state = os.fstat(self.files[path])
        except OSError as error:
            raise LoraFastError(f"cannot read {path} any more: {error.strerror}") from error
        return state.st_size, state.st_mtime_ns

    @staticmethod
    def _changed(path: Path) -> LoraFastError:
        return LoraFastError(f"{path} was changed while it was in use: restore it, and resume from the last checkpoint")
