"""`lorafast check`: every rule of llama.cpp's loader, in words; and llama.cpp's own verdict on the same files."""
import json
import subprocess
import sys

import numpy as np
import pytest
from make_models import make_tiny

from lorafast.adapters import BaseModel, write_adapter
from lorafast.commands.check import MAX_SHOWN, check, run as run_check
from lorafast.errors import FormatError, UsageError
from lorafast.gguf.file_form import FileForm
from lorafast.gguf.quants import quantize
from lorafast.gguf.reader import GGUFFile
from lorafast.gguf.roles import BLOCK_MATRICES, LLAMA_FINETUNE_NAMES
from lorafast.gguf.types import GGMLType, GGUFValueType
from lorafast.gguf.writer import TensorToWrite, write_gguf
from lorafast.options.declare import parse
from lorafast.options.tools import CheckOptions
from tests.adapters.test_gguf import LLAMA_CPP, MATRICES, random_adapter

STRING, F32, U32 = GGUFValueType.STRING, GGUFValueType.FLOAT32, GGUFValueType.UINT32
Q, EMBD, OUT, NORM = "blk.0.attn_q.weight", "token_embd.weight", "output.weight", "blk.0.attn_norm.weight"
RNG = np.random.default_rng(0)


def values(*shape):
    return (0.1 * RNG.standard_normal(shape)).astype(np.float32)


def pair(name, a_shape, b_shape):
    return {f"{name}.lora_a": values(*a_shape), f"{name}.lora_b": values(*b_shape)}


GOOD = pair(Q, (3, 64), (64, 3))
CASES = {
    "good": (GOOD, {}, False, 0, ""),
    "several": ({**GOOD, **pair(EMBD, (384, 2), (64, 2)), **pair(OUT, (5, 64), (384, 5))}, {}, False, 0, ""),
    "no alpha": (GOOD, {"adapter.lora.alpha": None}, False, 0, "alpha is missing: pairs are applied with scale 1"),
    "whole alpha": (GOOD, {"adapter.lora.alpha": (U32, 8)}, False, 1, "alpha is of type u32, but must be f32"),
    "no type": (GOOD, {"general.type": None}, False, 1, "general.type is 'missing', but must be 'adapter'"),
    "architecture": (GOOD, {"general.architecture": (STRING, "qwen2")}, False, 1,
                     "general.architecture is 'qwen2', but must be 'llama' as in the model"),
    "adapter type": (GOOD, {"adapter.type": (STRING, "loha")}, False, 1, "adapter.type is 'loha', but must be 'lora'"),
    "suffix": ({**GOOD, "output.weight.lora_c": values(3, 64)}, {}, False, 1, "must end in .lora_a or .lora_b"),
    "legacy suffix": (pair(Q, (3, 64), (64, 3)) | {f"{OUT}.loraA": values(64, 3)}, {}, False, 1, "the ggla spelling"),
    "half a pair": ({f"{Q}.lora_a": values(3, 64)}, {}, False, 1, f"'{Q}': only lora_a, half a pair"),
    "no such tensor": (pair("blk.7.attn_q.weight", (3, 64), (64, 3)), {}, False, 1,
                       "no such tensor: is it the wrong model?"),
    "tied output": (pair(OUT, (3, 64), (384, 3)), {}, True, 1, "no such tensor: its embedding serves as output matrix"),
    "other shape": (pair(Q, (3, 32), (64, 3)), {}, False, 1,
                    "needs lora_a (r, 64) and lora_b (64, r): is it the wrong model?"),
    "untransposed": (pair(Q, (64, 3), (64, 3)), {}, False, 1, "lora_a is not transposed"),
    "ranks differ": (pair(Q, (3, 64), (64, 2)), {}, False, 1, "has lora_a (3, 64) and lora_b (64, 2)"),
    "embedding not turned": (pair(EMBD, (3, 64), (384, 3)), {}, False, 1,
                             "needs lora_a (384, r) and lora_b (64, r), both turned round"),
    "tied embedding": (pair(EMBD, (384, 3), (64, 3)), {}, True, 1, "aborts at the first token"),
    "norm vector": ({**GOOD, NORM: values(64)}, {}, False, 0, f"'{NORM}': skipped"),
    "norm pair": ({**GOOD, **pair(NORM, (1, 64), (1, 1))}, {}, False, 0, f"'{NORM}': a vector"),
    "zeros": ({f"{Q}.lora_a": values(3, 64), f"{Q}.lora_b": np.zeros((64, 3), np.float32)}, {}, False, 0, "no effect"),
    "not finite": ({f"{Q}.lora_a": values(3, 64) + np.float32(np.nan), f"{Q}.lora_b": values(64, 3)}, {}, False, 1,
                   "not finite: every output would be NaN"),
}


