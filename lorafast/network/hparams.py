"""What a model file says about its network: its sizes and constants, of the whole and of each block.

The keys are GGUF's (docs/gguf.md of ggml), the defaults llama.cpp's. Whatever would change the function that the
network computes, and is not implemented, is refused by name.
"""
from __future__ import annotations

import math
from collections.abc import Sized
from dataclasses import dataclass, replace
from typing import Any

from ..errors import FormatError
from ..gguf.reader import GGUFFile
from .architectures import ALL_LOCAL, ARCHITECTURES, FOREIGN, Architecture
from .block_params import BlockParams, DeltaHeads, ExpertParams
from .keys import Keys
from .mixture import read_experts
from .rope import RopeParams, Yarn
from .tensors import check_tensors, expected_tensors

MAX_CONV_WIDTH = 16
"""The greatest width that kernels/short_conv.h takes."""


@dataclass(frozen=True)
class HParams:
    """Sizes and constants of a model; the names are those of GGUF's keys and llama.cpp's log.

    Where blocks differ, the values here are those of the first one that has any; `blocks` has those of each.
    """

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
    blocks: tuple[BlockParams, ...]
    shapes: dict[str, tuple[int, ...]]      # of every weight and norm that the network has, by name
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0        # logits are multiplied by it
    attention_scale: float = 0.0    # of scores; 0: the root of a head's size divides them
    attention_soft_cap: float = 0.0
    logit_soft_cap: float = 0.0
    n_embd_per_layer: int = 0       # values of the embedding that each block has of its own; 0: none has

    @property
    def architecture(self) -> Architecture:
        return ARCHITECTURES[self.arch]

    @property
    def model_type(self) -> str:
        """The model's usual size name, guessed as llama.cpp does from the number of blocks."""
        known = {22: "1B", 26: "3B", 32: "7B" if self.n_vocab < 40000 else "8B", 40: "13B", 48: "34B", 60: "30B",
                 80: "65B" if self.n_head == self.n_head_kv else "70B"}
        return known.get(self.n_layer, "?B") if self.arch == "llama" else "?B"

    @property
    def key_sources(self) -> list[int]:
        """The blocks whose keys and values others attend to, in the order of Pass.shared."""
        return sorted({block.keys_from for block in self.blocks if block.keys_from is not None})

    def keys_below(self, lowest: int) -> int | None:
        """A block below `lowest` whose keys and values one from there on attends to; None if there is none."""
        sources = [block.keys_from for block in self.blocks[lowest:] if block.keys_from is not None]
        return min((source for source in sources if source < lowest), default=None)

    @property
    def shared_widths(self) -> list[tuple[int, int]]:
        """Widths of the keys and values that several blocks attend to."""
        sizes = [self.blocks[source].sizes for source in self.key_sources]
        return [(of_block["HKV*D"], of_block["HKV*DV"]) for of_block in sizes]

    @property
    def experts(self) -> ExpertParams | None:
        """The experts of the first block that has any."""
        return next((block.experts for block in self.blocks if block.experts), None)

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight that the network has and that may be adapted, by name. Not the embedding where more
        follows from it than the first block's input (per-layer embeddings)."""
        return {name: shape for name, shape in self.shapes.items()
                if not (self.n_embd_per_layer and name == "token_embd.weight")}

    def with_overrides(self, *, n_ctx: int | None = None, norm_rms_eps: float | None = None,
                       rope_freq_base: float | None = None, rope_freq_scale: float | None = None) -> HParams:
        """These hyper-parameters with the values that an option gave (None: not given). Those of RoPE hold for the
        blocks that had the model's own."""
        given: dict[str, Any] = {"n_ctx": n_ctx, "norm_rms_eps": norm_rms_eps, "rope_freq_base": rope_freq_base,
                 "rope_freq_scale": rope_freq_scale}
        return replace(self, blocks=tuple(self._overridden(block, rope_freq_base, rope_freq_scale)
                                          for block in self.blocks),
                       **{name: value for name, value in given.items() if value is not None})

    def _overridden(self, block: BlockParams, base: float | None, scale: float | None) -> BlockParams:
        rope = block.rope
        if rope is None:
            return block
        if base is not None and rope.base == self.rope_freq_base:
            rope = replace(rope, base=base)
        if scale is not None and rope.scale == self.rope_freq_scale:
            rope = replace(rope, scale=scale)
        return replace(block, rope=rope)


