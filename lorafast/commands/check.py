"""`lorafast check`: would llama.cpp load this adapter with this model, and would it then do what it should?

The rules are those of llama.cpp's loader (src/llama-adapter.cpp), which stops at the first violation; here each is
explained. To them come two faults that it does not notice when loading: an abort at the first token, and no effect.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..adapters import BaseModel, read_adapter
from ..errors import FormatError
from ..gguf.file_form import FileForm
from ..gguf.reader import GGUFFile, Tensor, open_model
from ..gguf.recognise import form_of_file
from ..gguf.types import GGUFValueType
from ..options.tools import CheckOptions
from ..system.output import show
from ..words import count

FLOATS = ("f32", "f16", "bf16")
MAX_SHOWN = 20


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (`fatal`: llama.cpp refuses or aborts) or worth knowing, and the tensor it is about."""

    fatal: bool
    text: str
    tensor: str = ""


def run(options: CheckOptions, write: Callable[[str], None] = show) -> int:
    """The command: reports to `write`, a line each; returns 0 if llama.cpp loads the adapter and applies all of it."""
    kind = form_of_file(options.adapter)
    if kind is not FileForm.GGUF:
        write(f"{options.adapter}: is {kind.phrase}, which llama.cpp does not load as an adapter. "
              f"{_advice(kind, options)}")
        return 1
    try:
        adapter = GGUFFile(options.adapter)
    except FormatError as error:
        write(str(error))
        return 1
    findings = list(check(adapter, open_model(options.model_base)))
    lines = list(grouped(findings))
    for line in lines[:MAX_SHOWN]:
        write(line)
    if len(lines) > MAX_SHOWN:
        write(f"... and {len(lines) - MAX_SHOWN} more")
    n_errors = sum(finding.fatal for finding in findings)
    n_pairs = sum(name.endswith(".lora_a") for name in adapter.tensors)
    verdict = (f"llama.cpp cannot use it: {count(n_errors, 'error')}" if n_errors
               else f"llama.cpp loads it: {count(n_pairs, 'pair')}")
    write(f"{options.adapter}: {verdict}")
    return 1 if n_errors else 0


def grouped(findings: Iterable[Finding]) -> Iterator[str]:
    """A line for all the tensors of which the same is to be said."""
    tensors: dict[tuple[bool, str], list[str]] = {}
    for finding in findings:
        tensors.setdefault((finding.fatal, finding.text), []).append(finding.tensor)
    for (fatal, text), (first, *others) in tensors.items():
        where = f"'{first}'" + (f" and {count(len(others), 'other')}" if others else "") + ": " if first else ""
        yield f"{'error' if fatal else 'note'}: {where}{text}"


def _advice(kind: FileForm, options: CheckOptions) -> str:
    if kind is FileForm.MODEL:
        return "Pass it to --model-base, and the adapter as ADAPTER"
    adapter = read_adapter(options.adapter, BaseModel.from_gguf(open_model(options.model_base)))
    if adapter.magnitudes:
        return ("It has DoRA's magnitudes, which no adapter for llama.cpp can carry. Have it merged into the model: "
                f"lorafast merge --model-base {options.model_base} --lora {options.adapter} --output merged.gguf "
                "--type f16")
    name = options.adapter.rstrip("/").removesuffix(".bin").removesuffix(".gguf")
    return f"Convert it: lorafast convert {options.adapter} {name}-adapter.gguf --model-base {options.model_base}"


def check(adapter: GGUFFile, model: GGUFFile) -> Iterator[Finding]:
    """What llama.cpp would find wrong with the adapter for this model, in its order, and what it would not notice."""
    yield from _check_metadata(adapter.metadata, adapter.value_types, model.metadata.get("general.architecture"))
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in adapter.tensors.items():
        base, _, suffix = name.rpartition(".")
        if suffix in ("lora_a", "lora_b"):
            pairs.setdefault(base, {})[suffix] = tensor
        elif name.endswith("_norm.weight"):
            yield Finding(False, "skipped, llama.cpp adapts no norms", name)
        else:
            legacy = " (.loraA and .loraB are the ggla spelling)" if suffix in ("loraA", "loraB") else ""
            yield Finding(True, f"a name must end in .lora_a or .lora_b{legacy}", name)
    if not pairs:
        yield Finding(True, "the file holds no pairs")
    for base, pair in sorted(pairs.items()):
        yield from _check_pair(base, pair, model)


