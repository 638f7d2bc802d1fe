"""Pairs of two texts: what is asked and what is to be answered, under the names that data sets give them."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..records import BadRecord, Chat, Completion
from .fields import optional, string, weight

CONTEXTS = ("input", "context")     # Alpaca's and Dolly's names for what an instruction is about
SYSTEMS = ("system", "system_prompt")


@dataclass(frozen=True)
class PairShape:
    """Two keys with a text each.

    is_instruction   the first is an instruction or a question that a blank line parts from what it is about
    """

    asked: str
    answered: str
    is_instruction: bool = True

    @property
    def keys(self) -> tuple[str, ...]:
        return self.asked, self.answered

    def fits(self, value: Mapping[str, Any]) -> bool:
        return True

    def parse(self, value: Mapping[str, Any]) -> Completion | Chat:
        prompt, completion = string(value, self.asked), string(value, self.answered)
        if self.is_instruction:
            about = optional(value, *(key for key in CONTEXTS if key not in self.keys))
            prompt = f"{prompt}\n\n{about}" if about and prompt else prompt or about
        if value.get("history"):
            return with_history(value["history"], prompt, completion, optional(value, *SYSTEMS), weight(value))
        return Completion(prompt, completion, optional(value, *SYSTEMS), self.is_instruction, weight(value))


PAIRS = (
    PairShape("prompt", "completion", is_instruction=False), PairShape("prompt", "response", is_instruction=False),
    PairShape("instruction", "output"), PairShape("instruction", "response"), PairShape("instruction", "completion"),
    PairShape("question", "answer"), PairShape("question", "response"), PairShape("query", "response"),
    PairShape("query", "answer"), PairShape("input", "output"),
)


def with_history(history: Any, prompt: str, completion: str, system: str, factor: float) -> Chat:
    """LLaMA-Factory's [[question, answer], ...] before the pair itself. All answers are trained on."""
    is_pairs = isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history)
    if not is_pairs:
        raise BadRecord("'history' is not a list of pairs of texts")
    messages = [{"role": "system", "content": system}] if system else []
    for asked, answered in [*history, [prompt, completion]]:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    return Chat(messages, [float(message["role"] == "assistant") for message in messages], weight=factor)
