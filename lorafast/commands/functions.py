"""The commands as functions, for Python: the options by name, and back what the command would show."""
from __future__ import annotations

from typing import Any

from ..options.finetune import FinetuneConfig
from ..options.tools import CheckOptions, ConvertOptions, MergeOptions
from ..options.use import PerplexityConfig
from ..options.values import options_of
from ..planning.plan import Plan
from ..training.run import plan_of
from . import (
    check as check_command,
    convert as convert_command,
    merge as merge_command,
    perplexity as perplexity_command,
)


def plan(**options: Any) -> Plan:
    """What a run of `finetune` with these options would take: .nbytes of memory, .timing of a step, .table() in
    lines.
    """
    return plan_of(options_of(FinetuneConfig, options))


def convert(source: Any, target: Any, **options: Any) -> list[str]:
    """Brings an adapter or checkpoint into another form, as `lorafast convert`; returns what is to be said about it."""
    lines: list[str] = []
    convert_command.run(options_of(ConvertOptions, {"source": source, "target": target, **options}), lines.append)
    return lines


def merge(model_base: Any, lora: Any, output: Any, **options: Any) -> list[str]:
    """Writes a model with adapters merged in, as `lorafast merge`; returns its report."""
    lines: list[str] = []
    merge_command.run(options_of(MergeOptions, {"model_base": model_base, "lora": lora, "output": output, **options}),
                      lines.append)
    return lines


def check(adapter: Any, model_base: Any) -> list[str]:
    """What keeps llama.cpp from loading an adapter, as `lorafast check`; empty if nothing does."""
    lines: list[str] = []
    status = check_command.run(options_of(CheckOptions, {"adapter": adapter, "model_base": model_base}), lines.append)
    return lines if status else []


def perplexity(model_base: Any, file: Any, **options: Any) -> list[perplexity_command.Perplexity]:
    """How well a model predicts a text, as `lorafast perplexity`: .value and .standard_error, of the base model and,
    with `lora`, of the adapted one.
    """
    config = options_of(PerplexityConfig, {"model_base": model_base, "file": file, **options})
    return perplexity_command.measured(config)
