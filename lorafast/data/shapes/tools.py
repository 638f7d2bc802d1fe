"""Functions that a model may call, and its calls, brought into OpenAI's form, which chat templates expect.

Data sets keep both as JSON strings where their columns must have one type.
"""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..records import BadRecord
from .fields import parsed


def tools_of(value: Mapping[str, Any]) -> list[Any] | None:
    """The tools of a record: [{"type": "function", "function": {...}}, ...]. Raises BadRecord."""
    tools = value.get("tools")
    if isinstance(tools, str):
        tools = parsed(tools, "tools") if tools.strip() else None
    if not tools:
        return None
    if not isinstance(tools, list):
        raise BadRecord("'tools' is not a list of functions")
    return [_wrapped(parsed(tool, "tools") if isinstance(tool, str) else tool) for tool in tools]


def tool_calls(message: dict[str, Any]) -> list[Any]:
    """Takes the calls out of a message: [{"type": "function", "function": {"name": ..., "arguments": {...}}}, ...].

    Raises BadRecord.
    """
    calls = message.pop("tool_calls", None) or message.pop("function_call", None)
    if isinstance(calls, str):
        calls = parsed(calls, "tool_calls")
    if isinstance(calls, dict):         # OpenAI's older form
        calls = [calls]
    if not calls:
        return []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise BadRecord("'tool_calls' is not a list of calls")
    return [_with_arguments(_wrapped(call)) for call in calls]


def call_of_text(text: str) -> dict[str, Any] | None:
    """The call that a message of ShareGPT's role `function_call` spells; None where it spells something else."""
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _with_arguments(_wrapped(call)) if isinstance(call, dict) and "name" in call else None


def _wrapped(function: Any) -> Any:
    """A bare {"name": ...} inside {"type": "function", "function": ...}; anything else as it is."""
    is_bare = isinstance(function, dict) and "name" in function and "function" not in function
    if is_bare and function.get("type", "function") == "function":
        return {"type": "function", "function": function}
    return function


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    """The call with arguments as an object where they were its text."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"] or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}}