def _check_metadata(metadata: dict[str, Any], types: dict[str, Any], architecture: str | None) -> Iterator[Finding]:
    required = {"general.type": "adapter", "general.architecture": architecture, "adapter.type": "lora"}
    for key, expected in required.items():
        if metadata.get(key) != expected:
            where = " as in the model" if key == "general.architecture" else ""
            yield Finding(True, f"{key} is {metadata.get(key, 'missing')!r}, but must be {expected!r}{where}")
    alpha = metadata.get("adapter.lora.alpha")
    if alpha is not None and types["adapter.lora.alpha"][0] is not GGUFValueType.FLOAT32:
        yield Finding(True, f"adapter.lora.alpha is of type {types['adapter.lora.alpha'][0].label}, but must be f32")
    elif not alpha:
        what = "missing" if alpha is None else alpha
        yield Finding(False, f"adapter.lora.alpha is {what}: pairs are applied with scale 1, not alpha / r")


def _check_pair(base: str, pair: dict[str, Tensor], model: GGUFFile) -> Iterator[Finding]:
    if len(pair) != 2:
        yield Finding(True, f"only {next(iter(pair))}, half a pair", base)
        return
    tensor = model.tensors.get(base)
    if tensor is None:
        tied = base == "output.weight" and "token_embd.weight" in model.tensors
        why = "its embedding serves as output matrix" if tied else "is it the wrong model?"
        yield Finding(True, f"adapted, but the model has no such tensor: {why}", base)
        return
    a, b = pair["lora_a"], pair["lora_b"]
    problem = _shape_problem(base, _two_dims(a.shape), _two_dims(b.shape), _two_dims(tensor.shape))
    if problem:
        yield Finding(True, f"of shape {tensor.shape}, has {problem}", base)
        return
    if base == "token_embd.weight" and "output.weight" not in model.tensors:
        yield Finding(True, "adapted, but the model uses this matrix for its output too: llama.cpp loads the adapter "
                      "and aborts at the first token", base)
    if len(tensor.shape) == 1:
        yield Finding(False, "a vector, of a norm for instance: its pair is loaded, but has no effect", base)
    yield from _check_values(base, a, b)


def _two_dims(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Rows and columns; a vector is one row."""
    return (1,) * (2 - len(shape)) + shape


def _shape_problem(base: str, a: tuple[int, ...], b: tuple[int, ...], w: tuple[int, ...]) -> str:
    """What is wrong with the shapes of lora_a and lora_b for W (n_out, n_in), in words; "" if nothing."""
    if base.endswith("token_embd.weight"):
        fits = a[:-1] == w[:-1] and b[:-1] == w[-1:] and a[-1] == b[-1]
        wanted = f"lora_a ({w[0]}, r) and lora_b ({w[1]}, r), both turned round for this tensor"
    else:
        fits = a[-1:] == w[-1:] and b[:-1] == w[:-1] and a[0] == b[-1]
        wanted = f"lora_a (r, {w[1]}) and lora_b ({w[0]}, r)"
    if fits:
        return ""
    untransposed = a[::-1][-1] == w[-1] and b[:-1] == w[:-1] and not base.endswith("token_embd.weight")
    hint = ("lora_a is not transposed, as in adapters of the finetune example of before July 2024 (lorafast convert)"
            if untransposed else "is it the wrong model?")
    return f"lora_a {a} and lora_b {b}, but needs {wanted}: {hint}"


def _check_values(base: str, a: Tensor, b: Tensor) -> Iterator[Finding]:
    for part in (a, b):
        if not part.type.is_trainable:
            yield Finding(False, f"of type {part.type.label}, whose values lorafast cannot check", part.name)
            return
        if part.type.label not in FLOATS:
            yield Finding(False, f"of type {part.type.label}, which loads, but llama-export-lora refuses", part.name)
    values_a, values_b = a.to_float32(), b.to_float32()
    if not (np.isfinite(values_a).all() and np.isfinite(values_b).all()):
        yield Finding(True, "values that are not finite: every output would be NaN", base)
    elif not (values_a.any() and values_b.any()):
        yield Finding(False, "an A or B of zeros, so no effect: nothing was learnt there", base)
