"""`lorafast merge`: base model and adapters into one GGUF file, W + Σ s·Bᵀ·A for every adapted tensor.

Of an adapter with DoRA's magnitudes m it takes f·(W' - W) instead of s·Bᵀ·A, f being its factor and W' the matrix with
the rows m·V / ‖V‖ of V = W + s·Bᵀ·A.

It streams: a few rows of a tensor at a time are dequantised, changed, quantised again and written, so that memory does
not depend on the model's size. Requantising is where an adapter can get lost: a change smaller than half the distance
between two levels of the format rounds away. So what became of the change is measured and reported (`Change`).
"""
from __future__ import annotations

import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from ..adapters import AdapterFile, BaseModel, read_adapter
from ..adapters.cards import MODELFILE, beside, write_beside
from ..adapters.ollama import modelfile_for
from ..errors import LoraFastError
from ..gguf import checksum
from ..gguf.file_form import FileForm
from ..gguf.quantize_k import quantize
from ..gguf.quants import dequantize
from ..gguf.reader import GGUFFile, Tensor, open_model
from ..gguf.types import GGMLType, GGUFValueType
from ..gguf.writer import TensorToWrite, ValueType, write_gguf
from ..network.dora import gain_of
from ..options.outputs import megabytes
from ..options.overwriting import Target, check_overwriting
from ..options.tools import MergeOptions
from ..system.live import Meter, Show, show_live, silent
from ..system.output import show

CHUNK = 2**18
"""Values of a matrix that a thread works on at a time (1 MB in float32)."""

LITTLE = 0.9
"""The share of the change that must survive; the report warns of less."""

TOKEN_EMBD, OUTPUT = "token_embd.weight", "output.weight"


@dataclass
class Change:
    """How the stored values W' relate to W + D, summed over tensors: D is the change that the adapters make.

    wanted  ‖D‖²     error  ‖W' - (W + D)‖²     along  <W' - W, D>     base  ‖W‖²
    """

    tensors: int = 0
    base: float = 0.0
    wanted: float = 0.0
    error: float = 0.0
    along: float = 0.0

    def __iadd__(self, other: Change) -> Change:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self

    @property
    def size(self) -> float:
        """‖D‖ / ‖W‖."""
        return float(np.sqrt(self.wanted / self.base)) if self.base else 0.0

    @property
    def survived(self) -> float:
        """<W' - W, D> / ‖D‖²: the share of the change that is in the file; 1 is all of it, 0 nothing."""
        return self.along / self.wanted if self.wanted else 1.0

    @property
    def nmse(self) -> float:
        """‖W' - (W + D)‖² / ‖D‖²: the rounding error in relation to the change."""
        return self.error / self.wanted if self.wanted else 0.0


@dataclass(frozen=True)
class Report:
    """What `merge_model` did. `changes`: by the type that the merged tensors have; `notes`: what a user should know."""

    changes: dict[GGMLType, Change]
    notes: list[str]
    nbytes: int

    @property
    def total(self) -> Change:
        total = Change()
        for change in self.changes.values():
            total += change
        return total


def run(options: MergeOptions, write: Callable[[str], None] = show) -> int:
    """The command: merges and reports, line by line, to `write`. Returns the exit status."""
    inputs = {options.model_base: "the base model", **{path: "an adapter" for path, _ in options.adapters()}}
    targets = [Target("--output", options.output, FileForm.MODEL)]
    if options.modelfile:
        targets.append(Target("--modelfile", str(beside(options.output, MODELFILE)), FileForm.MODELFILE))
    check_overwriting(targets, inputs, force=options.force)
    model = open_model(options.model_base)
    model.refuse_damage()
    base = BaseModel.from_gguf(model)
    adapters = []
    for path, scale in options.adapters():
        file = read_adapter(path, base)
        for warning in file.warnings:
            write(f"note: {warning}")
        adapters.append((file, scale))
    report = merge_model(options.output, model, adapters, type=options.ggml_type, n_threads=options.n_threads,
                         progress=show_live)
    for line in report_lines(report):
        write(line)
    write(f"wrote {options.output}, {megabytes(report.nbytes)}")
    if options.modelfile:
        write(f"wrote {write_beside(options.output, MODELFILE, modelfile_for(model, options.output))}")
    return 0


