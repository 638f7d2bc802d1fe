"""Where in a rendered chat the answers stand: found by rendering the chat up to there and comparing, never by looking
for marks, which could occur in a message as well."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .records import BadRecord
from .rendered import Rendered, common_prefix

Messages = Sequence[Mapping[str, Any]]


class Render:
    """A template with what is the same in all renderings of one chat: tools, variables."""

    def __init__(self, render: Callable[..., str], messages: Messages) -> None:
        self._render, self.messages = render, messages

    def upto(self, n: int) -> str:
        """The first n messages."""
        return self._render(self.messages[:n])

    def asking(self, n: int) -> str:
        """The first n messages, and what precedes an answer."""
        return self._render(self.messages[:n], add_generation_prompt=True)

    def exchanged(self, i: int) -> str:
        """The messages up to message i, which says something else."""
        content = self.messages[i]["content"]
        other = next(letter for letter in "XYZ" if letter not in (content[:1], content[-1:]))
        return self._render([*self.messages[:i], {"role": self.messages[i]["role"], "content": other}])


@dataclass(frozen=True)
class Answer:
    """tokens[begin:end] of a rendering; ends: whether a token of the end-of-generation set closes it."""

    begin: int
    end: int
    ends: bool


def answer_begin(render: Render, i: int, text: str) -> int:
    """The character at which message i begins in the rendering `text` of messages[:i + 1]. Raises BadRecord.

    It begins where the rendering that asks for an answer ends; or, if that suggests another beginning than the answer
    has (an opened <think>), where the two part; or, if the template shows what precedes differently once an answer
    follows, where the text changes with what the answer says.
    """
    asking = render.asking(i)
    if text.startswith(asking):
        return len(asking)
    begin = common_prefix(asking, text)
    before = render.upto(i)
    if text.startswith(before) and begin >= len(before):
        return begin
    other = render.exchanged(i)
    if other != text and (begin := common_prefix(other, text)) < len(text):
        return begin
    raise BadRecord(f"message {i + 1}: the chat template does not show it, so that its tokens cannot be told apart; "
                    "train on all with --train-on-prompt, or use another --chat-template")


def answer_in(rendered: Rendered, begin: int, end: int, eog_ids: np.ndarray) -> Answer:
    """The tokens of an answer between two characters: up to its last end-of-generation token, or with the one that
    follows, where the next turn's mark is what ends an answer."""
    first, last = rendered.index(begin), rendered.index(end)
    ends = first + np.flatnonzero(np.isin(rendered.tokens[first:last], eog_ids))
    if len(ends):
        return Answer(first, int(ends[-1]) + 1, True)
    follows = last < len(rendered.tokens) and bool(np.isin(rendered.tokens[last], eog_ids))
    return Answer(first, last + follows, follows)
