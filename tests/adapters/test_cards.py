"""Modelfiles and model cards: paths, front matter, and the commands they tell."""
import pytest
from make_models import BOOL, STRING, make_tiny

from lorafast.adapters import AdapterFile, BaseModel
from lorafast.adapters.cards import model_card, write_beside
from lorafast.adapters.ollama import Turn, modelfile, modelfile_for, stops, turn_of
from lorafast.data.chat_template import ChatTemplate
from lorafast.gguf.reader import GGUFFile
from lorafast.gguf.roles import BLOCK_MATRICES
from lorafast.tokenizer import load_tokenizer
from tests.adapters.test_gguf import random_adapter
from tests.network.test_lora import llama_shapes

BASE = BaseModel("llama", 2, 4, 2, tied=False, name="Tiny", source="some/tiny")


def adapter():
    return random_adapter(llama_shapes(16, 24, 2, 40), targets=BLOCK_MATRICES, alpha=6, r=3)


def test_modelfile_of_an_adapter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert modelfile("model.gguf", "a.gguf") == "FROM ./model.gguf\nADAPTER ./a.gguf\n"
    assert modelfile("model.gguf", "out/a.gguf") == f"FROM {tmp_path}/model.gguf\nADAPTER ./a.gguf\n"
    text = modelfile("merged.gguf", turn=Turn("[{{ .Prompt }}]", "be kind"), stop=["</s>"])
    assert text == ('FROM ./merged.gguf\nTEMPLATE """[{{ .Prompt }}]"""\nSYSTEM """be kind"""\n'
                    'PARAMETER stop "</s>"\n')


CHATML = ("{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}"
          "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
NO_SYSTEM = ("{{ '<s>' }}{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
             "{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else m.content + '</s>' }}{% endfor %}")


def compiled(source):
    return ChatTemplate(source, "t", bos_token="<s>", eos_token="</s>")


def test_a_turn_is_made_from_the_models_template():
    turn = turn_of(compiled(CHATML))
    assert turn.system == "Be kind."
    assert turn.template == (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}"
        "<|im_start|>user\n{{ .Prompt }}<|im_end|>\n"
        "<|im_start|>assistant\n{{ .Response }}<|im_end|>\n")
    assert turn_of(compiled(NO_SYSTEM), "<s>") == Turn("[INST] {{ .Prompt }} [/INST]{{ .Response }}</s>")
    assert turn_of(compiled("{{ raise_exception('never') }}")) is None


def test_modelfile_for_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = make_tiny("model.gguf", metadata=[("tokenizer.chat_template", STRING, CHATML)])
    text = modelfile_for(GGUFFile(model), "model.gguf")
    assert 'TEMPLATE """{{ if .System }}' in text and 'SYSTEM """Be kind."""' in text
    assert 'PARAMETER stop "</s>"' in text and stops(load_tokenizer(GGUFFile(model))) == ["</s>"]
    assert modelfile_for(GGUFFile(make_tiny("plain.gguf")), "plain.gguf") == "FROM ./plain.gguf\n"


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
    assert "base_model: the base model" in card and "llama-cli" not in card and "1 (the file holds none)" in card


@pytest.mark.parametrize("path, suffix, expected", [
    ("a.gguf", ".md", "a.md"), ("a.b.gguf", ".Modelfile", "a.b.Modelfile"), ("folder/", ".md", "folder/README.md"),
    ("folder", ".Modelfile", "folder/Modelfile")])
def test_beside(tmp_path, monkeypatch, path, suffix, expected):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    assert write_beside(path, suffix, "text\n") == expected and (tmp_path / expected).read_text() == "text\n"


def test_a_first_token_that_nobody_adds_stays_in_the_turn(tmp_path):
    """SmolLM2's BOS is <|im_start|>, which its template writes itself."""
    chatml = CHATML.replace("<|im_start|>", "<s>")
    model = make_tiny(tmp_path / "model.gguf", metadata=[("tokenizer.chat_template", STRING, chatml),
                                                         ("tokenizer.ggml.add_bos_token", BOOL, False)])
    assert 'TEMPLATE """{{ if .System }}<s>system' in modelfile_for(GGUFFile(model), "model.gguf")
