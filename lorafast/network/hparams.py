"""What a model file says about its network: the architecture, described as data, and its sizes.

The keys are GGUF's (docs/gguf.md of ggml), the defaults llama.cpp's. Whatever would change the function that the network
computes, and is not implemented, is refused by name.
"""
from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from ..errors import FormatError
from ..gguf.reader import GGUFFile


@dataclass(frozen=True)
class Architecture:
    """How one `general.architecture` differs from the others.

    rope_interleaved  RoPE turns the pairs (2j, 2j + 1) of a head; otherwise (j, j + n_rot / 2), as in Qwen and Gemma
    block             tensors of a block and their shapes, in the symbols of HParams.sizes
    """

    name: str
    rope_interleaved: bool
    block: dict[str, tuple[str, ...]]


LLAMA_BLOCK = {
    "attn_norm.weight": ("C",),
    "attn_q.weight": ("H*D", "C"),
    "attn_k.weight": ("HKV*D", "C"),
    "attn_v.weight": ("HKV*DV", "C"),
    "attn_output.weight": ("C", "H*DV"),
    "ffn_norm.weight": ("C",),
    "ffn_gate.weight": ("F", "C"),
    "ffn_up.weight": ("F", "C"),
    "ffn_down.weight": ("C", "F"),
}
ARCHITECTURES = {"llama": Architecture("llama", rope_interleaved=True, block=LLAMA_BLOCK)}

GLOBAL_TENSORS = {"token_embd.weight": ("V", "C"), "output_norm.weight": ("C",), "output.weight": ("V", "C")}
OPTIONAL_TENSORS = {"output.weight", "rope_freqs.weight"}


