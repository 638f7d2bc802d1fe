"""`lorafast inspect` for models, adapters and checkpoints: what a file holds, as text."""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from math import prod
from typing import Any

import numpy as np

from ..adapters import AdapterFile, BaseModel, read_adapter
from ..adapters.checkpoint import Checkpoint, read_checkpoint
from ..gguf.file_form import FileForm
from ..gguf.reader import GGUFFile, Tensor, open_model
from ..gguf.recognise import form_of_file
from ..gguf.roles import ROLES, split_name
from ..gguf.strings import Strings
from ..gguf.types import FILE_TYPE_NAMES
from ..network.lora import Pair
from ..options.outputs import megabytes
from ..words import count

VALUE_WIDTH = 60
NAME_WIDTH = 64
"""Characters that a column of names has at most; a longer name pushes the rest of its line."""
ANY_BASE = BaseModel("", 0, 0, 0, tied=False)
"""Stands for the base model where only norms are wanted: they do not depend on the order of q's and k's rows."""


def inspect_file(path: str, *, everything: bool = False) -> Iterator[str]:
    """The lines that describe a model, adapter or checkpoint.

    everything  list each tensor and the whole of long values

    Raises FormatError for a broken file or one of another kind, LoraFastError for one that cannot be read.
    """
    kind = form_of_file(path)
    if kind is FileForm.MODEL:
        model = open_model(path)
        model.refuse_damage()
        yield from model_lines(model, everything)
        return
    yield f"{path}: {kind.phrase}"
    if kind is FileForm.CHECKPOINT:
        checkpoint = read_checkpoint(path)
        yield from checkpoint_lines(checkpoint)
    adapter = read_adapter(path, ANY_BASE)
    if kind is FileForm.GGUF and everything:
        yield from metadata_lines(GGUFFile(path), everything)
    yield from adapter_lines(adapter, everything)


# ---- models ----

def model_lines(model: GGUFFile, everything: bool) -> Iterator[str]:
    """Metadata, tensors (those of all layers as one line, unless `everything`), and bytes by type."""
    n_values = sum(prod(tensor.shape) for tensor in model.tensors.values())
    file_type = model.metadata.get("general.file_type")
    named = f" ({FILE_TYPE_NAMES.get(file_type, file_type)})" if file_type is not None else ""
    yield (f"{model.path}: {FileForm.MODEL.phrase}{named}, GGUF version {model.version}, {megabytes(model.nbytes)}, "
           f"{n_values / 1e6:.1f} million parameters")
    yield ""
    yield from metadata_lines(model, everything)
    yield ""
    yield from tensor_lines(model.tensors.values(), everything)
    yield ""
    yield from type_lines(model.tensors.values())


def metadata_lines(file: GGUFFile, everything: bool) -> Iterator[str]:
    """One line a key: name, type, value."""
    width = column_width(file.metadata)
    for key, value in file.metadata.items():
        type, element_type = file.value_types[key]
        label = f"{type.label}[{element_type.label}]" if element_type is not None else type.label
        yield f"{key if everything else shortened(key):<{width}}  {label:<9} {shown(value, everything)}"


def column_width(names: Iterable[str]) -> int:
    """The width of a column with these names. A name in a stranger's file may be as long as the file."""
    return min(max(map(len, names), default=0), NAME_WIDTH)


def shortened(name: str) -> str:
    """A name that fits its column."""
    return name if len(name) <= NAME_WIDTH else f"{name[:NAME_WIDTH - 3]}..."


def shown(value: Any, everything: bool = False) -> str:
    """A metadata value in one line; a long one only by its beginning, unless `everything`."""
    if isinstance(value, (list, Strings, np.ndarray)):
        some = value if everything else value[:4]
        more = "" if len(some) == len(value) else f", ... ({len(value)} in all)"
        return "[" + ", ".join(shown(item, everything) for item in some) + more + "]"
    if isinstance(value, str):
        text = repr(value)
        return text if everything or len(text) <= VALUE_WIDTH else f"{text[:VALUE_WIDTH]}... ({len(value)} characters)"
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def tensor_lines(tensors: Iterable[Tensor], everything: bool) -> Iterator[str]:
    """One line a tensor; or one for all layers' tensors of the same name, shape and type."""
    rows: dict[tuple, list[Tensor]] = {}
    for tensor in tensors:
        name = tensor.name if everything else re.sub(r"^blk\.[0-9]{1,9}\.", "blk.*.", tensor.name)
        rows.setdefault((name, tensor.type, tensor.shape), []).append(tensor)
    width = column_width(name for name, _, _ in rows)
    yield f"{'tensor':<{width}}  count  type    shape (rows × columns)       size"
    for (name, type, shape), alike in rows.items():
        size = megabytes(sum(tensor.nbytes for tensor in alike))
        label = name if everything else shortened(name)
        yield f"{label:<{width}}  {len(alike):>5}  {type.label:<6}  {' × '.join(map(str, shape)):<16}  {size:>15}"


def type_lines(tensors: Iterable[Tensor]) -> Iterator[str]:
    """Tensors, bytes and bits a value, by type."""
    totals: dict[str, list[int]] = {}
    for tensor in tensors:
        total = totals.setdefault(tensor.type.label, [0, 0, 0])
        for i, amount in enumerate((1, prod(tensor.shape), tensor.nbytes)):
            total[i] += amount
    yield "type    tensors       size  bits a value"
    for label, (n_tensors, n_values, nbytes) in sorted(totals.items(), key=lambda item: -item[1][2]):
        yield f"{label:<6}{n_tensors:>9}{megabytes(nbytes):>11}{8 * nbytes / n_values:>14.2f}"


