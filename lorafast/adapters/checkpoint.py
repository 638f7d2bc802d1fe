"""Checkpoints: the adapter, the optimiser's state and the position in the data, so that a run goes on where it stopped.

The file is llama-finetune's, byte for byte: GGUF v3 with the keys of `_metadata` and the float32 tensors of `_tensors`.
Keys `lorafast.*` may follow, which llama-finetune ignores; they hold what it expected on the command line again (alpha
and r), the element order of the moments (moments.py), and whatever else an exact resume needs. Where tensors of a role
have different ranks, `training.lora.rank.*` is the highest, and `lorafast.ranks` has that of each pair. With DoRA the
key `lorafast.dora` is among them, a tensor `<base>.lora_magnitude` follows each pair, and the magnitudes' moments those
of all pairs. llama-finetune could go on from neither.

Where an adapter is not llama-finetune's full set, the tensors that are not adapted are absent, and a role that is
adapted nowhere has rank 0.
"""
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.batches import SamplerState
from ..data.samples import Identity
from ..errors import FormatError, LoraFastError
from ..gguf import checksum
from ..gguf.file_form import FileForm
from ..gguf.reader import GGUFFile, Tensor
from ..gguf.recognise import form_of_file
from ..gguf.roles import LLAMA_FINETUNE_ROLES, ROLES, file_order, split_name
from ..gguf.types import GGMLType, GGUFValueType
from ..gguf.writer import TensorToWrite, ValueType, write_gguf
from ..network.hparams import HParams
from ..network.lora import Adapter, Moments, Pair, Ranks
from . import moments

U32, U64, F32, BOOL, STRING = (GGUFValueType.UINT32, GGUFValueType.UINT64, GGUFValueType.FLOAT32, GGUFValueType.BOOL,
                               GGUFValueType.STRING)
FIRST_MOMENTS = "optimizer.adam.first_moments"
SECOND_MOMENTS = "optimizer.adam.second_moments"
PAST_LOSSES = "optimizer.adam.past_loss_values"
MAGNITUDE = "lora_magnitude"


@dataclass(frozen=True)
class Geometry:
    """The model that a checkpoint belongs to, as its `llama.*` keys say it."""

    n_ctx: int
    n_embd: int
    n_ff: int
    n_head: int
    n_head_kv: int
    n_layer: int
    n_rot: int
    norm_rms_eps: float
    rope_freq_base: float
    rope_freq_scale: float
    architecture: str = "llama"

    @classmethod
    def of(cls, hp: HParams) -> Geometry:
        """The model as a checkpoint records it."""
        return cls(hp.n_ctx, hp.n_embd, hp.n_ff, hp.n_head, hp.n_head_kv, hp.n_layer, hp.n_rot, hp.norm_rms_eps,
                   hp.rope_freq_base, hp.rope_freq_scale, hp.arch)


_GEOMETRY_KEYS = {
    "n_ctx": ("context_length", U32),
    "n_embd": ("embedding_length", U32),
    "n_ff": ("feed_forward_length", U32),
    "n_head": ("attention.head_count", U32),
    "n_head_kv": ("attention.head_count_kv", U32),
    "n_layer": ("block_count", U32),
    "n_rot": ("rope.dimension_count", U32),
    "norm_rms_eps": ("attention.layer_norm_rms_epsilon", F32),
    "rope_freq_base": ("rope.freq_base", F32),
    # llama-finetune stores freq_scale here, the reciprocal of what the key means elsewhere, and never reads it back.
    "rope_freq_scale": ("rope.scale_linear", F32),
}
_GEOMETRY_OF_THE_MODEL = ("architecture", "n_embd", "n_ff", "n_head", "n_head_kv", "n_layer")
"""What must equal the base model's; the rest is not read again, as in llama-finetune."""


