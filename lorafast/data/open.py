"""Opens whatever was named as training data: texts, or records of known shapes, told apart by what is in the files.

    --train-data book.txt
    --train-data chats.jsonl --train-data more.jsonl --valid-split 0.05
    --train-data folder/          with train.jsonl, valid.jsonl, test.jsonl (or .txt, .json)
"""
from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import LoraFastError, UsageError
from ..rng import MT19937
from ..system.live import Meter, Show, silent
from ..tokenizer import Tokenizer
from ..words import count
from .encode import SequenceEncoder
from .records import BadRecord, Chat, Completion, Text, is_json, read_records
from .samples import Samples, Sequences, targets_of
from .text import evaluation_text, hold_out_end, tokenize_text
from .token_store import TokenWriter, store_tokens

FORMATS = ("auto", "text", "jsonl")
_CACHE_VERSION = 1      # to be raised when the same data gives other tokens than before
_SPLIT_SEED = 0         # fixed, so that a resumed run holds out the same samples whatever its seed
_N_SHOWN = 3
_KINDS = {Text: ("text",), Completion: ("prompt and completion", "prompts and completions"), Chat: ("chat",)}


@dataclass(frozen=True)
class DataOptions:
    """How data is to be read.

    train             files, or one folder
    valid             files to evaluate on; by default those of the folder
    valid_split       share of the training data to evaluate on instead: of records a random choice, of a text its end
    data_format       one of FORMATS
    chat_template     file; by default the model's own
    train_on_prompt   prompts and the other side of chats count in the loss too
    skip_bad          leave out lines that cannot be used, instead of refusing the file
    cache             file that keeps the tokenised training data for the next run
    stride            tokens between the beginnings of two samples of a text
    sample_start, include_sample_start, overlapping_samples   see tokenize_text
    """

    train: Sequence[str]
    valid: Sequence[str] = ()
    valid_split: float = 0.0
    data_format: str = "auto"
    chat_template: str = ""
    train_on_prompt: bool = False
    skip_bad: bool = False
    cache: str = ""
    stride: int = 1
    sample_start: str = ""
    include_sample_start: bool = False
    overlapping_samples: bool = False


@dataclass(frozen=True)
class Data:
    """What a run trains on, and what it is evaluated on (None if nothing). notes: lines on what was recognised."""

    train: Samples
    valid: Samples | None
    test: Samples | None
    notes: list[str] = field(default_factory=list)


def open_data(options: DataOptions, tokenizer: Tokenizer, metadata: Mapping[str, Any], ctx: int,
              progress: Show = silent) -> Data:
    """Reads and tokenises data for a model with this tokenizer and metadata; samples have at most `ctx` targets.

    progress   is shown how far it is
    LoraFastError in one line, with file and line number, for what cannot be read; UsageError for options that
    contradict each other.
    """
    train, valid, test = data_files(options)
    kinds = {path: has_records(path, options.data_format) for path in (*train, *valid, *test)}
    if len(set(kinds.values())) > 1:
        text = next(path for path, is_records in kinds.items() if not is_records)
        records = next(path for path, is_records in kinds.items() if is_records)
        raise LoraFastError(f"{text} is text and {records} has records: train on one or the other")
    reader = _RecordReader if kinds[train[0]] else _TextReader
    return reader(options, tokenizer, metadata, ctx, progress).read(train, valid, test)


# ---------------------------------------------------------------------------------------------------- finding the files

_ROLE = re.compile(r"(train|valid|validation|val|dev|test)([-_.][^/]*)?\.(jsonl|ndjson|json|txt|text)", re.IGNORECASE)
_VALID_NAMES = ("valid", "validation", "val", "dev")


def data_files(options: DataOptions) -> tuple[list[str], list[str], list[str]]:
    """The files to train on, to evaluate on, and to test on."""
    folders = [path for path in options.train if os.path.isdir(path)]
    if not folders:
        train, valid, test = list(options.train), [], []
    elif len(options.train) > 1:
        raise UsageError(f"--train-data {folders[0]} is a folder: it must be the only one")
    else:
        train, valid, test = _folder(folders[0])
    if not any(train):
        raise UsageError("--train-data is missing: name a file or a folder")
    if options.valid:
        valid = list(options.valid)
    if valid and options.valid_split:
        raise UsageError(f"--valid-split {options.valid_split}: but {valid[0]} is there to evaluate on")
    return train, valid, test


