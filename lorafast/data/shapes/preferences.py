"""Data that says which of two answers is better, or whether one is good, as TRL has it."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..records import BadRecord, Chat, Completion, Preference
from .chats import ConversationalPair
from .fields import kind, weight
from .pairs import PairShape

CHAT, PAIR = ConversationalPair("completion"), PairShape("prompt", "completion", is_instruction=False)
LABELS = {"true": True, "false": False}
"""Spelt so where a table (CSV) has no truth values."""


class PreferencePair:
    """{"prompt": ..., "chosen": ..., "rejected": ...}; without a prompt it is what both begin with."""

    keys = ("chosen", "rejected")

    def fits(self, value: Mapping[str, Any]) -> bool:
        return True

    def parse(self, value: Mapping[str, Any]) -> Preference:
        prompt, chosen, rejected = (value.get(key) for key in ("prompt", "chosen", "rejected"))
        if chosen == rejected:
            raise BadRecord("'chosen' and 'rejected' are the same")
        if type(chosen) is not type(rejected):
            raise BadRecord(f"'chosen' is {kind(chosen)}, but 'rejected' {kind(rejected)}")
        if prompt is None or (isinstance(prompt, str) and isinstance(chosen, list)):
            shared, chosen, rejected = without_prompt(chosen, rejected)
            prompt = shared or ([{"role": "user", "content": prompt}] if prompt else shared)
        return Preference(side(value, prompt, chosen, "chosen"), side(value, prompt, rejected, "rejected"),
                          weight(value))


class JudgedAnswer:
    """{"prompt": ..., "completion": ..., "label": true or false}"""

    keys = ("prompt", "completion", "label")

    def fits(self, value: Mapping[str, Any]) -> bool:
        return isinstance(value["label"], bool) or str(value["label"]).lower() in LABELS

    def parse(self, value: Mapping[str, Any]) -> Preference:
        label = value["label"]
        is_good = label if isinstance(label, bool) else LABELS[label.lower()]
        answer = side(value, value["prompt"], value["completion"], "completion")
        chosen, rejected = (answer, None) if is_good else (None, answer)
        return Preference(chosen, rejected, weight(value))


def without_prompt(chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """What both begin with, messages or characters (but not a space at its end), and the rest of each."""
    if not isinstance(chosen, (str, list)):
        raise BadRecord(f"'chosen' is neither a string nor a list of messages but {kind(chosen)}")
    n = next((i for i, (a, b) in enumerate(zip(chosen, rejected)) if a != b), min(len(chosen), len(rejected)))
    if isinstance(chosen, str) and chosen[:n].endswith(" "):
        n -= 1
    return chosen[:n], chosen[n:], rejected[n:]


def side(value: Mapping[str, Any], prompt: Any, answer: Any, key: str) -> Completion | Chat:
    """A prompt with one answer, as a record to train on. Raises BadRecord."""
    texts = [answer] if isinstance(answer, str) else answer if isinstance(answer, list) else None
    if texts is None:
        raise BadRecord(f"'{key}' is neither a string nor a list of messages but {kind(answer)}")
    if all(text == "" or (isinstance(text, dict) and text.get("content") in ("", None) and not text.get("tool_calls"))
           for text in texts):
        raise BadRecord(f"'{key}' is empty")
    if isinstance(answer, list) and isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}] if prompt else []
    whole = {**value, "prompt": prompt, "completion": answer}
    if not isinstance(prompt, list):
        return PAIR.parse(whole)
    if not prompt:
        raise BadRecord("it has no prompt: 'chosen' and 'rejected' begin differently")
    return CHAT.parse(whole)