@dataclass
class TrainState:
    """Where a run stands, besides the adapter and its moments.

    iteration      optimiser steps done since the very first run
    tokens         that these steps were trained on
    sampler        position in the shuffled data, with samples and epochs so far
    past_losses    (past,) float32 ring of the delta convergence test, length 0 without --opt-past
    best_loss, previous_loss, no_improvement   of the other stop tests
    moments_order  of m and v in the file
    """

    iteration: int = 0
    tokens: int = 0
    sampler: SamplerState = SamplerState()
    past_losses: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    best_loss: float = 0.0
    previous_loss: float = 0.0
    no_improvement: int = 0
    moments_order: str = moments.RIGHT_TO_LEFT


# ---------------------------------------------------------------------------------------------------------- writing

def write_checkpoint(path: str | os.PathLike, geometry: Geometry, adapter: Adapter, adam: Moments, state: TrainState,
                     extras: Mapping[str, Any] | None = None) -> None:
    """Writes a checkpoint atomically.

    adam    the moments
    extras  more values to keep: int, float, bool, str, list of str or array of numbers, stored as `lorafast.<key>`
            after alpha, r and the moments' order. With None no `lorafast.*` key is written at all, and the file equals
            llama-finetune's to the byte.
    """
    write_gguf(path, _metadata(geometry, adapter, state, extras), _tensors(adapter, adam, state),
               summed=extras is not None)


def _metadata(geometry: Geometry, adapter: Adapter, state: TrainState,
              extras: Mapping[str, Any] | None) -> list[tuple[str, ValueType, Any]]:
    sampler = state.sampler
    ranks = Ranks(adapter).by_role()
    metadata: list[tuple[str, ValueType, Any]] = [
        ("training.type", STRING, "finetune_lora"),
        ("general.architecture", STRING, geometry.architecture),
        ("general.file_type", U32, 0),
        *((f"{geometry.architecture}.{key}", type, getattr(geometry, name))
          for name, (key, type) in _GEOMETRY_KEYS.items()),
        *((f"training.lora.rank.{role}", U32, ranks.get(role, 0)) for role in _recorded_roles(ranks)),
        ("training.file_version", U32, 1),
        ("training.iteration_count", U64, state.iteration),
        ("training.sample_count", U64, sampler.samples_used),
        ("training.token_count", U64, state.tokens),
        ("training.epoch_count", U64, sampler.epochs),
        ("training.shuffle.samples_hash", U64, sampler.samples_hash),
        ("training.shuffle.rng_state", STRING, sampler.rng_state),
        ("training.shuffle.sample_count", U64, sampler.sample_count),
        ("training.shuffle.next_sample", U64, sampler.next_sample),
        ("optimizer.file_version", U32, 0),
        ("optimizer.convergence_past_count", U32, len(state.past_losses)),
        ("optimizer.parameter_count", U64, adapter.n_params),
        ("optimizer.iteration_count", U32, state.iteration),
        ("optimizer.just_initialized", BOOL, False),
        ("optimizer.type", STRING, "adam"),
        ("optimizer.adam.best_loss", F32, state.best_loss),
        ("optimizer.adam.previous_loss", F32, state.previous_loss),
        ("optimizer.adam.no_improvement_count", U32, state.no_improvement),
    ]
    if extras is not None:
        own = {"alpha": float(adapter.alpha), "r": adapter.r, "moments_order": state.moments_order}
        own |= {"dora": True} if adapter.magnitudes else {}
        if any(spec.rank != ranks[spec.role] for spec in adapter.specs):
            own["ranks"] = np.array([spec.rank for spec in adapter.specs], np.uint32)
        own |= {"data.tokens": sampler.data.tokens, "data.cuts": sampler.data.cuts} if sampler.data.tokens else {}
        own |= extras
        metadata += [(f"lorafast.{key}", *_typed(value)) for key, value in own.items()]
    return metadata


