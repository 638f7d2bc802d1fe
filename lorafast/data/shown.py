"""Fitting a chat to what its template can show, and finding out what it does not show."""
from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from ..errors import TemplateRefusal
from .records import BadRecord, Chat

RenderChat = Callable[[Chat], str]

SILENT_KEYS = frozenset(("role", "content", "id", "tool_call_id"))
"""Keys of messages that carry nothing to learn."""


def with_system_in_user(chat: Chat) -> Chat | None:
    """The chat with its system message before the first user's text; None where it has none, or no user follows."""
    first, second = (*chat.messages[:2], {}, {})[:2]
    if first.get("role") != "system" or second.get("role") != "user":
        return None
    merged = {**second, "content": f"{first['content']}\n\n{second['content']}"}
    return replace(chat, messages=[merged, *chat.messages[2:]], weights=chat.weights[1:])


def with_text_arguments(chat: Chat) -> Chat:
    """The chat with the arguments of calls as JSON text."""
    def text_of(call: Any) -> Any:
        function = call.get("function")
        if not isinstance(function, dict) or isinstance(function.get("arguments"), str):
            return call
        text = json.dumps(function.get("arguments"), ensure_ascii=False)
        return {**call, "function": {**function, "arguments": text}}

    return replace(chat, messages=[
        {**message, "tool_calls": [text_of(call) for call in message["tool_calls"]]} if message.get("tool_calls")
        else message for message in chat.messages])


def wants_text_arguments(render: RenderChat) -> bool:
    """Whether a template writes the arguments of a call as they come, so that they must be JSON already."""
    call = {"type": "function", "id": "abcdefghi", "function": {"name": "probe", "arguments": {"probed_key": 1}}}
    chat = Chat([{"role": "user", "content": "u"}, {"role": "assistant", "content": "", "tool_calls": [call]}], [0, 1])
    try:
        return "{'probed_key'" in render(chat)
    except TemplateRefusal:
        pass
    try:
        return "probed_key" in render(with_text_arguments(chat))
    except TemplateRefusal:
        return False


def iterates_tools(render: Callable[..., str]) -> bool:
    """Whether a template goes through the tools without asking whether there are any."""
    question = [{"role": "user", "content": "u"}]
    try:
        render(question)
    except TemplateRefusal:
        try:
            return bool(render(question, tools=[]))
        except TemplateRefusal:
            pass
    return False


def not_shown(chat: Chat, source: str, text: str, render: RenderChat) -> Iterator[str]:
    """The keys of messages, and "tools", that make no difference to the text that a template renders.

    source   of the template: a key whose name is not in it cannot be shown
    text     what it renders
    """
    keys = sorted({key for message in chat.messages for key, value in message.items()
                   if key not in SILENT_KEYS and value not in ("", [], {})})
    for key in keys:
        if key not in source or _renders_as(text, without(chat, key), render):
            yield key
    if chat.tools and ("tools" not in source or _renders_as(text, replace(chat, tools=None), render)):
        yield "tools"


def _renders_as(text: str, chat: Chat, render: RenderChat) -> bool:
    """Whether a chat renders as this text. One that the template refuses does not: it may insist on what is missing."""
    try:
        return render(chat) == text
    except BadRecord:
        return False


def without(chat: Chat, key: str) -> Chat:
    return replace(chat, messages=[{k: v for k, v in message.items() if k != key} for message in chat.messages])
