"""Blocks made of a model file, as its architecture's row says."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ..gguf.reader import GGUFFile, Tensor
from .attention import Attention, Heads, Scores
from .block import Block
from .block_params import BlockParams, DeltaHeads, ExpertParams
from .branch import Branch, BranchOutput
from .delta_net import Decay, DeltaNet
from .dora import Gain
from .experts import ExpertGroup, Experts
from .feed_forward import FeedForward
from .gated_attention import GatedAttention
from .hparams import HParams
from .linear import Group, Linear
from .norm import HeadNorm, LayerNorm, Norm, PlainNorm
from .per_layer import PerLayerEmbedding, PerLayerInput
from .rope import Rope, RopeParams
from .router import Router
from .shared_attention import SharedAttention
from .shared_expert import SharedExpert
from .short_convolution import ShortConvolution, taps_of

Part = TypeVar("Part")


def there(part: Part | None) -> Part:
    """The part, which is there: the file's tensors have been checked against the table."""
    assert part is not None
    return part


def norm_of(gguf: GGUFFile, hparams: HParams, name: str) -> Norm | None:
    """The norm of that name, without `.weight`; None where the file has none."""
    tensor = gguf.tensors.get(f"{name}.weight")
    if tensor is None:
        return None
    if hparams.architecture.norm == "layer":
        return LayerNorm(tensor, hparams.norm_rms_eps, gguf.tensors.get(f"{name}.bias"))
    return Norm(tensor, hparams.norm_rms_eps)


def per_layer_embedding(gguf: GGUFFile, hparams: HParams, precision: str) -> PerLayerEmbedding | None:
    """The embedding of each block; None where blocks have none of their own."""
    if not hparams.n_embd_per_layer:
        return None
    table, projection = (gguf.tensors[f"per_layer_{name}.weight"] for name in ("token_embd", "model_proj"))
    return PerLayerEmbedding(table, projection, there(norm_of(gguf, hparams, "per_layer_proj_norm")), precision)


def build_blocks(gguf: GGUFFile, hparams: HParams, n_positions: int, precision: str) -> list[Block]:
    """All blocks, for up to `n_positions` positions a sequence. Those with the same RoPE share its tables."""
    ropes: dict[RopeParams | None, Rope | None] = {None: None}
    blocks = []
    for layer, params in enumerate(hparams.blocks):
        if params.rope is not None and params.rope not in ropes:
            factors = gguf.tensors.get(params.rope.factors_for(n_positions))
            ropes[params.rope] = Rope(params.rope, n_positions, factors.to_float32() if factors else None,
                                      hparams.architecture.rope == "norm")
        blocks.append(_Assembly(gguf, hparams, params, ropes[params.rope], layer, precision,
                                n_positions).block())
    return blocks