def _typed(value: Any) -> tuple[ValueType, Any]:
    """The GGUF type that holds a Python value without loss."""
    if isinstance(value, (bool, np.bool_)):
        return BOOL, bool(value)
    if isinstance(value, (int, np.integer)):
        return (U64 if value >= 0 else GGUFValueType.INT64), int(value)
    if isinstance(value, (float, np.floating)):
        return GGUFValueType.FLOAT64, float(value)
    if isinstance(value, str):
        return STRING, value
    if isinstance(value, np.ndarray):
        return (GGUFValueType.ARRAY, _ARRAY_TYPES[value.dtype.str[1:]]), value
    return (GGUFValueType.ARRAY, STRING), list(value)


_ARRAY_TYPES = {"f4": F32, "f8": GGUFValueType.FLOAT64, "i4": GGUFValueType.INT32, "i8": GGUFValueType.INT64,
                "u1": GGUFValueType.UINT8, "u4": U32, "u8": U64, "b1": BOOL}


def _recorded_roles(ranks: Mapping[str, int]) -> list[str]:
    """The roles whose ranks stand in a checkpoint: all that llama-finetune knew, and others that are adapted."""
    return [role.name for role in LLAMA_FINETUNE_ROLES] + [name for name, role in ROLES.items()
                                                           if not role.rank_field and ranks.get(name)]


def _tensors(adapter: Adapter, adam: Moments, state: TrainState) -> list[TensorToWrite]:
    """The pairs in order with the rank as the fastest axis, with magnitudes where there are any, then the moments.

    B of a norm has one dimension, ne [r].
    """
    tensors = []
    for spec in adapter.specs:
        a, b = adapter.pairs[spec.name]
        tensors.append(TensorToWrite(f"{spec.name}.lora_a", GGMLType.F32, a.T.shape, a.T))
        b_shape = (spec.rank,) if spec.kind == "norm" else b.T.shape
        tensors.append(TensorToWrite(f"{spec.name}.lora_b", GGMLType.F32, b_shape, b.T))
        if spec.n_magnitudes:
            m = adapter.magnitudes[spec.name]
            tensors.append(TensorToWrite(f"{spec.name}.{MAGNITUDE}", GGMLType.F32, m.shape, m))
    for name, store in ((FIRST_MOMENTS, adam.m), (SECOND_MOMENTS, adam.v)):
        chunks = _moments(adapter, store, state.moments_order)
        tensors.append(TensorToWrite(name, GGMLType.F32, (adapter.n_params,), chunks))
    if len(state.past_losses):
        tensors.append(TensorToWrite(PAST_LOSSES, GGMLType.F32, state.past_losses.shape, state.past_losses))
    return tensors


def _moments(adapter: Adapter, store: np.ndarray, order: str) -> Iterator[np.ndarray]:
    yield from moments.chunks(adapter.views(store), order)
    yield store[adapter.n_params - adapter.n_magnitudes:]


# ---------------------------------------------------------------------------------------------------------- reading

