"""`lorafast convert`: an adapter from any of its forms to any other, as far as the forms allow.

The pairs are the same everywhere; orientation, names, the order of q's and k's rows and the place of alpha differ, and
adapters/ knows how. Here is decided what the target cannot carry, and said in words.
"""
from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from ..adapters import AdapterFile, BaseModel, cards, read_adapter, write_adapter
from ..adapters.adapter_file import fold, refuse_magnitudes
from ..adapters.checkpoint import Geometry, TrainState, read_checkpoint, write_checkpoint
from ..adapters.ollama import modelfile_for
from ..errors import LoraFastError, UsageError
from ..gguf.file_form import WRITTEN_FORMS, FileForm, form_of_name
from ..gguf.reader import GGUFFile, open_model
from ..gguf.recognise import form_of_file
from ..gguf.roles import GROUPS, ROLES, role_of, split_name
from ..network.hparams import read_hparams
from ..network.lora import Moments
from ..options.overwriting import Target, check_overwriting
from ..options.tools import ConvertOptions
from ..system.output import show
from ..words import count


def run(options: ConvertOptions, write: Callable[[str], None] = show) -> int:
    """The command: converts, and says to `write` line by line what was changed or left out. Returns the exit status."""
    kind, form = form_of_file(options.source), _form(options)
    if options.modelfile and not (form is FileForm.GGUF and options.model_base):
        raise UsageError("--modelfile: Ollama takes GGUF adapters, and the Modelfile names the model: it needs "
                         "--to gguf and --model-base")
    check_overwriting([Target("OUT", options.target, form), *_companion_targets(options)],
                      {options.source: "the adapter to convert", options.model_base: "the base model"},
                      force=options.force)
    model = open_model(options.model_base) if options.model_base else None
    if kind in (FileForm.PEFT, FileForm.MLX) and model is None:
        raise UsageError("--model-base is needed: such an adapter does not say what GGUF makes of the model's heads")
    adapter = read_adapter(options.source, BaseModel.from_gguf(model) if model else None)
    for warning in adapter.warnings:
        write(f"note: {warning}")
    for line in drop(adapter, options.drop_list()):
        write(f"note: {line}")
    if model is None:
        _ask_for_model(kind, form, adapter)
    base = _base(options, model, adapter)
    geometry = _geometry(options, model) if form is FileForm.CHECKPOINT else None
    for line in convert(adapter, form, options.target, base, geometry):
        write(f"note: {line}")
    write(f"wrote {options.target}: {describe(adapter, form)}")
    for path in _companions(options, adapter, form, base):
        write(f"wrote {path}")
    return 0


def drop(adapter: AdapterFile, what: Iterable[str]) -> list[str]:
    """Removes the pairs of the roles, groups and tensor names (with * and ?) in `what`; a line if there were any.

    UsageError for a name that can mean no tensor, LoraFastError where nothing would be left.
    """
    patterns = [pattern for name in what for pattern in _patterns(name)]
    dropped = [name for name in adapter.pairs
               if any(fnmatchcase(name.removesuffix(".weight"), pattern) or split_name(name)[1] == pattern
                      for pattern in patterns)]
    for name in dropped:
        del adapter.pairs[name]
        adapter.magnitudes.pop(name, None)
    if not adapter.pairs:
        raise LoraFastError("nothing is left of the adapter: --drop takes every pair")
    return [f"left out: {summary(dropped)}"] if dropped else []


def _patterns(name: str) -> tuple[str, ...]:
    pattern = name.removesuffix(".weight")
    if name not in GROUPS and not any(fnmatchcase(role, pattern.rpartition(".")[2]) for role in ROLES):
        raise UsageError(f"--drop {name}: means no tensor; use {', '.join(ROLES)}, a name such as blk.1?.attn_q, or "
                         f"{', '.join(GROUPS)}")
    return GROUPS.get(name, (pattern,))


