"""From a record to token sequences, and which of their tokens the loss counts: what the model itself is to write.

Where the model's part begins and ends is found by rendering the conversation up to there and comparing tokens with the
whole; the text is never searched for marks, which could occur in a message as well.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ..errors import TemplateRefusal
from .records import BadRecord, Chat, Completion, Record, Text


class SpecialTokens(Protocol):
    """What is needed of a tokenizer."""

    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    eog_ids: frozenset[int]     # the tokens at which generation stops

    def encode(self, text: str | bytes, *, add_special: bool = False, parse_special: bool = False) -> np.ndarray: ...


class Template(Protocol):
    """A chat template, chat_template.ChatTemplate."""

    name: str

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False,
               tools: Sequence[Mapping[str, Any]] | None = None) -> str: ...


SPLIT = ("chats of which each answer became a sample of its own, as the chat template shows earlier turns differently "
         "once others follow")
UNTRAINED = "answers that begin a chat, after no message, and are not trained on"
ENDLESS = "answers that are not trained to end, as the chat template puts no end-of-turn token after them"
MERGED = ("prompts that are tokenised otherwise when their completion follows (better end them before a space than "
          "after it)")


class SequenceEncoder:
    """Makes token sequences of records.

    notes   Counter of what the user should know, by the sentences above
    """

    def __init__(self, tokenizer: SpecialTokens, load_template: Callable[[], Template], *,
                 train_on_prompt: bool = False) -> None:
        """
        load_template     called when the first chat comes
        train_on_prompt   every token counts
        """
        self.tokenizer, self._load_template, self.train_on_prompt = tokenizer, load_template, train_on_prompt
        self.notes: Counter[str] = Counter()

    @cached_property
    def template(self) -> Template:
        return self._load_template()

    def encode(self, record: Record) -> list[np.ndarray]:
        """The sequences of a record, int32; a token that does not count in the loss appears as its complement, ~token.

        Usually one; more for a chat whose template shows a turn differently once others follow. Raises BadRecord.
        """
        match record:
            case Text(text):
                sequences = [self._with_ends(self.tokenizer.encode(text))]
            case Completion(prompt, completion):
                sequences = [self._completion(prompt, completion)]
            case Chat():
                sequences = self._chat(record)
        if min(map(len, sequences)) < 2:
            raise BadRecord("it is a single token, which follows nothing")
        return sequences

    def _with_ends(self, tokens: np.ndarray) -> np.ndarray:
        """[BOS] tokens EOS, with BOS if the model wants it."""
        bos = [self.tokenizer.bos_id] if self.tokenizer.add_bos else []
        eos = [self.tokenizer.eos_id] if self.tokenizer.eos_id is not None else []
        return np.concatenate([np.array(bos, np.int32), tokens, np.array(eos, np.int32)])

    def _completion(self, prompt: str, completion: str) -> np.ndarray:
        tokens = self.tokenizer.encode(prompt + completion)
        sequence = self._with_ends(tokens)
        if self.train_on_prompt:
            return sequence
        prompt_tokens = self.tokenizer.encode(prompt)
        begin = prefix_end(prompt_tokens, tokens, self.tokenizer.encode(completion))
        self.notes[MERGED] += not np.array_equal(prompt_tokens, tokens[:begin])
        return masked(sequence, [(begin + bool(self.tokenizer.add_bos), len(sequence))])

    def _chat(self, chat: Chat) -> list[np.ndarray]:
        if self.train_on_prompt:
            return [self._render(chat, len(chat.messages))[1]]
        if chat.trained[0]:
            self.notes[UNTRAINED] += 1
        turns = [i for i, trained in enumerate(chat.trained) if trained and i > 0]
        if not turns:
            raise BadRecord("it has no answer of the assistant to train on")
        whole_text, whole = self._render(chat, len(chat.messages))
        spans, own_samples = [], []
        for i in turns:
            text, sequence = self._render(chat, i + 1)
            begin, end = self._answer(chat, i, text, sequence)
            own_samples.append(masked(sequence, [(begin, end)]))
            end = min(end, n_common(sequence, whole)) if whole_text.startswith(text) else end
            spans.append((begin, end))
            is_prefix = np.array_equal(sequence[:end], whole[:end])
            if not is_prefix:
                break
        if is_prefix:
            return [masked(whole, spans)]
        for i in turns[len(own_samples):]:
            text, sequence = self._render(chat, i + 1)
            own_samples.append(masked(sequence, [self._answer(chat, i, text, sequence)]))
        self.notes[SPLIT] += 1
        return own_samples

    def _answer(self, chat: Chat, i: int, text: str, sequence: np.ndarray) -> tuple[int, int]:
        """Where in the rendering of messages[:i + 1], given as text and tokens, the answer messages[i] begins and ends.

        It begins where the rendering that asks for an answer ends, or, if that suggests another beginning than the
        answer has (an opened <think>), where the two part. It ends after its end-of-turn token.
        """
        asking_text, asking = self._render(chat, i, add_generation_prompt=True)
        if text.startswith(asking_text):
            rest = self.tokenizer.encode(text[len(asking_text):], parse_special=True)
            begin = prefix_end(asking, sequence, rest)
        else:
            begin = n_common(asking, sequence)
            before_text, before = self._render(chat, i)
            if not text.startswith(before_text) or begin < n_common(before, sequence):
                raise BadRecord(f"message {i + 1}: {self.template.name} shows what precedes an answer differently once "
                                "the answer follows, so that the answer's tokens cannot be told apart; train on all "
                                "with --train-on-prompt, or use another --chat-template")
        ends = begin + np.flatnonzero(np.isin(sequence[begin:], list(self.tokenizer.eog_ids)))
        self.notes[ENDLESS] += not len(ends)
        return begin, int(ends[-1]) + 1 if len(ends) else len(sequence)

    def _render(self, chat: Chat, n_messages: int, *, add_generation_prompt: bool = False) -> tuple[str, np.ndarray]:
        """Text and tokens of the first messages."""
        try:
            text = self.template.render(chat.messages[:n_messages], add_generation_prompt=add_generation_prompt,
                                        tools=chat.tools)
        except TemplateRefusal as error:
            raise BadRecord(str(error)) from None
        return text, chat_tokens(text, self.tokenizer)


def chat_tokens(text: str, tokenizer: SpecialTokens) -> np.ndarray:
    """The tokens of what a chat template rendered: with BOS if the model wants it and the template left it out."""
    tokens = tokenizer.encode(text, parse_special=True)
    if tokenizer.add_bos and (not len(tokens) or tokens[0] != tokenizer.bos_id):
        tokens = np.concatenate([np.array([tokenizer.bos_id], np.int32), tokens])
    return tokens


def masked(sequence: np.ndarray, spans: list[tuple[int, int]]) -> np.ndarray:
    """The sequence up to the last token that counts: tokens inside a span [begin, end) as they are, others ~token."""
    marked = ~sequence
    for begin, end in spans:
        marked[begin:end] = sequence[begin:end]
    return marked[:max(end for _, end in spans)]


def prefix_end(prefix: np.ndarray, whole: np.ndarray, rest: np.ndarray) -> int:
    """Where in the tokens of a whole text, of which the tokens of both parts are given, the first part ends.

    Tokens can join over the border. If the whole does not begin with the first part's tokens, it may still end with the
    second part's; else the tokens that neither has belong to the second part.
    """
    n = n_common(prefix, whole)
    if n < len(prefix) and np.array_equal(whole[len(whole) - len(rest):], rest):
        return len(whole) - len(rest)
    return n


def n_common(a: np.ndarray, b: np.ndarray) -> int:
    """Number of tokens with which both begin."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
