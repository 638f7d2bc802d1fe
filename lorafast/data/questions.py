"""Records as questions with a known answer, on which a model is scored.

Any record to train on is one: its last answer is what is expected. Further keys tell more:

    {"prompt": "...", "choices": ["...", "..."], "answer": 1}       one of several: its number, from 0, or its text
    {"prompt": "...", "completion": "...", "pattern": "^\\\\d+$"}     a regular expression that an answer must match
    {"prompt": "...", "chosen": "...", "rejected": "..."}           the better of two
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import LoraFastError
from ..tokenizer import Tokenizer
from .encode import SequenceEncoder
from .forms import Form
from .preferences import Preferences, prompt_size
from .records import BadRecord
from .samples import Sequences, plain
from .shapes import parse_record
from .shapes.pairs import CONTEXTS
from .source import Source


@dataclass(frozen=True)
class Question:
    """What a model is asked, and what is wanted.

    prompt    int32 (n,)
    expected  the answer, as text; None where only choices or a pattern tell
    choices   the answers to choose from, int32 each; empty where it is free
    sizes     bytes of the choices' texts
    right     which of them is right
    pattern   that an answer must match; empty: any
    where     `file:line`
    """

    prompt: np.ndarray
    expected: str | None = None
    choices: tuple[np.ndarray, ...] = ()
    sizes: tuple[int, ...] = ()
    right: int = 0
    pattern: str = ""
    where: str = ""

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt with the longest choice, or with a first token of the answer."""
        return len(self.prompt) + max([1, *map(len, self.choices)])


def question_of_rows(rows: list[np.ndarray], tokenizer: Tokenizer, where: str = "", right: int = 0,
                     pattern: str = "") -> Question:
    """A question made of sequences as they are stored: of one the last answer is expected, of several one is to be
    chosen."""
    prompt, answers = None, []
    for stored in rows:
        begin = _last_answer(stored)
        prompt = plain(stored[:begin]) if prompt is None else prompt
        answers.append(plain(stored[len(prompt):]))
    assert prompt is not None
    texts = [_text(answer, tokenizer) for answer in answers]
    choices = tuple(answers) if len(answers) > 1 else ()
    return Question(prompt, texts[right], choices, tuple(len(text.encode()) for text in texts), right, pattern, where)


def _last_answer(stored: np.ndarray) -> int:
    """Where the last stretch of tokens that count begins."""
    read = np.flatnonzero(stored[:-1] < 0)
    return int(read[-1]) + 1 if len(read) else prompt_size(stored)


def _text(answer: np.ndarray, tokenizer: Tokenizer) -> str:
    return tokenizer.decode([token for token in answer.tolist() if token not in tokenizer.eog_ids],
                            continuation=True).strip()


def questions_of_samples(samples: Sequences, tokenizer: Tokenizer, pattern: str = "") -> Iterator[Question]:
    """The samples of a run's data."""
    for i in range(len(samples)):
        rows = [row.stored for row in samples.rows(i)]
        if isinstance(samples, Preferences) and samples.is_judged:
            rows = rows[:1]
        where = f"{samples.sources[samples.source[i]]}:{samples.line[i]}"
        yield question_of_rows(rows, tokenizer, where, pattern=pattern)


def read_questions(form: Form, source: Source, names: Mapping[str, str], encoder: SequenceEncoder,
                   tokenizer: Tokenizer, pattern: str = "") -> Iterator[Question]:
    """The questions of a file. LoraFastError, with the line, for one that cannot be asked.

    pattern  of those that bring none
    """
    for number, value in form.values(source, lambda n: None):
        where = f"{source.name}:{number}"
        try:
            if isinstance(value, BadRecord):
                raise value
            yield _question(value, names, encoder, tokenizer, where, pattern)
        except BadRecord as error:
            raise LoraFastError(f"{where}: {error}") from None


def _question(value: Any, names: Mapping[str, str], encoder: SequenceEncoder, tokenizer: Tokenizer, where: str,
              pattern: str) -> Question:
    if isinstance(value, dict):
        value = {**value, **{key: value[theirs] for key, theirs in names.items() if theirs in value}}
        pattern = _pattern(value.get("pattern"), pattern)
        if "choices" in value:
            choices, right = _choices(value)
            rows = [_only_row(encoder, {"prompt": _asked(value), "completion": choice}) for choice in choices]
            return question_of_rows(rows, tokenizer, where, right, pattern)
        if "chosen" in value and "rejected" in value:
            record: Any = parse_record(value)               # a pair, as its keys tell
            sides = [encoder.rows(side)[-1].stored for side in (record.chosen, record.rejected)]
            return question_of_rows(sides, tokenizer, where, 0, pattern)
        if pattern and "completion" not in value and "messages" not in value:
            row = _only_row(encoder, {"prompt": _asked(value), "completion": "x"})
            question = question_of_rows([row], tokenizer, where, 0, pattern)
            return Question(question.prompt, None, pattern=pattern, where=where)
    last = encoder.rows(parse_record(value))[-1:]
    if not last:
        raise BadRecord("its weight is 0: there is nothing to ask")
    return question_of_rows([last[0].stored], tokenizer, where, 0, pattern)


def _asked(value: Mapping[str, Any]) -> Any:
    keys = ("prompt", "question", "instruction", "query", *CONTEXTS)
    asked = next((value[key] for key in keys if key in value), None)
    if not isinstance(asked, str | list) or not asked:
        raise BadRecord("it has no 'prompt' or 'question'")
    return asked


def _only_row(encoder: SequenceEncoder, value: Mapping[str, Any]) -> np.ndarray:
    return encoder.rows(parse_record(value))[-1].stored


def _choices(value: Mapping[str, Any]) -> tuple[list[str], int]:
    choices, answer = value["choices"], value.get("answer")
    if isinstance(choices, dict):                   # ARC's {"text": [...], "label": ["A", ...]}
        labels, choices = choices.get("label", []), choices.get("text", [])
        answer = labels.index(value["answerKey"]) if value.get("answerKey") in labels else answer
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise BadRecord("'choices' is not a list of at least two texts")
    if isinstance(answer, str) and answer in choices:
        answer = choices.index(answer)
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise BadRecord(f"'answer' is none of the {len(choices)} choices: their number, from 0, or the text of one")
    return choices, answer


def _pattern(given: Any, default: str) -> str:
    if given is None:
        return default
    try:
        re.compile(given)
    except (re.error, TypeError, RecursionError) as error:
        raise BadRecord(f"'pattern' is not a regular expression: {error}") from None
    return str(given)
