"""The one form in memory of an adapter from any file, and what a format must know of the base model."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import FormatError, LoraFastError
from ..gguf.file_form import FileForm, cannot_carry_magnitudes
from ..gguf.reader import GGUFFile, Tensor
from ..gguf.roles import file_order, split_name
from ..network.architectures import architecture_of
from ..network.block_params import DeltaHeads
from ..network.lora import Adapter, Pair, specs_for


@dataclass(frozen=True)
class BaseModel:
    """The model that an adapter belongs to, as far as the formats are concerned.

    tied     the embedding serves as output matrix too
    name     `general.name`, for people
    source   where the model came from, as PEFT records it: a Hugging Face repository or a path; None if unknown
    delta    the heads of its gated delta nets; None without
    tensors  its weights, by name; empty if its file is not at hand
    """

    architecture: str
    n_layer: int
    n_head: int
    n_head_kv: int
    tied: bool
    name: str = ""
    source: str | None = None
    delta: DeltaHeads | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def from_gguf(cls, model: GGUFFile) -> BaseModel:
        """Reads it from the model's file. FormatError for a file without the keys of a model."""
        metadata = model.metadata
        try:
            architecture = metadata["general.architecture"]
            n_layer, n_head = (metadata[f"{architecture}.{key}"] for key in ("block_count", "attention.head_count"))
        except KeyError as error:
            raise FormatError(f"{model.path}: lacks the key {error.args[0]}, so it is not a base model") from None
        n_head_kv = metadata.get(f"{architecture}.attention.head_count_kv", n_head)
        n_head, n_head_kv = (_most(model, n) for n in (n_head, n_head_kv))
        if not isinstance(n_layer, int):
            raise FormatError(f"{model.path}: {architecture}.block_count is {n_layer!r:.40}, but should be a whole "
                              "number")
        repository = str(metadata.get("general.repo_url", "")).removeprefix("https://huggingface.co/")
        return cls(architecture, n_layer, n_head, n_head_kv, "output.weight" not in model.tensors,
                   metadata.get("general.name", ""), repository or None, _delta_heads(metadata, architecture),
                   model.tensors)


