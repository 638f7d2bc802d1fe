"""Small inputs on which the first release went wrong without a word, as `lorafast inspect` shows them now."""
import io
import json
from pathlib import Path

import chat_templates
import pytest
from make_models import STRING, make_tiny

from lorafast.commands.inspect_data import show_data
from lorafast.errors import LoraFastError
from lorafast.options.declare import parse
from lorafast.options.tools import InspectOptions

USER, ASSISTANT = {"role": "user", "content": "Weather in Oslo?"}, {"role": "assistant", "content": "It is 5 degrees."}
CALL = {"id": "c1", "type": "function", "function": {"name": "w", "arguments": '{"city":"Oslo"}'}}
TOOLS = """{% if tools %}<|im_start|>system
Tools: {% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>
{% endif %}{% for m in messages %}<|im_start|>{{m['role']}}
{{m['content']}}{% for c in m.tool_calls or [] %}<tool_call>{{ c.function.arguments | tojson }}</tool_call>{% endfor
%}<|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf", vocab="BPE", metadata=[
        ("tokenizer.chat_template", STRING, chat_templates.CHATML)])


@pytest.fixture
def inspect(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(name, contents, *options):
        if not isinstance(contents, str):
            contents = "".join(json.dumps(record) + "\n" for record in contents)
        Path(name).write_text(contents)
        out = io.StringIO()
        show_data(parse(InspectOptions, [name, "--model-base", str(model), "--ctx", "512", *options]), out)
        return out.getvalue()

    return run


@pytest.mark.parametrize("roles", [("User", "Assistant"), ("human", "gpt"), ("user", "model")])
def test_role_names(inspect, roles):
    shown = inspect("a.jsonl", [{"messages": [{"role": role, "content": "x"} for role in roles]}])
    assert "a.jsonl: 1 chat" in shown


@pytest.mark.parametrize("record", [
    {"instruction": "Add.", "input": "2 and 3", "output": "5"}, {"instruction": "a", "context": "", "response": "b"},
    {"prompt": "a", "response": "b"}, {"prompt": [USER], "completion": [ASSISTANT]}], ids=str)
def test_pairs_of_other_trainers(inspect, record):
    shown = inspect("a.jsonl", [record])
    assert "im_start" in shown.replace("·", "") and ("rendered as chats" in shown or "1 chat" in shown)


def test_csv_is_no_prose(inspect):
    shown = inspect("big.csv", "instruction,output\n" + 'What is 2?,"It is 2, of course"\n' * 9)
    assert "big.csv: 9 prompts and completions" in shown and "train: 9 samples" in shown


def test_pretty_json_is_no_prose(inspect):
    records = [{"messages": [USER, ASSISTANT]}] * 3
    assert "a.json: 3 chats" in inspect("a.json", "\n".join(json.dumps(record, indent=2) for record in records))
    assert "b.json: 3 chats" in inspect("b.json", json.dumps({"version": 1, "data": records}, indent=2))
    with pytest.raises(LoraFastError, match=r"strs.json:1: an object like"):
        inspect("strs.json", '["first text", "second text"]\n')


def test_tools_as_a_string(inspect):
    record = {"messages": [USER, ASSISTANT], "tools": '[{"name":"w"}]'}
    Path("tools.jinja").write_text(TOOLS)
    shown = inspect("a.jsonl", [record], "--chat-template", "tools.jinja", "--samples", "1").replace("·", "")
    assert '"name"' in shown.replace("\n", "")
    with pytest.raises(LoraFastError, match=r"a.jsonl:1: 'tools' is a string that is not JSON"):
        inspect("a.jsonl", [{**record, "tools": "w"}])


def test_fields_that_are_not_shown(inspect):
    shown = inspect("a.jsonl", [{"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                                              {"role": "tool", "tool_call_id": "c1", "content": "5"}, ASSISTANT],
                                 "tools": [{"type": "function", "function": {"name": "w"}}]}])
    for warning in ("chats with 'tool_calls', which the chat template does not show: 1",
                    "chats with 'tools', which the chat template does not show: 1",
                    "answers that are not trained on, as the chat template shows nothing of them: 1"):
        assert f"warning: {warning}" in shown


def test_a_model_without_its_pre_tokenizer(inspect, tmp_path):
    """Warned of where it matters, and not in `generate` only."""
    old = make_tiny(tmp_path / "old.gguf", vocab="BPE", pre="")
    assert "warning: tokenizer.ggml.pre is missing" in inspect("a.jsonl", [{"text": "a b c"}], "--model-base", str(old))


def test_marks_in_records_are_special(inspect):
    """`inspect` shows them as one token, and says how many records have them."""
    shown = inspect("a.jsonl", [{"text": "my love <|end|>"}])
    assert "texts that spell out special tokens, which are read as special tokens: 1" in shown
    assert "train: 1 sample, " in shown
