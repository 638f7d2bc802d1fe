"""PEFT folders: config, names, the permutation of q and k, refusals, and peft with transformers themselves."""
import json

import numpy as np
import pytest
from adapter_merge import merge
from make_models import make_tiny

from lorafast.adapters import BaseModel, read_adapter
from lorafast.adapters.peft import read_peft, write_peft
from lorafast.errors import FormatError, LoraFastError
from lorafast.gguf.reader import GGUFFile
from lorafast.gguf.roles import BLOCK_MATRICES
from lorafast.gguf.safetensors import read_safetensors, write_safetensors
from lorafast.network.lora import default_ranks
from tests.adapters.test_gguf import MATRICES, assert_same_effect, random_adapter
from tests.network.test_lora import llama_shapes

BASE = BaseModel("llama", 2, 4, 2, tied=False)
SHAPES = llama_shapes(16, 24, 2, 40, n_embd_gqa=8)


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def test_names_and_shapes(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    adapter = random_adapter(SHAPES)
    write_peft(tmp_path / "peft", adapter, BASE)
    tensors = safetensors.load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert len(tensors) == 2 * len(adapter.pairs)
    a, b = adapter.pairs["blk.1.ffn_down.weight"]
    module = "base_model.model.model.layers.1.mlp.down_proj"
    np.testing.assert_array_equal(tensors[f"{module}.lora_A.weight"], a)
    np.testing.assert_array_equal(tensors[f"{module}.lora_B.weight"], b.T)
    a, b = adapter.pairs["output.weight"]
    np.testing.assert_array_equal(tensors["base_model.model.lm_head.lora_B.weight"], b.T)
    a, b = adapter.pairs["token_embd.weight"]
    np.testing.assert_array_equal(tensors["base_model.model.model.embed_tokens.lora_embedding_A"], b)
    np.testing.assert_array_equal(tensors["base_model.model.model.embed_tokens.lora_embedding_B"], a.T)


def test_config(tmp_path):
    write_peft(tmp_path / "peft", random_adapter(SHAPES, targets=["attn_q", "blk.1.ffn_up", "output"],
                                                 ranks=default_ranks(3) | {"output": 5}), BASE)
    config = config_of(tmp_path / "peft")
    assert config["peft_type"] == "LORA" and config["task_type"] == "CAUSAL_LM"
    assert config["target_modules"] == ["lm_head", "model.layers.1.mlp.up_proj", "q_proj"]
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (3, 6, {"lm_head": 5})


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_everything_comes_back(tmp_path, architecture):
    base = BaseModel(architecture, 2, 2, 1, tied=False)
    adapter = random_adapter(SHAPES)
    write_peft(tmp_path / "peft", adapter, base)
    for path in (tmp_path / "peft", tmp_path / "peft" / "adapter_model.safetensors"):
        again = read_adapter(path, base)
        assert (again.alpha, again.r) == (6, 3) and again.pairs.keys() == adapter.pairs.keys()
        for name, (a, b) in adapter.pairs.items():
            np.testing.assert_array_equal(again.pairs[name][0], a)
            np.testing.assert_array_equal(again.pairs[name][1], b)


def test_a_pair_of_another_rank_keeps_its_scale(tmp_path):
    adapter = random_adapter(SHAPES, ranks=default_ranks(3) | {"attn_q": 6, "output": 2, "ffn_up": 1})
    write_peft(tmp_path / "peft", adapter, BASE)
    assert_same_effect(adapter, read_peft(tmp_path / "peft", BASE))


def test_only_q_and_k_of_llama_are_permuted(tmp_path):
    adapter = random_adapter(SHAPES)
    stored = {}
    for architecture in ("llama", "qwen2"):
        write_peft(tmp_path / architecture, adapter, BaseModel(architecture, 2, 2, 1, tied=False))
        stored[architecture] = read_safetensors(tmp_path / architecture / "adapter_model.safetensors")
    changed = {name for name in stored["llama"] if not np.array_equal(stored["llama"][name], stored["qwen2"][name])}
    assert changed == {f"base_model.model.model.layers.{layer}.self_attn.{part}_proj.lora_B.weight"
                       for layer in (0, 1) for part in "qk"}
    # One head of 8 rows: what GGUF has in places 0 and 1, 2 and 3, ... Hugging Face has in places 0 and 4, 1 and 5, ...
    rows = adapter.pairs["blk.0.attn_k.weight"][1].T
    np.testing.assert_array_equal(stored["llama"]["base_model.model.model.layers.0.self_attn.k_proj.lora_B.weight"],
                                  rows[[0, 2, 4, 6, 1, 3, 5, 7]])


def test_magnitudes(tmp_path):
    """A vector beside each pair, in the order of its rows; the config says so."""
    adapter = random_adapter(SHAPES, dora=True)
    write_peft(tmp_path / "peft", adapter, BASE)
    assert config_of(tmp_path / "peft")["use_dora"] is True
    stored = read_safetensors(tmp_path / "peft" / "adapter_model.safetensors")
    assert len(stored) == 3 * len(adapter.pairs)
    for module, name in (("model.layers.1.mlp.down_proj", "blk.1.ffn_down.weight"), ("lm_head", "output.weight"),
                         ("model.embed_tokens", "token_embd.weight")):
        m = stored[f"base_model.model.{module}.lora_magnitude_vector"]
        np.testing.assert_array_equal(m, adapter.magnitudes[name])
    k = stored["base_model.model.model.layers.0.self_attn.k_proj.lora_magnitude_vector"]            # heads of 4
    np.testing.assert_array_equal(k, adapter.magnitudes["blk.0.attn_k.weight"][[0, 2, 1, 3, 4, 6, 5, 7]])
    again = read_peft(tmp_path / "peft", BASE)
    assert again.magnitudes.keys() == adapter.magnitudes.keys() == adapter.pairs.keys()
    for name, m in adapter.magnitudes.items():
        np.testing.assert_array_equal(again.magnitudes[name], m)


def test_magnitudes_that_do_not_fit_the_config_are_refused(tmp_path):
    folder = tmp_path / "peft"
    write_peft(folder, random_adapter(SHAPES, targets=["attn_v"], dora=True), BASE)
    config = config_of(folder)
    (folder / "adapter_config.json").write_text(json.dumps(config | {"use_dora": False}))
    with pytest.raises(FormatError, match=r"'model.layers.\d.self_attn.v_proj' has magnitudes, but .* not use DoRA"):
        read_peft(folder)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    stored = {name: values.copy() for name, values in read_safetensors(folder / "adapter_model.safetensors").items()}
    stored["base_model.model.lm_head.lora_magnitude_vector"] = np.ones(40, np.float32)
    write_safetensors(folder / "adapter_model.safetensors", stored)
    with pytest.raises(FormatError, match="'lm_head' has magnitudes, but no pair"):
        read_peft(folder)


def test_the_base_model_is_needed_for_q_and_k_only(tmp_path):
    write_peft(tmp_path / "q", random_adapter(SHAPES), BASE)
    with pytest.raises(LoraFastError, match="name the base model"):
        read_peft(tmp_path / "q")
    write_peft(tmp_path / "v", random_adapter(SHAPES, targets=["attn_v"]), BASE)
    assert len(read_peft(tmp_path / "v").pairs) == 2


def test_norms_are_refused(tmp_path):
    with pytest.raises(LoraFastError, match=r"a PEFT adapter cannot carry the pair of blk.0.attn_norm"):
        write_peft(tmp_path / "peft", random_adapter(SHAPES, targets=["attn_q", "attn_norm"]), BASE)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change, scales", [
    ({"use_rslora": True}, {"attn_q": 6 / 3 ** .5, "attn_v": 6 / 3 ** .5}),
    ({"alpha_pattern": {"q_proj": 12}}, {"attn_q": 4, "attn_v": 2}),
    ({"alpha_pattern": {r"layers\.0\.self_attn\.q_proj": 1, ".*v_proj": 9}}, {"attn_q": 1 / 3, "attn_v": 3}),
])
def test_scales_of_the_config_are_folded(tmp_path, change, scales):
    adapter = random_adapter(SHAPES, targets=["blk.0.attn_q", "blk.0.attn_v"])
    write_peft(tmp_path / "peft", adapter, BASE)
    (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config_of(tmp_path / "peft") | change))
    again = read_peft(tmp_path / "peft", BASE)
    for role, scale in scales.items():
        (a, b), (a2, b2) = adapter.pairs[f"blk.0.{role}.weight"], again.pairs[f"blk.0.{role}.weight"]
        np.testing.assert_allclose(again.scale * (b2.T @ a2), scale * (b.T @ a), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change, message", [
    ({"peft_type": "LOHA"}, "peft_type is not LORA"),
    ({"r": 0}, "r is 0"),
    ({"lora_alpha": None}, "lora_alpha is None"),
    ({"use_dora": True}, "lacks magnitudes, but adapter_config.json uses DoRA"),
    ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
    ({"bias": "all"}, "trained biases"),
    ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base model"),
    ({"init_lora_weights": "next_year"}, "'next_year', which changes the base model"),
    ({"alora_invocation_tokens": [1, 2]}, "uses alora_invocation_tokens"),
    ({"trainable_token_indices": [5]}, "uses trainable_token_indices"),
    ({"invented_tomorrow": {"a": 1}}, "uses invented_tomorrow"),
    ({"rank_pattern": {"v_proj": 4}}, "has rank 3, but 4 by adapter_config.json"),
])
def test_what_a_pair_cannot_express_is_refused(tmp_path, change, message):
    folder = tmp_path / "peft"
    write_peft(folder, random_adapter(SHAPES), BASE)
    (folder / "adapter_config.json").write_text(json.dumps(config_of(folder) | change))
    with pytest.raises(FormatError, match=message):
        read_peft(folder, BASE)


