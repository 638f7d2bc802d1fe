"""Scores on records: the base model and each adapter side by side.

    lorafast eval --model-base model.gguf --data questions.jsonl --lora first.gguf --lora second.gguf
"""
from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..api import Model
from ..data.chat_template import KEY as TEMPLATE_KEY, ChatTemplate, load_chat_template, without_effect
from ..data.encode import SequenceEncoder
from ..data.files import check_files
from ..data.forms.recognise import recognise
from ..data.questions import Question, read_questions
from ..data.source import open_source
from ..errors import LoraFastError, UsageError
from ..gguf.file_form import FileForm
from ..options.assignments import assignments, json_assignments
from ..options.finetune import SCORE_NAMES
from ..options.overwriting import Target, check_overwriting
from ..options.use import EvalConfig
from ..system.atomic import atomic_write
from ..system.live import Meter, show_live
from ..system.output import show
from ..training.scoring import Scorer, Scores
from ..words import count, visible


@dataclass(frozen=True)
class Scored:
    """One line of the table."""

    adapter: str
    scores: Scores


def run(config: EvalConfig, write: Callable[[str], None] = show) -> int:
    """The command. Returns the exit status."""
    results = evaluate(config)
    for line in table(results):
        write(line)
    if config.json:
        with atomic_write(config.json) as file:
            file.write(as_json(config, results))
    return 0


def evaluate(config: EvalConfig) -> list[Scored]:
    """The scores of the base model, if it is asked for, and of each adapter."""
    results, questions = [], None
    if config.json:
        inputs = {config.model_base: "the model", **dict.fromkeys(config.data, "the records")}
        check_overwriting([Target("--json", config.json, FileForm.SCORES)], inputs, force=config.force)
    check_files((list(config.data), [], []))
    for name in [*([""] if config.base or not config.lora else []), *config.lora]:
        model = Model.open(config.model_base, [name] if name else [], n_ctx=config.ctx, n_threads=config.n_threads,
                           precision=config.precision)
        for warning in model.warnings:
            print(f"lorafast: warning: {visible(warning)}", file=sys.stderr)
        if questions is None:
            questions = questions_for(config, model)
            longest = max(question.n_tokens for question in questions)
            if longest > model.n_ctx:
                raise UsageError(f"--ctx {model.n_ctx}: the longest question has {count(longest, 'token')} with its "
                                 "choices; give a larger one")
        with Scorer(model.network, model.adapter, model.tokenizer, model.n_ctx, config.n_predict,
                    model.n_threads) as scorer, Meter(name or "base", len(questions), show_live) as meter:
            scores = scorer.scores(_told(questions, meter), config.scores or SCORE_NAMES)
        if not scores.asked:
            raise UsageError(f"--score {','.join(config.scores)}: no record has what it takes (choices, or a pattern)")
        if scores.slow:
            print(f"lorafast: warning: {count(scores.slow, 'match', 'matches')} took longer than a second and count as "
                  "none", file=sys.stderr)
        results.append(Scored(name or "base", scores))
    return results


def _told(questions: list[Question], meter: Meter) -> Any:
    for question in questions:
        yield question
        meter.advance(1)


def questions_for(config: EvalConfig, model: Model) -> list[Question]:
    """What the files ask, in the words of the model's template."""
    metadata, args = model.gguf.metadata, json_assignments(config.template_arg)
    template: ChatTemplate | None = None

    def load_template() -> ChatTemplate:
        nonlocal template
        template = load_chat_template(metadata, model.tokenizer, config.chat_template, args)
        return template

    encoder = SequenceEncoder(
        model.tokenizer, load_template,
        pairs_as_chats=not config.raw_pairs and bool(config.chat_template or TEMPLATE_KEY in metadata))
    names = assignments(config.field)
    questions: list[Question] = []
    for path in config.data:
        source = open_source(path)
        form = recognise(source, "auto", names)
        if form is None:
            raise LoraFastError(f"{path} is text, but only records can be scored (docs/methods.md)")
        questions += read_questions(form, source, names, encoder, model.tokenizer, config.pattern)
    if not questions:
        raise LoraFastError(f"{', '.join(config.data)}: no records")
    for line in without_effect(args, template):
        print(f"lorafast: warning: {visible(line)}", file=sys.stderr)
    return questions[:config.first or None]


def table(results: list[Scored]) -> list[str]:
    """A line each, with the standard error of a share."""
    names = [score for score in SCORE_NAMES if any(score in result.scores.asked for result in results)]
    width = max(len(result.adapter) for result in results)
    lines = [" ".join([f"{'':<{width}}", *(f"{name:>16}" for name in names), f"{'questions':>10}"])]
    for result in results:
        cells = []
        for name in names:
            n, share = result.scores.asked[name], result.scores.share(name)
            cells.append(f"{f'{share:.3f} ± {math.sqrt(share * (1 - share) / n):.3f}':>16}")
        lines.append(" ".join([f"{result.adapter:<{width}}", *cells, f"{len(result.scores.answers):>10}"]))
    return lines


def as_json(config: EvalConfig, results: list[Scored]) -> bytes:
    value = {"model": config.model_base, "data": list(config.data), "results": [
        {"adapter": result.adapter, "scores": {name: result.scores.share(name) for name in result.scores.asked},
         "asked": result.scores.asked, "answers": result.scores.answers} for result in results]}
    return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "backslashreplace")
