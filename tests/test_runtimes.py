"""Base model and a trained adapter in other programs: llama.cpp, and transformers with PEFT."""
from pathlib import Path

import numpy as np
import pytest
from llama_cpp_logits import llama_cpp_logits
from make_models import make_tiny
from numerics import nmse
from transformers_logits import transformers_logits

import lorafast
from lorafast.adapters import BaseModel, read_adapter
from lorafast.gguf import open_model
from lorafast.merge import merge_model

NMSE = 2e-9                 # of logits, all computed in float32; measured 6e-13 with AVX-512, 3e-10 with AMX
PROBABILITIES = 2e-5        # |difference| of next-token probabilities; measured 4e-7 with AVX-512, 4e-6 with AMX

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """The folder of a model.gguf, an adapter in two forms (a.gguf, the folder a) and one with magnitudes (the folder
    dora, merged into dora.gguf), trained for a few steps; and tokens.
    """
    folder = tmp_path_factory.mktemp("run")
    make_tiny(folder / "model.gguf", type="F32", n_layer=3)
    (folder / "text.txt").write_text("the love of thy sweet all is not my love that with thou for " * 40)
    options = dict(model_base=f"{folder}/model.gguf", train_data=(f"{folder}/text.txt",), checkpoint_in="",
                   checkpoint_out="", ctx=32, batch=4, adam_iter=8, warmup=0, adam_alpha=0.02, lora_alpha=8, seed=1)
    lorafast.finetune(options | dict(lora_out=(f"{folder}/a.gguf", f"{folder}/a/")))
    lorafast.finetune(options | dict(lora_out=(f"{folder}/dora/",), dora=True, targets="attn,ffn,output,token_embd"))
    model = open_model(folder / "model.gguf")
    merge_model(folder / "dora.gguf", model, [(read_adapter(folder / "dora", BaseModel.from_gguf(model)), 1.0)])
    tokens = np.random.default_rng(0).integers(3, 380, 64).astype(np.int32)
    return folder, tokens


def logits(folder: Path, tokens: np.ndarray, *lora: str) -> np.ndarray:
    return lorafast.Model.open(folder / "model.gguf", [folder / name for name in lora]).forward(tokens)


def assert_same(got: np.ndarray, wanted: np.ndarray) -> None:
    def softmax(x: np.ndarray) -> np.ndarray:
        p = np.exp(x - x.max(axis=1, keepdims=True), dtype=np.float64)
        return p / p.sum(axis=1, keepdims=True)

    assert nmse(got, wanted) < NMSE
    assert np.abs(softmax(got) - softmax(wanted)).max() < PROBABILITIES


def test_the_adapter_does_something_and_its_forms_are_one(run):
    folder, tokens = run
    adapted = logits(folder, tokens, "a.gguf")
    assert nmse(logits(folder, tokens), adapted) > 0.01
    assert_same(logits(folder, tokens, "a"), adapted)


@pytest.mark.parametrize("adapter", [None, "a.gguf"])
def test_llama_cpp(run, adapter):
    pytest.importorskip("llama_cpp")
    folder, tokens = run
    wanted, = llama_cpp_logits(folder, folder / "model.gguf", tokens, adapter and folder / adapter)
    assert_same(logits(folder, tokens, *filter(None, [adapter])), wanted)


@pytest.mark.parametrize("adapter", [None, "a", "dora"])
def test_transformers_and_peft(run, adapter):
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    folder, tokens = run
    wanted = transformers_logits(folder, folder / "model.gguf", tokens, adapter and folder / adapter)
    assert_same(logits(folder, tokens, *filter(None, [adapter])), wanted)


def test_magnitudes_merged(run):
    """llama.cpp takes them merged only: that model is the one that lorafast makes of base and adapter."""
    pytest.importorskip("llama_cpp")
    folder, tokens = run
    adapted = logits(folder, tokens, "dora")
    assert nmse(logits(folder, tokens), adapted) > 0.01
    assert_same(lorafast.Model.open(folder / "dora.gguf").forward(tokens), adapted)
    assert_same(llama_cpp_logits(folder, folder / "dora.gguf", tokens)[0], adapted)


def test_llama_cpp_with_a_scale(run):
    pytest.importorskip("llama_cpp")
    folder, tokens = run
    wanted, = llama_cpp_logits(folder, folder / "model.gguf", tokens, folder / "a.gguf", scale=0.5)
    assert_same(lorafast.Model.open(folder / "model.gguf", [(folder / "a.gguf", 0.5)]).forward(tokens), wanted)
