"""A run goes on with the data and the base model that it began with, or says so."""
import json
from pathlib import Path

import pytest
from make_models import make_tiny

from lorafast import cli
from lorafast.adapters.checkpoint import read_checkpoint

RUN = ["--run", "run", "--model-base", "tiny.gguf", "--ctx", "16", "--batch", "2", "--threads", "1", "--seed", "1",
       "--lora-r", "2", "--log", "llama"]
OLD = ["--model-base", "tiny.gguf", "--ctx", "16", "--batch", "2", "--threads", "1", "--seed", "1",
       "--lora-out", "a.gguf", "--checkpoint-in", "checkpoint-LATEST.gguf"]
RESTARTED = "train data seems to have changed"


@pytest.fixture
def begun(tmp_path, monkeypatch, capsys):
    """Runs `lorafast finetune` in a folder with a model and records, and returns what it printed."""
    monkeypatch.chdir(tmp_path)
    make_tiny(Path("tiny.gguf"))
    for name, word in (("a", "love"), ("b", "lave")):
        Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": f"the {word} of {i}"}) + "\n" for i in range(10)))
        Path(f"{name}.txt").write_text(f"the {word} of thy sweet all and not to thou " * 10)

    def run(*argv: str, status: int = 0) -> str:
        assert cli.main(["finetune", *argv]) == status
        shown = capsys.readouterr()
        return shown.out + shown.err

    return run


def test_other_data_is_refused_and_taken_with_force(begun):
    begun(*RUN, "--train-data", "a.jsonl", "--adam-iter", "2")
    position = read_checkpoint("run/checkpoint-LATEST.gguf").state.sampler
    assert position.data.tokens and position.next_sample == 4
    refused = begun("--run", "run", "--resume", "--train-data", "b.jsonl", "--adam-iter", "3", status=2)
    assert "was trained on other data than b.jsonl holds now" in refused and "--force" in refused
    assert RESTARTED in begun("--run", "run", "--resume", "--train-data", "b.jsonl", "--adam-iter", "3", "--force")
    assert read_checkpoint("run/checkpoint-LATEST.gguf").state.sampler.next_sample == 2


def test_the_same_data_under_another_path_is_the_same(begun):
    begun(*RUN, "--train-data", "a.jsonl", "--adam-iter", "2")
    Path("a.jsonl").rename("elsewhere.jsonl")
    assert RESTARTED not in begun("--run", "run", "--resume", "--train-data", "elsewhere.jsonl", "--adam-iter", "3")
    assert read_checkpoint("run/checkpoint-LATEST.gguf").state.sampler.next_sample == 6


def test_data_cut_otherwise_begins_an_epoch_without_force(begun):
    begun(*RUN, "--train-data", "a.txt", "--adam-iter", "2")
    assert RESTARTED in begun("--run", "run", "--resume", "--stride", "8", "--adam-iter", "3")


def test_a_llama_finetune_run_says_that_data_changed(begun):
    begun(*OLD, "--train-data", "a.txt", "--adam-iter", "2")
    Path("a.txt").write_text(Path("b.txt").read_text())     # as many tokens, so that llama-finetune's own hash is equal
    assert RESTARTED in begun(*OLD, "--train-data", "a.txt", "--adam-iter", "1")
    assert RESTARTED not in begun(*OLD, "--train-data", "b.txt", "--adam-iter", "1")


def test_another_base_model_needs_force(begun):
    begun(*OLD, "--train-data", "a.txt", "--adam-iter", "2")
    make_tiny(Path("other.gguf"), seed=5)
    other = [*OLD[:1], "other.gguf", *OLD[2:], "--train-data", "a.txt", "--adam-iter", "1"]
    assert "was trained on another base model than other.gguf" in begun(*other, status=2)
    assert "was trained on another base model than other.gguf" in begun(*other, "--force")
    assert "another base model" not in begun(*other)
