"""The tensors that can carry an adapter: what each is for, in one table. The names are GGUF's, without layer and
`.weight`.

The first twelve, in this order, are those of llama-finetune: the order in which it initialises, writes and prints them.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "norm", "embedding"]
Part = Literal["attn", "ffn", ""]


@dataclass(frozen=True)
class Role:
    """A kind of tensor.

    name        as in `blk.3.attn_q.weight`
    kind        how its pair acts (see network/lora.py)
    part        the half of a block that it belongs to, by which `--targets attn,ffn` chooses ("attn": what mixes
                positions, in whatever way); "" for all others
    in_block    whether each block has one
    rank_field  llama-finetune's option for its rank, as a field of FinetuneConfig; "" for tensors that it did not know
    log_name    llama-finetune's name for it, as in `n_rank_wq`; "" likewise
    """

    name: str
    kind: Kind
    part: Part = ""
    in_block: bool = True
    rank_field: str = ""
    log_name: str = ""


ROLES = {role.name: role for role in (
    Role("token_embd", "embedding", "", False, "rank_tok_embd", "tok_embeddings"),
    Role("output_norm", "norm", "", False, "rank_out_norm", "norm"),
    Role("output", "linear", "", False, "rank_out", "output"),
    Role("attn_norm", "norm", "", True, "rank_att_norm", "attention_norm"),
    Role("attn_q", "linear", "attn", True, "rank_wq", "wq"),
    Role("attn_k", "linear", "attn", True, "rank_wk", "wk"),
    Role("attn_v", "linear", "attn", True, "rank_wv", "wv"),
    Role("attn_output", "linear", "attn", True, "rank_wo", "wo"),
    Role("ffn_norm", "norm", "", True, "rank_ffn_norm", "ffn_norm"),
    Role("ffn_gate", "linear", "ffn", True, "rank_ffn_gate", "ffn_gate"),
    Role("ffn_down", "linear", "ffn", True, "rank_ffn_down", "ffn_down"),
    Role("ffn_up", "linear", "ffn", True, "rank_ffn_up", "ffn_up"),
    Role("attn_qkv", "linear", "attn"),
    Role("shortconv.in_proj", "linear", "attn"),
    Role("shortconv.out_proj", "linear", "attn"),
    Role("inp_gate", "linear"),
    Role("proj", "linear"),
    Role("attn_gate", "linear", "attn"),
    Role("ssm_beta", "linear", "attn"),
    Role("ssm_alpha", "linear", "attn"),
    Role("ssm_out", "linear", "attn"),
    Role("ffn_gate_shexp", "linear", "ffn"),
    Role("ffn_down_shexp", "linear", "ffn"),
    Role("ffn_up_shexp", "linear", "ffn"),
)}
"""The roles by name."""

LLAMA_FINETUNE_ROLES = tuple(role for role in ROLES.values() if role.rank_field)
LLAMA_FINETUNE_NAMES = tuple(role.name for role in LLAMA_FINETUNE_ROLES)

_NAME = re.compile(r"(?:blk\.([0-9]{1,9})\.)?([\w.]+)\.weight")

BLOCK_MATRICES = tuple(role.name for role in LLAMA_FINETUNE_ROLES if role.part)
"""The matrices of llama's block."""


def names(kind: Kind | None = None, part: Part | None = None) -> tuple[str, ...]:
    """The names of the roles of that kind and part of a block; None: of any."""
    return tuple(role.name for role in ROLES.values() if kind in (None, role.kind) and part in (None, role.part))


EXPERTS_ARE_FROZEN = ("experts are frozen here, since a pair for each multiplies an adapter by their number; adapt "
                      "attention, or the expert that all tokens see (ffn_*_shexp)")
"""Why an adapter of experts' own matrices is neither trained nor used."""


def is_of_experts(name: str) -> bool:
    """Whether a role or a tensor's name means the matrices of all experts of a block."""
    return "_exps" in name


def split_name(name: str) -> tuple[int, str]:
    """Layer (-1 for a global tensor) and role of a tensor: `blk.3.attn_q.weight` is (3, "attn_q").

    The role is "" for a tensor that cannot be adapted.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return -1, ""
    layer = -1 if match[1] is None else int(match[1])
    role = ROLES.get(match[2])
    return layer, role.name if role and role.in_block == (layer >= 0) else ""


def role_of(name: str) -> Role:
    """The row of a tensor that can be adapted."""
    return ROLES[split_name(name)[1]]


_POSITION = {name: position for position, name in enumerate(ROLES)}


def file_order(name: str) -> tuple[int, int]:
    """The sort key that gives llama-finetune's order of tensors: in initialisation, in adapters, in checkpoints."""
    layer, role = split_name(name)
    return layer, _POSITION[role]


GROUPS = {"all": tuple(ROLES), "attn": names(part="attn"), "ffn": names(part="ffn"), "norms": names(kind="norm")}
"""Roles by the names that --targets has for several."""
