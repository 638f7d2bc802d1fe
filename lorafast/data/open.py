"""Opens whatever was named as training data: texts, or records of known shapes, told apart by what is in the files.

    --train-data book.txt
    --train-data chats.jsonl --train-data more.csv --valid-split 0.05
    --train-data folder/          with train.jsonl, valid.jsonl, test.jsonl (or .csv, .parquet, .txt ...)
"""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import LoraFastError, UsageError
from ..gguf.strings import Strings
from ..options.methods import METHODS
from ..system.live import Show, silent
from ..system.process import peak_resident_bytes
from ..tokenizer import Tokenizer
from .chat_template import KEY as TEMPLATE_KEY, ChatTemplate, load_chat_template, without_effect
from .encode import SequenceEncoder
from .files import data_files
from .forms.recognise import recognise
from .preferences import Preferences
from .record_samples import hold_out, sequences_of, write_records
from .samples import Samples, Sequences
from .source import Source, open_source
from .text import evaluation_text, hold_out_end, tokenize_text
from .token_store import store_tokens

_CACHE_VERSION = 3      # to be raised when the same data gives other tokens than before


@dataclass(frozen=True)
class DataOptions:
    """How data is to be read.

    train             files, or one folder
    valid             files to evaluate on; by default those of the folder
    valid_split       share of the training data to evaluate on instead: of records a random choice, of a text its end
    data_format       auto, text, jsonl, csv, tsv
    chat_template     file; by default the model's own
    train_on_prompt   prompts and the other side of chats count in the loss too
    skip_bad          leave out lines that cannot be used, instead of refusing the file
    cache             file that keeps the tokenised training data for the next run
    stride            tokens between the beginnings of two samples of a text
    sample_start, include_sample_start, overlapping_samples   see tokenize_text
    fields            known key -> the key that stands for it in the records
    raw_pairs         prompts and completions are one text, also where a chat template could render them
    template_args     variables for the chat template
    method            what is trained by, see options/methods.py
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
    fields: Mapping[str, str] = field(default_factory=dict)
    raw_pairs: bool = False
    template_args: Mapping[str, Any] = field(default_factory=dict)
    method: str = "sft"


@dataclass(frozen=True)
class Data:
    """What a run trains on, and what it is evaluated on (None if nothing).

    notes      lines on what was recognised
    template   that rendered the chats in it; None where there were none
    peak       bytes of this process at most while it was read; 0 where it had taken more before
    warnings   lines on options that change nothing
    """

    train: Samples
    valid: Samples | None
    test: Samples | None
    notes: list[str] = field(default_factory=list)
    template: ChatTemplate | None = None
    peak: int = 0
    warnings: Sequence[str] = ()

    @property
    def parts(self) -> list[Samples]:
        """All that there are."""
        return [samples for samples in (self.train, self.valid, self.test) if samples is not None]

    def with_whole_rows(self) -> Data:
        """This data for a network in which rows cannot share their beginning."""
        parts: dict[str, Any] = {name: part.with_whole_rows() for name in ("train", "valid", "test")
                                 if isinstance(part := getattr(self, name), Preferences)}
        return replace(self, **parts)


def open_data(options: DataOptions, tokenizer: Tokenizer, metadata: Mapping[str, Any], ctx: int,
              progress: Show = silent) -> Data:
    """Reads and tokenises data for a model with this tokenizer and metadata; samples have at most `ctx` targets.

    progress   is shown how far it is
    LoraFastError in one line, with file and line number, for what cannot be read; UsageError for options that
    contradict each other.
    """
    train, valid, test = (recognised(paths, options)
                          for paths in data_files(options.train, options.valid, options.valid_split))
    files = [*train, *valid, *test]
    text = next((source.name for source, form in files if form is None), "")
    records = next((source.name for source, form in files if form is not None), "")
    if text and records:
        raise LoraFastError(f"{text} is text and {records} has records: train on one or the other")
    reader = _RecordReader if records else _TextReader
    before = peak_resident_bytes()
    data = reader(options, tokenizer, metadata, ctx, progress).read(train, valid, test)
    peak = peak_resident_bytes()
    for source, _ in files:
        source.refuse_change()
    return replace(data, peak=peak if peak > before else 0)


Files = Sequence[tuple[Source, Any]]


def recognised(paths: Sequence[str], options: DataOptions) -> Files:
    """The files, each with the form of its records, or None for text. LoraFastError when one cannot be read."""
    return [(source, recognise(source, options.data_format, options.fields)) for source in map(open_source, paths)]


class _Reader:
    """What texts and records have in common."""

    def __init__(self, options: DataOptions, tokenizer: Tokenizer, metadata: Mapping[str, Any], ctx: int,
                 progress: Show) -> None:
        self.options, self.tokenizer, self.metadata, self.ctx = options, tokenizer, metadata, ctx
        self.progress = progress

    def cache_key(self, sources: Sequence[Source], **more: Any) -> str:
        """Stands for all that the tokens follow from: files (by name, size and time), vocabulary, options."""
        if not self.options.cache:
            return ""
        digest = hashlib.sha256()
        try:
            files = [(os.path.abspath(source.name), status.st_size, status.st_mtime_ns)
                     for source, status in ((source, os.stat(source.name)) for source in sources)]
        except OSError as error:
            raise LoraFastError(f"cannot read {error.filename}: {error.strerror}") from None
        digest.update(json.dumps([_CACHE_VERSION, files, more]).encode())
        for key, value in self.metadata.items():
            if key.startswith("tokenizer.") or key == "general.name":
                shown = len(value) if isinstance(value, (list, Strings)) else value
                digest.update(f"{key} {shown!r}\n".encode("utf-8", "replace"))
                if isinstance(value, np.ndarray):
                    digest.update(value.tobytes())
                elif isinstance(value, Strings):
                    digest.update(value.data)
                    digest.update(value.begins)
                elif isinstance(value, list):
                    digest.update("\0".join(map(str, value)).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


class _TextReader(_Reader):

    def read(self, train: Files, valid: Files, test: Files) -> Data:
        options, sources = self.options, [source for source, _ in train]
        for name, given in ((f"--method {options.method}", options.method != "sft"),
                            ("--train-on-prompt", options.train_on_prompt), ("--skip-bad", options.skip_bad),
                            ("--chat-template", options.chat_template), ("--field", options.fields),
                            ("--raw-pairs", options.raw_pairs), ("--template-arg", options.template_args)):
            if given:
                raise UsageError(f"{name} is for records, and {sources[0].name} is text")
        how: dict[str, Any] = dict(sample_start=options.sample_start, include_sample_start=options.include_sample_start,
                   overlapping_samples=options.overlapping_samples)
        cuts = {**how, "ctx": self.ctx} if options.sample_start else {}      # without, the tokens don't depend on them
        samples = tokenize_text(sources, self.tokenizer, self.ctx, stride=options.stride, cache=options.cache,
                                cache_key=self.cache_key(sources, text=cuts), progress=self.progress, **how)
        held_out = self.evaluation(valid)
        if options.valid_split:
            if options.sample_start:
                samples, held_out = hold_out(samples, options.valid_split)
                held_out = replace(held_out, size=np.minimum(held_out.size, self.ctx))
                held_out = held_out.subset(np.flatnonzero(held_out.size))
            else:
                samples, held_out = hold_out_end(samples, options.valid_split, self.ctx)
        return Data(samples, held_out, self.evaluation(test), [f"{source.name}: text" for source in sources])

    def evaluation(self, files: Files) -> Samples | None:
        sources = [source for source, _ in files]
        return evaluation_text(sources, self.tokenizer, self.ctx, self.progress) if files else None


class _RecordReader(_Reader):

    has_chats = False

    def read(self, train: Files, valid: Files, test: Files) -> Data:
        options = self.options
        if options.sample_start or options.stride != 1:
            name = "--sample-start" if options.sample_start else "--stride"
            raise UsageError(f"{name} is for text, and {train[0][0].name} has records (--data-format text reads it as "
                             "text)")
        notes: list[str] = []
        samples = self.sequences(train, notes, options.cache)
        held_out = self.evaluation(valid, notes)
        if options.valid_split:
            samples, part = hold_out(samples, options.valid_split)
            notes.append(f"held out to evaluate on: {len(part)} of these samples")
            held_out = part
        template = self.load_template() if self.has_chats else None
        tested = self.evaluation(test, notes)
        return Data(samples, held_out, tested, notes, template,
                    warnings=without_effect(options.template_args, template))

    def evaluation(self, files: Files, notes: list[str]) -> Sequences | None:
        if not files:
            return None
        samples = self.sequences(files, notes)
        notes += [f"{samples.name}: {warning}" for warning in samples.warnings]
        return samples

    def sequences(self, files: Files, notes: list[str], cache: str = "") -> Sequences:
        """The samples of these files, none longer than the context. Adds to `notes` what was recognised."""
        options, sources = self.options, [source for source, _ in files]
        template = [open_source(options.chat_template)] if options.chat_template and cache else []
        key = "" if not cache else self.cache_key(
            [*sources, *template], records=[options.train_on_prompt, options.skip_bad, options.raw_pairs,
                                            dict(options.fields), dict(options.template_args), options.data_format,
                                            METHODS[options.method].takes])
        encoder = SequenceEncoder(
            self.tokenizer, self.load_template, train_on_prompt=options.train_on_prompt, method=options.method,
            pairs_as_chats=not options.raw_pairs and bool(options.chat_template or TEMPLATE_KEY in self.metadata))
        stored = store_tokens(
            lambda writer: write_records(files, encoder, writer, self.progress, names=options.fields,
                                         skip_bad=options.skip_bad), cache, key)
        notes += stored.facts["recognised"]
        self.has_chats = self.has_chats or stored.facts["chats"]
        return sequences_of(stored, [source.name for source in sources], self.ctx, options.method)

    def load_template(self) -> ChatTemplate:
        return load_chat_template(self.metadata, self.tokenizer, self.options.chat_template, self.options.template_args)