def test_broken_folders_are_refused(tmp_path):
    folder = tmp_path / "peft"
    write_peft(folder, random_adapter(SHAPES), BASE)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole = weights.read_bytes()
    for size in (0, 5, 200, len(whole) - 4):
        weights.write_bytes(whole[:size])
        with pytest.raises(LoraFastError, match=r"adapter_model.safetensors"):
            read_peft(folder, BASE)
    weights.unlink()
    with pytest.raises(LoraFastError, match="save_pretrained"):
        read_peft(folder, BASE)
    config.write_text("{")
    with pytest.raises(FormatError, match="is no JSON"):
        read_peft(folder, BASE)
    config.unlink()
    with pytest.raises(FormatError, match=r"without adapter_config.json"):
        read_adapter(folder, BASE)


def test_unknown_tensors_are_refused(tmp_path):
    folder = tmp_path / "peft"
    write_peft(folder, random_adapter(SHAPES, targets=["attn_v"]), BASE)
    a = np.ones((3, 16), np.float32)
    for name, message in (("base_model.model.model.layers.0.mlp.experts.lora_A.weight", "does not belong to an"),
                          ("base_model.model.lm_head.lora_A.weight", "but a pair is lora_A and lora_B"),
                          ("base_model.model.lm_head.lora_magnitude_vector", "but a pair is lora_A and lora_B")):
        write_safetensors(folder / "adapter_model.safetensors", {name: a})
        with pytest.raises(FormatError, match=message):
            read_peft(folder, BASE)


