"""A model larger than the memory it may take: a window of its matrices is there, the rest is read from the file in
time.

A pass goes up through the layers and down again, so their order of use is known. A thread reads what is needed next,
while the kernels compute on what is there, and makes room by letting go what will not be needed for the longest time
(Belady, A study of replacement algorithms, 1966). In the zigzag of passes these are the layers just left behind, until
the order turns: so the layers at both turns stay, and a window of a share f of the model spares that share of the
reading.

The weights stay where they are, in the mapping of the file. "Reading" is to enter pages in the page table, which brings
them from disk into the system's cache; "letting go" is to take them out of both. So what is resident is known to the
page, nothing is copied, and a page that was let go too early would be read again, not lost.
"""
from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from bisect import bisect_left, insort
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from ..errors import LoraFastError
from ..gguf.reader import MAPPED_AROUND, GGUFFile, Tensor
from ..kernels.pages import let_go, on_bus_error, populate
from ..system.mounts import file_system
from ..system.process import resident_bytes
from .parts import Parts
from .weights import Matrices, RowsFromFile

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

    def ask_for(self, tensor: Tensor, begin: int, end: int) -> None:
        """Has the system begin to read a tensor's bytes between two places."""
        for at in range(begin, end, ASKED_AT_ONCE):
            self._advise(tensor.path, tensor.offset + at, min(ASKED_AT_ONCE, end - at), "WILLNEED")

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
            self._advise(tensor.path, offset, into.nbytes, "WILLNEED")
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


class Window:
    """Decides what to read and what to let go; the plan runs it without reading anything.

    sizes     bytes of each unit
    order     units in the order of use, which repeats for ever: a pass
    capacity  bytes of units that may be in memory; at least the largest one
    partial   units of which a pass needs parts: which ones is not known until it says so (`learn`)
    """

    def __init__(self, sizes: Sequence[int], order: Sequence[int], capacity: int,
                 partial: Collection[int] = ()) -> None:
        if max(sizes) > capacity:
            raise ValueError(f"a window of {capacity} bytes cannot hold a unit of {max(sizes)}")
        self.sizes, self.order, self.capacity, self.partial = list(sizes), order, capacity, frozenset(partial)
        self.known: set[int] = set()
        """The partial units whose parts this pass has named."""
        self.remains: dict[int, int] = {}
        """Bytes in memory of partial units that have to be fetched, since more parts are needed now."""
        self.uses = [[place for place, used in enumerate(order) if used == unit] for unit in range(len(sizes))]
        self.now = 0
        """Place in the order of the unit that is in use."""
        self.held: set[int] = set()
        """Units in memory, or being read."""
        self.most_held = 0
        """Bytes of them, at most so far."""

    def use(self, unit: int) -> None:
        """Moves on to the next place where the order has this unit; using a unit several times is one use."""
        if self.order[self.now] != unit:
            self.move(self.now + self.distance(unit))

    def move(self, place: int) -> None:
        """Moves on to a place in the order; beyond its end a new pass begins, whose parts are not known."""
        if place >= len(self.order):
            self.known.clear()
        self.now = place % len(self.order)

    def learn(self, unit: int, size: int, remaining: int | None = None) -> None:
        """The bytes of the parts of a partial unit that this pass needs. remaining: where these are others than were
        held, the bytes of those among them that are in memory."""
        self.known.add(unit)
        self.sizes[unit] = size
        if remaining is not None:
            self.held.discard(unit)
            self.remains[unit] = remaining

    def _is_fetched(self, ahead: int) -> bool:
        """Whether what is used so many places from now is in memory, or cannot be fetched yet."""
        place = self.now + ahead
        unit = self.order[place % len(self.order)]
        unknown = unit in self.partial and (place >= len(self.order) or unit not in self.known)
        return unknown or unit in self.held

    def distance(self, unit: int) -> int:
        """Places from now to the next use of a unit; 0 if it is in use."""
        uses = self.uses[unit]
        at = bisect_left(uses, self.now)
        return (uses[at] if at < len(uses) else uses[0] + len(self.order)) - self.now

    def next_fetch(self) -> tuple[int, list[int]] | None:
        """The unit to read now, after letting go those listed. None if all is there, or what is there is needed
        sooner."""
        n = len(self.order)
        ahead = next((i for i in range(n) if not self._is_fetched(i)), None)
        if ahead is None:
            return None
        unit = self.order[(self.now + ahead) % n]
        in_memory = self.remains | {held: self.sizes[held] for held in self.held}
        in_memory.pop(unit, None)
        room = self.capacity - sum(in_memory.values())
        leaving = []
        for held in sorted(in_memory, key=self.distance, reverse=True):
            if room >= self.sizes[unit]:
                break
            if self.distance(held) < ahead:
                return None
            leaving.append(held)
            room += in_memory[held]
        for gone in (unit, *leaving):
            self.remains.pop(gone, None)
        self.held -= set(leaving)
        self.held.add(unit)
        self.most_held = max(self.most_held, sum(self.sizes[held] for held in self.held))
        return unit, leaving


