"""Modelfiles and model cards: paths, front matter, and the commands they tell."""
import pytest

from lorafast.adapters import AdapterFile, BaseModel
from lorafast.adapters.cards import model_card, modelfile, write_beside
from lorafast.gguf.roles import BLOCK_MATRICES
from tests.adapters.test_gguf import random_adapter
from tests.network.test_lora import llama_shapes

BASE = BaseModel("llama", 2, 4, 2, tied=False, name="Tiny", source="some/tiny")


def adapter():
    return random_adapter(llama_shapes(16, 24, 2, 40), targets=BLOCK_MATRICES, alpha=6, r=3)


def test_modelfile_of_an_adapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert modelfile("model.gguf", "a.gguf") == "FROM ./model.gguf\nADAPTER ./a.gguf\n"
    assert modelfile("model.gguf", "out/a.gguf") == f"FROM {tmp_path}/model.gguf\nADAPTER ./a.gguf\n"
    text = modelfile("merged.gguf", parameters={"temperature": 0.7})
    assert text == "FROM ./merged.gguf\nPARAMETER temperature 0.7\n"


def test_card_of_a_gguf_adapter():
    card = model_card(adapter(), BASE, "out/a.gguf", model_path="m/model.gguf", training={"Data": "sonnets.txt"})
    assert card.startswith("---\nbase_model: some/tiny\nbase_model_relation: adapter\nlibrary_name: gguf\n")
    assert "# a.gguf\n" in card and "| Scale, alpha / r | 6 / 3 = 2 |" in card and "| Rank | 3 |" in card
    assert "| Data | sonnets.txt |" in card
    assert "attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_down, ffn_up (14 tensors)" in card
    assert "llama-cli -m model.gguf --lora a.gguf" in card and "lorafast generate --model-base model.gguf" in card


def test_card_of_an_adapter_with_magnitudes():
    dora = random_adapter(llama_shapes(16, 24, 2, 40), targets=BLOCK_MATRICES, dora=True)
    assert "| Magnitudes | trained (DoRA) |" in model_card(dora, BASE, "a/")
    assert "DoRA" not in model_card(adapter(), BASE, "a/")


def test_card_of_a_peft_folder():
    card = model_card(adapter(), BASE, "out/a/")
    assert "library_name: peft" in card and 'AutoModelForCausalLM.from_pretrained("some/tiny")' in card
    assert 'PeftModel.from_pretrained(model, "out/a")' in card


def test_card_that_knows_little():
    card = model_card(AdapterFile(adapter().pairs), BaseModel("llama", 2, 4, 2, False), "a.bin")
    assert "base_model:" not in card and "llama-cli" not in card and "1 (the file holds none)" in card


@pytest.mark.parametrize("path, suffix, expected", [
    ("a.gguf", ".md", "a.md"), ("a.b.gguf", ".Modelfile", "a.b.Modelfile"), ("folder/", ".md", "folder/README.md"),
    ("folder", ".Modelfile", "folder/Modelfile")])
def test_beside(tmp_path, monkeypatch, path, suffix, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert write_beside(path, suffix, "text\n") == expected and (tmp_path / expected).read_text() == "text\n"
