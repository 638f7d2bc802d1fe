"""What holds where the command line is silent: a file of options, the folder of a run that goes on, and the preset.

A run with neither --run, nor a preset, nor records as data is a llama-finetune run: it has the defaults of llama.cpp's
llama-finetune of July 2024, and overwrites its files as that did. Every other run starts from the preset `modern`.
"""
from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import LoraFastError, UsageError
from ..gguf.file_form import FileForm
from .declare import Options, unknown
from .outputs import Output
from .toml import read_options

ORIGINAL, MODERN = "original", "modern"

PRESETS: dict[str, dict[str, Any]] = {
    ORIGINAL: {},
    MODERN: dict(targets="attn,ffn", lora_r=16, ctx=512, adam_alpha=2e-4, adam_decay=0.01, schedule="cosine",
                 warmup_ratio=0.03),
}
"""Defaults other than llama-finetune's, by name: `modern` is what trainers of 2024 and later start from."""

EPOCHS = 3
"""Times that a run of the preset `modern` goes through records, where nothing says how long it is."""

RUN_FILES = {"lora_out": ("adapter.gguf",), "checkpoint_out": "checkpoint-ITERATION.gguf", "metrics": "metrics.jsonl",
             "report": "report.html"}
"""Names of the outputs in the folder of --run, by option."""

RUN_OPTIONS = "options.toml"
KEEP = 2
"""Numbered checkpoints that --run keeps."""

TEXT_ENDS = (".txt", ".text", ".md")
RECORD_ENDS = re.compile(r".*\.(jsonl|ndjson|json|csv|tsv|parquet|arrow)(\.gz)?", re.IGNORECASE)


def completed(cls: type[Options], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values by field: those given; of the rest those of the file `config`, of the run to resume, and of the preset."""
    given = dict(given)
    path, checkpoint = given.pop("config", ""), given.get("checkpoint_in")
    if path:
        given = {**read_options(cls, path), **given}
        given.pop("config", None)
    if given.get("run"):
        given = _in_folder(cls, given)
    preset = given.get("preset") or ("" if given.get("run") else _preset_of(given)) or MODERN
    if preset not in PRESETS:
        raise UsageError("--preset: " + unknown(preset, list(PRESETS), "preset"))
    values = {**PRESETS[preset], **given, "preset": preset}
    if given.get("resume") and not checkpoint:
        values["checkpoint_in"] = _newest_checkpoint(cls, values)
    if preset == MODERN:
        _by_the_data(values, given)
    return values


def _preset_of(given: Mapping[str, Any]) -> str:
    return MODERN if are_records(given.get("train_data", ()), given.get("data_format", "auto")) else ORIGINAL


def _by_the_data(values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Adds the defaults of `modern` that depend on the kind of data: three epochs of records; text once, sample after
    sample.
    """
    if are_records(values.get("train_data", ()), values.get("data_format", "auto")):
        if values.get("adam_iter") is None and "epochs" not in given and not values.get("max_minutes"):
            values["epochs"] = EPOCHS
    elif "stride" not in given and not values.get("sample_start"):
        values["stride"] = values["ctx"]


def _in_folder(cls: type[Options], given: dict[str, Any]) -> dict[str, Any]:
    """The options of a run in a folder: its outputs lie there. One that goes on has the options it began with."""
    folder = Path(str(given["run"]))
    if given.get("resume"):
        options = folder / RUN_OPTIONS
        if not options.exists():
            raise LoraFastError(f"--run {folder} --resume: there is no {options}, so no run to go on with")
        given = {**read_options(cls, str(options)), **given}
    outputs: dict[str, Any] = {
        name: str(folder / value) if isinstance(value, str) else tuple(str(folder / each) for each in value)
        for name, value in RUN_FILES.items()}
    if given.get("dora"):
        outputs["lora_out"] = (f"{folder / 'adapter'}/",)
    return {**outputs, "checkpoint_in": "", "keep": KEEP, **given}


def _newest_checkpoint(cls: type[Options], values: Mapping[str, Any]) -> str:
    """The checkpoint that --resume goes on from. LoraFastError if there is none."""
    name, placeholder, latest = (values.get(field, cls.__dataclass_fields__[field].default)
                                 for field in ("checkpoint_out", "pattern_fn_it", "fn_latest"))
    path = Output("--checkpoint-out", name, FileForm.CHECKPOINT, placeholder, latest).latest_path
    if not os.path.exists(path):
        raise LoraFastError(f"--resume: there is no checkpoint {path or 'to go on from'}; without --resume the run "
                            f"starts afresh")
    return path


def are_records(paths: Iterable[str], data_format: str = "auto") -> bool:
    """Whether data holds records rather than text, as far as names and first bytes tell. Nothing that can be read only
    once is opened.
    """
    return data_format != "text" and (data_format != "auto" or any(map(_has_records, paths)))


def _has_records(path: str) -> bool:
    if os.path.isdir(path):
        return not any(name.lower().startswith("train") and name.lower().endswith(TEXT_ENDS)
                       for name in os.listdir(path))
    if RECORD_ENDS.fullmatch(path):
        return True
    if path.lower().endswith(TEXT_ENDS) or not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return bool(re.match(rb"(\xef\xbb\xbf)?\s*(\{|\[\s*[\[{])", file.read(4096)))


def resume_command(run: str) -> str:
    """The shell command that goes on with a run in a folder."""
    return shlex.join(["lorafast", "finetune", "--run", run, "--resume"])