@dataclass(frozen=True)
class _Assembly:
    """One block."""

    gguf: GGUFFile
    hparams: HParams
    params: BlockParams
    rope: Rope | None
    layer: int
    precision: str
    n_positions: int

    @property
    def prefix(self) -> str:
        """The beginning of the names of the block's tensors."""
        return f"blk.{self.layer}."

    def block(self) -> Block:
        arch = self.hparams.architecture
        is_parallel = arch.parallel is True or (arch.parallel == "without ffn_norm"
                                                and self.norm(arch.ffn_norm) is None)
        ffn_norm = self.norm(arch.attn_norm if is_parallel else arch.ffn_norm)
        experts = self.params.experts
        feed_forward = self.experts(there(ffn_norm), experts) if experts else self.feed_forward(ffn_norm)
        branches: list[Branch] = [self.mixer(), feed_forward]
        if self.hparams.n_embd_per_layer:
            branches.append(PerLayerInput(Group(self.linear("inp_gate")), self.output("proj", "", "post_norm"),
                                          self.layer))
        scale = self.tensor("layer_output_scale.weight") if arch.per_layer else None
        return Block(self.hparams.n_embd, branches, is_parallel, float(scale.to_float32()[0]) if scale else 1.0)

    def mixer(self) -> Branch:
        """Attention, or what stands in its place."""
        if self.params.delta:
            return self.delta_net(self.params.delta)
        if self.hparams.architecture.value_norms:
            return self.shared_attention()
        return self.short_convolution() if self.params.conv_width else self.attention()

    def delta_net(self, heads: DeltaHeads) -> DeltaNet:
        arch, prefix, tensors = self.hparams.architecture, self.prefix, self.gguf.tensors
        widths = heads.width_k, heads.width_k, heads.width_v
        qkv = there(self.split("attn_qkv", *widths))
        inner = Group(*qkv.linears, *(self.linear(name) for name in ("attn_gate", "ssm_beta", "ssm_alpha")))
        taps = np.split(taps_of(tensors[f"{prefix}ssm_conv1d.weight"]), np.cumsum(widths[:2]), axis=1)
        decay = Decay(*(tensors[f"{prefix}{name}"].to_float32() for name in ("ssm_a", "ssm_dt.bias")))
        return DeltaNet(there(self.norm(arch.attn_norm)), inner, [np.ascontiguousarray(part) for part in taps], decay,
                        HeadNorm(there(self.norm("ssm_norm"))), self.output("ssm_out", "", arch.attn_post_norm), heads,
                        self.hparams.norm_rms_eps, self.n_positions)

    def short_convolution(self) -> ShortConvolution:
        arch, C = self.hparams.architecture, self.hparams.n_embd
        taps = taps_of(self.gguf.tensors[f"{self.prefix}shortconv.conv.weight"])
        return ShortConvolution(there(self.norm(arch.attn_norm)), there(self.split("shortconv.in_proj", C, C, C)), taps,
                                self.output("shortconv.out_proj", "", arch.attn_post_norm))

    def shared_attention(self) -> SharedAttention:
        arch, hp, params = self.hparams.architecture, self.hparams, self.params
        heads = Heads(params.n_head, params.n_head_kv, params.n_embd_head_k, params.n_embd_head_v)
        parts = "q" if params.keys_from is not None else "qkv" if self.tensor("attn_v.weight") else "qk"
        group = self.split("attn_qkv", *heads.widths[:3]) or Group(*(self.linear(f"attn_{part}") for part in parts))
        norms = [HeadNorm(there(self.norm(f"attn_{part}_norm"))) for part in parts[:2]]
        source = self.layer if params.keys_from is None else params.keys_from
        return SharedAttention(
            self.norm(arch.attn_norm), group, self.output("attn_output", "", arch.attn_post_norm), heads,
            Scores(hp.attention_scale, params.window, hp.attention_soft_cap), self.rope, *norms,
            v_norm=HeadNorm(PlainNorm(heads.DV, hp.norm_rms_eps)) if params.keys_from is None else None,
            place=hp.key_sources.index(source) if source in hp.key_sources else None)

    def attention(self) -> Attention:
        arch, hp, params = self.hparams.architecture, self.hparams, self.params
        heads = Heads(params.n_head, params.n_head_kv, params.n_embd_head_k, params.n_embd_head_v)
        scale = hp.attention_scale or heads.D**-0.5
        q, k, v, _ = heads.widths
        group = self.split("attn_qkv", q, k, v) or Group(*(self.linear(f"attn_{part}") for part in "qkv"))
        q_norm, k_norm = (HeadNorm(norm) if norm else None for norm in map(self.norm, ("attn_q_norm", "attn_k_norm")))
        output = self.output("attn_output", "attn_sub_norm", arch.attn_post_norm)
        kind = GatedAttention if arch.gated_attention else Attention
        return kind(self.norm(arch.attn_norm), group, output, heads,
                    Scores(scale, params.window, hp.attention_soft_cap), self.rope, q_norm, k_norm,
                    norm_after_rope=arch.qk_norm_after_rope,
                    sinks=there(self.tensor("attn_sinks.weight")).to_float32() if arch.sinks else None)

    def feed_forward(self, norm: Norm | None) -> FeedForward:
        arch, F = self.hparams.architecture, self.params.n_ff
        names = ("ffn_gate", "ffn_up") if arch.gated else ("ffn_up",)
        is_fused = arch.fused_gate_up and self.tensor("ffn_gate.weight") is None
        inner = there(self.split("ffn_up", F, F)) if is_fused else Group(*map(self.linear, names))
        return FeedForward(norm, inner, self.output("ffn_down", "ffn_sub_norm", arch.ffn_post_norm), arch.activation)

    def experts(self, norm: Norm, params: ExpertParams) -> Experts:
        arch = self.hparams.architecture
        bias = self.tensor("exp_probs_b.bias")
        router = Router(Group(self.linear("ffn_gate_inp", "float32")), params.gating, params.n_used,
                        None if bias is None else bias.to_float32())
        F, names = params.n_ff, ("ffn_gate_exps", "ffn_up_exps")
        if self.tensor("ffn_gate_up_exps.weight") is None:
            parts = [self.expert_part(name, slice(0, F)) for name in names]
        else:
            parts = [self.expert_part("ffn_gate_up_exps", rows) for rows in (slice(0, F), slice(F, 2 * F))]
        down = self.expert_part("ffn_down_exps", slice(None))
        inner, outer = (ExpertGroup(*group, n_used=params.n_used, precision=self.precision)
                        for group in (parts, [down]))
        return Experts(norm, router, inner, outer, self.shared_expert(params),
                       self.hparams.residual_scale, arch.activation)

    def expert_part(self, name: str, rows: slice) -> tuple[Tensor, slice, Tensor | None]:
        return self.gguf.tensors[f"{self.prefix}{name}.weight"], rows, self.tensor(f"{name}.bias")

    def shared_expert(self, params: ExpertParams) -> SharedExpert | None:
        if not params.n_ff_shared:
            return None
        inner = Group(self.linear("ffn_gate_shexp"), self.linear("ffn_up_shexp"))
        output = BranchOutput(Group(self.linear("ffn_down_shexp")), 1.0, None, None)
        gate = self.tensor("ffn_gate_inp_shexp.weight")
        return SharedExpert(FeedForward(None, inner, output, self.hparams.architecture.activation),
                            None if gate is None else gate.to_float32())

    def output(self, name: str, pre_norm: str, post_norm: str) -> BranchOutput:
        return BranchOutput(Group(self.linear(name)), self.hparams.residual_scale, self.norm(pre_norm),
                            self.norm(post_norm))

    def tensor(self, name: str) -> Tensor | None:
        return self.gguf.tensors.get(self.prefix + name)

    def norm(self, name: str) -> Norm | None:
        return norm_of(self.gguf, self.hparams, self.prefix + name) if name else None

    def linear(self, name: str, precision: str = "") -> Linear:
        return Linear(self.gguf.tensors[f"{self.prefix}{name}.weight"], self.tensor(f"{name}.bias"),
                      precision=precision or self.precision)

    def split(self, name: str, *rows: int) -> Group | None:
        """Matrices of so many rows that one tensor holds; None where the file has no such tensor."""
        tensor, bias, begin = self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias"), 0
        if tensor is None:
            return None
        linears, gain = [], Gain(tensor, precision=self.precision)
        for n in rows:
            linears.append(Linear(tensor, bias, rows=slice(begin, begin + n), gain=gain, precision=self.precision))
            begin += n
        return Group(*linears)