def convert(adapter: AdapterFile, form: FileForm, path: str, base: BaseModel,
            geometry: Geometry | None = None) -> list[str]:
    """Writes the adapter at `path` (atomically) and returns what should be said about it, a line each.

    form      of the result; CHECKPOINT is one that a training run starts from
    geometry  the model's, for a checkpoint

    Raises LoraFastError for what the form cannot carry.
    """
    refuse(adapter, form, base)
    notes = []
    if form is FileForm.CHECKPOINT:
        if geometry is None:
            raise ValueError("a checkpoint needs the model's geometry")
        _write_as_checkpoint(path, adapter, geometry)
        return ["the checkpoint stands at iteration 0 with a fresh optimiser; finetune --checkpoint-in takes it"]
    alpha, r = adapter.alpha, adapter.r
    if form is FileForm.GGLA and alpha is not None and r is not None and alpha != int(alpha):
        notes.append(f"the scale {alpha:g} / {r} has been multiplied into every B: a ggla file holds "
                     "whole numbers only")
        adapter = dataclasses.replace(adapter, alpha=float(r), pairs={
            name: (a, fold(b, alpha, r)) for name, (a, b) in adapter.pairs.items()})
    if form is FileForm.PEFT and not base.source:
        notes.append("adapter_config.json does not say which model the adapter belongs to: --base-name REPOSITORY "
                     "records it")
    write_adapter(form, path, adapter, base)
    return notes


def refuse(adapter: AdapterFile, form: FileForm, base: BaseModel) -> None:
    """LoraFastError for pairs that an adapter of that form cannot carry, with the way out."""
    roles = {split_name(name)[1] for name in adapter.pairs}
    if form in (FileForm.GGUF, FileForm.GGLA):
        refuse_magnitudes(adapter, form)
    if form in (FileForm.GGUF, FileForm.PEFT) and roles & set(GROUPS["norms"]):
        raise LoraFastError(f"{form.phrase} cannot carry the norms' pairs: what reads it adapts matrices only. Leave "
                            "them out (--drop norms), or have them merged into the model (lorafast merge)")
    if form is FileForm.GGUF and base.tied and "token_embd" in roles:
        raise LoraFastError("a GGUF adapter cannot carry the pair of token_embd for a model that uses this matrix for "
                            "its output too: llama.cpp aborts. Leave it out (--drop token_embd), or have it merged "
                            "into the model (lorafast merge)")
    if form in (FileForm.GGUF, FileForm.CHECKPOINT) and base.tied and "output" in roles:
        raise LoraFastError("the adapter has a pair for output.weight, which this model lacks: it uses "
                            "token_embd.weight for its output. Leave it out (--drop output), or have it merged "
                            "(lorafast merge)")
    if form is FileForm.CHECKPOINT:
        for role in sorted(roles):
            ranks = {len(a) for name, (a, _) in adapter.pairs.items() if split_name(name)[1] == role}
            if len(ranks) > 1:
                raise LoraFastError(f"a checkpoint holds one rank for all tensors of a role, but {role} has "
                                    f"{', '.join(map(str, sorted(ranks)))}; start from the adapter itself")


def _write_as_checkpoint(path: str, adapter: AdapterFile, geometry: Geometry) -> None:
    shapes = {name: (a.shape[1],) if role_of(name).kind == "norm" else (b.shape[1], a.shape[1])
              for name, (a, b) in adapter.pairs.items()}
    trained = adapter.to_adapter(shapes)
    write_checkpoint(path, geometry, trained, Moments(trained), TrainState(), extras={})


def describe(adapter: AdapterFile, form: FileForm) -> str:
    """`PEFT adapter, 210 pairs of rank 8 with magnitudes (DoRA), alpha 8`."""
    ranks = sorted({len(a) for a, _ in adapter.pairs.values()})
    alpha = "no alpha" if adapter.alpha is None else f"alpha {adapter.alpha:g}"
    magnitudes = " with magnitudes (DoRA)" if adapter.magnitudes else ""
    pairs = count(len(adapter.pairs), "pair")
    return f"{form.value}, {pairs} of rank {', '.join(map(str, ranks))}{magnitudes}, {alpha}"