def merge_model(path: str | os.PathLike, model: GGUFFile, adapters: Sequence[tuple[AdapterFile, float]], *,
                type: GGMLType | None = None, n_threads: int = 1, progress: Show = silent) -> Report:
    """Writes the model at `path` (atomically) with adapters, each with its factor, merged into it.

    type      of every matrix; None keeps each tensor's. A matrix whose rows do not divide into its blocks gets the type
              that llama.cpp would take
    progress  is shown how far it is

    The pair of token_embd acts on the input only. Where the model uses that matrix for its output as well, the merged
    model has an output.weight of its own, the matrix as it was.

    Raises LoraFastError for a pair that fits no tensor, a tensor that cannot be dequantised, or values that are not
    finite (in an adapter, or in the result: float16 ends at 65504), UsageError where `path` is the model itself.
    """
    check_overwriting([Target("-o", os.fspath(path), FileForm.MODEL)], {str(model.path): "the base model"}, force=True)
    notes: list[str] = []
    plans = _plan(model, _changes_by_tensor(model, adapters), type, notes)
    changes: dict[GGMLType, Change] = {}
    n_bytes = sum(plan.source.nbytes for plan in plans)
    with ThreadPoolExecutor(n_threads) as pool, Meter(f"writing {os.fspath(path)}", n_bytes, progress) as meter:
        def stream(plan: _Plan) -> Callable[[], Iterator[np.ndarray]]:
            return lambda: _rows(plan, pool, n_threads, changes, meter)

        tensors = [TensorToWrite(plan.name, plan.type, plan.source.shape, stream(plan)) for plan in plans]
        write_gguf(path, _metadata(model, type), tensors, alignment=model.alignment, summed=True)
    return Report(changes, notes, os.path.getsize(path))


ChangeOfRows = Callable[[np.ndarray, slice], np.ndarray]
"""What an adapter adds to rows of a matrix: from these rows, dequantised, and which they are."""


@dataclass(frozen=True)
class _Plan:
    """A tensor to write: `source` with what `changes` add to it."""

    name: str
    type: GGMLType
    source: Tensor
    changes: Sequence[ChangeOfRows] = field(default=())


def _changes_by_tensor(model: GGUFFile,
                       adapters: Sequence[tuple[AdapterFile, float]]) -> Mapping[str, Sequence[ChangeOfRows]]:
    """The changes that the adapters make to each tensor, each times its factor."""
    tied = OUTPUT not in model.tensors
    changes: dict[str, list[ChangeOfRows]] = {}
    for adapter, factor in adapters:
        for name, (a, b) in adapter.ordered():
            tensor = model.tensors.get(TOKEN_EMBD if tied and name == OUTPUT else name)
            if tensor is None:
                raise LoraFastError(f"the adapter has a pair for {name}, which {model.path} lacks; "
                                    "it belongs to another model")
            if len(tensor.shape) > 2:
                raise LoraFastError(f"{model.path}: tensor '{tensor.name}' has shape {tensor.shape}, and an adapter's "
                                    "pair is for a matrix or a vector")
            n_out, n_in = tensor.shape if len(tensor.shape) == 2 else (1, *tensor.shape)
            if (b.shape[1], a.shape[1]) != (n_out, n_in):
                raise LoraFastError(f"the adapter's pair for {name} fits a tensor of shape {(b.shape[1], a.shape[1])}, "
                                    f"but in {model.path} it is {(n_out, n_in)}; it belongs to another model")
            if not all(np.isfinite(part).all() for part in adapter.parts(name)):
                raise LoraFastError(f"the adapter's pair for {name} holds values that are not finite: training broke "
                                    "off or the file is damaged")
            changes.setdefault(name, []).append(_change(adapter, factor, name, tensor))
    return changes


