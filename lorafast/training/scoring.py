"""How well a model answers: what it generates is compared with what is expected, or its choice among answers.

    exact        the answer is the expected one, but for white space at its ends
    contained    the expected answer occurs in it
    regex        a regular expression matches it
    choice       of several answers the right one has the highest log-probability, as lm-evaluation-harness's `acc`
    choice_norm  the same, each divided by its bytes, as `acc_norm`
"""
from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..data.questions import Question
from ..kernels.cross_entropy import cross_entropy_forward
from ..network.decoder import Decoder
from ..network.generation import Session, chooser
from ..network.lora import Adapter
from ..network.network import Network
from ..network.next_token import Sampling
from ..network.weights import MAPPED, Weights
from ..options.finetune import SCORE_NAMES
from ..system.limited_regex import LimitedRegex
from ..tokenizer import Tokenizer

GREEDY = Sampling(temperature=0.0)


@dataclass
class Scores:
    """right, asked: questions by score; answers: what was said to each; slow: matches that took too long."""

    right: dict[str, int] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    slow: int = 0

    def add(self, score: str, is_right: bool) -> None:
        self.right[score] = self.right.get(score, 0) + is_right
        self.asked[score] = self.asked.get(score, 0) + 1

    @classmethod
    def sum(cls, parts: Iterable[Scores]) -> Scores:
        """Of the questions of all parts, in order."""
        total = cls()
        for part in parts:
            for score, asked in part.asked.items():
                total.right[score] = total.right.get(score, 0) + part.right[score]
                total.asked[score] = total.asked.get(score, 0) + asked
            total.answers += part.answers
            total.slow += part.slow
        return total

    def share(self, score: str) -> float:
        """The share of the questions asked that were answered rightly; nan if none was asked."""
        return self.right[score] / self.asked[score] if score in self.asked else math.nan


class Scorer:
    """Asks a model with an adapter. To be used in a `with` block."""

    def __init__(self, network: Network, adapter: Adapter, tokenizer: Tokenizer, n_ctx: int, n_predict: int,
                 n_threads: int, weights: Weights = MAPPED) -> None:
        self.decoder = Decoder(network, adapter, n_ctx, n_threads, weights=weights)
        self.session, self.tokenizer, self.n_predict = Session(self.decoder), tokenizer, n_predict
        self.regex = LimitedRegex()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.regex.close()

    def scores(self, questions: Iterable[Question], wanted: Iterable[str] = SCORE_NAMES) -> Scores:
        """The scores of all questions: each by those that are wanted and that it has what it takes for."""
        scores, wanted = Scores(), set(wanted)
        for question in questions:
            said: dict[str, Any] = {"where": question.where, "expected": question.expected}
            if question.choices and wanted & {"choice", "choice_norm"}:
                said["log_probabilities"] = self.log_probabilities(question)
                for score, is_right in self._chosen(question, said["log_probabilities"]).items():
                    if score in wanted:
                        scores.add(score, is_right)
            generates = {"exact", "contained"} if question.expected is not None else set()
            generates |= {"regex"} if question.pattern else set()
            if wanted & generates:
                said["answer"] = self.answer(question)
                self._compare(question, said["answer"], wanted & generates, scores)
            scores.answers.append(said)
        return scores

    def answer(self, question: Question) -> str:
        """The likeliest answer, token by token."""
        chosen = self.session.continuation(question.prompt, self.n_predict, chooser(GREEDY, 0), self.tokenizer.eog_ids)
        return self.tokenizer.decode(list(chosen), continuation=True).strip()

    def log_probabilities(self, question: Question) -> list[float]:
        """The log-probability of each choice after the prompt, which is read once."""
        n_prompt, decoder, of_choices = len(question.prompt), self.decoder, []
        decoder.rewind(0)
        for choice in question.choices:
            tokens = np.concatenate([question.prompt, choice]).astype(np.int32)
            begin = at = decoder.rewind(min(decoder.n_past, n_prompt - 1))
            total = 0.0
            for x in decoder.outputs(tokens[begin:-1]):
                x_answer = x[max(0, n_prompt - 1 - at):]
                at += len(x)
                losses = np.empty(len(x_answer), np.float32)
                targets = tokens[at - len(x_answer) + 1:at + 1]
                cross_entropy_forward(losses, decoder.logits(x_answer), targets, 0, 0, decoder.n_threads)
                total -= float(losses.sum(dtype=np.float64))
            of_choices.append(total)
        self.session.tokens = tokens.tolist()
        return of_choices

    @staticmethod
    def _chosen(question: Question, log_probabilities: list[float]) -> dict[str, bool]:
        log_p = np.array(log_probabilities)
        by_byte = log_p / np.maximum(question.sizes, 1)
        return {"choice": int(log_p.argmax()) == question.right, "choice_norm": int(by_byte.argmax()) == question.right}

    def _compare(self, question: Question, answer: str, wanted: set[str], scores: Scores) -> None:
        if "exact" in wanted:
            scores.add("exact", answer == question.expected)
        if "contained" in wanted:
            scores.add("contained", (question.expected or "") in answer)
        if "regex" in wanted:
            try:
                scores.add("regex", self.regex.search(question.pattern, answer))
            except TimeoutError:
                scores.add("regex", False)
                scores.slow += 1
