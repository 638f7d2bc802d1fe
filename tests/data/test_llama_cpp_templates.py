"""The templates that llama.cpp ships, each with three kinds of chat: only what the assistant says is trained on.

LLAMA_CPP_TEMPLATES names the folder models/templates of its sources; those of llama-cpp-python have it under
vendor/llama.cpp.
"""
import os
from pathlib import Path

import pytest
from make_models import bpe_vocabulary

from lorafast.data.chat_template import ChatTemplate
from lorafast.data.encode import EMPTY, SequenceEncoder
from lorafast.data.records import BadRecord
from lorafast.data.shapes import parse_record
from lorafast.tokenizer import load_tokenizer

FOLDER = os.environ.get("LLAMA_CPP_TEMPLATES", "")
REFUSE = {("google-gemma-2-2b-it", "tools")}
"""Templates that say themselves that they cannot show such a chat."""

TURNS = [("user", "question one"), ("assistant", "answer one"), ("user", "question two"), ("assistant", "answer two")]
PLAIN = [{"role": role, "content": content} for role, content in TURNS]
CALL = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
CITY = {"type": "object", "properties": {"city": {"type": "string", "description": "name"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "tells it", "parameters": CITY}}]
CHATS = {
    "plain": ({"messages": PLAIN}, ("answer one", "answer two")),
    "system": ({"messages": [{"role": "system", "content": "be brief"}, *PLAIN]}, ("answer one", "answer two")),
    "tools": ({"tools": TOOLS, "messages": [
        {"role": "user", "content": "question one"}, {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call12345", "name": "weather", "content": "sunny"},
        {"role": "assistant", "content": "answer two"}]}, ("Rome", "answer two")),
}


class Model:
    metadata = {key: value for key, _, value in bpe_vocabulary()}  # noqa: RUF012 -- as a file has it


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="LLAMA_CPP_TEMPLATES does not name llama.cpp's models/templates")
@pytest.mark.parametrize("kind", CHATS)
def test_the_templates_of_llama_cpp(kind):
    tokenizer, (chat, answers) = load_tokenizer(Model), CHATS[kind]
    paths = sorted(Path(FOLDER).glob("*.jinja"))
    assert paths
    wrong = {}
    for path in paths:
        template = ChatTemplate(path.read_text(), path.stem, bos_token="<s>", eos_token="</s>")
        encoder = SequenceEncoder(tokenizer, lambda template=template: template)
        try:
            rows = encoder.encode(parse_record(chat))
        except BadRecord as error:
            if (path.stem, kind) not in REFUSE:
                wrong[path.stem] = str(error)
            continue
        trained = " ".join(tokenizer.decode([token for token in row if token >= 0]) for row in rows)
        # A call that a template does not show is not trained on, which a note tells.
        expected = [answer for answer in answers if answer != "Rome" or not encoder.notes[EMPTY]]
        if [answer for answer in expected if answer not in trained] or any(
                other in trained for other in ("question", "sunny", "be brief")):
            wrong[path.stem] = trained
    assert not wrong
