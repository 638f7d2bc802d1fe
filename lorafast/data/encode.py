"""From a record to token sequences, and which of their tokens the loss counts: what the model itself is to write."""
from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np

from ..errors import TemplateRefusal
from .answers import Answer, Render, answer_begin, answer_in
from .preferences import preference_rows
from .records import BadRecord, Chat, Completion, Record, Text, Tokens
from .rendered import Rendered
from .samples import Row
from .shown import iterates_tools, not_shown, wants_text_arguments, with_system_in_user, with_text_arguments
from .tokens import SpecialTokens, masked, span_weights


class Template(Protocol):
    """A chat template, chat_template.ChatTemplate."""

    source: str
    name: str

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False,
               tools: Sequence[Mapping[str, Any]] | None = None, variables: Mapping[str, Any] | None = None) -> str: ...


SPLIT = ("chats of which each answer became a sample of its own, as the chat template shows earlier turns differently "
         "once others follow")
UNTRAINED = "answers that begin a chat, with no message before them, and are not trained on"
ENDLESS = "answers that are not trained to end, as the chat template puts no end-of-turn token after them"
MERGED = ("prompts whose tokens change when their completion follows (let a prompt end before a space, not after it)")
SPECIALS = "texts that spell out special tokens, which are read as special tokens"
AS_CHATS = "pairs rendered as chats by the chat template (--raw-pairs trains on them as they are)"
SYSTEM = "chats whose system message was put into the first user message, as the chat template has no place for it"
HIDDEN = "chats with '{}', which the chat template does not show"
EMPTY = "answers that are not trained on, as the chat template shows nothing of them"
WEIGHTS = "records with weights other than 0 and 1, which multiply their losses"
WEIGHTLESS = "records of weight 0, which are left out"
AS_MEANT = (AS_CHATS, SPECIALS, WEIGHTS, WEIGHTLESS)
"""The sentences that tell what is done with records as they are meant; the others are warnings."""

INSTRUCTION = ("Below is an instruction that describes a task. Write a response that appropriately completes the "
               "request.")
"""Alpaca's prompt (Taori et al., 2023), for models without a chat template."""