@dataclass
class Checkpoint:
    """A checkpoint as read: arrays are views of the mapped file.

    pairs    A (r, K) and B (r, N) by base tensor, in the file's order
    magnitudes  DoRA's by base tensor, in the same order; empty without
    ranks    rank by role, as recorded; the highest where its tensors differ
    alpha, r   None in a file of llama-finetune, which trained with scale 1
    state    None if the file holds no training state; then neither does it hold m and v
    m, v     (n_params,) in the file's order, `state.moments_order`
    moments_evidence  how that order is known, for the log
    extras   the other `lorafast.*` values, by key without the prefix
    """

    path: Path
    geometry: Geometry
    ranks: dict[str, int]
    pairs: dict[str, Pair]
    alpha: float | None
    r: int | None
    state: TrainState | None
    m: np.ndarray | None
    v: np.ndarray | None
    moments_evidence: str
    extras: dict[str, Any]
    magnitudes: dict[str, np.ndarray]

    @property
    def is_originals(self) -> bool:
        """Written by llama-finetune, or without the `lorafast.*` keys."""
        return self.alpha is None

    def load_adapter(self, adapter: Adapter, geometry: Geometry) -> None:
        """Copies the pairs into `adapter`. Raises LoraFastError if they belong to another model, other ranks, other
        tensors or another scale, or are not finite.
        """
        self.check_geometry(geometry)
        self._check_ranks(Ranks(adapter).by_role())
        self._check_tensors(adapter)
        self._check_magnitudes(adapter)
        if self.alpha is None and adapter.scale != 1:
            raise LoraFastError(f"{self.path}: was trained with scale 1, as llama-finetune always did, this run has "
                                f"{adapter.alpha:g} / {adapter.r}; pass --lora-alpha {adapter.r}")
        if self.alpha is not None and self.r is not None and self.alpha / self.r != adapter.scale:
            raise LoraFastError(f"{self.path}: was trained with alpha {self.alpha:.9g} and r {self.r}, this run has "
                                f"{adapter.alpha:.9g} and {adapter.r}; "
                                f"pass --lora-r {self.r} --lora-alpha {self.alpha:.9g}")
        for name, (a, b) in self.pairs.items():
            adapter.A(name)[:] = a
            adapter.B(name)[:] = b
        for name, m in self.magnitudes.items():
            adapter.magnitudes[name][:] = m
        if not np.isfinite(adapter.params).all():
            raise LoraFastError(f"{self.path}: holds values that are not finite; resume from an earlier checkpoint")

    def load_training_state(self, adapter: Adapter, adam: Moments, past: int) -> TrainState:
        """Copies the moments of `adapter` (which `load_adapter` has accepted) into `adam` and returns the rest of the
        state.

        past  length of the delta convergence test's window in this run (--opt-past)

        Raises LoraFastError if the file has no training state or one of another window, or moments that are not finite.
        """
        if self.state is None:
            raise LoraFastError(f"{self.path}: holds an adapter but no training state (no training.file_version); "
                                "write the adapter with --only-write-lora, or start fresh with another --checkpoint-in")
        assert self.m is not None and self.v is not None, "a training state has moments"
        stored_past = len(self.state.past_losses)
        if stored_past != past:
            raise LoraFastError(f"{self.path}: optimizer.convergence_past_count is {stored_past}, this run has "
                                f"--opt-past {past}; pass --opt-past {stored_past}")
        for stored, store in ((self.m, adam.m), (self.v, adam.v)):
            if not np.isfinite(stored).all():
                raise LoraFastError(f"{self.path}: holds moments that are not finite; "
                                    "resume from an earlier checkpoint")
            views = adapter.views(store)
            for name, part, values in moments.pieces(stored, views, self.state.moments_order):
                views[name]["AB".index(part)][:] = values
            of_pairs = adapter.n_params - adapter.n_magnitudes
            store[of_pairs:] = stored[of_pairs:]
        return self.state

    def check_geometry(self, geometry: Geometry) -> None:
        """LoraFastError if this belongs to a model of other shapes."""
        for name in _GEOMETRY_OF_THE_MODEL:
            stored, wanted = getattr(self.geometry, name), getattr(geometry, name)
            if stored != wanted:
                raise LoraFastError(f"{self.path}: belongs to another model: {name} is {stored}, the base model's "
                                    f"{wanted}; pass that model to --model-base, or another --checkpoint-in")

    def _check_ranks(self, wanted: Mapping[str, int]) -> None:
        for role in ROLES:
            stored, rank = self.ranks.get(role, 0), wanted.get(role, 0)
            if stored != rank:
                option = "--" + (ROLES[role].rank_field or "lora_r").replace("_", "-")
                raise LoraFastError(f"{self.path}: training.lora.rank.{role} is {stored}, this run has {rank}; "
                                    f"pass {option} {stored}, or the options of the run that wrote it")

    def _check_tensors(self, adapter: Adapter) -> None:
        missing = [spec.name for spec in adapter.specs if spec.name not in self.pairs]
        extra = [name for name in self.pairs if name not in adapter]
        if missing or extra:
            name, problem = (missing[0], "has no pair for") if missing else (extra[0], "has a pair for")
            also = "this run adapts it" if missing else "this run does not adapt it"
            raise LoraFastError(f"{self.path}: {problem} {name}, but {also}; "
                                "pass the same --targets as in the run that wrote it")
        for name, stored in self.pairs.items():
            for part, stored_part, wanted_part in zip("ab", stored, adapter.pairs[name]):
                if stored_part.shape != wanted_part.shape:
                    raise LoraFastError(f"{self.path}: tensor {name}.lora_{part} has shape {stored_part.T.shape}, the "
                                        f"base model needs {wanted_part.T.shape}; pass the model it was trained on")

    def _check_magnitudes(self, adapter: Adapter) -> None:
        if bool(self.magnitudes) != bool(adapter.magnitudes):
            stored, wanted, do = ("with", "without", "pass") if self.magnitudes else ("without", "with", "leave out")
            raise LoraFastError(f"{self.path}: was trained {stored} DoRA, this run is {wanted}; {do} --dora")
        for name, m in self.magnitudes.items():
            if m.shape != adapter.magnitudes[name].shape:
                raise LoraFastError(f"{self.path}: tensor {name}.{MAGNITUDE} has shape {m.shape}, the base model needs "
                                    f"{adapter.magnitudes[name].shape}; pass the model it was trained on")


