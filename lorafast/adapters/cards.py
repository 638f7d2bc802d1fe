"""What lies beside an adapter for those who use it: a model card, and where a Modelfile (ollama.py) goes."""
from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from ..gguf.roles import ROLES, split_name
from ..system.atomic import atomic_write
from . import AdapterFile, BaseModel

CARD, MODELFILE = ".md", ".Modelfile"
"""Ends of the names of what lies beside an adapter's file."""


def model_card(adapter: AdapterFile, base: BaseModel, adapter_path: str, *, model_path: str = "",
               training: Mapping[str, object] | None = None) -> str:
    """A short model card in Markdown, with the front matter that Hugging Face reads.

    training  what to say of the run, by name: data, iterations, final loss
    """
    is_folder = adapter_path.endswith("/") or os.path.isdir(adapter_path)
    name = os.path.basename(adapter_path.rstrip("/"))
    base_name = base.source or base.name or os.path.basename(model_path) or "the base model"
    front = ["---", f"base_model: {base.source or base_name}", "base_model_relation: adapter",
             f"library_name: {'peft' if is_folder else 'gguf'}", "pipeline_tag: text-generation",
             "tags:", "- lora", "- lorafast", "---"]
    alpha = "1 (the file holds none)"
    if adapter.alpha is not None:
        alpha = f"{adapter.alpha:g} / {adapter.r} = {adapter.scale:g}"
    facts = {"Base model": base_name, "Adapted": _adapted(adapter), "Rank": _ranks(adapter), "Scale, alpha / r": alpha,
             **({"Magnitudes": "trained (DoRA)"} if adapter.magnitudes else {}), **(training or {})}
    rows = [f"| {key} | {value} |" for key, value in facts.items()]
    return "\n".join([*front, "", f"# {name}", "", f"A LoRA adapter for {base_name}, trained with lorafast.", "",
                      "| | |", "|---|---|", *rows, "",
                      "## Use", "", *_usage(adapter_path, is_folder, base, model_path), ""])


def _adapted(adapter: AdapterFile) -> str:
    roles = {split_name(name)[1] for name in adapter.pairs}
    return f"{', '.join(role for role in ROLES if role in roles)} ({len(adapter.pairs)} tensors)"


def _ranks(adapter: AdapterFile) -> str:
    return ", ".join(map(str, sorted({len(a) for a, _ in adapter.pairs.values()})))


def _usage(path: str, is_folder: bool, base: BaseModel, model_path: str) -> list[str]:
    """How to load it: with peft for a folder, with llama.cpp and lorafast for a file."""
    if is_folder:
        source = base.source or "path/to/base-model"
        return ["```python", "from peft import PeftModel", "from transformers import AutoModelForCausalLM", "",
                f'model = AutoModelForCausalLM.from_pretrained("{source}")',
                f'model = PeftModel.from_pretrained(model, "{path.rstrip("/")}")', "```"]
    model = os.path.basename(model_path) or "base-model.gguf"
    name = os.path.basename(path)
    commands = [f'lorafast generate --model-base {model} --lora {name} -p "..."']
    if name.lower().endswith(".gguf"):
        commands.insert(0, f'llama-cli -m {model} --lora {name} -p "..."')
    return ["```sh", *commands, "```"]


def beside(path: str, suffix: str) -> Path:
    """Where something beside an adapter goes: `a.gguf` + `.md` is `a.md`; a folder gets README.md or Modelfile."""
    if path.endswith("/") or os.path.isdir(path):
        return Path(path) / {CARD: "README.md", MODELFILE: "Modelfile"}[suffix]
    return Path(path).with_suffix(suffix)


def write_beside(path: str, suffix: str, text: str) -> str:
    """Writes `text` beside the adapter, and returns the path."""
    target = beside(path, suffix)
    with atomic_write(target) as file:
        file.write(text.encode())
    return str(target)