@dataclass
class AdapterFile:
    """An adapter, whatever its format: y = x·Wᵀ + (alpha / r)·(x·Aᵀ)·B for every pair, whatever the pair's own rank.

    pairs     A (r, K) and B (r, N), float32 with any strides, by name of the base tensor
    alpha, r  both None where the file holds neither: the scale is then 1
    metadata  what else the file says, for people
    warnings  what was left out on reading, a line each
    magnitudes  DoRA's, float32 (N,) (of the embedding (C,)), by name of the base tensor; empty without
    """

    pairs: dict[str, Pair]
    alpha: float | None = None
    r: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    magnitudes: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, adapter: Adapter) -> AdapterFile:
        """The pairs of a training adapter; views, not copies."""
        return cls(dict(adapter.pairs), adapter.alpha, adapter.r, magnitudes=dict(adapter.magnitudes))

    @property
    def scale(self) -> float:
        """alpha / r, the factor of every pair."""
        return 1.0 if self.alpha is None or self.r is None else self.alpha / self.r

    def parts(self, name: str) -> list[np.ndarray]:
        """A and B of a base tensor, and its magnitudes if it has any."""
        return [*self.pairs[name], *([self.magnitudes[name]] if name in self.magnitudes else [])]

    def ordered(self) -> list[tuple[str, Pair]]:
        """The pairs in llama-finetune's order of tensors."""
        return sorted(self.pairs.items(), key=lambda item: file_order(item[0]))

    def with_runtime_alpha(self) -> tuple[float, int, list[tuple[str, Pair]]]:
        """alpha, r and the pairs for a format whose runtime divides alpha by each pair's own rank.

        The scale of a pair of rank q is then alpha / q instead of alpha / r, so its B is multiplied by q / r.
        Where the file had no alpha, the most common rank serves as both alpha and r.
        """
        ranks = [len(a) for a, _ in self.pairs.values()]
        r = self.r or max(ranks, key=ranks.count)
        alpha = float(r) if self.alpha is None else float(self.alpha)
        return alpha, r, [(name, (a, fold(b, len(a), r))) for name, (a, b) in self.ordered()]

    def to_adapter(self, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
        """An Adapter for a model whose tensors have these shapes. LoraFastError where a pair does not fit one."""
        specs = []
        for name, (a, b) in self.ordered():
            if name not in shapes:
                raise LoraFastError(f"the adapter has a pair for {name}, which this model lacks; "
                                    "it belongs to another one")
            m = self.magnitudes.get(name)
            spec, = specs_for({name: shapes[name]}, {split_name(name)[1]: len(a)}, dora=m is not None)
            if (spec.n_in, spec.n_out) != (a.shape[1], b.shape[1]):
                raise LoraFastError(f"the adapter's pair for {name} fits a tensor of shape {(b.shape[1], a.shape[1])}, "
                                    f"but this model's is {(spec.n_out, spec.n_in)}; it belongs to another one")
            if m is not None and m.shape != (spec.n_magnitudes,):
                raise LoraFastError(f"the adapter has magnitudes of shape {m.shape} for {name}, but this model needs "
                                    f"{(spec.n_magnitudes,)}; it belongs to another one")
            specs.append(spec)
        alpha, r = (1.0, 1) if self.alpha is None or self.r is None else (self.alpha, self.r)
        adapter = Adapter(specs, alpha, r)
        self.fill(adapter)
        return adapter

    def fill(self, adapter: Adapter) -> None:
        """Gives an Adapter of the same tensors and ranks these values, by its own scale."""
        factor = np.float32((1.0 if self.alpha is None or self.r is None else self.alpha / self.r) / adapter.scale)
        for name, (a, b) in self.pairs.items():
            adapter.A(name)[:] = a
            adapter.B(name)[:] = b * factor
        for name, m in self.magnitudes.items():
            adapter.magnitudes[name][:] = m


def _delta_heads(metadata: Mapping[str, Any], architecture: str) -> DeltaHeads | None:
    """The heads of gated delta nets; None unless the file tells all of their sizes."""
    if architecture_of(architecture).mixer != "delta_net":
        return None
    stored = [metadata.get(f"{architecture}.ssm.{key}")
              for key in ("group_count", "time_step_rank", "state_size", "inner_size")]
    n_k, n_v, D, inner = [number if isinstance(number, int) and number > 0 else 0 for number in stored]
    if not n_k * n_v * D * inner or n_v % n_k or inner % n_v:
        return None
    return DeltaHeads(n_k, n_v, D, inner // n_v)


def _most(model: GGUFFile, heads: Any) -> int:
    """The number of heads; where blocks differ it is an array, and this is the largest."""
    if not isinstance(heads, (int, np.ndarray)) or not np.issubdtype(np.asarray(heads).dtype, np.integer) \
            or not np.size(heads):
        raise FormatError(f"{model.path}: a number of heads is {heads!r:.40}, but should be a whole number")
    return int(np.max(heads))


def fold(b: np.ndarray, numerator: float, denominator: float) -> np.ndarray:
    """B · (numerator / denominator); B itself where that is 1."""
    factor = np.float32(numerator / denominator)
    return b if factor == 1 else b * factor


def refuse_magnitudes(adapter: AdapterFile, form: FileForm) -> None:
    """LoraFastError for an adapter of DoRA."""
    if adapter.magnitudes:
        raise LoraFastError(f"{cannot_carry_magnitudes(form)}; write a PEFT folder (NAME/), or have it merged into the "
                            "model (lorafast merge)")


def refuse_norms(names: Iterable[str], form: str) -> None:
    """LoraFastError where a pair belongs to a norm, whose change no runtime of `form` applies."""
    norms = [name for name in names if split_name(name)[1].endswith("norm")]
    if norms:
        raise LoraFastError(f"a {form} cannot carry the pair of {norms[0]}" + (f" and {len(norms) - 1} other norms"
                            if len(norms) > 1 else "") + ": what reads it adapts matrices only; write a .bin (ggla), "
                            "or leave norms out with --targets")