class SequenceEncoder:
    """Makes token sequences of records.

    notes   Counter of what the user should know, by the sentences above
    """

    def __init__(self, tokenizer: SpecialTokens, load_template: Callable[[], Template], *,
                 train_on_prompt: bool = False, pairs_as_chats: bool = False, method: str = "sft") -> None:
        """
        load_template     called when the first chat comes
        train_on_prompt   every token counts
        pairs_as_chats    prompts and completions are rendered as chats, unless they are rendered already
        method            what is trained by: of all but sft records are preferences
        """
        self.tokenizer, self._load_template = tokenizer, load_template
        self.train_on_prompt, self.pairs_as_chats, self.method = train_on_prompt, pairs_as_chats, method
        self.notes: Counter[str] = Counter()
        self._eog_ids = np.array(sorted(tokenizer.eog_ids), np.int32)

    @cached_property
    def template(self) -> Template:
        return self._load_template()

    @cached_property
    def _is_control(self) -> np.ndarray:
        """Whether each token is a control token, bool (n_vocab,)."""
        return np.array([self.tokenizer.is_control(token) for token in range(self.tokenizer.n_vocab)], bool)

    @cached_property
    def _marks(self) -> list[str]:
        return [self.tokenizer.token_text(int(token)) for token in np.flatnonzero(self._is_control)]

    def encode(self, record: Record) -> list[np.ndarray]:
        """The sequences of `rows`, without their weights."""
        return [row.stored for row in self.rows(record)]

    def rows(self, record: Record) -> list[Row]:
        """The sequences of a record, int32, with the factors of their losses; a token that does not count in the loss
        appears as its complement, ~token.

        Usually one; more for a chat whose template shows a turn differently once others follow. Raises BadRecord.
        """
        if 0 in weights_of(record)[:1]:
            self.notes[WEIGHTLESS] += 1
            return []
        if self.method != "sft":
            rows = preference_rows(record, self.method, self._rows)
        else:
            rows = self._rows(record)
        if any(weight not in (0, 1) for weight in weights_of(record)):
            self.notes[WEIGHTS] += 1
        if min(len(row.stored) for row in rows) < 2:
            raise BadRecord("it is a single token: nothing precedes it from which it could be predicted")
        return rows

    def _rows(self, record: Record) -> list[Row]:
        match record:
            case Text(text):
                tokens = self._with_ends(text, self._special(Rendered(text, self.tokenizer)).tokens)
                return [self._counting_everywhere(tokens, record.weight)]
            case Tokens(ids):
                return [self._counting_everywhere(self._checked(ids), record.weight)]
            case Completion():
                return self._completion(record)
            case Chat():
                return self._chat(record)
        raise BadRecord("it is a preference (chosen and rejected, or a label), not a text to train on; train on it "
                        "with --method dpo (or kto), or keep what is good: jq -c '{prompt, completion: .chosen}' "
                        "IN.jsonl > OUT.jsonl")

    def _checked(self, ids: Sequence[int]) -> np.ndarray:
        """The ids as they are, int32. Raises BadRecord for one that is not in the vocabulary."""
        if not all(type(token) is int and 0 <= token < self.tokenizer.n_vocab for token in ids):
            raise BadRecord(f"'token_ids' must be whole numbers from 0 to {self.tokenizer.n_vocab - 1}")
        return np.array(ids, np.int32)

    @staticmethod
    def _counting_everywhere(tokens: np.ndarray, weight: float) -> Row:
        return Row(tokens, span_weights(len(tokens), [(0, len(tokens))], [weight]))

    @staticmethod
    def _counting_in(tokens: np.ndarray, spans: list[tuple[int, int]], weights: list[float]) -> Row:
        stored = masked(tokens, spans)
        return Row(stored, span_weights(len(stored), spans, weights))

    # ----------------------------------------------------------------------------------------------- texts and pairs

    def _special(self, rendered: Rendered) -> Rendered:
        """The same text, counted where it spells out special tokens."""
        self.notes[SPECIALS] += bool(self._is_control[rendered.tokens].any())
        return rendered

    def _with_ends(self, text: str, tokens: np.ndarray) -> np.ndarray:
        """[BOS] tokens EOS, without what the text spells out itself; with BOS if the model wants it."""
        tokenizer, ends = self.tokenizer, []
        n_space = len(tokenizer.encode(text[len(text.rstrip()):])) if text[-1:].isspace() else 0
        ended = len(tokens) > n_space and int(tokens[len(tokens) - n_space - 1]) in tokenizer.eog_ids
        bos = [tokenizer.bos_id] if tokenizer.add_bos and not self._begins_with_bos(tokens) else []
        if tokenizer.eos_id is not None and not ended:
            ends = [tokenizer.eos_id]
        return np.concatenate([np.array(bos, np.int32), tokens, np.array(ends, np.int32)])

    def _begins_with_bos(self, tokens: np.ndarray) -> bool:
        return len(tokens) > 0 and tokens[0] == self.tokenizer.bos_id

    def _completion(self, pair: Completion) -> list[Row]:
        if self.pairs_as_chats and not self._is_rendered(pair):
            self.notes[AS_CHATS] += 1
            return self._chat(as_chat(pair))
        prompt = prompt_text(pair)
        text = prompt + pair.completion
        rendered = self._special(Rendered(text, self.tokenizer))
        begin, is_border, tokens = rendered.index(len(prompt)), rendered.is_border(len(prompt)), rendered.tokens
        del rendered        # its text may be long
        sequence = self._with_ends(text, tokens)
        if self.train_on_prompt:
            return [self._counting_everywhere(sequence, pair.weight)]
        self.notes[MERGED] += not is_border
        n_bos = bool(self.tokenizer.add_bos) and not self._begins_with_bos(tokens)
        del tokens
        return [self._counting_in(sequence, [(begin + n_bos, len(sequence))], [pair.weight])]

    def _is_rendered(self, pair: Completion) -> bool:
        """Whether special tokens are spelt out in it: a template has been there before."""
        return any(mark in pair.prompt or mark in pair.completion for mark in self._marks)

    # --------------------------------------------------------------------------------------------------------- chats

    def _chat(self, chat: Chat) -> list[Row]:
        chat, text = self._fitted(chat)
        whole = Rendered(text, self.tokenizer, add_bos=self.tokenizer.add_bos)
        if self.train_on_prompt:
            return [self._counting_everywhere(whole.tokens, chat.weight)]
        self.notes[UNTRAINED] += chat.weights[0] > 0
        turns = [i for i, weight in enumerate(chat.weights) if weight > 0 and i > 0]
        if not turns:
            raise BadRecord("its only answer of the assistant comes first, and answers nothing"
                            if chat.weights[0] > 0 else "it has no answer of the assistant to train on")
        render = Render(partial(self._render, chat), chat.messages)
        answers = self._answers_in_whole(render, whole, turns)
        if answers is not None:
            self.notes[ENDLESS] += sum(not answer.ends for answer in answers)
            return [self._counting_in(whole.tokens, [(answer.begin, answer.end) for answer in answers],
                                      [chat.weight * chat.weights[i] for i in turns])]
        self.notes[SPLIT] += 1
        return [self._own_sample(render, i, chat.weight * chat.weights[i]) for i in turns]

    def _answers_in_whole(self, render: Render, whole: Rendered, turns: list[int]) -> list[Answer] | None:
        """Where the answers stand in the whole chat; None where one of them is shown differently by itself."""
        answers = []
        for i in turns:
            is_last = i + 1 == len(render.messages)
            text = whole.text if is_last else render.upto(i + 1)
            begin = answer_begin(render, i, text)
            if whole.text.startswith(text):
                answers.append(answer_in(whole, begin, len(text), self._eog_ids))
                continue
            own = Rendered(text, self.tokenizer, add_bos=self.tokenizer.add_bos)
            answer = answer_in(own, begin, len(text), self._eog_ids)
            if not np.array_equal(own.tokens[:answer.end], whole.tokens[:answer.end]):
                return None
            answers.append(answer)
        return answers

    def _own_sample(self, render: Render, i: int, weight: float) -> Row:
        """The chat up to message i, of which only that counts, times its weight."""
        text = render.upto(i + 1)
        own = Rendered(text, self.tokenizer, add_bos=self.tokenizer.add_bos)
        answer = answer_in(own, answer_begin(render, i, text), len(text), self._eog_ids)
        self.notes[ENDLESS] += not answer.ends
        return self._counting_in(own.tokens, [(answer.begin, answer.end)], [weight])

    def _fitted(self, chat: Chat) -> tuple[Chat, str]:
        """The chat as the template can show it, and what it renders; what it does not show is not trained on."""
        if any("tool_calls" in message for message in chat.messages) and self._wants_text_arguments:
            chat = with_text_arguments(chat)
        chat, text = self._with_system_shown(chat)
        hidden = list(not_shown(chat, self.template.source, text, lambda other: self._render(other, other.messages)))
        self.notes.update(HIDDEN.format(key) for key in hidden)
        empty = [i for i, message in enumerate(chat.messages) if chat.weights[i] and not message["content"].strip()
                 and any(message.get(key) for key in hidden)]
        self.notes[EMPTY] += len(empty)
        return replace(chat, weights=[0 if i in empty else weight for i, weight in enumerate(chat.weights)]), text

    def _with_system_shown(self, chat: Chat) -> tuple[Chat, str]:
        """The chat, and what it renders as; a system message that the template has no place for moves to the user."""
        if chat.tools is None and self._iterates_tools:
            chat = replace(chat, tools=[])
        merged = with_system_in_user(chat)
        if merged is None:
            return chat, self._render(chat, chat.messages)
        try:
            text = self._render(chat, chat.messages)
            if chat.messages[0]["content"].strip() in text or text != self._render(chat, chat.messages[1:]):
                return chat, text
        except BadRecord:
            pass
        text = self._render(merged, merged.messages)
        self.notes[SYSTEM] += 1
        return merged, text

    @cached_property
    def _iterates_tools(self) -> bool:
        return iterates_tools(self.template.render)

    @cached_property
    def _wants_text_arguments(self) -> bool:
        return wants_text_arguments(lambda chat: self.template.render(chat.messages))

    def _render(self, chat: Chat, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False) -> str:
        try:
            return self.template.render(messages, add_generation_prompt=add_generation_prompt, tools=chat.tools,
                                        variables=chat.template_kwargs)
        except TemplateRefusal as error:
            raise BadRecord(str(error)) from None


