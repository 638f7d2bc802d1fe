"""GGUF adapters: keys and tensors as llama.cpp wants them, folding of ranks, refusals, and llama.cpp itself."""
import json
import subprocess
import sys

import numpy as np
import pytest
from adapter_merge import merge
from make_models import make_tiny

from lorafast.adapters import AdapterFile, BaseModel
from lorafast.adapters.gguf import read_gguf_adapter, write_gguf_adapter
from lorafast.errors import FormatError, LoraFastError
from lorafast.gguf.quants import quantize
from lorafast.gguf.reader import GGUFFile
from lorafast.gguf.roles import BLOCK_MATRICES
from lorafast.gguf.types import GGMLType, GGUFValueType
from lorafast.gguf.writer import TensorToWrite, write_gguf
from lorafast.network.lora import Adapter, default_ranks, specs_for
from tests.network.test_lora import llama_shapes

BASE = BaseModel("llama", 2, 4, 2, tied=False, name="Tiny")
MATRICES = (*BLOCK_MATRICES, "token_embd", "output")
STRING, F32 = GGUFValueType.STRING, GGUFValueType.FLOAT32


def random_adapter(shapes, *, targets=MATRICES, ranks=None, alpha=6.0, r=3, size=1.0, dora=False):
    rng = np.random.default_rng(0)
    adapter = Adapter(specs_for(shapes, ranks or default_ranks(r), targets, dora=dora), alpha, r)
    adapter.params[:] = size * rng.standard_normal(adapter.n_params)
    for m in adapter.magnitudes.values():
        m[:] = rng.uniform(0.5, 1.5, m.size)
    return AdapterFile.of(adapter)


def assert_same_effect(one, other):
    """Both adapters change every weight alike, to float32's rounding."""
    assert one.pairs.keys() == other.pairs.keys()
    for name in one.pairs:
        (a, b), (a2, b2) = one.pairs[name], other.pairs[name]
        np.testing.assert_allclose(one.scale * (b.T @ a), other.scale * (b2.T @ a2), rtol=1e-4, atol=1e-4)


def test_keys_and_shapes(tmp_path):
    gguf = pytest.importorskip("gguf")
    adapter = random_adapter(llama_shapes(8, 24, 2, 40))
    write_gguf_adapter(tmp_path / "a.gguf", adapter, BASE)
    file = gguf.GGUFReader(tmp_path / "a.gguf")
    values = {key: field.contents() for key, field in file.fields.items() if not key.startswith("GGUF.")}
    assert isinstance(values.pop("lorafast.crc32"), int)
    assert values == {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora",
                      "adapter.lora.alpha": 6.0, "general.file_type": 0, "general.name": "Tiny LoRA",
                      "general.base_model.count": 1, "general.base_model.0.name": "Tiny"}
    assert file.fields["adapter.lora.alpha"].types == [gguf.GGUFValueType.FLOAT32]
    tensors = {tensor.name: tensor.data for tensor in file.tensors}
    assert len(tensors) == 2 * len(adapter.pairs)
    a, b = adapter.pairs["blk.1.ffn_down.weight"]
    np.testing.assert_array_equal(tensors["blk.1.ffn_down.weight.lora_a"], a)          # (r, n_in)
    np.testing.assert_array_equal(tensors["blk.1.ffn_down.weight.lora_b"], b.T)        # (n_out, r)
    a, b = adapter.pairs["token_embd.weight"]                                          # turned round
    np.testing.assert_array_equal(tensors["token_embd.weight.lora_a"], b.T)            # (n_vocab, r)
    np.testing.assert_array_equal(tensors["token_embd.weight.lora_b"], a.T)            # (n_embd, r)


def test_magnitudes_are_refused(tmp_path):
    with pytest.raises(LoraFastError, match=r"a GGUF adapter cannot carry DoRA's magnitudes.*PEFT .*lorafast merge"):
        write_gguf_adapter(tmp_path / "a.gguf", random_adapter(llama_shapes(8, 24, 2, 40), dora=True), BASE)
    assert not list(tmp_path.iterdir())


def test_equal_ranks_come_back_bit_for_bit(tmp_path):
    adapter = random_adapter(llama_shapes(8, 24, 2, 40, n_embd_gqa=4))
    write_gguf_adapter(tmp_path / "a.gguf", adapter, BASE)
    again = read_gguf_adapter(tmp_path / "a.gguf")
    assert (again.alpha, again.r) == (6, 3) and not again.warnings
    for name, (a, b) in adapter.pairs.items():
        np.testing.assert_array_equal(again.pairs[name][0], a)
        np.testing.assert_array_equal(again.pairs[name][1], b)


def test_a_pair_of_another_rank_keeps_its_scale(tmp_path):
    """The runtime divides alpha by the pair's own rank; training divides by r."""
    adapter = random_adapter(llama_shapes(8, 24, 2, 40), ranks=default_ranks(3) | {"attn_q": 6, "output": 2})
    write_gguf_adapter(tmp_path / "a.gguf", adapter, BASE)
    tensors = GGUFFile(tmp_path / "a.gguf").tensors
    b = tensors["blk.0.attn_q.weight.lora_b"].to_float32()
    np.testing.assert_array_equal(b, 2 * adapter.pairs["blk.0.attn_q.weight"][1].T)    # 6 / (alpha / 6) = alpha / 3 · B
    again = read_gguf_adapter(tmp_path / "a.gguf")
    assert (again.alpha, again.r) == (6, 3)
    assert_same_effect(adapter, again)


def test_an_adapter_without_alpha_has_scale_1(tmp_path):
    adapter = random_adapter(llama_shapes(8, 24, 2, 40), ranks=default_ranks(3) | {"attn_q": 6})
    adapter.alpha = adapter.r = None
    write_gguf_adapter(tmp_path / "a.gguf", adapter, BASE)
    again = read_gguf_adapter(tmp_path / "a.gguf")
    assert again.scale == 1
    assert_same_effect(adapter, again)


