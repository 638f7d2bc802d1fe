"""Chat templates of the common kinds, written for the tests, and what each makes of a conversation, worked out by hand.

`pieces` gives (text, counts in the loss) in order; put together, the texts are what the template renders.
"""
from __future__ import annotations

CHATML = """{% for m in messages %}
{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- if not loop.last %}{{ '' }}{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

# SmolLM2's: a system message of its own where there is none.
DEFAULT_SYSTEM = """{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '<|im_start|>system
Be helpful.<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + m['role'] + '
' + m['content'] + '<|im_end|>' + '
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

LLAMA3 = """{{- bos_token }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if m['role'] == 'assistant' %}{% generation %}{{- m['content'] | trim + '<|eot_id|>' -}}{% endgeneration %}
    {%- else %}{{- m['content'] | trim + '<|eot_id|>' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""

# The system message stands in the last user message; roles must alternate; there is nothing like a generation prompt.
MISTRAL = """{%- if messages[0].role == 'system' %}
    {%- set system = messages[0].content + '\\n\\n' %}{% set turns = messages[1:] %}
{%- else %}{% set system = '' %}{% set turns = messages %}{% endif %}
{{- bos_token }}
{%- for m in turns %}
    {%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
    {%- if m.role == 'user' %}
        {%- set last = turns[loop.index0:] | selectattr('role', 'equalto', 'user') | list | length == 1 %}
        {{- '[INST] ' + (system if last else '') + m.content + '[/INST]' }}
    {%- else %}{{- ' ' + m.content + eos_token }}{% endif %}
{%- endfor %}"""

# Answers begin with thoughts, which are shown of the newest one only; the generation prompt opens them.
THINKING = """{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.last %}{{- m.content }}{% else %}{{- m.content.split('</think>')[-1] }}{% endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>' }}{% endif %}"""


def chatml_pieces(messages, default_system=""):
    if default_system and messages[0]["role"] != "system":
        yield f"<|im_start|>system\n{default_system}<|im_end|>\n", False
    for message in messages:
        yield f"<|im_start|>{message['role']}\n", False
        yield f"{message['content']}<|im_end|>", message["role"] == "assistant"
        yield "\n", False


def default_system_pieces(messages):
    return chatml_pieces(messages, "Be helpful.")


def llama3_pieces(messages):
    yield "<s>", False
    for message in messages:
        yield f"<|start_header_id|>{message['role']}<|end_header_id|>\n\n", False
        yield f"{message['content'].strip()}<|eot_id|>", message["role"] == "assistant"


def mistral_pieces(messages):
    """Without a system message, which makes a sample of its own of each answer."""
    yield "<s>", False
    for message in messages:
        if message["role"] == "user":
            yield f"[INST] {message['content']}[/INST]", False
        else:
            yield f" {message['content']}</s>", True
