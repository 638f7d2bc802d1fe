"""A model larger than the memory it may take: a window of its matrices is there, the rest is read from the file in
time. A thread reads what is needed next, while the kernels compute on what is there; window.py decides, and
model_files.py does it.
"""
from __future__ import annotations

import threading
import time
from bisect import bisect_left, insort
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..gguf.reader import MAPPED_AROUND, Tensor
from .model_files import ModelFiles
from .parts import Parts
from .weights import Matrices, RowsFromFile
from .window import Window


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
                self.files.ask_for(tensor.path, tensor.offset + begin, tensor.offset + end)
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
