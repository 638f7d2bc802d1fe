"""What templates may use, what they may not, and what is said when one fails."""
import time

import pytest

from lorafast.data.chat_template import ChatTemplate, load_chat_template
from lorafast.errors import FormatError, LoraFastError, TemplateRefusal

MESSAGES = [{"role": "user", "content": "a <b> é"}, {"role": "assistant", "content": "c"}]


def render(source, messages=MESSAGES, **options):
    return ChatTemplate(source, "it", bos_token="<s>", eos_token="</s>").render(messages, **options)


@pytest.mark.parametrize("source, text", [
    ("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}", "<s>a <b> é</s>"),
    ("{% if true %}\n  {% if true %}\nx\n  {% endif %}\n{% endif %}", "x\n"),               # trim_blocks, lstrip_blocks
    ("{% for m in messages %}{{ m.role }}{% break %}{% endfor %}", "user"),
    ("{{ messages[0] | tojson }}", '{"role": "user", "content": "a <b> é"}'),
    ("{{ {'b': [1], 'a': '\"'} | tojson(indent=1) }}", '{\n "b": [\n  1\n ],\n "a": "\\""\n}'),
    ("{% generation %}{{ messages[1].content }}{% endgeneration %}!", "c!"),
    ("{%- generation -%} x {%- endgeneration -%} ", "x"),
    ("{{ add_generation_prompt }} {{ tools is none }} {{ documents is none }}", "False True True"),
    ("{{ 'yes' if never_heard_of else 'no' }}", "no"),
    ("{% set own = [1] %}{% set _ = own.append(2) %}{% set _ = own.pop(0) %}{{ own }}", "[2]"),    # Kimi K2
    ("{{ messages | map(attribute='role') | tojson }}", '["user", "assistant"]'),    # DeepSeek R1
    ("{{ functions }}", "[]"),    # Firefunction
    ("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "2"),
])
def test_what_templates_use(source, text):
    assert render(source) == text


def test_arguments():
    source = "{{ add_generation_prompt }}{{ tools[0].name }}"
    assert render(source, add_generation_prompt=True, tools=[{"name": "f"}]) == "Truef"
    assert render("{{ functions }}", tools=[{"name": "f"}]) == '[\n    {\n        "name": "f"\n    }\n]'
    assert render("{{ datetime[7:11] }}") == time.strftime("%Y")
    assert render("{{ strftime_now('%Y') }}") == time.strftime("%Y")


@pytest.mark.parametrize("source, reason", [
    ("{{ raise_exception('roles must alternate') }}", "it cannot render it: roles must alternate"),
    ("{{ messages[5].content }}", "no element 5"),
    ("{{ messages[0].content + 3 }}", "str"),
    ("{{ 1 / 0 }}", "zero"),
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
    ("{{ messages.append(1) }}", "unsafe"),
    ("{{ raise_exception.__globals__['json'] }}", "unsafe"),
    ("{% for i in range(999999999) %}{% endfor %}", "[Rr]ange"),
    ("{{ messages | nosuchfilter }}", "nosuchfilter"),
])
def test_refusals(source, reason):
    with pytest.raises((TemplateRefusal, FormatError), match=reason):
        render(source)


def test_a_broken_template():
    with pytest.raises(FormatError, match="it is not a jinja2 template: line 2: "):
        render("x\n{% if %}")


class Vocabulary:
    bos_id, eos_id = None, 7

    def token_text(self, token):
        return {7: "<end>"}[token]


def test_where_templates_come_from(tmp_path):
    metadata = {"tokenizer.chat_template": "{{ bos_token }}{{ eos_token }}"}
    assert load_chat_template(metadata, Vocabulary()).render([]) == "<end>"
    path = tmp_path / "t.jinja"
    path.write_text("é", "utf-8")
    assert load_chat_template(metadata, Vocabulary(), str(path)).render([]) == "é"
    path.write_bytes(b"\xff")
    with pytest.raises(FormatError, match=r"t.jinja is not UTF-8"):
        load_chat_template(metadata, Vocabulary(), str(path))
    with pytest.raises(LoraFastError, match=r"cannot read --chat-template .*: No such file"):
        load_chat_template(metadata, Vocabulary(), str(tmp_path / "none"))
    with pytest.raises(LoraFastError, match=r"no chat template, .*--chat-template FILE"):
        load_chat_template({}, Vocabulary())


def test_what_a_template_was_given_stays_as_it_was():
    messages = [{"role": "user", "content": ["a"]}]
    for change in ("messages.append(1)", "messages[0].content.pop()", "messages[0].update(role='b')"):
        with pytest.raises(TemplateRefusal):
            render("{% set _ = " + change + " %}", messages)
    assert messages == [{"role": "user", "content": ["a"]}]