def read_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Reads a checkpoint of llama-finetune or of this package.

    Raises FormatError for a file that is broken, of another kind, or of a version or optimiser this package does not
    know, and LoraFastError for one that cannot be read.
    """
    kind = form_of_file(path)
    if kind is not FileForm.CHECKPOINT:
        raise FormatError(f"{path}: is {kind.phrase}, not a checkpoint; {_ADVICE[kind]}")
    file = GGUFFile(path)
    file.refuse_damage()
    keys = _Keys(file)
    if keys.get("training.type", str, "finetune_lora") != "finetune_lora":
        raise FormatError(f"{path}: training.type is '{file.metadata['training.type']}', not 'finetune_lora'; "
                          "it belongs to another program")
    if keys.get("general.file_type", int) != 0:
        raise FormatError(f"{path}: general.file_type is {file.metadata['general.file_type']}, but a checkpoint has 0")
    ranks = {name: keys.get(f"training.lora.rank.{name}", int, _REQUIRED if role.rank_field else 0)
             for name, role in ROLES.items()}
    pairs, magnitudes = _read_pairs(file, ranks)
    alpha, r = keys.get("lorafast.alpha", float, None), keys.get("lorafast.r", int, None)
    if (alpha is None) != (r is None) or r == 0:
        raise FormatError(f"{path}: lorafast.alpha is {alpha} and lorafast.r is {r}; the file is broken")
    extras = {key.removeprefix("lorafast."): value for key, value in file.metadata.items()
              if key.startswith("lorafast.") and key not in _OWN_KEYS}
    state = m = v = None
    evidence = ""
    if "training.file_version" in file.metadata:
        n_params = sum(a.size + b.size for a, b in pairs.values()) + sum(m.size for m in magnitudes.values())
        state, m, v = _read_state(keys, n_params)
        recorded = keys.get("lorafast.moments_order", str, None)
        if recorded is None:
            state.moments_order, evidence = moments.recognise(pairs, m, v)
        elif recorded in moments.ORDERS:
            state.moments_order, evidence = recorded, "recorded in the file"
        else:
            raise FormatError(f"{path}: lorafast.moments_order is {recorded!r}, but should be one of "
                              f"{' and '.join(moments.ORDERS)}")
    geometry = _read_geometry(keys)
    return Checkpoint(file.path, geometry, ranks, pairs, alpha, r, state, m, v, evidence, extras, magnitudes)


_ADVICE = {
    FileForm.MODEL: "pass it to --model-base",
    FileForm.GGUF: "pass the file that --checkpoint-out wrote beside it",
    FileForm.GGLA: "pass the .gguf file that --checkpoint-out wrote beside it",
    FileForm.PEFT: "pass the .gguf file that --checkpoint-out wrote",
    FileForm.MLX: "make one of it with lorafast convert IN OUT.gguf --to checkpoint",
}

_OWN_KEYS = ("lorafast.alpha", "lorafast.r", "lorafast.moments_order", "lorafast.dora", "lorafast.ranks",
             "lorafast.data.tokens", "lorafast.data.cuts", checksum.KEY)
_REQUIRED = object()


class _Keys:
    """Typed access to a checkpoint's metadata."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file

    def get(self, key: str, type: type, default: Any = _REQUIRED) -> Any:
        value = self.file.metadata.get(key, default)
        if value is _REQUIRED:
            raise FormatError(f"{self.file.path}: lacks the key {key}; it is not a complete checkpoint")
        if value is not default and not isinstance(value, type):
            raise FormatError(f"{self.file.path}: {key} is {value!r:.40}, but should be of type {type.__name__}")
        return value


