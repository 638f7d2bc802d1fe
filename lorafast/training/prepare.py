"""What a run starts from: base model, adapter, checkpoint and data, opened and checked as the options say."""
from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..adapters import BaseModel, read_adapter
from ..adapters.checkpoint import Checkpoint, Geometry, TrainState, read_checkpoint
from ..data.batches import Sampler, SequenceSampler
from ..data.chat_template import KEY as CHAT_TEMPLATE_KEY, load_chat_template
from ..data.files import check_files, data_files
from ..data.lengths import SharedRows, row_lengths, shared_rows
from ..data.open import Data, open_data
from ..data.options import data_options
from ..data.samples import Sequences
from ..errors import FormatError, LoraFastError, TemplateRefusal, UsageError
from ..gguf.reader import GGUFFile, open_model
from ..gguf.roles import split_name
from ..network.hparams import HParams, read_hparams
from ..network.lora import Adapter, specs_for
from ..network.model_files import if_cut_short
from ..network.network import Network
from ..network.precision import resolve
from ..options.assignments import json_assignments
from ..options.defaults import MODERN
from ..options.finetune import FinetuneConfig
from ..reporting.log import Log
from ..system.hub import PREFIX as HUB
from ..tokenizer import Tokenizer
from ..words import count
from .evaluation import prompt_tokens


def open_base(config: FinetuneConfig) -> tuple[GGUFFile, HParams]:
    """The base model's file, and its hyper-parameters with what options override."""
    gguf = open_model(config.model_base)
    return gguf, read_hparams(gguf).with_overrides(
        n_ctx=config.ctx, norm_rms_eps=config.norm_rms_eps, rope_freq_base=config.rope_freq_base,
        rope_freq_scale=config.rope_freq_scale)


def check_inputs(config: FinetuneConfig) -> None:
    """Raises LoraFastError where a file that the run reads is missing, before all that loading logs."""
    if not config.model_base.startswith(HUB) and not os.path.exists(config.model_base):
        organisation, _, name = config.model_base.partition("/")
        on_hub = name and "/" not in name and not name.endswith(".gguf") and not os.path.isdir(organisation)
        raise LoraFastError(f"cannot read {config.model_base}: No such file or directory"
                            + (f" (from Hugging Face: {HUB}{config.model_base})" if on_hub else ""))
    for name, path in (("--init-lora", config.init_lora), ("--ref-lora", config.ref_lora),
                       ("--distill", config.distill), ("--chat-template", config.chat_template)):
        if path and not os.path.exists(path):
            raise LoraFastError(f"cannot read {name} {path}: No such file or directory")
    if not config.only_write_lora:
        check_files(data_files(config.train_data, config.valid_data, config.valid_split))


def new_adapter(config: FinetuneConfig, hparams: HParams, base: BaseModel, checkpoint: Checkpoint | None,
                log: Log) -> Adapter:
    """The adapter to train: that of --init-lora, or the tensors and ranks that the options say (or the checkpoint has,
    where ranks were redistributed), still without values."""
    if config.init_lora:
        file = read_adapter(config.init_lora, base)
        for warning in file.warnings:
            log.warning(warning)
        adapter = file.to_adapter(hparams.tensor_shapes())
    else:
        specs = specs_for(_shapes(config, hparams), config.ranks_by_role(), config.target_list(), dora=config.dora)
        if config.eva_rho > 1 and checkpoint:
            specs = tuple(replace(spec, rank=len(checkpoint.pairs[spec.name][0])) for spec in specs
                          if spec.name in checkpoint.pairs)
        adapter = Adapter(specs, config.alpha, config.lora_r)
    config.check_adapted({spec.role for spec in adapter.specs}, tied=hparams.tied, dora=bool(adapter.magnitudes))
    return adapter


