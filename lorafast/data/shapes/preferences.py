"""Data that says which of two answers is better, or whether one is good. SFT must not train on the worse ones."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..records import Preference


class PreferencePair:
    """{"prompt": ..., "chosen": ..., "rejected": ...}; the prompt may be part of both."""

    keys = ("chosen", "rejected")

    def fits(self, value: Mapping[str, Any]) -> bool:
        return True

    def parse(self, value: Mapping[str, Any]) -> Preference:
        return Preference(value.get("prompt"), value["chosen"], value["rejected"])


class JudgedAnswer:
    """{"prompt": ..., "completion": ..., "label": true or false}"""

    keys = ("prompt", "completion", "label")

    def fits(self, value: Mapping[str, Any]) -> bool:
        return isinstance(value["label"], bool)

    def parse(self, value: Mapping[str, Any]) -> Preference:
        answer = value["completion"]
        return Preference(value["prompt"], *((answer, None) if value["label"] else (None, answer)))