def _folder(folder: str) -> tuple[list[str], list[str], list[str]]:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise LoraFastError(f"cannot read folder {folder}: {error.strerror}") from None
    files: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for name in names:
        if match := _ROLE.fullmatch(name):
            role = match[1].lower()
            files["valid" if role in _VALID_NAMES else role].append(os.path.join(folder, name))
    if not files["train"]:
        raise LoraFastError(f"{folder} has no train.jsonl, train.json or train.txt")
    return files["train"], files["valid"], files["test"]


def has_records(path: str, data_format: str) -> bool:
    """Whether a file holds records, and not text."""
    return is_json(path) if data_format == "auto" else data_format == "jsonl"


# ------------------------------------------------------------------------------------------------------------- reading

class _Reader:
    """What texts and records have in common."""

    def __init__(self, options: DataOptions, tokenizer: Tokenizer, metadata: Mapping[str, Any], ctx: int,
                 progress: Show) -> None:
        self.options, self.tokenizer, self.metadata, self.ctx = options, tokenizer, metadata, ctx
        self.progress = progress

    def cache_key(self, paths: Sequence[str], **more: Any) -> str:
        """Stands for all that the tokens follow from: files (by name, size and time), vocabulary, options."""
        if not self.options.cache:
            return ""
        digest = hashlib.sha256()
        try:
            files = [(os.path.abspath(path), status.st_size, status.st_mtime_ns)
                     for path, status in ((path, os.stat(path)) for path in paths)]
        except OSError as error:
            raise LoraFastError(f"cannot read {error.filename}: {error.strerror}") from None
        digest.update(json.dumps([_CACHE_VERSION, files, more]).encode())
        for key, value in self.metadata.items():
            if key.startswith("tokenizer.") or key == "general.name":
                shown = len(value) if isinstance(value, list) else value
                digest.update(f"{key} {shown!r}\n".encode("utf-8", "replace"))
                if isinstance(value, np.ndarray):
                    digest.update(value.tobytes())
                elif isinstance(value, list):
                    digest.update("\0".join(map(str, value)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


class _TextReader(_Reader):

    def read(self, train: list[str], valid: list[str], test: list[str]) -> Data:
        options = self.options
        for name, given in (("--train-on-prompt", options.train_on_prompt), ("--skip-bad", options.skip_bad),
                            ("--chat-template", options.chat_template)):
            if given:
                raise UsageError(f"{name} is for records, and {train[0]} is text")
        how = dict(sample_start=options.sample_start, include_sample_start=options.include_sample_start,
                   overlapping_samples=options.overlapping_samples)
        cuts = {**how, "ctx": self.ctx} if options.sample_start else {}      # without, the tokens don't depend on them
        samples = tokenize_text(train, self.tokenizer, self.ctx, stride=options.stride, cache=options.cache,
                                cache_key=self.cache_key(train, text=cuts), progress=self.progress, **how)
        held_out = self.evaluation(valid)
        if options.valid_split:
            if options.sample_start:
                samples, held_out = hold_out(samples, options.valid_split)
                held_out = replace(held_out, size=np.minimum(held_out.size, self.ctx))
                held_out = held_out.subset(np.flatnonzero(held_out.size))
            else:
                samples, held_out = hold_out_end(samples, options.valid_split, self.ctx)
        return Data(samples, held_out, self.evaluation(test), [f"{path}: text" for path in train])

    def evaluation(self, paths: list[str]) -> Samples | None:
        return evaluation_text(paths, self.tokenizer, self.ctx, self.progress) if paths else None


class _RecordReader(_Reader):

    def read(self, train: list[str], valid: list[str], test: list[str]) -> Data:
        options = self.options
        if options.sample_start or options.stride != 1:
            name = "--sample-start" if options.sample_start else "--stride"
            raise UsageError(f"{name} is for text, and {train[0]} has records (--data-format text reads it as text)")
        notes: list[str] = []
        samples = self.sequences(train, notes, options.cache)
        held_out = self.evaluation(valid, notes)
        if options.valid_split:
            samples, held_out = hold_out(samples, options.valid_split)
            notes.append(f"held out to evaluate on: {len(held_out)} of these samples")
        return Data(samples, held_out, self.evaluation(test, notes), notes)

    def evaluation(self, paths: list[str], notes: list[str]) -> Sequences | None:
        if not paths:
            return None
        samples = self.sequences(paths, notes)
        notes += [f"{samples.name}: {warning}" for warning in samples.warnings]
        return samples

    def sequences(self, paths: list[str], notes: list[str], cache: str = "") -> Sequences:
        """The samples of these files, none longer than the context. Adds to `notes` what was recognised."""
        template = self.options.chat_template
        key = "" if not cache else self.cache_key(
            [*paths, *filter(None, [template])],
            records=[self.options.train_on_prompt, self.options.skip_bad])
        stored = store_tokens(lambda writer: self.tokenize(paths, writer), cache, key)
        facts = stored.facts
        notes += facts["recognised"]
        source = np.repeat(np.arange(len(paths)), facts["samples_of_source"])
        samples = Sequences(stored.tokens, np.cumsum(stored.size) - stored.size, stored.size, os.pathsep.join(paths),
                            facts["warnings"], stored.line, source, tuple(paths))
        if not len(samples):
            raise LoraFastError(f"{samples.name} has no records that could be trained on")
        return truncated(samples, self.ctx)

    def tokenize(self, paths: list[str], writer: TokenWriter) -> dict[str, Any]:
        """Writes the sequences of all files; returns what the user should know."""
        encoder = SequenceEncoder(self.tokenizer, self.load_template, train_on_prompt=self.options.train_on_prompt)
        recognised, samples_of_source, bad = [], [], []
        for path in paths:
            kinds: Counter[tuple[str, ...]] = Counter()
            n_samples = 0
            with Meter(f"tokenising {path}", os.path.getsize(path), self.progress) as meter:
                for line, record in read_records(path, meter.advance):
                    try:
                        if isinstance(record, BadRecord):
                            raise record
                        sequences = encoder.encode(record)
                    except BadRecord as error:
                        bad.append(f"{path}:{line}: {error}")
                        if not self.options.skip_bad:
                            raise LoraFastError(f"{bad[0]} (--skip-bad leaves such lines out)") from None
                        continue
                    kinds[_KINDS[type(record)]] += 1
                    for sequence in sequences:
                        writer.write(sequence)
                        writer.end_sample(line)
                    n_samples += len(sequences)
            samples_of_source.append(n_samples)
            found = ", ".join(count(n, *kind) for kind, n in kinds.items()) or "nothing"
            recognised.append(f"{path}: {found}")
        warnings = [f"{sentence}: {n}" for sentence, n in encoder.notes.items() if n]
        if bad:
            more = f"; and {len(bad) - _N_SHOWN} more" if len(bad) > _N_SHOWN else ""
            warnings.append(f"{count(len(bad), 'bad line')} left out: {'; '.join(bad[:_N_SHOWN])}{more}")
        return {"recognised": recognised, "samples_of_source": samples_of_source, "warnings": warnings}

    def load_template(self):
        from .chat_template import load_chat_template  # needs jinja2

        return load_chat_template(self.metadata, self.tokenizer, self.options.chat_template)


def truncated(samples: Sequences, ctx: int) -> Sequences:
    """The samples cut to `ctx` inputs, without those of which nothing is left that counts; warnings say so."""
    long = np.flatnonzero(samples.size > ctx + 1)
    cut = replace(samples, size=np.minimum(samples.size, ctx + 1), warnings=list(samples.warnings))
    empty = [i for i in long if not (targets_of(cut.stored(i)[1:]) >= 0).any()]
    if len(long):
        cut.warnings.append(f"{len(long)} of {len(samples)} samples are longer than the context of {ctx} tokens and "
                            f"are cut (the longest has {samples.size.max() - 1})")
    if empty:
        cut.warnings.append(f"{len(empty)} of these are left out: nothing that counts in the loss remains of them")
    if len(empty) == len(samples):
        raise LoraFastError(f"{samples.name}: in no sample anything that counts in the loss is within the context of "
                            f"{ctx} tokens; give a larger --ctx")
    return cut.subset(np.delete(np.arange(len(samples)), empty)) if empty else cut


def hold_out(samples: Samples, share: float) -> tuple[Samples, Samples]:
    """The samples without a random `share` of them, and that share: at least one, and always the same ones."""
    n = len(samples)
    n_held_out = max(1, round(share * n))
    if n_held_out >= n:
        raise LoraFastError(f"'{samples.name}' has too few samples for --valid-split {share}: {n}")
    order = np.argsort(MT19937(_SPLIT_SEED).draw(n), kind="stable")
    held_out = samples.subset(np.sort(order[:n_held_out]))
    return samples.subset(np.sort(order[n_held_out:])), replace(held_out, warnings=[])