def _change(adapter: AdapterFile, factor: float, name: str, tensor: Tensor) -> ChangeOfRows:
    """The change of one tensor by one adapter."""
    a, b = adapter.pairs[name]
    m = adapter.magnitudes.get(name)
    scale = np.float32(factor * adapter.scale if m is None else adapter.scale)

    def of_pair(w: np.ndarray, rows: slice) -> np.ndarray:
        return scale * (b[:, rows].T @ a)

    if m is None:
        return of_pair

    def of_rows(w: np.ndarray, rows: slice) -> np.ndarray:
        v = w + of_pair(w, rows)
        return np.float32(factor) * (gain_of(m[rows], np.linalg.norm(v, axis=1))[:, None] * v - w)

    of_columns = name == TOKEN_EMBD
    if m.shape != (tensor.shape[of_columns],):
        raise LoraFastError(f"the adapter has magnitudes of shape {m.shape} for {name}, which is {tensor.shape}; it "
                            "belongs to another model")
    if not of_columns:
        return of_rows
    squares = np.zeros(len(m))
    for rows in _chunks(tensor):
        w = dequantize(tensor.data[rows], tensor.type)
        squares += np.square(w + of_pair(w, rows)).sum(axis=0, dtype=np.float64)
    _release(tensor)
    gain = gain_of(m, np.sqrt(squares).astype(np.float32))
    return lambda w, rows: np.float32(factor) * (gain * (w + of_pair(w, rows)) - w)


def _plan(model: GGUFFile, changes: Mapping[str, Sequence[ChangeOfRows]], type: GGMLType | None,
          notes: list[str]) -> list[_Plan]:
    plans = [_Plan(name, _type_of(tensor, type), tensor, changes.get(name, ()))
             for name, tensor in model.tensors.items()]
    if OUTPUT not in model.tensors and (TOKEN_EMBD in changes or OUTPUT in changes):
        tensor = model.tensors[TOKEN_EMBD]
        plans.append(_Plan(OUTPUT, _type_of(tensor, type), tensor, changes.get(OUTPUT, ())))
        which, other = ("input", "output") if TOKEN_EMBD in changes else ("output", "input")
        size = megabytes(plans[-1].type.row_bytes(prod(tensor.shape)))
        notes.append(f"the adapter changes the embedding matrix as the model's {which}, not as its {other}: the merged "
                     f"model has an output.weight of its own, {size}")
    for plan in plans:
        _check_types(plan, model)
    unfit = [plan for plan in plans if type is not None and len(plan.source.shape) > 1 and plan.type is not type]
    if type is not None and unfit:
        instead = ", ".join(sorted({plan.type.label for plan in unfit}))
        notes.append(f"the rows of {len(unfit)} tensors are not a multiple of the {type.block_size} values in a block "
                     f"of {type.label}; they are stored as {instead}")
    return plans


def _check_types(plan: _Plan, model: GGUFFile) -> None:
    """Raises LoraFastError where a tensor that changes cannot be read, or cannot be written as what it is to be."""
    if not plan.changes and plan.type is plan.source.type:
        return
    if not plan.source.type.is_trainable:
        raise LoraFastError(f"{model.path}: tensor '{plan.name}' has type {plan.source.type.label}, which lorafast "
                            "cannot compute with; merge into an F16, Q8_0 or K-quant edition of the model")
    if plan.name.removesuffix("weight") + "scale" in model.tensors:
        raise LoraFastError(f"{model.path}: tensor '{plan.name}' has a scale in a tensor of its own, which lorafast "
                            "does not apply; merge into an F16, Q8_0 or K-quant edition of the model")
    if not plan.type.is_mergeable:
        instead = GGMLType[plan.type.as_weights.merge_as].label.lower()
        raise LoraFastError(f"{model.path}: tensor '{plan.name}' is {plan.type.label}, which takes an importance "
                            f"matrix to write; merge with --type {instead}, or with --type f16 and then use "
                            "llama-quantize --imatrix")


def _type_of(tensor: Tensor, type: GGMLType | None) -> GGMLType:
    """What the tensor will be stored as: vectors stay as they are, all matrices become `type` if one is given."""
    if type is None or len(tensor.shape) < 2:
        return tensor.type
    while tensor.shape[-1] % type.block_size:
        type = GGMLType[type.as_weights.fallback]
    return type


def _metadata(model: GGUFFile, type: GGMLType | None) -> list[tuple[str, ValueType, Any]]:
    """The model's own, but for its checksum; one that was split over several files no longer is."""
    metadata: list[tuple[str, ValueType, Any]] = [
        (key, model.value_types[key], value) for key, value in model.metadata.items()
        if not key.startswith("split.") and key != checksum.KEY]
    if type is not None:
        metadata = [item for item in metadata if item[0] != "general.file_type"]
        metadata.append(("general.file_type", GGUFValueType.UINT32, type.as_weights.file_type))
    return metadata


