"""Training records as people write them: JSON objects of a few known shapes, one a line or in one array.

    {"text": "..."}
    {"prompt": "...", "completion": "..."}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}    OpenAI
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}        ShareGPT
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import LoraFastError
from .json_array import array_items

BOM = b"\xef\xbb\xbf"

_HEAD_BYTES = 1 << 16
"""By so much of its beginning a file is recognised."""

_SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant",
    "model": "assistant", "assistant": "assistant", "tool": "tool", "function": "tool", "observation": "tool",
    "function_call": "assistant",
}


class BadRecord(Exception):
    """Why a line cannot be trained on."""


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Completion:
    prompt: str
    completion: str


@dataclass(frozen=True)
class Chat:
    """messages as templates expect them; trained[i]: message i is the assistant's, not excluded by `"weight": 0`."""

    messages: list[dict[str, Any]]
    trained: list[bool]
    tools: list[Any] | None = None


Record = Text | Completion | Chat


def is_json(path: str) -> bool:
    """Whether a file holds records: its name says so, it begins with an array of objects, or it begins with a brace and
    has an object in one of its first lines.

    LoraFastError when it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise LoraFastError(f"cannot read training data '{path}': {error.strerror}") from None
    if path.lower().endswith((".jsonl", ".ndjson")):
        return True
    head = head.removeprefix(BOM).lstrip()
    if re.match(rb"""\[\s*\{\s*["}]""", head):
        return True
    is_cut = len(head) > _HEAD_BYTES // 2 and b"\n" not in head     # one line fills all that was read
    return head.startswith(b"{") and (is_cut or any(_is_object(line) for line in head.splitlines()[:10]))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


Advance = Callable[[int], object]


def read_records(path: str, advance: Advance = lambda n: None) -> Iterator[tuple[int, Record | BadRecord]]:
    """The records of a file, with their line numbers (in an array: their numbers), or what is wrong with a line.

    They are read one after the other. `advance` is told the bytes that were read. LoraFastError when the file cannot be
    read, or an array in it is broken.
    """
    for number, value in _read_values(path, advance):
        if not isinstance(value, BadRecord):
            try:
                value = parse_record(value)
            except BadRecord as error:
                value = error
        yield number, value


def _read_values(path: str, advance: Advance) -> Iterator[tuple[int, Any]]:
    try:
        with open(path, "rb", _HEAD_BYTES) as file:
            if file.peek().removeprefix(BOM).lstrip().startswith(b"["):
                yield from enumerate(array_items(file, path, advance), 1)
                return
            for number, line in enumerate(file, 1):
                advance(len(line))
                line = line.removeprefix(BOM) if number == 1 else line
                if line.strip():
                    yield number, _parse(line.rstrip())
    except OSError as error:
        raise LoraFastError(f"cannot read training data '{path}': {error.strerror}") from None


def _parse(data: bytes) -> Any:
    """The JSON value; BadRecord instead where it is none."""
    try:
        return json.loads(data.decode())
    except UnicodeDecodeError as error:
        return BadRecord(f"not UTF-8 at byte {error.start + 1} of the line")
    except json.JSONDecodeError as error:
        return BadRecord(f"not valid JSON: {error.msg} at column {error.colno}")
    except (ValueError, RecursionError) as error:       # a number of too many digits, too deep a nesting
        return BadRecord(f"not usable JSON: {error}")


def parse_record(value: Any) -> Record:
    """The record that a JSON value means. Raises BadRecord."""
    if not isinstance(value, dict):
        raise BadRecord(f"an object like {{\"text\": ...}} is expected, not {_kind(value)}")
    if "messages" in value:
        return _chat(value, "messages", "role", "content")
    if "conversations" in value:
        turns = value["conversations"]
        openai_style = isinstance(turns, list) and turns and isinstance(turns[0], dict) and "role" in turns[0]
        return _chat(value, "conversations", *(("role", "content") if openai_style else ("from", "value")))
    if "prompt" in value and "completion" in value:
        return Completion(_string(value, "prompt"), _string(value, "completion"))
    if "text" in value:
        text = _string(value, "text")
        if not text:
            raise BadRecord("its text is empty")
        return Text(text)
    keys = ", ".join(map(repr, list(value)[:6])) or "none"
    raise BadRecord(f"its keys are {keys}; known are 'text', 'prompt' with 'completion', 'messages', 'conversations'")


def _chat(value: dict[str, Any], key: str, role_key: str, content_key: str) -> Chat:
    turns = value[key]
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise BadRecord(f"'{key}' is not a list of messages")
    messages, trained = [], []
    if isinstance(value.get("system"), str) and value["system"]:          # ShareGPT's place for it
        messages.append({"role": "system", "content": value["system"]})
        trained.append(False)
    for number, turn in enumerate(turns, 1):
        try:
            message = _message(turn, role_key, content_key)
        except BadRecord as error:
            raise BadRecord(f"message {number}: {error}") from None
        trained.append(message["role"] == "assistant" and message.pop("weight", 1) != 0)
        messages.append(message)
    if not any(message["role"] == "assistant" for message in messages):
        raise BadRecord("it has no message of the assistant")
    tools = value.get("tools")
    return Chat(messages, trained, tools if isinstance(tools, list) else None)


def _message(turn: dict[str, Any], role_key: str, content_key: str) -> dict[str, Any]:
    """One message in OpenAI's spelling. Keys that are not known are left in: templates may use them."""
    role = _string(turn, role_key)
    if role_key == "from":
        if role not in _SHAREGPT_ROLES:
            raise BadRecord(f"'from' is {role!r}; known are {', '.join(_SHAREGPT_ROLES)}")
        role = _SHAREGPT_ROLES[role]
    content = turn.get(content_key)
    if isinstance(content, list):
        content = "".join(_text_part(part) for part in content)
    elif content is None and turn.get("tool_calls"):
        content = ""
    elif not isinstance(content, str):
        content = _string(turn, content_key)
    others = {key: item for key, item in turn.items() if key not in (role_key, content_key)}
    return {"role": role, "content": content, **others}


def _text_part(part: Any) -> str:
    if isinstance(part, dict) and part.get("type") == "text":
        return _string(part, "text")
    raise BadRecord("its content has a part that is not text")


def _string(value: dict[str, Any], key: str) -> str:
    if key not in value:
        raise BadRecord(f"'{key}' is missing")
    if not isinstance(value[key], str):
        raise BadRecord(f"'{key}' is not a string but {_kind(value[key])}")
    return value[key]


def _kind(value: Any) -> str:
    """What JSON calls a value of this kind."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return {dict: "an object", list: "an array", str: "a string"}.get(type(value), "a number")