def read_hparams(gguf: GGUFFile) -> HParams:
    """Reads and checks the hyper-parameters and the presence, shape and type of every tensor.

    Raises FormatError, in one line, for a file that is not a model, an architecture or a feature that is not supported,
    and keys or tensors that are missing or unfit.
    """
    keys = Keys(gguf)
    arch = _architecture(keys)
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise FormatError(f"{gguf.path}: no tensor 'token_embd.weight'; is this a whole model?")
    tokens = gguf.metadata.get("tokenizer.ggml.tokens", ())         # the tokenizer refuses what is no list
    if isinstance(tokens, Sized) and len(tokens) > embedding.shape[0]:
        raise FormatError(f"{gguf.path}: {len(tokens)} tokens in the vocabulary, but {embedding.shape[0]} rows in "
                          "token_embd.weight; resize the embedding (resize_token_embeddings) and convert the model "
                          "again")
    n_embd, n_layer = keys.count("embedding_length"), _n_layer(keys)
    blocks = _blocks(keys, arch, n_embd, n_layer)
    first = next((block for block in blocks if block.n_head_kv), blocks[0])
    scaling = keys.text("rope.scaling.type", "linear")
    n_embd_per_layer = keys.count("embedding_length_per_layer_input", 0) if arch.per_layer else 0
    hparams = HParams(
        arch=arch.name,
        n_vocab=embedding.shape[0],
        n_ctx=keys.count("context_length", 0),
        n_ctx_train=keys.count("context_length", 0),
        n_embd=n_embd,
        n_ff=first.n_ff,
        n_layer=n_layer,
        n_head=first.n_head,
        n_head_kv=first.n_head_kv,
        n_embd_head_k=first.n_embd_head_k,
        n_embd_head_v=first.n_embd_head_v,
        n_rot=keys.count("rope.dimension_count", first.n_embd_head_k),
        norm_rms_eps=keys.number(f"attention.layer_norm{'_rms' if arch.norm == 'rms' else ''}_epsilon", 1e-5),
        rope_freq_base=keys.number("rope.freq_base", 10000.0),
        rope_freq_scale=_linear_scale(keys, scaling),
        rope_scaling_type=scaling,
        tied="output.weight" not in gguf.tensors,
        blocks=blocks,
        shapes={},
        n_embd_per_layer=n_embd_per_layer,
        **_scales(keys, arch, n_embd, n_layer, first),
    )
    if hparams.tied and arch.tied == "never":
        raise FormatError(f"{gguf.path}: tensor 'output.weight' is missing; is this a whole model?")
    tensors = expected_tensors(gguf, arch, n_embd, hparams.n_vocab, blocks, n_embd_per_layer)
    check_tensors(gguf, arch, tensors, n_layer, keys.count("nextn_predict_layers", 0))
    return replace(hparams, shapes={name: tensors[name] for name in tensors if name.endswith(".weight")})


def _architecture(keys: Keys) -> Architecture:
    metadata, path, name = keys.gguf.metadata, keys.gguf.path, keys.prefix
    if metadata.get("general.type") == "adapter" or metadata.get("training.type"):
        kind = "an adapter" if metadata.get("general.type") == "adapter" else "a training checkpoint"
        raise FormatError(f"{path}: this is {kind}, not a model; give the model that it was trained on as --model-base")
    if not name:
        raise FormatError(f"{path}: no key 'general.architecture'; is this a model?")
    if name not in ARCHITECTURES:
        reason = f" (it has {FOREIGN[name]})" if name in FOREIGN else ""
        raise FormatError(f"{path}: architecture '{name}' is not supported{reason}; lorafast trains "
                          f"{', '.join(ARCHITECTURES)}")
    if metadata.get(f"{name}.expert_count", 0) and ARCHITECTURES[name].mixture is None:
        raise FormatError(f"{path}: a mixture of {metadata[f'{name}.expert_count']} experts, which lorafast does not "
                          f"know in architecture '{name}'")
    return ARCHITECTURES[name]