def _rows(plan: _Plan, pool: ThreadPoolExecutor, n_threads: int, changes: dict[GGMLType, Change],
          meter: Meter) -> Iterator[np.ndarray]:
    """The tensor's blocks as they will be stored, some rows at a time and in order."""
    rows, chunks = prod(plan.source.shape[:-1]), _chunks(plan.source)
    if not plan.changes and plan.type is plan.source.type:
        for chunk in chunks:
            yield plan.source.data[chunk]
            meter.advance(plan.source.data[chunk].nbytes)
    else:
        total = Change(tensors=1)
        tasks = (lambda chunk=chunk: _merge(plan, chunk) for chunk in chunks)
        for stored, change in _in_order(pool, 2 * n_threads, tasks):
            total += change
            yield stored
            meter.advance(plan.source.nbytes * len(stored) // rows)
        if plan.changes:
            changes.setdefault(plan.type, Change())
            changes[plan.type] += total
    _release(plan.source)


def _chunks(tensor: Tensor) -> list[slice]:
    """The rows that are worked on at a time."""
    rows, n_in = prod(tensor.shape[:-1]), tensor.shape[-1]
    step = max(1, CHUNK // n_in)
    return [slice(begin, min(begin + step, rows)) for begin in range(0, rows, step)]


def _merge(plan: _Plan, chunk: slice) -> tuple[np.ndarray, Change]:
    """These rows of the merged matrix as stored, uint8 (rows, bytes per row), and what became of the change."""
    w = dequantize(plan.source.data[chunk], plan.source.type)
    change = sum((change(w, chunk) for change in plan.changes), np.float32(0))
    target = w + change
    with np.errstate(all="ignore"):         # what overflows is reported below
        stored = quantize(target, plan.type)
        got = dequantize(stored, plan.type)
    if not (np.isfinite(target).all() and np.isfinite(got).all()):
        raise LoraFastError(f"tensor '{plan.name}' would hold values that are not finite: the change, or the model's "
                            f"own values, are too large for {plan.type.label}")
    if not plan.changes:
        return stored, Change()
    return stored, Change(0, _dot(w, w), _dot(change, change), _dot(got - target, got - target), _dot(got - w, change))


def _dot(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.vdot(x, y))


def _in_order(pool: ThreadPoolExecutor, ahead: int, tasks: Iterable[Callable[[], Any]]) -> Iterator[Any]:
    """The results of tasks that run in the pool, in the order of the tasks, at most `ahead` of them waiting."""
    waiting: deque = deque()
    for task in tasks:
        waiting.append(pool.submit(task))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _release(tensor: Tensor) -> None:
    """Tells the system that the tensor's pages are no longer needed; without it a model would pile up in memory."""
    if hasattr(tensor.mapping, "madvise"):
        start = tensor.offset // mmap.PAGESIZE * mmap.PAGESIZE
        tensor.mapping.madvise(mmap.MADV_DONTNEED, start, tensor.offset + tensor.nbytes - start)


def report_lines(report: Report) -> list[str]:
    """The report as text, a table of the types with a warning where little of the change survived."""
    lines = [f"note: {note}" for note in report.notes]
    lines.append("type      tensors  change/weights  survived  error/change")
    rows = [(type.label, change) for type, change in sorted(report.changes.items())]
    if len(rows) > 1:
        rows.append(("all", report.total))
    for label, change in rows:
        lines.append(f"{label:<8}{change.tensors:>9}{change.size:>16.2e}{change.survived:>10.1%}{change.nmse:>14.2e}")
    lines.append("change/weights: size of the adapters' change; survived: share of it that is in the file; "
                 "error/change: squared rounding error over squared change")
    for type, change in sorted(report.changes.items()):
        if change.survived < LITTLE:
            larger = " or ".join(f"--type {other.label}" for other in (GGMLType.Q8_0, GGMLType.F16)
                                 if other.type_size / other.block_size > type.type_size / type.block_size)
            lines.append(f"warning: only {change.survived:.0%} of the change survived in {type.label}: most of it is "
                         f"smaller than the distance between two levels. Use the adapter beside the model, a larger "
                         f"type ({larger}), or as --model-base the model's F16 edition with --type {type.label}")
    return lines
