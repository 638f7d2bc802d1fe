"""What `inspect` shows of data: figures, and samples token by token, on a pipe and on a terminal."""
import io
import re
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from make_models import bpe_vocabulary, make_tiny

from lorafast.cli import main
from lorafast.commands.inspect_data import histogram, inspect_data, n_columns, show_sample, token_text, wrapped
from lorafast.data.open import Data
from lorafast.data.samples import Samples, Sequences
from lorafast.tokenizer import load_tokenizer


class Model:
    metadata: ClassVar = {key: value for key, _, value in bpe_vocabulary()}


TOKENIZER = load_tokenizer(Model)


def sequences(*pairs):
    stored = [np.concatenate([~TOKENIZER.encode(read), TOKENIZER.encode(written)]) for read, written in pairs]
    size = np.array([len(tokens) for tokens in stored])
    return Sequences(np.concatenate(stored), np.cumsum(size) - size, size, "a.jsonl", ["beware"],
                     np.arange(7, 7 + len(pairs)), np.zeros(len(pairs), int), ("a.jsonl",))


SAMPLES = sequences(("q love\n", "the love\nof"), ("xyz", "my"))


def test_a_sample_on_a_pipe():
    assert show_sample(SAMPLES, 0, TOKENIZER, 80, colour=False) == [
        "sample 1 of 2 (a.jsonl:7): 7 tokens, 4 count", "q· love·↵", "⟦the· love·↵", "of⟧"]


def test_a_sample_on_a_terminal():
    lines = show_sample(SAMPLES, 0, TOKENIZER, 80, colour=True)
    assert lines[1:] == ["\x1b[90mq\x1b[0m\x1b[37m love\x1b[0m\x1b[90m↵\x1b[0m",
                         "\x1b[92mthe\x1b[0m\x1b[32m love\x1b[0m\x1b[92m↵\x1b[0m", "\x1b[32mof\x1b[0m"]


def test_the_first_token_does_not_count():
    samples = sequences(("", "my love"))
    assert show_sample(samples, 0, TOKENIZER, 80, colour=False)[0].endswith(" tokens, 1 count")


def test_text():
    samples = Samples(TOKENIZER.encode("my love the"), np.array([0, 1]), np.array([2, 2]), "a.txt")
    assert show_sample(samples, 1, TOKENIZER, 80, colour=False) == [
        "sample 2 of 2 (a.txt, from token 1): 2 tokens, 2 count", "⟦ love· the⟧"]


@pytest.mark.parametrize("text, shown", [
    ("\n", ["↵\n"]), ("\x1b", ["\\x1b"]), ("é", ["\\xc3", "\\xa9"]), ("\t", ["\\t"])])
def test_tokens_that_are_no_text(text, shown):
    assert [token_text(TOKENIZER, token) for token in TOKENIZER.encode(text)] == shown


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("width", [10, 23, 80])
def test_lines_fit(width, colour):
    samples = sequences(("the love of my sweet and not for thee " * 3, "is all thou in that\nmy " * 3))
    lines = [re.sub("\x1b.*?m", "", line) for line in show_sample(samples, 0, TOKENIZER, width, colour)][1:]
    assert max(map(n_columns, lines)) <= width and len(lines) > 3
    shown = "".join(lines).replace("·", "").replace("⟦", "").replace("⟧", "").replace("↵", "\n")
    assert shown == "the love of my sweet and not for thee " * 3 + "is all thou in that\nmy " * 3


def test_columns():
    assert n_columns("ae\u0301") == 2 and n_columns("日本") == 4
    assert list(wrapped([("日", "日")] * 3, 5)) == ["日日", "日"]


def test_histogram():
    samples = Samples(np.zeros(0, np.int32), np.zeros(101, int), np.arange(50, 151), "a")
    lines = histogram(samples, 60)
    assert lines[0] == "tokens in a sample: minimum 50, median 100, 95 % at most 145, maximum 150"
    assert sum(int(line.split()[-1]) for line in lines[1:]) == 101 and max(map(len, lines[1:])) <= 60
    assert lines[1].startswith("   50 to  58 ████") and lines[1].endswith(" 9")
    same = Samples(np.zeros(0, np.int32), np.zeros(3, int), np.full(3, 8), "a")
    assert histogram(same, 60) == ["tokens in a sample: minimum 8, median 8, 95 % at most 8, maximum 8"]


def test_all_of_it():
    out = io.StringIO()
    inspect_data(Data(SAMPLES, SAMPLES, None, ["a.jsonl: 2 texts"]), TOKENIZER, out, ctx=16, batch=2, numbers=[2, 9])
    text = out.getvalue()
    assert text.startswith("a.jsonl: 2 texts\nwarning: beware\n\n"
                           "train: 2 samples, 11 tokens, of which 5 (45%) count in the loss\nvalid: 2 samples")
    assert "an epoch: 1 batch of 2 samples, 9 tokens\nwith --pack: about 1 batch of up to 32 tokens" in text
    assert "sample 2 of 2" in text and "sample 1 of 2" not in text and "\x1b" not in text


def test_preferences_and_weights_are_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_tiny(Path("tiny.gguf"))
    Path("p.jsonl").write_text('{"prompt": "the ", "chosen": "love", "rejected": "not thy", "weight": 0.5}\n' * 2)
    argv = ["inspect", "p.jsonl", "--model-base", "tiny.gguf", "--samples", "1"]
    assert main([*argv, "--method", "dpo"]) == 0
    shown = capsys.readouterr().out
    assert "sample 1 of 2 (p.jsonl:1, preferred, times 0.5)" in shown and "train: 2 samples" in shown
    assert "sample 1 of 2 (p.jsonl:1, not preferred)" in shown