def _n_layer(keys: Keys) -> int:
    """Blocks of the network itself: those behind them predict tokens further ahead (`nextn`) and are left out."""
    n_blocks, n_ahead = keys.count("block_count"), keys.count("nextn_predict_layers", 0)
    if n_blocks > len(keys.gguf.tensors):       # each has some; a number from a broken file could be any
        raise keys.error("block_count", f"is {n_blocks}, but the file has only {len(keys.gguf.tensors)} tensors")
    if n_ahead >= n_blocks:
        raise keys.error("nextn_predict_layers", f"is {n_ahead}, of {n_blocks} blocks in all")
    return n_blocks - n_ahead


def _blocks(keys: Keys, arch: Architecture, n_embd: int, n_layer: int) -> tuple[BlockParams, ...]:
    n_head = keys.counts("attention.head_count", n_layer)
    n_head_kv = keys.counts("attention.head_count_kv", n_layer, n_head)
    experts = read_experts(keys, arch, n_layer)
    n_ff = keys.counts("feed_forward_length", n_layer, [0] * n_layer if all(experts) else None)
    default = n_embd // max(1, n_head[0])
    sizes = [keys.count(f"attention.{part}_length", default) for part in ("key", "value")]
    local_sizes = [keys.count(f"attention.{part}_length_swa", size) if arch.local_heads else size
                   for part, size in zip(("key", "value"), sizes)]
    windows, delta_nets = _windows(keys, arch, n_layer), _delta_nets(keys, arch, n_layer)
    keys_from = _keys_from(keys, arch, windows)
    blocks = []
    for layer in range(n_layer):
        n_embd_head_k, n_embd_head_v = local_sizes if windows[layer] else sizes
        if arch.mixer == "short_conv" and n_head_kv[layer] == 0:
            blocks.append(BlockParams(n_head[layer], 0, n_embd_head_k, n_embd_head_v, n_ff[layer],
                                      experts=experts[layer], conv_width=_conv_width(keys, "shortconv.l_cache")))
            continue
        if delta_nets[layer]:
            blocks.append(BlockParams(n_head[layer], n_head_kv[layer], n_embd_head_k, n_embd_head_v, n_ff[layer],
                                      experts=experts[layer], conv_width=_conv_width(keys, "ssm.conv_kernel"),
                                      delta=delta_nets[layer]))
            continue
        if n_head_kv[layer] == 0 or n_head[layer] % n_head_kv[layer]:
            raise keys.error("attention.head_count_kv",
                             f"is {n_head_kv[layer]}, which does not divide {n_head[layer]} heads")
        has_rope = ((not arch.rope_every or (layer + 1) % arch.rope_every) and
                    (not arch.rope_only or windows[layer] > 0 or not any(windows)))
        rope = _rope(keys, arch, n_embd_head_k, is_local=windows[layer] > 0) if has_rope else None
        blocks.append(BlockParams(n_head[layer], n_head_kv[layer], n_embd_head_k, n_embd_head_v, n_ff[layer],
                                  windows[layer], rope, experts=experts[layer], keys_from=keys_from[layer]))
    return tuple(blocks)