def whole_matrix(folder, key, values):
    weights = folder / "adapter_model.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in read_safetensors(weights).items()}
    write_safetensors(weights, tensors | {f"base_model.model.{key}.weight": np.asarray(values, np.float32)})


@pytest.mark.parametrize("type", ["F32", "Q8_0", "Q4_0"])
@pytest.mark.parametrize("tied", [False, True])
def test_whole_matrices_must_be_the_base_models(tmp_path, type, tied):
    model = GGUFFile(make_tiny(tmp_path / "model.gguf", type=type, tied=tied))
    base, folder = BaseModel.from_gguf(model), tmp_path / "peft"
    shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    adapter = random_adapter(shapes, targets=["attn_v"])
    embedding = model.tensors["token_embd.weight"].to_float32()
    head = embedding if tied else model.tensors["output.weight"].to_float32()
    # What peft saves is of the model before it was quantised: off by about a rounding.
    noise = np.random.default_rng(0).normal(size=embedding.shape) * np.abs(embedding).max(axis=1, keepdims=True) / 500
    for key, values in (("model.embed_tokens", embedding + noise * (type != "F32")), ("lm_head", head)):
        write_peft(folder, adapter, base)
        whole_matrix(folder, key, values)
        assert "is the base model's own" in read_peft(folder, base).warnings[0]
        trained = np.array(values)
        trained[7] *= -1
        for other, message in ((trained, "1 of whose .* rows are not the base model's"),
                               (np.concatenate([values, values[:2]]), "belongs to another vocabulary")):
            write_peft(folder, adapter, base)
            whole_matrix(folder, key, other)
            with pytest.raises(FormatError, match=message):
                read_peft(folder, base)


