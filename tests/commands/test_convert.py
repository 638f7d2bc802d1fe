"""Conversions: there and back without loss, what a form cannot carry, and when the base model must be named."""
import json

import numpy as np
import pytest
from make_models import make_tiny

from lorafast.adapters import BaseModel, read_adapter, write_adapter
from lorafast.adapters.checkpoint import Geometry, TrainState, read_checkpoint, write_checkpoint
from lorafast.adapters.moments import RIGHT_TO_LEFT
from lorafast.commands.convert import drop, run as run_convert, summary
from lorafast.errors import LoraFastError, UsageError
from lorafast.gguf.file_form import FileForm
from lorafast.gguf.reader import GGUFFile
from lorafast.gguf.roles import BLOCK_MATRICES, LLAMA_FINETUNE_NAMES
from lorafast.network.lora import Moments, default_ranks
from lorafast.options.declare import parse
from lorafast.options.tools import ConvertOptions
from tests.adapters.test_gguf import MATRICES, random_adapter

NAMES = {"ggla": "a.bin", "gguf": "a.gguf", "peft": "a/", "checkpoint": "checkpoint.gguf"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A model in an otherwise empty working folder."""
    monkeypatch.chdir(tmp_path)
    make_tiny("model.gguf")
    return tmp_path


def convert(line: str) -> list[str]:
    lines = []
    assert run_convert(parse(ConvertOptions, line.split()), lines.append) == 0
    return lines


def make(name: str, adapter, model="model.gguf"):
    """Writes the adapter under that name of NAMES.values()."""
    base = BaseModel.from_gguf(GGUFFile(model))
    write_adapter({"a.bin": FileForm.GGLA, "a.gguf": FileForm.GGUF, "a/": FileForm.PEFT}[name], name, adapter, base)


def adapter_for(model="model.gguf", **kwargs):
    return random_adapter({name: tensor.shape for name, tensor in GGUFFile(model).tensors.items()}, **kwargs)


def assert_equal(one, other):
    assert (one.alpha, one.r) == (other.alpha, other.r) and one.pairs.keys() == other.pairs.keys()
    for name, pair in one.pairs.items():
        for part, other_part in zip(pair, other.pairs[name]):
            np.testing.assert_array_equal(part, other_part)


@pytest.mark.parametrize("there", NAMES)
@pytest.mark.parametrize("start", ["ggla", "gguf", "peft"])
def test_there_and_back_changes_no_bit(folder, start, there):
    adapter = adapter_for(targets=MATRICES)
    make(NAMES[start], adapter)
    there_name = "there-" + NAMES[there]
    to = "--to checkpoint" if there == "checkpoint" else ""
    convert(f"{NAMES[start]} {there_name} --model-base model.gguf {to}")
    convert(f"{there_name} back-{NAMES[start]} --model-base model.gguf")
    assert_equal(adapter, read_adapter(f"back-{NAMES[start]}", BaseModel.from_gguf(GGUFFile("model.gguf"))))
    if start != "peft":
        assert (folder / NAMES[start]).read_bytes() == (folder / f"back-{NAMES[start]}").read_bytes()


def test_magnitudes_go_between_peft_and_checkpoint(folder):
    adapter = adapter_for(targets=MATRICES, dora=True)
    make("a/", adapter)
    convert("a/ c.gguf --to checkpoint -m model.gguf")
    line = convert("c.gguf b/ -m model.gguf")[-1]
    assert line == "wrote b/: PEFT adapter, 16 pairs of rank 3 with magnitudes (DoRA), alpha 6"
    one, other = (folder / name / "adapter_model.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()
    convert("a/ d/ -m model.gguf --drop ffn,token_embd")
    left = read_adapter("d/", BaseModel.from_gguf(GGUFFile("model.gguf")))
    assert left.magnitudes.keys() == left.pairs.keys() and len(left.pairs) == 9


@pytest.mark.parametrize("out", ["b.gguf", "b.bin"])
def test_magnitudes_go_nowhere_else(folder, out):
    make("a/", adapter_for(targets=BLOCK_MATRICES, dora=True))
    with pytest.raises(LoraFastError, match=r"cannot carry DoRA's magnitudes.*PEFT folder.*lorafast merge"):
        convert(f"a/ {out} -m model.gguf")
    assert not list(folder.glob("b*"))


def test_norms_and_embeddings_go_between_ggla_and_checkpoint(folder):
    adapter = adapter_for(targets=LLAMA_FINETUNE_NAMES, ranks=default_ranks(3) | {"attn_v": 5})
    make("a.bin", adapter)
    assert "fresh optimiser" in convert("a.bin c.gguf --to checkpoint -m model.gguf")[0]
    convert("c.gguf b.bin")
    assert (folder / "a.bin").read_bytes() == (folder / "b.bin").read_bytes()


def test_a_run_can_start_from_the_checkpoint(folder):
    adapter = adapter_for(targets=BLOCK_MATRICES)
    make("a.gguf", adapter)
    convert("a.gguf c.gguf --to checkpoint -m model.gguf")
    checkpoint = read_checkpoint("c.gguf")
    shapes = {name: tensor.shape for name, tensor in GGUFFile("model.gguf").tensors.items()}
    fresh = adapter.to_adapter(shapes)
    fresh.params[:] = 7
    moments = Moments(fresh)
    moments.m[:] = moments.v[:] = 7
    checkpoint.load_adapter(fresh, Geometry(128, 64, 160, 4, 2, 2, 16, 1e-5, 10000.0, 1.0))
    state = checkpoint.load_training_state(fresh, moments, past=0)
    np.testing.assert_array_equal(fresh.params, adapter.to_adapter(shapes).params)
    assert not moments.m.any() and not moments.v.any() and state.iteration == 0 and state.moments_order == RIGHT_TO_LEFT


def test_checkpoints_of_the_original_lose_only_their_training_state(folder):
    adapter = adapter_for(targets=LLAMA_FINETUNE_NAMES).to_adapter({n: t.shape
                                                                    for n, t in GGUFFile("model.gguf").tensors.items()})
    write_checkpoint("c.gguf", Geometry(16, 64, 160, 4, 2, 2, 16, 1e-5, 10000.0, 1.0), adapter, Moments(adapter),
                     TrainState())
    lines = convert("c.gguf p/ --drop norms")
    assert lines[0] == "note: left out: output_norm, 2 attn_norm, 2 ffn_norm" and "--base-name" in lines[1]
    assert lines[2] == "wrote p/: PEFT adapter, 16 pairs of rank 3, no alpha"


@pytest.mark.parametrize("targets, out, drop, left", [
    (LLAMA_FINETUNE_NAMES, "b.gguf", "norms", 16), (LLAMA_FINETUNE_NAMES, "b/", "norms", 16),
    (LLAMA_FINETUNE_NAMES, "b.gguf", "attn_norm,output_norm ffn_norm", 16),
    (MATRICES, "b.gguf", "token_embd,blk.0.*", 8), (MATRICES, "b/", "attn,ffn", 2),
    (MATRICES, "b.bin", "blk.?.ffn_up", 14)])
def test_drop(folder, targets, out, drop, left):
    make("a.bin", adapter_for(targets=targets))
    run_convert(parse(ConvertOptions, ["a.bin", out, "-m", "model.gguf", "--drop", drop]), lambda line: None)
    assert len(read_adapter(out, BaseModel.from_gguf(GGUFFile("model.gguf"))).pairs) == left


def test_drop_refuses_what_means_nothing():
    adapter = random_adapter({"blk.0.attn_q.weight": (4, 4)}, targets=["attn_q"])
    with pytest.raises(UsageError, match="--drop attn_w: means no tensor; use token_embd,"):
        drop(adapter, ["attn_w"])
    assert drop(adapter, ["norms"]) == [] and len(adapter.pairs) == 1
    with pytest.raises(LoraFastError, match="nothing is left"):
        drop(adapter, ["attn"])


@pytest.mark.parametrize("targets, tied, out, message", [
    (LLAMA_FINETUNE_NAMES, False, "b.gguf", "cannot carry the norms' pairs.*--drop norms"),
    (LLAMA_FINETUNE_NAMES, False, "b/", "cannot carry the norms' pairs.*--drop norms"),
    (["token_embd"], True, "b.gguf", "cannot carry the pair of token_embd.*--drop token_embd"),
    (["output"], True, "b.gguf", "a pair for output.weight, which this model lacks"),
    (["output"], True, "b.bin --to checkpoint", "a pair for output.weight, which this model lacks")])
def test_what_a_form_cannot_carry(folder, targets, tied, out, message):
    make("a.bin", adapter_for(targets=targets))
    make_tiny("model.gguf", tied=tied)
    with pytest.raises(LoraFastError, match=message) as error:
        convert(f"a.bin {out} -m model.gguf")
    assert error.value.exit_status == 1 and not list(folder.glob("b*"))


def test_one_rank_a_role_in_a_checkpoint(folder):
    adapter = adapter_for(targets=["attn_q"])
    adapter.pairs["blk.1.attn_q.weight"] = tuple(part[:2] for part in adapter.pairs["blk.1.attn_q.weight"])
    make("a.bin", adapter)
    with pytest.raises(LoraFastError, match="attn_q has 2, 3"):
        convert("a.bin c.gguf --to checkpoint -m model.gguf")


@pytest.mark.parametrize("source, targets, out", [
    ("a/", ["ffn_up"], "b.gguf"), ("a.bin", ["attn_k"], "b/"), ("a.gguf", ["attn_q"], "b/"),
    ("a.bin", ["output"], "b.gguf"), ("a.bin", ["token_embd"], "b.gguf"),
    ("a.gguf", ["attn_q"], "b.gguf --to checkpoint")])
def test_when_the_model_must_be_named(folder, source, targets, out):
    make(source, adapter_for(targets=targets))
    with pytest.raises(UsageError, match="--model-base is needed: "):
        convert(f"{source} {out}")


@pytest.mark.parametrize("source, targets, out", [
    ("a.bin", BLOCK_MATRICES, "b.gguf"), ("a.gguf", BLOCK_MATRICES, "b.bin"), ("a.bin", ["attn_v", "ffn_up"], "b/")])
def test_when_it_need_not(folder, source, targets, out):
    make(source, adapter_for(targets=targets))
    convert(f"{source} {out}")
    assert_equal(adapter_for(targets=targets), read_adapter(out, BaseModel.from_gguf(GGUFFile("model.gguf"))))


def test_a_broken_alpha_goes_into_b(folder):
    make("a.gguf", adapter_for(targets=["ffn_up"], alpha=4.5))
    assert "4.5 / 3 has been multiplied into every B" in convert("a.gguf b.bin")[0]
    one, other = read_adapter("a.gguf"), read_adapter("b.bin")
    assert (other.alpha, other.r) == (3, 3)
    for name, (_, b) in one.pairs.items():
        np.testing.assert_array_equal(other.pairs[name][1], np.float32(1.5) * b)


def test_the_names_peft_loads_the_model_by(folder):
    make("a.bin", adapter_for(targets=["attn_q"]))
    assert len(convert("a.bin p/ -m model.gguf --base-name some/model")) == 1
    assert json.loads((folder / "p/adapter_config.json").read_text())["base_model_name_or_path"] == "some/model"


def test_companions(folder):
    make("a.bin", adapter_for(targets=["attn_q"]))
    assert convert("a.bin out.gguf -m model.gguf --card --modelfile")[-2:] == ["wrote out.Modelfile", "wrote out.md"]
    assert (folder / "out.Modelfile").read_text() == "FROM ./model.gguf\nADAPTER ./out.gguf\n"
    with pytest.raises(UsageError, match="--modelfile: Ollama takes GGUF adapters"):
        convert("a.bin p/ -m model.gguf --modelfile")


@pytest.mark.parametrize("line, message", [
    ("a.bin b.txt", "end the name in .gguf"), ("a.bin a.bin", "would overwrite the adapter to convert"),
    ("a.bin", "OUT is missing"),
    ("", "IN is missing"), ("a.bin b.gguf c", "unexpected argument 'c'"),
    ("a.bin b --to npz", "--to npz: must be one of")])
def test_usage(folder, line, message):
    make("a.bin", adapter_for(targets=["attn_q"]))
    with pytest.raises(UsageError, match=message):
        convert(line)


def test_summary():
    assert summary(["blk.1.attn_q.weight", "output.weight", "blk.0.attn_q.weight"]) == "output, 2 attn_q"