def weights_of(record: Record) -> list[float]:
    """The factors of the loss that a record asks for: its own, and in a chat those of the messages."""
    match record:
        case Chat():
            return [record.weight, *record.weights]
    return [record.weight]


def as_chat(pair: Completion) -> Chat:
    """The pair as a question and an answer, without the space at their ends that parts the two in a raw text."""
    messages = [{"role": "system", "content": pair.system}] if pair.system else []
    messages += [{"role": "user", "content": pair.prompt.strip()},
                 {"role": "assistant", "content": pair.completion.strip()}]
    return Chat(messages, [float(message["role"] == "assistant") for message in messages], weight=pair.weight)


def prompt_text(pair: Completion) -> str:
    """What precedes the completion where there is no template: the prompt, an instruction in Alpaca's form."""
    if pair.is_instruction:
        return f"{pair.system or INSTRUCTION}\n\n### Instruction:\n{pair.prompt}\n\n### Response:\n"
    return f"{pair.system}\n\n{pair.prompt}" if pair.system else pair.prompt


def chat_tokens(text: str, tokenizer: SpecialTokens) -> np.ndarray:
    """The tokens of what a chat template rendered: with BOS if the model wants it and the template left it out."""
    return Rendered(text, tokenizer, add_bos=tokenizer.add_bos).tokens