def write_case(folder, case):
    """The files of a case, (adapter, model)."""
    tensors, changes, tied, _, _ = CASES[case]
    metadata = {"general.type": (STRING, "adapter"), "general.architecture": (STRING, "llama"),
                "adapter.type": (STRING, "lora"), "adapter.lora.alpha": (F32, 6.0), **changes}
    write_gguf(folder / "a.gguf", [(key, *value) for key, value in metadata.items() if value],
               [TensorToWrite(name, GGMLType.F32, array.shape, array) for name, array in tensors.items()])
    return folder / "a.gguf", make_tiny(folder / "model.gguf", tied=tied, type="F32")


def lines_of(adapter, model):
    lines = []
    return run_check(parse(CheckOptions, [str(adapter), "--model-base", str(model)]), lines.append), lines


@pytest.mark.parametrize("case", CASES)
def test_rule(tmp_path, case):
    status, lines = lines_of(*write_case(tmp_path, case))
    *_, expected_status, words = CASES[case]
    assert status == expected_status
    assert any(words in line for line in lines[:-1]) if words else len(lines) == 1
    assert ("llama.cpp loads it" if status == 0 else "llama.cpp cannot use it: 1 error") in lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_says_the_same(tmp_path, case):
    pytest.importorskip("llama_cpp")
    adapter, model = write_case(tmp_path, case)
    arguments = json.dumps([str(model), str(adapter), [1, 300, 17]])
    process = subprocess.run([sys.executable, "-c", LLAMA_CPP, arguments, tmp_path / "l.npy"], capture_output=True)
    works = process.returncode == 0 and bool(np.isfinite(np.load(tmp_path / "l.npy")).all())
    assert works is (CASES[case][3] == 0)


def test_all_faults_are_told_at_once(tmp_path):
    tensors = pair("blk.7.attn_q.weight", (3, 64), (64, 3)) | {f"{OUT}.lora_b": values(384, 3), "x": values(3)}
    write_gguf(tmp_path / "a.gguf", [], [TensorToWrite(n, GGMLType.F32, a.shape, a) for n, a in tensors.items()])
    findings = list(check(GGUFFile(tmp_path / "a.gguf"), GGUFFile(make_tiny(tmp_path / "model.gguf"))))
    assert sum(finding.fatal for finding in findings) == 6


def test_the_same_of_many_tensors_is_one_line(tmp_path):
    zeros = {f"blk.{i}.attn_{part}.weight.lora_{end}": np.zeros(shape, np.float32)
             for i in (0, 1) for part in "qo" for end, shape in (("a", (3, 64)), ("b", (64, 3)))}
    tensors = {name.replace("attn_o", "attn_output"): array for name, array in zeros.items()}
    metadata = {"general.type": (STRING, "adapter"), "general.architecture": (STRING, "llama"),
                "adapter.type": (STRING, "lora"), "adapter.lora.alpha": (F32, 6.0)}
    write_gguf(tmp_path / "a.gguf", [(key, *value) for key, value in metadata.items()],
               [TensorToWrite(n, GGMLType.F32, a.shape, a) for n, a in tensors.items()])
    status, lines = lines_of(tmp_path / "a.gguf", make_tiny(tmp_path / "model.gguf"))
    assert status == 0 and lines[0].startswith("note: 'blk.0.attn_output.weight' and 3 others: an A or B of zeros")
    assert lines[1:] == [f"{tmp_path / 'a.gguf'}: llama.cpp loads it: 4 pairs"]