def _shapes(config: FinetuneConfig, hparams: HParams) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors that may be adapted: with --layers only those from that many blocks below the top on."""
    if config.layers > hparams.n_layer:
        raise UsageError(f"--layers {config.layers}: the model has {hparams.n_layer}")
    shapes = hparams.tensor_shapes()
    if not config.layers:
        return shapes
    lowest = hparams.n_layer - config.layers
    return {name: shape for name, shape in shapes.items()
            if split_name(name)[0] >= lowest or name in ("output_norm.weight", "output.weight")}


def find_checkpoint(config: FinetuneConfig, log: Log) -> Checkpoint | None:
    """The checkpoint to go on from; None, and a word about it, where there is none."""
    path = config.checkpoint_in
    if path and os.path.lexists(path):
        return read_checkpoint(path)
    if path:
        log.note(f"no checkpoint {path}: starting fresh")
    return None


def refuse_other_model(config: FinetuneConfig, checkpoint: Checkpoint | None, hparams: HParams, fingerprint: str,
                       log: Log) -> None:
    """UsageError where the checkpoint was trained on another base model than this one of the same shapes, and there is
    no --force; with it, a warning."""
    trained_on = checkpoint.extras.get("base_model", fingerprint) if checkpoint else fingerprint
    if checkpoint is None or trained_on == fingerprint:
        return
    checkpoint.check_geometry(Geometry.of(hparams))     # says more of what differs
    difference = (f"{checkpoint.path} was trained on another base model than {config.model_base} (fingerprints "
                  f"{trained_on} and {fingerprint})")
    if not config.force:
        raise UsageError(f"{difference}: give that model to --model-base, or --force to go on with this one")
    log.warning(difference)


def run_precision(config: FinetuneConfig, checkpoint: Checkpoint | None, types: Iterable[int]) -> str:
    """What products are computed in: as the checkpoint was, which tells nothing if llama-finetune wrote it, else as
    --precision says. UsageError where these differ and there is no --force. Unasked, int8 only for what it was measured
    with: texts and answers, by today's defaults (docs/options.md).

    types  ggml types of the base model's tensors
    """
    may_round = config.preset == MODERN and config.method == "sft" and not config.distill
    asked = resolve(config.precision, types, may_round=may_round)
    if checkpoint is None or checkpoint.is_originals:
        return asked
    stored = checkpoint.extras.get("precision", resolve("auto"))
    if config.precision == "auto":
        return stored
    if asked != stored and not config.force:
        raise UsageError(f"--precision {asked}: {checkpoint.path} was computed in {stored}, and in another precision "
                         "the run would not go on exactly; leave the option out, or give --force")
    return asked


def open_training_data(config: FinetuneConfig, log: Log, tokenizer: Tokenizer, network: Network,
                       gguf: GGUFFile) -> Data:
    """The data to train and to evaluate on, read and tokenised, in rows that the network can take."""
    for warning in tokenizer.warnings:
        log.warning(warning)
    log.tokenizing(os.pathsep.join(config.train_data), config.start_text, config.include_sample_start)
    if_cut_short(os.pathsep.join(config.train_data))
    data = open_data(data_options(config), tokenizer, gguf.metadata, config.ctx, log.progress)
    if_cut_short(str(gguf.path))
    if network.key_widths is None:
        data = data.with_whole_rows()
    if isinstance(data.train, Sequences) or data.valid is not None:
        for note in data.notes:
            log.note(note)
    for warning in data.warnings:
        log.warning(warning)
    n_tokens = int(data.train.size.sum()) if isinstance(data.train, Sequences) else len(data.train.tokens)
    log.data(len(data.train), n_tokens, data.train.n_unique_tokens, data.train.warnings)
    if data.valid is not None:
        log.note(f"evaluation on {count(len(data.valid), 'sample')} of {data.valid.name}")
    elif config.patience:
        raise UsageError(f"--patience {config.patience}: there is no data to evaluate on (--valid-data, --valid-split)")
    return data


def longest_row(config: FinetuneConfig, data: Data | None) -> int:
    """Tokens of the longest row, or pair of rows, that passes can have: of records often fewer than --ctx, which they
    fill when packed.

    data  None where it is not known yet
    """
    if data is None or not isinstance(data.train, Sequences):
        return config.ctx
    longest = max(int(row_lengths(samples, config.ctx).max()) for samples in data.parts)
    return max(longest, config.ctx) if config.pack else longest


def rows_that_share(data: Data | None) -> SharedRows | None:
    """What passes compute of rows that share their prompts; None where none do, or the data is not known yet."""
    return None if data is None else shared_rows(data.parts)


def open_sampler(config: FinetuneConfig, log: Log, data: Data, tokenizer: Tokenizer, hparams: HParams, seed: int,
                 state: TrainState) -> Sampler | SequenceSampler:
    """What draws batches, from where the checkpoint's run had come to."""
    sampler: Sampler | SequenceSampler
    if isinstance(data.train, Sequences):
        sampler = SequenceSampler(data.train, config.ctx, seed=seed, n_vocab=hparams.n_vocab, pack=config.pack,
                                  force_reshuffle=config.force_reshuffle, state=state.sampler)
    elif config.pack:
        raise UsageError(f"--pack is for records, and {config.train_data[0]} is text, whose samples fill their rows")
    else:
        bos_id, eos_id = tokenizer.marks_of_text()
        sampler = Sampler(
            data.train, config.ctx, seed=seed, bos_id=bos_id, eos_id=eos_id,
            n_vocab=hparams.n_vocab,
            fill_with_next_samples=config.fill_with_next_samples, separate_with_eos=config.separate_with_eos,
            separate_with_bos=config.separate_with_bos, random_offsets=config.sample_random_offsets,
            force_reshuffle=config.force_reshuffle, state=state.sampler)
    if sampler.other_contents and not config.is_llama_finetune_run and not config.force:
        raise UsageError(f"{config.checkpoint_in} was trained on other data than {data.train.name} holds now: give "
                         "that data, or --force to go on with this, from the beginning of an epoch")
    if sampler.restarted or config.force_reshuffle:
        log.restarted(forced=config.force_reshuffle)
    return sampler


def longest_continuation(config: FinetuneConfig, tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> int:
    """Positions that the longest of --sample-prompt takes with what is generated for it, at most: whether the data has
    chats, so that a template makes a question of it, is not known yet."""
    prompts = [prompt_tokens(tokenizer, prompt) for prompt in config.sample_prompt]
    if prompts and (config.chat_template or CHAT_TEMPLATE_KEY in metadata):
        with suppress(FormatError, TemplateRefusal):        # of no matter unless there are chats, which tell it then
            template = load_chat_template(metadata, tokenizer, config.chat_template,
                                          json_assignments(config.template_arg))
            prompts += [prompt_tokens(tokenizer, prompt, template) for prompt in config.sample_prompt]
    return max((len(tokens) + config.sample_tokens for tokens in prompts), default=0)
