"""The options of the commands that work on files: convert, merge, check, inspect, report."""
from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UsageError
from ..gguf.file_form import WRITTEN_FORMS
from ..gguf.types import GGMLType
from ..system.threads import physical_cores
from .declare import Allowed, Options, argument, force, option, same_as
from .defaults import MODERN, PRESETS, are_records
from .finetune import FinetuneConfig, decode_escapes

OPTIONS, DATA = "Options", "Options for data"
MERGE_TYPES = {type.label.lower(): type for type in GGMLType if type.is_mergeable}
"""Every type that merged matrices can have, by its name on the command line."""

AT_LEAST_1 = Allowed("at least 1", lambda n: n >= 1)


@dataclass(frozen=True)
class ConvertOptions(Options):
    """The options of `lorafast convert`."""

    source: str = argument("IN", "adapter or checkpoint of any form, which is recognised by its content")
    target: str = argument("OUT", "file or folder to write: NAME.gguf for llama.cpp and Ollama, NAME/ a folder for "
                           "PEFT, NAME.bin the ggla file of llama-finetune")
    to: str = option("", OPTIONS, "FORM", f"form of OUT: {', '.join(WRITTEN_FORMS)}", shown_default="by the end of its "
                                                                                                    "name",
                     allowed=Allowed(f"one of {', '.join(WRITTEN_FORMS)}",
                                     lambda form: not form or form in WRITTEN_FORMS))
    model_base: str = option("", OPTIONS, "FILE", "base model, where the conversion depends on it", names=["-m"])
    drop: str = option("", OPTIONS, "LIST", "pairs to leave out, separated by commas: roles such as token_embd, names "
                       "with * and ?, or the groups norms, attn, ffn")
    base_name: str = option("", OPTIONS, "NAME", "repository or folder of the model that PEFT loads",
                            shown_default="the GGUF's general.repo_url")
    modelfile: bool = option(False, OPTIONS, "", "also write NAME.Modelfile, for `ollama create`")
    card: bool = option(False, OPTIONS, "", "also write a model card, NAME.md or README.md in a folder")
    force: bool = force()

    def drop_list(self) -> tuple[str, ...]:
        """--drop, taken apart."""
        return tuple(filter(None, self.drop.replace(" ", ",").split(",")))


@dataclass(frozen=True)
class CheckOptions(Options):
    """The options of `lorafast check`."""

    adapter: str = argument("ADAPTER", "the adapter that llama.cpp is to load")
    model_base: str = option("", OPTIONS, "FILE", "base model, a GGUF file (required)", names=["-m"])

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model_base:
            raise UsageError("--model-base is missing: the rules depend on the base model")


@dataclass(frozen=True)
class InspectOptions(Options):
    """The options of `lorafast inspect`. With --model-base it shows data; those options are the same as in
    `finetune`."""

    file: str = argument("FILE", "model, adapter or checkpoint, which is recognised by its content. With --model-base: "
                         "data to train on, a file or a folder")
    all: bool = option(False, OPTIONS, "", "list each tensor, and the whole of long values")
    model_base: str = option("", DATA, "FILE", "the model that the data is for", names=["-m"])
    samples: str = option("1,2,3", DATA, "LIST", "samples to show, separated by commas",
                          allowed=Allowed("numbers separated by commas",
                                          lambda text: bool(re.fullmatch(r"[0-9]{1,9}(,[0-9]{1,9})*", text))))
    method: str = same_as(FinetuneConfig, "method", DATA)
    ctx: int = same_as(FinetuneConfig, "ctx", DATA, shown_default="128; with records 512")
    batch: int = same_as(FinetuneConfig, "batch", DATA)
    data_format: str = same_as(FinetuneConfig, "data_format", DATA)
    chat_template: str = same_as(FinetuneConfig, "chat_template", DATA)
    template_arg: tuple[str, ...] = same_as(FinetuneConfig, "template_arg", DATA)
    field: tuple[str, ...] = same_as(FinetuneConfig, "field", DATA)
    raw_pairs: bool = same_as(FinetuneConfig, "raw_pairs", DATA)
    train_on_prompt: bool = same_as(FinetuneConfig, "train_on_prompt", DATA)
    skip_bad: bool = same_as(FinetuneConfig, "skip_bad", DATA)
    stride: int = same_as(FinetuneConfig, "stride", DATA)
    sample_start: str = same_as(FinetuneConfig, "sample_start", DATA)
    include_sample_start: bool = same_as(FinetuneConfig, "include_sample_start", DATA)
    overlapping_samples: bool = same_as(FinetuneConfig, "overlapping_samples", DATA)
    escape: bool = same_as(FinetuneConfig, "escape", DATA)

    @classmethod
    def complete(cls, given: Mapping[str, Any]) -> InspectOptions:
        """The options with these values; --ctx is by default that of a run on the same data."""
        records = given.get("model_base") and are_records([given.get("file", "")], given.get("data_format", "auto"))
        return cls(**({"ctx": PRESETS[MODERN]["ctx"]} if records else {}) | dict(given))

    @property
    def start_text(self) -> str:
        """--sample-start, with its escapes decoded if --escape was given."""
        return decode_escapes(self.sample_start) if self.escape else self.sample_start


@dataclass(frozen=True)
class MergeOptions(Options):
    """The options of `lorafast merge`."""

    model_base: str = option("", OPTIONS, "FILE", "base model, a GGUF file (required)", names=["-m"])
    lora: tuple[str, ...] = option((), OPTIONS, "FILE[:SCALE]", "adapter or checkpoint to merge, times SCALE; may be "
                                   "given several times (required)")
    output: str = option("", OPTIONS, "FILE", "merged model to write (required)", names=["-o"])
    type: str = option("", OPTIONS, "TYPE", f"type of all matrices: {', '.join(MERGE_TYPES)}",
                       shown_default="each tensor's own",
                       allowed=Allowed(f"one of {', '.join(MERGE_TYPES)}", lambda t: not t or t.lower() in MERGE_TYPES))
    threads: int | None = option(None, OPTIONS, "N", "threads that compute", names=["-t"], allowed=AT_LEAST_1,
                                 shown_default="physical cores")
    modelfile: bool = option(False, OPTIONS, "", "also write NAME.Modelfile beside it, for `ollama create`")
    force: bool = force()

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("--model-base", self.model_base), ("--lora", self.lora), ("--output", self.output)):
            if not value:
                raise UsageError(f"{name} is missing: merge needs --model-base, --lora and --output")
        self.adapters()

    @property
    def n_threads(self) -> int:
        return self.threads or physical_cores()

    @property
    def ggml_type(self) -> GGMLType | None:
        """--type; None keeps each tensor's own."""
        return MERGE_TYPES[self.type.lower()] if self.type else None

    def adapters(self) -> list[tuple[str, float]]:
        """Path and factor of each --lora."""
        return [path_and_scale(text) for text in self.lora]


@dataclass(frozen=True)
class ReportOptions(Options):
    """The options of `lorafast report`."""

    run: str = argument("RUN", "file that --metrics of a run wrote, or the folder of a run")
    output: str = option("", OPTIONS, "FILE",
                         "page to write",
                         names=["-o"], shown_default="RUN.html")
    force: bool = force()



def path_and_scale(text: str) -> tuple[str, float]:
    """`FILE:0.5` as ("FILE", 0.5); without a number the factor is 1. Any other colon is part of the name."""
    path, colon, scale = text.rpartition(":")
    try:
        return (path, float(scale)) if colon and path else (text, 1.0)
    except ValueError:
        return text, 1.0