def summary(names: Iterable[str]) -> str:
    """The roles of these tensors, each with the number of its tensors where that is not one."""
    roles = [split_name(name)[1] for name in names]
    return ", ".join(role if roles.count(role) == 1 else f"{roles.count(role)} {role}"
                     for role in ROLES if role in roles)


# ---- what the two files say, or the options must ----

def _form(options: ConvertOptions) -> FileForm:
    if options.to:
        return WRITTEN_FORMS[options.to]
    form = FileForm.PEFT if os.path.isdir(options.target) else form_of_name(options.target)
    if form:
        return form
    raise UsageError(f"{options.target}: end the name in .gguf (adapter for llama.cpp), / (folder for PEFT) or .bin "
                     f"(ggla), or say --to {', '.join(WRITTEN_FORMS)}")


def _base(options: ConvertOptions, model: GGUFFile | None, adapter: AdapterFile) -> BaseModel:
    """The base model: from its file if one is given, otherwise as far as the adapter's own file knows it."""
    if model is not None:
        base = BaseModel.from_gguf(model)
    else:
        n_layer = 1 + max(split_name(name)[0] for name in adapter.pairs)
        base = BaseModel(adapter.metadata.get("general.architecture", "llama"), n_layer, 0, 0, tied=False)
        if form_of_file(options.source) is FileForm.CHECKPOINT:
            geometry = read_checkpoint(options.source).geometry
            base = BaseModel(geometry.architecture, geometry.n_layer, geometry.n_head, geometry.n_head_kv, tied=False)
    return dataclasses.replace(base, source=options.base_name or base.source)


def _ask_for_model(kind: FileForm, form: FileForm, adapter: AdapterFile) -> None:
    """UsageError where the files cannot be converted without knowing the base model."""
    roles = {split_name(name)[1] for name in adapter.pairs}
    reason = ""
    if form is FileForm.PEFT and roles & {"attn_q", "attn_k"} and kind is not FileForm.CHECKPOINT:
        reason = "GGUF and Hugging Face order the rows of q and k differently, by the model's heads"
    elif form is FileForm.GGUF and roles & {"token_embd", "output"}:
        reason = ("whether a GGUF adapter can carry pairs of token_embd and output depends on whether the model uses "
                  "one matrix for both")
    elif form is FileForm.CHECKPOINT and kind is not FileForm.CHECKPOINT:
        reason = "a checkpoint holds the model's sizes"
    if reason:
        raise UsageError(f"--model-base is needed: {reason}")


def _geometry(options: ConvertOptions, model: GGUFFile | None) -> Geometry:
    if model is None:
        return read_checkpoint(options.source).geometry
    return Geometry.of(read_hparams(model))


def _companion_targets(options: ConvertOptions) -> list[Target]:
    """What --modelfile and --card ask for beside the adapter."""
    wanted = ((options.modelfile, "--modelfile", cards.MODELFILE, FileForm.MODELFILE),
              (options.card, "--card", cards.CARD, FileForm.CARD))
    return [Target(option, str(cards.beside(options.target, suffix)), form)
            for given, option, suffix, form in wanted if given]


def _companions(options: ConvertOptions, adapter: AdapterFile, form: FileForm, base: BaseModel) -> list[str]:
    """Writes them; returns the paths."""
    written = []
    if options.modelfile:
        text = modelfile_for(open_model(options.model_base), options.model_base, options.target)
        written.append(cards.write_beside(options.target, cards.MODELFILE, text))
    if options.card:
        text = cards.model_card(adapter, base, options.target, model_path=options.model_base)
        written.append(cards.write_beside(options.target, cards.CARD, text))
    return written