def test_a_long_list_is_cut(tmp_path):
    tensors = {f"blk.{i}.attn_q.weight.lora_{end}": values(3, i + 1) for i in range(MAX_SHOWN + 5) for end in "ab"}
    write_gguf(tmp_path / "a.gguf", [("adapter.type", STRING, "lora")],
               [TensorToWrite(n, GGMLType.F32, a.shape, a) for n, a in tensors.items()])
    status, lines = lines_of(tmp_path / "a.gguf", make_tiny(tmp_path / "model.gguf", n_layer=MAX_SHOWN + 5))
    assert status == 1 and lines[MAX_SHOWN] == "... and 8 more" and len(lines) == MAX_SHOWN + 2


def test_quantised_adapters_load(tmp_path):
    a = values(3, 64)
    write_gguf(tmp_path / "a.gguf", [("general.type", STRING, "adapter"), ("general.architecture", STRING, "llama"),
                                     ("adapter.type", STRING, "lora"), ("adapter.lora.alpha", F32, 6.0)],
               [TensorToWrite(f"{Q}.lora_a", GGMLType.Q8_0, a.shape, quantize(a, GGMLType.Q8_0)),
                TensorToWrite(f"{Q}.lora_b", GGMLType.F32, (64, 3), values(64, 3))])
    status, lines = lines_of(tmp_path / "a.gguf", make_tiny(tmp_path / "model.gguf"))
    assert status == 0 and "llama-export-lora refuses" in lines[0]


@pytest.mark.parametrize("form, name, what", [(FileForm.GGLA, "a.bin", "a ggla adapter"),
                                              (FileForm.PEFT, "a/", "a PEFT adapter")])
def test_other_forms_are_named_with_the_way_out(tmp_path, form, name, what):
    model = make_tiny(tmp_path / "model.gguf")
    shapes = {tensor.name: tensor.shape for tensor in GGUFFile(model).tensors.values()}
    targets = LLAMA_FINETUNE_NAMES if form is FileForm.GGLA else BLOCK_MATRICES
    write_adapter(form, tmp_path / name, random_adapter(shapes, targets=targets), BaseModel.from_gguf(GGUFFile(model)))
    status, lines = lines_of(f"{tmp_path}/{name}", model)
    assert status == 1 and what in lines[0]
    assert f"lorafast convert {tmp_path}/{name} {tmp_path}/a-adapter.gguf --model-base {model}" in lines[0]


def test_magnitudes_lead_to_merging(tmp_path):
    model = make_tiny(tmp_path / "model.gguf")
    shapes = {tensor.name: tensor.shape for tensor in GGUFFile(model).tensors.values()}
    adapter = random_adapter(shapes, targets=BLOCK_MATRICES, dora=True)
    write_adapter(FileForm.PEFT, tmp_path / "a", adapter, BaseModel.from_gguf(GGUFFile(model)))
    status, lines = lines_of(tmp_path / "a", model)
    assert status == 1 and "DoRA's magnitudes" in lines[0]
    assert f"lorafast merge --model-base {model} --lora {tmp_path}/a" in lines[0]


def test_a_model_and_a_broken_file(tmp_path):
    model = make_tiny(tmp_path / "model.gguf")
    status, lines = lines_of(model, model)
    assert status == 1 and "is a base model" in lines[0] and "--model-base" in lines[0]
    adapter, _ = write_case(tmp_path, "good")
    adapter.write_bytes(adapter.read_bytes()[:-200])
    with pytest.raises(FormatError, match="reaches to byte"):
        lines_of(adapter, model)
    with pytest.raises(UsageError, match="--model-base is missing"):
        parse(CheckOptions, ["a.gguf"])


def test_what_lorafast_writes_passes(tmp_path):
    model = make_tiny(tmp_path / "model.gguf")
    shapes = {tensor.name: tensor.shape for tensor in GGUFFile(model).tensors.values()}
    write_adapter(FileForm.GGUF, tmp_path / "a.gguf", random_adapter(shapes, targets=MATRICES),
                  BaseModel.from_gguf(GGUFFile(model)))
    status, lines = lines_of(tmp_path / "a.gguf", model)
    assert status == 0 and lines == [f"{tmp_path / 'a.gguf'}: llama.cpp loads it: 16 pairs"]