# ---- adapters ----

def adapter_lines(adapter: AdapterFile, everything: bool = False) -> Iterator[str]:
    """Scale, and for each role (or, with `everything`, each tensor): ranks, norms of A, B and s·Bᵀ·A, and the mean of
    DoRA's magnitudes.
    """
    for warning in adapter.warnings:
        yield f"note: {warning}"
    n_params = sum(part.size for name in adapter.pairs for part in adapter.parts(name))
    scale = "none in the file, scale 1"
    if adapter.alpha is not None:
        scale = f"{adapter.alpha:g} / {adapter.r} = {adapter.scale:g}"
    pairs = "pairs with magnitudes (DoRA)" if adapter.magnitudes else "pairs"
    yield f"{len(adapter.pairs)} {pairs}, {n_params / 1e6:.3f} million parameters; alpha / r: {scale}"
    broken = [name for name in adapter.pairs if not all(np.isfinite(part).all() for part in adapter.parts(name))]
    if broken:
        yield f"warning: {count(len(broken), 'pair')} with values that are not finite, {broken[0]} the first"
    rows: dict[str, list[str]] = {}
    for name, _ in adapter.ordered():
        rows.setdefault(name if everything else split_name(name)[1], []).append(name)
    width = column_width(rows)
    yield ""
    yield "Root mean squares over the pairs of a row: ‖A‖, ‖B‖, the change ‖s·B·A‖, and one element of the change"
    if adapter.magnitudes:
        yield "m: mean of the magnitudes, which are the norms of the adapted matrix's rows"
    head = f"{'tensor':<{width}}  pairs  rank  shape (rows × columns)       ‖A‖      ‖B‖  ‖s·B·A‖   element"
    yield head + ("         m" if adapter.magnitudes else "")
    for row, names in rows.items():
        columns = _norm_columns([adapter.pairs[name] for name in names], adapter.scale)
        magnitudes = [adapter.magnitudes[name] for name in names if name in adapter.magnitudes]
        if magnitudes:
            columns += f"{np.concatenate(magnitudes).mean():>10.4g}"
        yield f"{row:<{width}}  {columns}"


def _norm_columns(pairs: list[Pair], scale: float) -> str:
    ranks = "/".join(map(str, sorted({len(a) for a, _ in pairs})))
    shapes = {(b.shape[1], a.shape[1]) for a, b in pairs}
    shape = " × ".join(map(str, shapes.pop())) if len(shapes) == 1 else "several"
    squares = np.array([(_square(a), _square(b), change_square(a, b, scale)) for a, b in pairs]).mean(axis=0)
    n_values = np.mean([a.shape[1] * b.shape[1] for a, b in pairs])
    norms = [*np.sqrt(squares), np.sqrt(squares[2] / n_values)]
    columns = "".join(f"{norm:>9.3g}" for norm in norms[:3])
    return f"{len(pairs):>5}  {ranks:>4}  {shape:<22}{columns}{norms[3]:>10.2e}"


def _square(x: np.ndarray) -> float:
    return float(np.square(x, dtype=np.float64).sum())


def change_square(a: np.ndarray, b: np.ndarray, scale: float) -> float:
    """‖s·Bᵀ·A‖² without forming the product: s²·Σ (A·Aᵀ)∘(B·Bᵀ), two matrices of r × r."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return max(0.0, scale * scale * float(((a @ a.T) * (b @ b.T)).sum()))


# ---- checkpoints ----

def checkpoint_lines(checkpoint: Checkpoint) -> Iterator[str]:
    """The model it belongs to, and where the run stands: counters, position in the data, optimiser."""
    geometry = checkpoint.geometry
    yield (f"model: {geometry.architecture}, {geometry.n_layer} layers, n_embd {geometry.n_embd}, "
           f"n_ff {geometry.n_ff}, {geometry.n_head} heads ({geometry.n_head_kv} for keys and values), "
           f"context {geometry.n_ctx}")
    yield "ranks: " + ", ".join(f"{role} {checkpoint.ranks[role]}" for role in ROLES if checkpoint.ranks[role])
    yield "written by: " + ("llama.cpp's finetune, or for it" if checkpoint.is_originals
                            else f"lorafast {checkpoint.extras.get('version', '')}".strip())
    state = checkpoint.state
    if state is None:
        yield "an adapter without training state: a run can start from it, but not go on where it stopped"
        return
    sampler = state.sampler
    yield (f"iterations {state.iteration}, samples {sampler.samples_used}, tokens {state.tokens}, "
           f"epochs {sampler.epochs}")
    yield (f"position in the data: sample {sampler.next_sample} of {sampler.sample_count} in the present shuffle; "
           f"samples hash {sampler.samples_hash}, data {sampler.data.tokens or 'not known by its contents'}")
    yield (f"optimiser: adam, step {state.iteration} of the schedule is next; losses: best {state.best_loss:g}, "
           f"previous {state.previous_loss:g}, {count(state.no_improvement, 'iteration')} without a new best")
    if len(state.past_losses):
        yield f"last {len(state.past_losses)} losses, for --opt-delta: {shown(state.past_losses)}"
    if checkpoint.m is not None and checkpoint.v is not None:
        m, v = np.linalg.norm(checkpoint.m), np.linalg.norm(checkpoint.v)
        yield f"moments: ‖m‖ {m:.3g}, ‖v‖ {v:.3g}; order {state.moments_order}, {checkpoint.moments_evidence}"
    extras = {key: value for key, value in checkpoint.extras.items() if key != "version"}
    for key, value in extras.items():
        yield f"lorafast.{key}: {shown(value)}"
