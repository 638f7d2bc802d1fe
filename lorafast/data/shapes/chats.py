"""Conversations, as OpenAI, ShareGPT and TRL write them."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..records import BadRecord, Chat
from .fields import kind, optional, parsed, string, weight
from .pairs import SYSTEMS
from .roles import ASSISTANT, ROLES, role_of
from .tools import call_of_text, tool_calls, tools_of

FLAGS = ("weight", "train", "training", "loss")
"""Keys by which a message says whether it counts in the loss: OpenAI's, axolotl's, and ms-swift's."""


class Messages:
    """A list of messages under one key, `messages` or `conversations`."""

    def __init__(self, key: str) -> None:
        self.keys = (key,)

    def fits(self, value: Mapping[str, Any]) -> bool:
        return True

    def parse(self, value: Mapping[str, Any]) -> Chat:
        key, = self.keys
        return chat_of(message_list(value[key], key), value)


class ConversationalPair:
    """TRL's pair of two lists of messages. Only what the second says counts in the loss."""

    def __init__(self, answered: str) -> None:
        self.keys = ("prompt", answered)

    def fits(self, value: Mapping[str, Any]) -> bool:
        return isinstance(value["prompt"], list)

    def parse(self, value: Mapping[str, Any]) -> Chat:
        asked, answered = self.keys
        prompt, completion = message_list(value[asked], asked), value[answered]
        if isinstance(completion, str):
            completion = [{"role": ASSISTANT, "content": completion}]
        chat = chat_of(prompt + message_list(completion, answered), value)
        n_before = len(chat.messages) - len(completion)
        weights = [weight if i >= n_before else 0.0 for i, weight in enumerate(chat.weights)]
        return Chat(chat.messages, weights, chat.tools, chat.template_kwargs, chat.weight)


def message_list(turns: Any, key: str) -> list[dict[str, Any]]:
    """The messages under a key, which tables (CSV) hold as JSON. Raises BadRecord."""
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        turns = parsed(turns, key)
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise BadRecord(f"'{key}' is not a list of messages")
    return turns


def chat_of(turns: list[dict[str, Any]], value: Mapping[str, Any]) -> Chat:
    """The chat of these turns, with what else the record says about it. Raises BadRecord."""
    messages, weights = [], []
    system = optional(value, *SYSTEMS)          # ShareGPT's place for it
    if system:
        messages.append({"role": "system", "content": system})
        weights.append(0.0)
    for number, turn in enumerate(turns, 1):
        try:
            message, factor = read_message(turn)
        except BadRecord as error:
            raise BadRecord(f"message {number}: {error}") from None
        messages.append(message)
        weights.append(factor)
    roles = {message["role"] for message in messages}
    if ASSISTANT not in roles:
        unknown = sorted(roles - {*ROLES.values()})
        found = ", ".join(map(repr, sorted(roles)))
        names = f"; its roles are {found}, but lorafast knows {', '.join(ROLES)}" if unknown else ""
        raise BadRecord(f"it has no message of the assistant{names}")
    kwargs = value.get("chat_template_kwargs") or {}
    if isinstance(kwargs, str):
        kwargs = parsed(kwargs, "chat_template_kwargs")
    if not isinstance(kwargs, dict):
        raise BadRecord(f"'chat_template_kwargs' is not an object but {kind(kwargs)}")
    return Chat(messages, weights, tools_of(value), kwargs, weight(value))


def read_message(turn: Mapping[str, Any]) -> tuple[dict[str, Any], float]:
    """One message in OpenAI's spelling, and the factor of its loss. Raises BadRecord.

    Keys that are not known are left in, as templates may use them. Those that hold null are left out: tables fill up
    with them what a message does not have.
    """
    sharegpt = "role" not in turn and "from" in turn
    role_key, content_key = ("from", "value") if sharegpt else ("role", "content")
    given = string(turn, role_key)
    role = role_of(given)
    if sharegpt and role not in ROLES.values():
        raise BadRecord(f"'from' is {given!r}, but lorafast knows {', '.join(ROLES)}")
    message = {"role": role, "content": "", **{
        key: item for key, item in turn.items() if key not in (role_key, content_key, *FLAGS) and item is not None}}
    calls = tool_calls(message)
    content = content_of(turn, content_key, may_be_empty=bool(calls))
    if given.lower() in ("function_call", "tool_call"):
        call = call_of_text(content)
        calls, content = ([call], "") if call else (calls, content)
    message["content"] = content
    if calls:
        message["tool_calls"] = calls
    flags = [turn[key] for key in FLAGS[1:] if turn.get(key) is not None]
    return message, weight(turn) if role == ASSISTANT and all(flags) else 0.0


def content_of(turn: Mapping[str, Any], key: str, *, may_be_empty: bool) -> str:
    """What a message says. Raises BadRecord."""
    content = turn.get(key)
    if isinstance(content, list):
        return "".join(_text_part(part) for part in content)
    if content is None and may_be_empty:
        return ""
    return string(turn, key)


def _text_part(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text":
        return string(part, "text")
    raise BadRecord("its content has a part that is not text")