def test_half_precision_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    values = torch.randn(3, 5)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        save_file({"x": values.to(dtype)}, tmp_path / "x.safetensors")
        read = read_safetensors(tmp_path / "x.safetensors")["x"]
        np.testing.assert_array_equal(read, values.to(dtype).float().numpy())
    save_file({"x": values.to(torch.int32)}, tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="'x' is of type 'I32'"):
        read_safetensors(tmp_path / "x.safetensors")


def transformers_logits(model_path, adapter_folder, tokens):
    """Logits (T, n_vocab) by transformers in float32, with peft's adapter if there is one."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_path.parent, gguf_file=model_path.name, dtype=torch.float32)
    if adapter_folder:
        model = PeftModel.from_pretrained(model, adapter_folder)
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("tied, targets, dora", [
    (False, MATRICES, False),
    (True, (*BLOCK_MATRICES, "token_embd"), False),
    (False, ["attn_q", "blk.1.attn_k", "blk.0.ffn_up"], False),
    (False, MATRICES, True),
])
@pytest.mark.filterwarnings("error:.*missing adapter keys")
def test_peft_applies_the_adapter_as_meant(tmp_path, tied, targets, dora):
    pytest.importorskip("peft"), pytest.importorskip("transformers")
    model = make_tiny(tmp_path / "model.gguf", type="F32", tied=tied)
    shapes = {name: tensor.shape for name, tensor in GGUFFile(model).tensors.items()}
    ranks = default_ranks(3) | {"attn_k": 5, "ffn_up": 2}
    adapter = random_adapter(shapes, targets=targets, ranks=ranks, size=0.1, dora=dora)
    write_peft(tmp_path / "peft", adapter, BaseModel.from_gguf(GGUFFile(model)))
    tokens = [1, 300, 17, 263, 5, 101]
    base, adapted, merged = (transformers_logits(*which, tokens) for which in (
        (model, None), (model, tmp_path / "peft"), (merge(model, adapter, tmp_path / "merged.gguf"), None)))
    assert np.abs(adapted - base).max() > 0.5
    assert np.mean((adapted - merged) ** 2) / np.var(merged) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("dora", [False, True])
def test_peft_writes_what_we_read(tmp_path, dora):
    """The other direction: an adapter that peft itself initialised and saved, with ranks and alphas by module."""
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = make_tiny(tmp_path / "model.gguf", type="F32")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=12, init_lora_weights=False, use_rslora=True,
                             target_modules=["q_proj", "k_proj", "down_proj", "embed_tokens", "lm_head"],
                             rank_pattern={"k_proj": 2}, alpha_pattern={"lm_head": 3}, use_dora=dora)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(hf, config).eval()
    adapted.save_pretrained(tmp_path / "peft")
    tokens = [1, 300, 17, 263, 5, 101]
    with torch.no_grad():
        expected = adapted(torch.tensor([tokens])).logits[0].numpy()
    adapter = read_peft(tmp_path / "peft", BaseModel.from_gguf(GGUFFile(model)))
    assert len(adapter.magnitudes) == dora * len(adapter.pairs)
    assert len(adapter.warnings) == 2                  # the embedding and lm_head, which peft saves along
    merged = transformers_logits(merge(model, adapter, tmp_path / "merged.gguf"), None, tokens)
    assert np.mean((expected - merged) ** 2) / np.var(merged) < 1e-9