def _read_geometry(keys: _Keys) -> Geometry:
    architecture = keys.get("general.architecture", str)
    values = {name: keys.get(f"{architecture}.{key}", int if type is U32 else float,
                             _REQUIRED if name in _GEOMETRY_OF_THE_MODEL else 0)
              for name, (key, type) in _GEOMETRY_KEYS.items()}
    return Geometry(**values, architecture=architecture)


def _read_pairs(file: GGUFFile, ranks: Mapping[str, int]) -> tuple[dict[str, Pair], dict[str, np.ndarray]]:
    """The pairs and the magnitudes."""
    magnitudes: dict[str, np.ndarray] = {}
    parts: dict[str, dict[str, np.ndarray]] = {}
    own_ranks = _own_ranks(file)
    for name, tensor in file.tensors.items():
        base, _, suffix = name.rpartition(".")
        if suffix in ("lora_a", "lora_b") and split_name(base)[1]:
            rank = own_ranks.get(base, ranks[split_name(base)[1]])
            parts.setdefault(base, {})[suffix] = _read_part(file.path, tensor, rank)
        elif suffix == MAGNITUDE and len(tensor.shape) == 1:
            magnitudes[base] = _float32(file.path, tensor)
        elif not name.startswith("optimizer."):
            raise FormatError(f"{file.path}: tensor {name!r} does not belong in a checkpoint")
    for base, pair in parts.items():
        if len(pair) != 2:
            missing = "lora_b" if "lora_a" in pair else "lora_a"
            raise FormatError(f"{file.path}: lacks tensor '{base}.{missing}'; it is not a complete checkpoint")
    present = {split_name(name)[1] for name in parts}
    for role, rank in ranks.items():
        if rank and role not in present:
            raise FormatError(f"{file.path}: training.lora.rank.{role} is {rank}, but there is no such tensor; "
                              "it is not a complete checkpoint")
    if not parts:
        raise FormatError(f"{file.path}: holds no adapter tensors; it is not a complete checkpoint")
    names = sorted(parts, key=file_order)
    dora = bool(file.metadata.get("lorafast.dora"))
    for base in parts.keys() | magnitudes.keys():
        if (base in magnitudes) != (dora and base in parts):
            has = "has a" if base in magnitudes else "lacks"
            raise FormatError(f"{file.path}: {has} tensor '{base}.{MAGNITUDE}', and lorafast.dora is {dora}; the file "
                              "is broken")
    return ({base: (parts[base]["lora_a"], parts[base]["lora_b"]) for base in names},
            {base: magnitudes[base] for base in names if dora})


def _own_ranks(file: GGUFFile) -> dict[str, int]:
    """The rank of each pair, where those of a role differ; else empty."""
    ranks = file.metadata.get("lorafast.ranks")
    if ranks is None:
        return {}
    names = sorted((name.removesuffix(".lora_a") for name in file.tensors if name.endswith(".lora_a")
                    and split_name(name.removesuffix(".lora_a"))[1]), key=file_order)
    if not isinstance(ranks, np.ndarray) or ranks.dtype.kind not in "iu" or ranks.shape != (len(names),):
        raise FormatError(f"{file.path}: lorafast.ranks is not one whole number for each of {len(names)} pairs; the "
                          "file is broken")
    return dict(zip(names, ranks.tolist()))


