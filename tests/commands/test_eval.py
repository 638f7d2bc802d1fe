"""Scores: what counts as right, against logits of whole sequences; bad records; the table and the JSON."""
import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from make_models import make_tiny

from lorafast import api, cli
from lorafast.commands.eval import questions_for
from lorafast.options.use import EvalConfig
from lorafast.system.limited_regex import LimitedRegex
from lorafast.training.scoring import Scorer

RECORDS = [
    {"prompt": "the love", "completion": " of thy sweet"},
    {"question": "the love", "choices": [" of thy", " is", " all and not"], "answer": 1},
    {"prompt": "thy sweet", "chosen": " love", "rejected": " not that"},
    {"prompt": "all and", "pattern": ".*"},
]


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def questions(tmp_path, monkeypatch, model_path) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("q.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return Path("q.jsonl")


def config(model_path, **options) -> EvalConfig:
    return EvalConfig(model_base=str(model_path), data=("q.jsonl",), threads=1, n_predict=5, ctx=64, **options)


def test_choices_have_the_log_probabilities_of_whole_sequences(questions, model_path):
    model = api.Model.open(model_path, n_ctx=64, n_threads=1)
    with Scorer(model.network, model.adapter, model.tokenizer, 64, 5, 1) as scorer:
        for question in questions_for(config(model_path), model)[1:3]:
            wanted = [model.log_probabilities(np.concatenate([question.prompt, choice]))[-len(choice):].sum()
                      for choice in question.choices]
            assert scorer.log_probabilities(question) == pytest.approx(wanted, rel=1e-4)
            scores = scorer.scores([question])
            assert scores.right["choice"] == (int(np.argmax(wanted)) == question.right)
            by_byte = np.array(wanted) / question.sizes
            assert scores.right["choice_norm"] == (int(by_byte.argmax()) == question.right)


def test_what_is_generated_is_compared(questions, model_path):
    model = api.Model.open(model_path, n_ctx=64, n_threads=1)
    question = questions_for(config(model_path), model)[0]
    assert question.expected == "of thy sweet"
    with Scorer(model.network, model.adapter, model.tokenizer, 64, 5, 1) as scorer:
        answer = scorer.answer(question)
        assert answer == "".join(model.generate(question.prompt, n_predict=5, temperature=0)).strip()
        for expected, pattern, exact, contained, regex in (
                (answer, "^.+$", 1, 1, 1), (answer[:2], "^$", 0, 1, 0), ("no" + answer, "(", 0, 0, None)):
            pattern = "" if regex is None else pattern
            asked = type(question)(question.prompt, expected, pattern=pattern)
            scores = scorer.scores([asked])
            assert (scores.right["exact"], scores.right["contained"], scores.right.get("regex")) == (
                exact, contained, regex)


def test_a_pattern_that_takes_forever_is_ended():
    with LimitedRegex(0.2) as regex:
        assert regex.search("b+", "abc") and not regex.search("^b", "abc")
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            regex.search("(a+)+$", "a" * 60 + "b")
        assert time.monotonic() - began < 5
        assert regex.search("a", "a"), "others are still answered"


def test_table_and_json(questions, model_path, capsys):
    train = ["finetune", "--model-base", str(model_path), "--train-data", "q1.jsonl", "--adam-iter", "1", "--lora-out",
             "a.gguf", "--checkpoint-out", "", "--checkpoint-in", "", "--threads", "1"]
    Path("q1.jsonl").write_text(json.dumps(RECORDS[0]) + "\n")
    assert cli.main(train) == 0
    argv = ["eval", "--model-base", str(model_path), "--data", "q.jsonl", "--threads", "1", "-n", "4", "--ctx", "64"]
    capsys.readouterr()
    assert cli.main([*argv, "--lora", "a.gguf", "--json", "s.json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["exact", "contained", "regex", "choice", "choice_norm", "questions"]
    assert [line.split()[0] for line in lines[1:]] == ["base", "a.gguf"] and lines[1].endswith(" 4")
    results = json.loads(Path("s.json").read_text())["results"]
    assert results[0]["scores"].keys() == {"exact", "contained", "regex", "choice", "choice_norm"}
    assert results[0]["asked"]["choice"] == 2 and results[1]["answers"][0]["where"] == "q.jsonl:1"
    assert cli.main([*argv, "--no-base", "--lora", "a.gguf", "--score", "choice", "--first", "2"]) == 0
    assert cli.main([*argv, "--json", "q.jsonl"]) == 2 and cli.main([*argv, "--json", "a.gguf"]) == 2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].split() == ["choice", "questions"]


def test_variables_that_no_template_asks_for(questions, model_path, capsys):
    model = api.Model.open(model_path, n_ctx=64, n_threads=1)
    given = config(model_path, template_arg=("thinking=false",))
    questions_for(replace(given, raw_pairs=True), model)
    assert capsys.readouterr().err == "lorafast: warning: --template-arg changes nothing: no record is a chat\n"
    Path("t.jinja").write_text("{{ messages[0].content }}")
    questions_for(replace(given, chat_template="t.jinja"), model)
    assert "warning: --template-arg thinking: --chat-template t.jinja does not ask" in capsys.readouterr().err


@pytest.mark.parametrize(("record", "more", "message"), [
    ({"prompt": "q", "choices": ["a"], "answer": 0}, [], "q.jsonl:1: 'choices' is not a list of at least two texts"),
    ({"prompt": "q", "choices": ["a", "b"], "answer": 2}, [], "'answer' is none of the 2 choices"),
    ({"prompt": "q", "choices": ["a", "b"], "answer": "c"}, [], "'answer' is none of the 2 choices"),
    ({"choices": ["a", "b"], "answer": 0}, [], "it has no 'prompt' or 'question'"),
    ({"prompt": "q", "completion": "a", "pattern": "("}, [], "'pattern' is not a regular expression"),
    ({"prompt": "q", "completion": "a"}, ["--score", "choice"], "no record has what it takes"),
    ({"prompt": "q", "completion": "a"}, ["--score", "bleu"], "must be exact, contained"),
    ({"prompt": "q", "completion": "a"}, ["--pattern", "("], "a regular expression"),
    ({"prompt": "the love " * 20, "completion": "a"}, ["--ctx", "16"], "--ctx 16: the longest question has"),
])
def test_bad_questions(questions, model_path, capsys, record, more, message):
    questions.write_text(json.dumps(record) + "\n")
    argv = ["eval", "--model-base", str(model_path), "--data", "q.jsonl", "--threads", "1"]
    assert cli.main([*argv, *more]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