@dataclass(frozen=True)
class HParams:
    """Sizes and constants of a model; the names are those of GGUF's keys and llama.cpp's log."""

    arch: str                       # general.architecture, a key of ARCHITECTURES
    n_vocab: int
    n_ctx: int                      # of this run; as long as no option sets it, n_ctx_train
    n_ctx_train: int
    n_embd: int
    n_ff: int
    n_layer: int
    n_head: int
    n_head_kv: int
    n_embd_head_k: int
    n_embd_head_v: int
    n_rot: int
    norm_rms_eps: float
    rope_freq_base: float
    rope_freq_scale: float
    rope_scaling_type: str
    tied: bool                      # no output.weight: the output product uses token_embd.weight

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.arch]

    @property
    def model_type(self) -> str:
        """The model's usual size name, guessed as llama.cpp does from the number of layers."""
        known = {22: "1B", 26: "3B", 32: "7B" if self.n_vocab < 40000 else "8B", 40: "13B", 48: "34B", 60: "30B",
                 80: "65B" if self.n_head == self.n_head_kv else "70B"}
        return known.get(self.n_layer, "?B")

    @property
    def sizes(self) -> dict[str, int]:
        """Values of the symbols in which tensor shapes are written."""
        return {"V": self.n_vocab, "C": self.n_embd, "F": self.n_ff, "H*D": self.n_head * self.n_embd_head_k,
                "H*DV": self.n_head * self.n_embd_head_v, "HKV*D": self.n_head_kv * self.n_embd_head_k,
                "HKV*DV": self.n_head_kv * self.n_embd_head_v}

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight that the network has, by name."""
        def shape(symbols: tuple[str, ...]) -> tuple[int, ...]:
            return tuple(self.sizes[symbol] for symbol in symbols)

        shapes = {name: shape(symbols) for name, symbols in GLOBAL_TENSORS.items()
                  if not (self.tied and name == "output.weight")}
        for layer in range(self.n_layer):
            shapes |= {f"blk.{layer}.{name}": shape(symbols) for name, symbols in self.architecture.block.items()}
        return shapes

    def with_overrides(self, *, n_ctx: int | None = None, norm_rms_eps: float | None = None,
                       rope_freq_base: float | None = None, rope_freq_scale: float | None = None) -> HParams:
        """The same with the values that an option gave (None: not given)."""
        given = {"n_ctx": n_ctx, "norm_rms_eps": norm_rms_eps, "rope_freq_base": rope_freq_base,
                 "rope_freq_scale": rope_freq_scale}
        return replace(self, **{name: value for name, value in given.items() if value is not None})


def read_hparams(gguf: GGUFFile) -> HParams:
    """Reads and checks the hyper-parameters and the presence, shape and type of every tensor.

    Raises FormatError, in one line, for a file that is not a model, an architecture or a feature that is not supported, and
    keys or tensors that are missing or unfit.
    """
    keys = _Keys(gguf)
    arch = _architecture(keys)
    n_embd, n_head = keys.count("embedding_length"), keys.count("attention.head_count")
    n_embd_head_k = keys.count("attention.key_length", n_embd // n_head)
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError(f"{gguf.path}: no tensor 'token_embd.weight'; is this a whole model?")
    hparams = HParams(
        arch=arch.name,
        n_vocab=embedding.shape[0],
        n_ctx=keys.count("context_length", 0),
        n_ctx_train=keys.count("context_length", 0),
        n_embd=n_embd,
        n_ff=keys.count("feed_forward_length"),
        n_layer=keys.count("block_count"),
        n_head=n_head,
        n_head_kv=keys.count("attention.head_count_kv", n_head),
        n_embd_head_k=n_embd_head_k,
        n_embd_head_v=keys.count("attention.value_length", n_embd // n_head),
        n_rot=keys.count("rope.dimension_count", n_embd_head_k),
        norm_rms_eps=keys.number("attention.layer_norm_rms_epsilon", 1e-5),
        rope_freq_base=keys.number("rope.freq_base", 10000.0),
        rope_freq_scale=_rope_freq_scale(keys),
        rope_scaling_type=keys.text("rope.scaling.type", "linear"),
        tied="output.weight" not in gguf.tensors,
    )
    _check_sizes(keys, hparams)
    _check_tensors(gguf, hparams)
    return hparams


class _Keys:
    """Typed access to the metadata under the architecture's prefix."""

    def __init__(self, gguf: GGUFFile) -> None:
        self.gguf = gguf
        self.prefix = str(gguf.metadata.get("general.architecture", ""))

    def error(self, name: str, what: str) -> FormatError:
        return FormatError(f"{self.gguf.path}: key '{self.prefix}.{name}' {what}")

    def get(self, name: str, default, kinds: tuple[type, ...], wanted: str):
        value = self.gguf.metadata.get(f"{self.prefix}.{name}", default)
        if value is None:
            raise self.error(name, "is missing; is this a whole model?")
        if isinstance(value, np.ndarray):
            raise self.error(name, "differs between layers, which lorafast does not support")
        if not isinstance(value, kinds) or isinstance(value, bool):
            raise self.error(name, f"is {value!r}, wanted {wanted}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default, (int,), "a whole number")
        if not 0 <= value < 2**31 or (value == 0 and default != 0):
            raise self.error(name, f"is {value}, which cannot be")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = float(self.get(name, default, (int, float), "a number"))
        if not 0 < value < float("inf"):
            raise self.error(name, f"is {value}, wanted a number above 0")
        return value

    def text(self, name: str, default: str) -> str:
        return self.get(name, default, (str,), "text")


def _architecture(keys: _Keys) -> Architecture:
    metadata, path, name = keys.gguf.metadata, keys.gguf.path, keys.prefix
    if metadata.get("general.type") == "adapter" or metadata.get("training.type"):
        kind = "an adapter" if metadata.get("general.type") == "adapter" else "a training checkpoint"
        raise FormatError(f"{path}: this is {kind}, not a model; give the model that it was trained on as --model-base")
    if not name:
        raise FormatError(f"{path}: no key 'general.architecture'; is this a model?")
    if name not in ARCHITECTURES:
        raise FormatError(f"{path}: architecture '{name}' is not supported; lorafast trains {', '.join(ARCHITECTURES)}")
    if metadata.get(f"{name}.expert_count", 0):
        raise FormatError(f"{path}: a mixture of {metadata[f'{name}.expert_count']} experts, which lorafast does not support")
    return ARCHITECTURES[name]


def _rope_freq_scale(keys: _Keys) -> float:
    """1 / factor of linear RoPE scaling. The older key `rope.scale_linear` holds the same factor."""
    kind = keys.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise keys.error("rope.scaling.type", f"is '{kind}', which lorafast does not support")
    factor = keys.number("rope.scale_linear", 1.0)
    if f"{keys.prefix}.rope.scaling.factor" in keys.gguf.metadata and keys.get("rope.scaling.factor", 0.0, (float, int), "a number"):
        factor = keys.number("rope.scaling.factor")
    return 1.0 if kind == "none" else 1.0 / factor


def _check_sizes(keys: _Keys, hparams: HParams) -> None:
    if hparams.n_head % hparams.n_head_kv:
        raise keys.error("attention.head_count_kv", f"is {hparams.n_head_kv}, which does not divide {hparams.n_head} heads")
    if hparams.n_rot % 2 or hparams.n_rot > hparams.n_embd_head_k:
        raise keys.error("rope.dimension_count", f"is {hparams.n_rot}, wanted an even number up to the head size "
                                                 f"{hparams.n_embd_head_k}")


def _check_tensors(gguf: GGUFFile, hparams: HParams) -> None:
    shapes = hparams.tensor_shapes()
    for name, shape in shapes.items():
        tensor = gguf.tensors.get(name)
        if tensor is None:
            raise FormatError(f"{gguf.path}: tensor '{name}' is missing; is this a whole model?")
        if tensor.shape != shape:
            raise FormatError(f"{gguf.path}: tensor '{name}' has shape {tensor.shape}, wanted {shape}")
        if not tensor.type.is_trainable:
            raise FormatError(f"{gguf.path}: tensor '{name}' has type {tensor.type.label}, which lorafast cannot train on; "
                              "use a file in F16, BF16, Q8_0, Q4_0 to Q5_1, a K-quant, IQ4_NL or IQ4_XS")
    for name in gguf.tensors:
        if name not in shapes and name not in OPTIONAL_TENSORS:
            detail = " (a bias)" if name.endswith(".bias") else " (experts)" if re.search(r"_exps?\b|gate_inp", name) else ""
            raise FormatError(f"{gguf.path}: tensor '{name}'{detail} is no part of architecture '{hparams.arch}' as "
                              "lorafast knows it; such a model is not supported")