def _read_part(path: Path, tensor: Tensor, rank: int) -> np.ndarray:
    """A or B as (r, n): a transposed view of the file's (n, r), in which a norm's B, n = 1, is stored as (r,)."""
    values = _float32(path, tensor)
    if values.shape[-1] != rank or values.ndim > 2:
        raise FormatError(f"{path}: tensor '{tensor.name}' has shape {values.shape}, but rank {rank} by its key")
    return values.reshape(-1, rank).T


def _float32(path: Path, tensor: Tensor) -> np.ndarray:
    if tensor.type is not GGMLType.F32:
        raise FormatError(f"{path}: tensor '{tensor.name}' is of type {tensor.type.label}, "
                          "but a checkpoint holds f32 only")
    return tensor.data.view(np.float32).reshape(tensor.shape)


def _read_state(keys: _Keys, n_params: int) -> tuple[TrainState, np.ndarray, np.ndarray]:
    """The counters, and m and v in the file's order. Version 0 had neither epochs nor the position in the shuffle."""
    path = keys.file.path
    version = keys.get("training.file_version", int)
    if version > 1:
        raise FormatError(f"{path}: training.file_version is {version}, but only 0 and 1 are known; "
                          "a newer lorafast may read it")
    optimizer_version = keys.get("optimizer.file_version", int)
    if optimizer_version != 0:
        raise FormatError(f"{path}: optimizer.file_version is {optimizer_version}, but only 0 is known")
    optimizer = keys.get("optimizer.type", str)
    if optimizer != "adam":
        raise FormatError(f"{path}: was trained with the optimiser '{optimizer}', but only 'adam' is supported; "
                          "start fresh with another --checkpoint-in")
    count = keys.get("optimizer.parameter_count", int)
    if count != n_params:
        raise FormatError(f"{path}: optimizer.parameter_count is {count}, but its tensors hold {n_params} parameters; "
                          "the file is broken")
    past = keys.get("optimizer.convergence_past_count", int)
    m, v = _read_vector(keys.file, FIRST_MOMENTS, n_params), _read_vector(keys.file, SECOND_MOMENTS, n_params)
    state = TrainState(
        iteration=keys.get("training.iteration_count", int),
        tokens=keys.get("training.token_count", int),
        sampler=SamplerState(
            samples_hash=keys.get("training.shuffle.samples_hash", int, 0),
            rng_state=keys.get("training.shuffle.rng_state", str, ""),
            sample_count=keys.get("training.shuffle.sample_count", int, 0),
            next_sample=keys.get("training.shuffle.next_sample", int, 0),
            epochs=keys.get("training.epoch_count", int, 0),
            samples_used=keys.get("training.sample_count", int),
            data=Identity(keys.get("lorafast.data.tokens", str, ""), keys.get("lorafast.data.cuts", int, 0)),
        ),
        best_loss=keys.get("optimizer.adam.best_loss", float),
        previous_loss=keys.get("optimizer.adam.previous_loss", float),
        no_improvement=keys.get("optimizer.adam.no_improvement_count", int),
    )
    if past:
        state.past_losses = _read_vector(keys.file, PAST_LOSSES, past).copy()
    return state, m, v


def _read_vector(file: GGUFFile, name: str, size: int) -> np.ndarray:
    if name not in file.tensors:
        raise FormatError(f"{file.path}: lacks tensor '{name}'; it is not a complete checkpoint")
    values = _float32(file.path, file.tensors[name])
    if values.shape != (size,):
        raise FormatError(f"{file.path}: tensor '{name}' has shape {values.shape}, but {size} values were expected")
    return values