def test_what_the_format_cannot_carry_is_refused(tmp_path):
    norms = random_adapter(llama_shapes(8, 24, 2, 40), targets=["attn_q", "attn_norm", "output_norm"])
    with pytest.raises(LoraFastError, match=r"the pair of output_norm.weight and 2 other norms.*--targets"):
        write_gguf_adapter(tmp_path / "a.gguf", norms, BASE)
    embedding = random_adapter(llama_shapes(8, 24, 2, 40, tied=True), targets=["token_embd"])
    with pytest.raises(LoraFastError, match=r"cannot carry the pair of token_embd"):
        write_gguf_adapter(tmp_path / "a.gguf", embedding, BaseModel("llama", 2, 4, 2, tied=True))
    assert not list(tmp_path.iterdir())


def write(path, tensors, metadata=()):
    """An adapter by hand. tensors: name to float32 array, or (type, shape, stored bytes)."""
    keys = [("general.type", STRING, "adapter"), ("general.architecture", STRING, "llama"),
            ("adapter.type", STRING, "lora")]
    write_gguf(path, [*keys, *metadata], [
        TensorToWrite(name, *(value if isinstance(value, tuple) else (GGMLType.F32, value.shape, value)))
        for name, value in tensors.items()])
    return path


A, B = np.ones((2, 32), np.float32), np.ones((8, 2), np.float32)


def test_alpha_0_or_missing_means_scale_1(tmp_path):
    q = "blk.0.attn_q.weight"
    for metadata in ([], [("adapter.lora.alpha", F32, 0.0)]):
        assert read_gguf_adapter(write(tmp_path / "a.gguf", {f"{q}.lora_a": A, f"{q}.lora_b": B}, metadata)).scale == 1


def test_quantised_data_is_read(tmp_path):
    a = np.random.default_rng(0).standard_normal((2, 32)).astype(np.float32)
    q8 = (GGMLType.Q8_0, a.shape, quantize(a, GGMLType.Q8_0))
    read = read_gguf_adapter(write(tmp_path / "a.gguf", {"output.weight.lora_a": q8, "output.weight.lora_b": B}))
    np.testing.assert_allclose(read.pairs["output.weight"][0], a, atol=0.02)


def test_norms_are_left_out_with_a_warning(tmp_path):
    tensors = {"output.weight.lora_a": A, "output.weight.lora_b": B, "output_norm.weight": np.ones(32, np.float32),
               "blk.0.attn_norm.weight.lora_a": A, "blk.0.attn_norm.weight.lora_b": B[:1]}
    adapter = read_gguf_adapter(write(tmp_path / "a.gguf", tensors))
    assert list(adapter.pairs) == ["output.weight"] and len(adapter.warnings) == 3


@pytest.mark.parametrize("tensors, message", [
    ({"output.weight.lora_a": A}, "only one of lora_a and lora_b"),
    ({"output.weight.lora_a": A, "output.weight.lora_c": B}, "'output.weight.lora_c' does not belong to an adapter"),
    ({"output.weight.lora_a": A.T.copy(), "output.weight.lora_b": B}, "no rank in common"),
    ({"blk.0.attn_w.weight.lora_a": A, "blk.0.attn_w.weight.lora_b": B}, "'blk.0.attn_w.weight.lora_a' does not "
                                                                         "belong to an adapter"),
])
def test_what_llama_cpp_refuses_is_refused(tmp_path, tensors, message):
    with pytest.raises(FormatError, match=message):
        read_gguf_adapter(write(tmp_path / "a.gguf", tensors))


LLAMA_CPP = """
import json, sys
import numpy as np
from llama_cpp import Llama
model_path, adapter_path, tokens = json.loads(sys.argv[1])
model = Llama(model_path, lora_path=adapter_path, n_ctx=64, n_threads=1, logits_all=True, verbose=False)
model.eval(tokens)
np.save(sys.argv[2], model.scores[:len(tokens)])
"""


def llama_cpp_logits(model, adapter, tokens, folder):
    """Logits (T, n_vocab) by llama.cpp, in a process of its own: a bad adapter ends it with a crash."""
    arguments = json.dumps([str(model), adapter and str(adapter), tokens])
    subprocess.run([sys.executable, "-c", LLAMA_CPP, arguments, folder / "logits.npy"], check=True, capture_output=True)
    return np.load(folder / "logits.npy")


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_llama_cpp_applies_the_adapter_as_meant(tmp_path, tied):
    pytest.importorskip("llama_cpp")
    model = make_tiny(tmp_path / "model.gguf", type="F32", tied=tied)
    shapes = {name: tensor.shape for name, tensor in GGUFFile(model).tensors.items()}
    adapter = random_adapter(shapes, targets=BLOCK_MATRICES if tied else MATRICES,
                             ranks=default_ranks(3) | {"attn_v": 5}, size=0.1)
    write_gguf_adapter(tmp_path / "adapter.gguf", adapter, BaseModel.from_gguf(GGUFFile(model)))
    tokens = [1, 300, 17, 263, 5, 101]
    base, adapted, merged = (llama_cpp_logits(*which, tokens, tmp_path) for which in (
        (model, None), (model, tmp_path / "adapter.gguf"), (merge(model, adapter, tmp_path / "merged.gguf"), None)))
    assert np.abs(adapted - base).max() > 0.5
    # llama.cpp keeps K and V in float16: two ways to the same values differ by about 1e-3 of the logits' size.
    assert np.mean((adapted - merged) ** 2) / np.var(merged) < 1e-4
