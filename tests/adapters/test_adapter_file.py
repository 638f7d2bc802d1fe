"""Adapters of any kind by their content, and an adapter put on a model."""
import numpy as np
import pytest
from make_models import make_tiny

from lorafast.adapters import AdapterFile, BaseModel, read_adapter, write_adapter
from lorafast.adapters.checkpoint import Geometry, TrainState, write_checkpoint
from lorafast.errors import FormatError, LoraFastError
from lorafast.gguf.file_form import ADAPTER_FORMS, FileForm
from lorafast.gguf.reader import GGUFFile
from lorafast.gguf.roles import BLOCK_MATRICES
from lorafast.network.lora import Adapter, Moments, default_ranks, specs_for
from tests.adapters.test_gguf import random_adapter
from tests.network.test_lora import llama_shapes

SHAPES = llama_shapes(16, 24, 2, 40, n_embd_gqa=8)
BASE = BaseModel("llama", 2, 4, 2, tied=False)


def test_base_model_of_a_file(tmp_path):
    model = GGUFFile(make_tiny(tmp_path / "model.gguf", n_layer=3, n_head=8, n_head_kv=4, tied=True))
    assert BaseModel.from_gguf(model) == BaseModel("llama", 3, 8, 4, tied=True, name="tiny Q8_0")


@pytest.mark.parametrize("form", ADAPTER_FORMS)
def test_each_form_is_recognised_whatever_its_name(tmp_path, form):
    adapter = random_adapter(SHAPES, targets=BLOCK_MATRICES)
    write_adapter(form, tmp_path / "anything", adapter, BASE)
    again = read_adapter(tmp_path / "anything", BASE).to_adapter(SHAPES)
    expected = adapter.to_adapter(SHAPES)
    assert again.scale == 2
    np.testing.assert_array_equal(again.params, expected.params)


def test_a_checkpoint_is_an_adapter_too(tmp_path):
    adapter = Adapter(specs_for(SHAPES, default_ranks(3)), 6, 3)
    adapter.initialise(1)
    geometry = Geometry(16, 16, 24, 4, 2, 2, 4, 1e-5, 10000.0, 1.0)
    for extras, scale in ((None, 1), ({}, 2)):          # the original trained with scale 1 and did not record alpha
        write_checkpoint(tmp_path / "c.gguf", geometry, adapter, Moments(adapter), TrainState(), extras)
        file = read_adapter(tmp_path / "c.gguf")
        assert file.scale == scale and file.to_adapter(SHAPES).scale == scale
        np.testing.assert_array_equal(file.to_adapter(SHAPES).params, adapter.params)


def test_what_is_no_adapter(tmp_path):
    make_tiny(tmp_path / "model.gguf")
    (tmp_path / "old.bin").write_bytes(b"lcgg\0\0\0\0")
    (tmp_path / "text").write_bytes(b"Shall I compare")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, message in (("model.gguf", "is a base model, not an adapter"), ("old.bin", "from before GGUF"),
                          ("text", "begins with b'Shal'"), ("empty", "begins with b''"),
                          ("folder", "without adapter_config.json"), ("missing", "No such file")):
        with pytest.raises(LoraFastError, match=message) as caught:
            read_adapter(tmp_path / name)
        assert name in str(caught.value)


def test_an_adapter_of_another_model_is_refused():
    adapter = random_adapter(SHAPES, targets=BLOCK_MATRICES)
    with pytest.raises(LoraFastError, match=r"pair for blk.1.attn_q.weight, which this model lacks"):
        adapter.to_adapter(llama_shapes(16, 24, 1, 40, n_embd_gqa=8))
    with pytest.raises(LoraFastError, match=r"blk.0.attn_k.weight fits a tensor of shape \(8, 16\), but .* \(16, 16\)"):
        adapter.to_adapter(llama_shapes(16, 24, 2, 40))


def test_magnitudes_of_another_model_are_refused():
    adapter = random_adapter(SHAPES, targets=["attn_q", "token_embd"], dora=True)
    assert adapter.to_adapter(SHAPES).magnitudes.keys() == adapter.pairs.keys()
    adapter.magnitudes["token_embd.weight"] = np.ones(40, np.float32)
    with pytest.raises(LoraFastError, match=r"magnitudes of shape \(40,\) for token_embd.weight, but .* needs \(16,\)"):
        adapter.to_adapter(SHAPES)


def test_base_model_needs_a_models_keys(tmp_path):
    write_adapter(FileForm.GGUF, tmp_path / "a.gguf", random_adapter(SHAPES, targets=BLOCK_MATRICES), BASE)
    with pytest.raises(FormatError, match=r"llama.block_count"):
        BaseModel.from_gguf(GGUFFile(tmp_path / "a.gguf"))


def test_views_not_copies():
    adapter = Adapter(specs_for(SHAPES, default_ranks(3)), 3, 3)
    AdapterFile.of(adapter).pairs["output.weight"][0][:] = 1
    assert adapter.A("output.weight").all()