def _keys_from(keys: Keys, arch: Architecture, windows: list[int]) -> list[int | None]:
    """The block whose keys and values each attends to: the last one of its kind, with a window or without, that has its
    own; None: its own."""
    n_layer = len(windows)
    n_own = n_layer - (keys.count("attention.shared_kv_layers", 0) if arch.value_norms else 0)
    sources = [next((below for below in reversed(range(max(0, min(n_own, layer)))) if
                     (windows[below] > 0) == (windows[layer] > 0)), None) for layer in range(n_layer)]
    if None in sources[max(0, n_own):]:
        raise keys.error("attention.shared_kv_layers", f"is {n_layer - n_own}, of {n_layer} blocks: some have no block "
                                                       "of their kind below them, whose keys they could share")
    return [source if layer >= n_own else None for layer, source in enumerate(sources)]


def _conv_width(keys: Keys, key: str) -> int:
    """Taps of a short convolution."""
    width = keys.count(key)
    if width > MAX_CONV_WIDTH:
        raise keys.error(key, f"is {width}, but lorafast knows convolutions of up to {MAX_CONV_WIDTH} taps")
    return width


def _delta_nets(keys: Keys, arch: Architecture, n_layer: int) -> list[DeltaHeads | None]:
    """The gated delta net of each block; None where it has attention."""
    if arch.mixer != "delta_net":
        return [None] * n_layer
    has_one = keys.flags("attention.recurrent_layers", n_layer, keys.count("full_attention_interval", 4))
    n_k, n_v = keys.count("ssm.group_count"), keys.count("ssm.time_step_rank")
    if n_v % n_k:
        raise keys.error("ssm.time_step_rank", f"is {n_v}, not a multiple of the {n_k} heads of keys (ssm.group_count)")
    inner = keys.count("ssm.inner_size")
    if inner % n_v:
        raise keys.error("ssm.inner_size", f"is {inner}, not a multiple of the {n_v} heads of values "
                                           "(ssm.time_step_rank)")
    heads = DeltaHeads(n_k, n_v, keys.count("ssm.state_size"), inner // n_v)
    return [heads if flag else None for flag in has_one]


def _windows(keys: Keys, arch: Architecture, n_layer: int) -> list[int]:
    """The window of each block; 0 without one."""
    sliding = arch.sliding
    if sliding is None or sliding.only_n_layer not in (0, n_layer):
        return [0] * n_layer
    window = keys.count("attention.sliding_window", sliding.window)
    local = keys.flags("attention.sliding_window_pattern", n_layer, sliding.period)
    is_given = f"{keys.prefix}.attention.sliding_window" in keys.gguf.metadata
    if is_given and not window and any(local) and sliding.period != ALL_LOCAL:
        raise keys.error("attention.sliding_window", f"is 0, but {sum(local)} blocks see a window only")
    return [window if is_local else 0 for is_local in local]


def _rope(keys: Keys, arch: Architecture, n_embd_head_k: int, is_local: bool) -> RopeParams | None:
    """What RoPE does in a block with a window (local) or without one; None where the model has no RoPE."""
    if arch.has_rope_switch and not keys.flag("rope.scaling.finetuned", True):
        return None
    of_local = "_swa" if is_local and arch.local_heads else ""
    n_rot = keys.count(f"rope.dimension_count{of_local}", n_embd_head_k)
    if n_rot % 2 or n_rot > n_embd_head_k:
        raise keys.error(f"rope.dimension_count{of_local}",
                         f"is {n_rot}, wanted an even number up to the head size {n_embd_head_k}")
    base = keys.number("rope.freq_base", 10000.0)
    if is_local and arch.sliding:
        base = keys.number("rope.freq_base_swa", arch.sliding.rope_base or base)
        if not arch.sliding.scaled:
            return RopeParams(n_rot, base)
    kind = keys.text("rope.scaling.type", "linear")
    n_ctx_orig = keys.count("rope.scaling.original_context_length", keys.count("context_length", 0) or 1)
    temperature = keys.number("attention.temperature_scale", 0.0, at_least=0) if arch.yarn_log else 0.0
    if temperature and n_rot != n_embd_head_k:
        raise keys.error("attention.temperature_scale", "is given, but RoPE turns a part of each head only")
    common: dict[str, Any] = dict(temperature=temperature, n_ctx_orig=n_ctx_orig,
                  multiplier=keys.number("rope.scaling.attn_factor", 1.0))
    if arch.longrope in (kind, "always") and "rope_factors_long.weight" in keys.gguf.tensors:
        return RopeParams(n_rot, base, factors="rope_factors_short.weight", long_factors="rope_factors_long.weight",
                          **common)
    factors = "rope_freqs.weight" if "rope_freqs.weight" in keys.gguf.tensors else ""
    if kind == "yarn":
        yarn, multiplier = _yarn(keys, arch, n_ctx_orig)
        return RopeParams(n_rot, base, factors=factors, yarn=yarn,
                          **common | {"multiplier": multiplier * common["multiplier"]})
    return RopeParams(n_rot, base, _linear_scale(keys, kind), factors, **common)


def _yarn(keys: Keys, arch: Architecture, n_ctx_orig: int) -> tuple[Yarn, float]:
    """YaRN, and what cos and sin are multiplied by."""
    factor = keys.number("rope.scaling.factor")
    betas = [keys.number(f"rope.scaling.yarn_beta_{speed}", default) if arch.yarn_betas else default
             for speed, default in (("fast", 32.0), ("slow", 1.0))]
    log = keys.number("rope.scaling.yarn_log_multiplier", 0.0, at_least=0) if arch.yarn_log else 0.0

    def stretched(a: float) -> float:
        return 1 + 0.1 * a * math.log(factor) if factor > 1 else 1.0

    return Yarn(factor, n_ctx_orig, *betas), stretched(1) / (stretched(log) if log else 1)


def _linear_scale(keys: Keys, kind: str) -> float:
    """1 / factor of linear RoPE scaling. The older key `rope.scale_linear` holds the same factor."""
    if kind not in ("none", "linear", "yarn", "longrope"):
        raise keys.error("rope.scaling.type", f"is '{kind}', which lorafast does not support")
    if kind in ("none", "yarn", "longrope"):
        return 1.0
    factor = keys.number("rope.scale_linear", 1.0)
    return 1.0 / (keys.number("rope.scaling.factor", 0.0, at_least=0) or factor)


def _scales(keys: Keys, arch: Architecture, n_embd: int, n_layer: int, first: BlockParams) -> dict[str, float]:
    """The constants that an architecture multiplies with, and its soft caps."""
    def scale(key: str) -> float:
        if key not in arch.scales:
            return 0.0
        default = DEFAULT_SCALES[arch.default_scales][key](n_embd, n_layer) if arch.default_scales else 0.0
        return keys.number(key, default, at_least=0)

    def cap(key: str, default: float | None) -> float:
        return 0.0 if default is None else keys.number(key, default, at_least=0)

    logit = scale("logit_scale") or 1.0
    wide = arch.wide_n_layer == n_layer
    return {
        "embedding_scale": math.sqrt(n_embd) if arch.embedding_scale == "sqrt" else scale("embedding_scale") or 1.0,
        "residual_scale": scale("residual_scale") or 1.0,
        "logit_scale": 1 / logit if arch.logit_scale_divides else logit,
        "attention_scale": arch.attention_scale or ((n_embd / first.n_head)**-0.5 if wide
                                                    else scale("attention.scale")),
        "attention_soft_cap": cap("attn_logit_softcapping", arch.attention_soft_cap),
        "logit_soft_cap": cap("final_logit_softcapping", arch.logit_soft_cap),
    }


DEFAULT_SCALES = {
    "minicpm": {
        "embedding_scale": lambda n_embd, n_layer: 12.0,
        "residual_scale": lambda n_embd, n_layer: 1.4 / math.sqrt(n_layer),
        "logit_scale": lambda n_embd, n_layer: 256 / n_embd,
    },
}
"""Scales of files without these keys, by Architecture.default_scales."""
