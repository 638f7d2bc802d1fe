"""What a record means once it has been read: the few uniform types that all shapes of data become (shapes/)."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class BadRecord(Exception):
    """Why a record cannot be trained on."""


@dataclass(frozen=True)
class Text:
    """A text of which everything counts in the loss."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True)
class Tokens:
    """A text as token ids, to which nothing is added. All but the first count in the loss."""

    ids: list[int]
    weight: float = 1.0


@dataclass(frozen=True)
class Completion:
    """A prompt and what is to follow it.

    system          what a chat would begin with; may be empty
    is_instruction  the prompt is an instruction or a question, not a text that the completion continues
    """

    prompt: str
    completion: str
    system: str = ""
    is_instruction: bool = False
    weight: float = 1.0


@dataclass(frozen=True)
class Chat:
    """A conversation, in the form that templates expect.

    messages         {"role": ..., "content": ..., and what else a template may show}
    weights          factor of the loss of each message: 0 where it is not the assistant's, or excluded
    tools            descriptions of functions, in OpenAI's form
    template_kwargs  variables for the template
    """

    messages: list[dict[str, Any]]
    weights: list[float]
    tools: list[Any] | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True)
class Preference:
    """A better and a worse answer to the same prompt, each with it.

    Of data that judges single answers one of the two is None.
    """

    chosen: Completion | Chat | None
    rejected: Completion | Chat | None
    weight: float = 1.0


Record = Text | Tokens | Completion | Chat | Preference