class Residency(RowsFromFile):
    """Keeps a window of a model's matrices in memory, for passes that announce each group before they use it: the
    Weights of a run that streams.

    order     groups in the order of use, see trainer.weight_order
    capacity  bytes of matrices in memory at a time, at least `least_capacity(order)`

    To be closed at the end.
    """

    streams = True

    def __init__(self, files: ModelFiles, order: Sequence[Matrices], capacity: int) -> None:
        super().__init__(files)
        self.files: ModelFiles = files
        self.groups = list(dict.fromkeys(order))
        self.unit_of = {group: unit for unit, group in enumerate(self.groups)}
        sizes = [nbytes(group) for group in self.groups]
        self.parts = {unit: Parts(group) for unit, group in enumerate(self.groups) if group.n_parts}
        """The parts that are wanted, and those that are there, of each partial unit."""
        self.window = Window(sizes, [self.unit_of[group] for group in order], capacity, self.parts)
        self.there: set[int] = set()
        self.not_wanted: set[int] = set()
        """Partial units of which parts may be in memory that are not wanted any more."""
        self.bytes_read = 0
        self.seconds_waited = 0.0
        self.failure: BaseException | None = None
        self.closed = False
        self.changed = threading.Condition()
        files.read_ahead(False)
        files.let_go_all()
        self.places: dict[Path, list[tuple[int, int, int]]] = {path: [] for path in files.files}
        """Begin, end and unit of each tensor in a file, in the file's order."""
        for unit, group in enumerate(self.groups):
            for tensor in group.tensors:
                insort(self.places[tensor.path], (tensor.offset, tensor.offset + tensor.nbytes, unit))
        self.reader = threading.Thread(target=self._read, name="lorafast reader", daemon=True)
        self.reader.start()

    def wait_for(self, group: Matrices) -> None:
        """Returns when the group's matrices are in memory; they stay until the next call, or longer. LoraFastError if
        they cannot be read. The group is one of the order, or a part of one.
        """
        unit = self.unit_of[group] if group in self.unit_of else self._unit_around(group)
        with self.changed:
            self.window.use(unit)
            if unit in self.parts and unit not in self.window.known:
                self._want(unit, np.arange(group.n_parts))
            self.changed.notify_all()
            if unit not in self.there:
                began = time.perf_counter()
                self.changed.wait_for(lambda: unit in self.there or self.failure)
                self.seconds_waited += time.perf_counter() - began
            if self.failure:
                raise self.failure

    def announce(self, groups: Sequence[Matrices], parts: np.ndarray) -> None:
        with self.changed:
            for group in groups:
                self._want(self.unit_of[group], parts)
            self.changed.notify_all()

    def _want(self, unit: int, parts: np.ndarray) -> None:
        of_unit = self.parts[unit]
        is_new = of_unit.want(parts)
        remaining = of_unit.nbytes(of_unit.wanted & of_unit.there) if is_new else None
        self.window.learn(unit, of_unit.nbytes(of_unit.wanted), remaining)
        if is_new:
            self.there.discard(unit)
            self.not_wanted.add(unit)

    def rows(self, tensor: Tensor, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What reading them brought into the system's cache goes as well."""
        table = super().rows(tensor, rows)
        self.files.drop(tensor.path, tensor.offset, tensor.nbytes)
        return table

    def slice(self, tensor: Tensor, begin: int, end: int) -> np.ndarray:
        table = super().slice(tensor, begin, end)
        self.files.drop(tensor.path, tensor.offset, tensor.nbytes)
        return table

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()
        self.reader.join()
        self.files.read_ahead(True)

    def _read(self) -> None:
        try:
            while True:
                with self.changed:
                    self.changed.wait_for(lambda: self.closed or self._next())
                    if self.closed:
                        return
                    assert self.task is not None
                    unit, leaving = self.task
                    self.there -= set(leaving)
                    wanted = self.parts[unit].wanted if unit in self.parts else None
                    not_wanted, self.not_wanted = self.not_wanted, set()
                for changed in not_wanted:
                    self._let_go_unwanted(changed)
                for gone in leaving:
                    self._let_go(gone)
                nbytes = self._read_unit(unit, wanted)
                with self.changed:
                    if wanted is None or wanted is self.parts[unit].wanted:     # not others by now
                        self.there.add(unit)
                    self.bytes_read += nbytes
                    self.changed.notify_all()
        except BaseException as error:
            with self.changed:
                self.failure = error
                self.changed.notify_all()

    def _let_go(self, unit: int) -> None:
        for tensor in self.groups[unit].tensors:
            self.files.let_go(tensor.path, *self._free_around(tensor))
        if unit in self.parts:
            self.parts[unit].there = np.zeros(self.parts[unit].n, bool)

    def _let_go_unwanted(self, unit: int) -> None:
        parts = self.parts[unit]
        for tensor in self.groups[unit].tensors:
            for begin, end in parts.runs(tensor, parts.there & ~parts.wanted):
                self.files.let_go(tensor.path, tensor.offset + begin, tensor.offset + end)
        parts.there = parts.there & parts.wanted

    def _read_unit(self, unit: int, wanted: np.ndarray | None) -> int:
        """Reads it, or what is wanted of it and not there; lets go what reading has mapped besides. Bytes read."""
        missing = {tensor: self._missing(unit, tensor, wanted) for tensor in self.groups[unit].tensors}
        for tensor, runs in missing.items():                # all are on their way before the first is waited for
            for begin, end in runs:
                self.files.ask_for(tensor, begin, end)
        for tensor, runs in missing.items():
            gaps = [] if wanted is None else list(self.parts[unit].runs(tensor, ~wanted))
            self._populate(tensor, runs, gaps)
            begin, end = self._free_around(tensor)
            self.files.unmap(tensor.path, begin, tensor.offset)
            self.files.unmap(tensor.path, tensor.offset + tensor.nbytes, end)
        if wanted is None:
            return self.window.sizes[unit]
        parts = self.parts[unit]
        new, parts.there = wanted & ~parts.there, wanted
        return parts.nbytes(new)

    def _missing(self, unit: int, tensor: Tensor, wanted: np.ndarray | None) -> list[tuple[int, int]]:
        """Begin and end of the runs of bytes to read."""
        if wanted is None:
            return [(0, tensor.nbytes)]
        parts = self.parts[unit]
        return list(parts.runs(tensor, wanted & ~parts.there))

    def _populate(self, tensor: Tensor, runs: Sequence[tuple[int, int]], gaps: Sequence[tuple[int, int]]) -> None:
        """gaps: what is not wanted between the runs, and may be mapped with them."""
        for begin, end in runs:
            self.files.populate(tensor, begin, end)
            for gap_begin, gap_end in gaps:
                if gap_begin - MAPPED_AROUND < end and begin < gap_end + MAPPED_AROUND:
                    self.files.unmap(tensor.path, tensor.offset + gap_begin, tensor.offset + gap_end)
        for begin, end in gaps:
            self.files.let_go(tensor.path, tensor.offset + begin, tensor.offset + end)

    def _free_around(self, tensor: Tensor) -> tuple[int, int]:
        """The range around a tensor in which nothing else is held, as far as reading the tensor may have mapped
        pages."""
        places = self.places[tensor.path]
        at = bisect_left(places, (tensor.offset,))
        begin, end = max(0, tensor.offset - MAPPED_AROUND), tensor.offset + tensor.nbytes + MAPPED_AROUND
        below = (other_end for _, other_end, unit in reversed(places[:at]) if unit in self.window.held)
        above = (other_begin for other_begin, _, unit in places[at + 1:] if unit in self.window.held)
        return max(begin, next(below, begin)), min(end, next(above, end))

    def _unit_around(self, part: Matrices) -> int:
        tensor, = part.tensors
        return next(unit for begin, end, unit in self.places[tensor.path] if begin <= tensor.offset < end)

    def _next(self) -> bool:
        self.task = self.window.next_fetch()
        return self.task is not None


def nbytes(group: Matrices) -> int:
    return sum(tensor.nbytes for tensor in group.tensors)


def least_capacity(order: Sequence[Matrices]) -> int:
    """Bytes for any two groups that follow each other, so that reading can overlap computing."""
    return max(nbytes(a) + nbytes(b) for a, b in zip(order, [*order[1:], order[0]]) if a is not b)
