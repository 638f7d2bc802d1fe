"""Learning from a teacher: the loss against the twin, its gradient against differences, files of others, whole runs."""
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from make_models import make_tiny

from lorafast import cli
from lorafast.network.distillation import Targets
from lorafast.network.head import Head
from lorafast.network.model_files import ModelFiles
from lorafast.planning.plan import Plan
from lorafast.reference.distillation import taught_loss
from lorafast.reporting.metrics import read_metrics

V, K = 50, 4


def some_targets(rng: np.random.Generator, n: int, weight: float, temperature: float) -> Targets:
    logits = rng.normal(0, 2, (n, V))
    log_q = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-log_q, axis=1)[:, :K].astype(np.int32)
    return Targets(ids, np.take_along_axis(log_q, ids, 1).astype(np.float32), weight, temperature)


@pytest.mark.parametrize("soft_cap", [0.0, 3.0])
@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.5, 2.0)])
def test_losses_and_gradients_by_logits(soft_cap, weight, temperature):
    rng = np.random.default_rng(0)
    z, targets = rng.normal(0, 2, (3, V)).astype(np.float32), np.array([0, 7, 49], np.int32)
    taught = some_targets(rng, 3, weight, temperature)
    targets[1] = taught.ids[1, 0]               # the data's token may be one of the teacher's
    factors, loss, dz = np.array([1, 0.5, 2], np.float32), np.empty(3, np.float32), z.copy()
    Head._taught_losses(SimpleNamespace(soft_cap=soft_cap), loss, dz, targets, factors, taught,
                        SimpleNamespace(n_threads=1))

    def twin(z: np.ndarray) -> np.ndarray:
        return np.array([taught_loss(z[t], targets[t], taught.ids[t], taught.log_q[t].astype(float), weight,
                                     temperature, soft_cap) for t in range(3)])

    np.testing.assert_allclose(loss, twin(z.astype(float)), rtol=1e-5)
    for v in range(V):
        step = 1e-5 * (np.arange(V) == v)
        slope = (twin(z + step) - twin(z - step)) / 2e-5
        np.testing.assert_allclose(dz[:, v], factors * slope, rtol=1e-3, atol=2e-6)


RUN = ["--train-data", "a.jsonl", "--ctx", "32", "--batch", "2", "--threads", "1", "-s", "1", "--lora-r", "2",
       "--adam-iter", "2", "--checkpoint-in", "", "--checkpoint-out", "", "--lora-out", "", "--metrics", "m.jsonl"]


@pytest.fixture
def lorafast(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_tiny(Path("tiny.gguf"))
    make_tiny(Path("teacher.gguf"), seed=5)
    words = "the love of thy sweet all and not to thou that in my with is".split()
    Path("a.jsonl").write_text("".join(json.dumps({"prompt": words[i], "completion": " ".join(words[i:i + 3])}) + "\n"
                                       for i in range(8)))

    def run(*argv: str, status: int = 0) -> str:
        assert cli.main([*argv]) == status, capsys.readouterr().err
        shown = capsys.readouterr()
        return shown.out + shown.err

    return run


def losses() -> list[float]:
    return [event["loss"] for event in read_metrics("m.jsonl") if event["event"] == "step"]


def ask(lorafast, model: str = "tiny.gguf", *more: str, status: int = 0) -> str:
    return lorafast("logits", "--model-base", model, "--data", "a.jsonl", "-o", "t.bin", "--top-k", "8", "--ctx", "32",
                    "--batch", "3", "--threads", "1", *more, status=status)


def test_a_teacher_that_is_the_student_adds_nothing_and_another_something(lorafast):
    train = ["finetune", "--model-base", "tiny.gguf", *RUN, "--precision", "int16"]
    lorafast(*train)
    alone = losses()
    assert "the 8 likeliest tokens" in ask(lorafast)
    lorafast(*train, "--distill", "t.bin", "--pack", "--valid-split", "0.25", "--micro-batch", "1")
    lorafast(*train, "--distill", "t.bin")
    assert losses()[0] == pytest.approx(alone[0], rel=1e-5)
    ask(lorafast, "teacher.gguf")
    lorafast(*train, "--distill", "t.bin")
    much = losses()
    lorafast(*train, "--distill", "t.bin", "--distill-weight", "0.5")
    assert much[0] > alone[0] + 0.01
    assert losses()[0] - alone[0] == pytest.approx((much[0] - alone[0]) / 2, rel=1e-4)


def test_a_teacher_larger_than_memory_says_the_same(lorafast, monkeypatch):
    make_tiny(Path("large.gguf"), n_embd=256, n_ff=1024, n_layer=8)
    ask(lorafast, "large.gguf")
    whole, streams, stream = Path("t.bin").read_bytes(), [], Plan.stream
    monkeypatch.setattr(Plan, "stream", lambda *arguments: streams.append(stream(*arguments)) or streams[-1])
    # What the process takes besides may fall from run to run by more than this model has, which then finds room as a
    # whole (AddressSanitizer keeps freed memory for a while).
    monkeypatch.setattr(ModelFiles, "resident_bytes_without", lambda self: 64 << 20)
    refused = ask(lorafast, "large.gguf", "--force", "--mem-limit", "1M", status=1)
    least = int(re.search(r"What would fit: --mem-limit (\d+)M", refused)[1])
    ask(lorafast, "large.gguf", "--force", "--mem-limit", f"{least + 1}M")
    assert streams[-1] is not None and Path("t.bin").read_bytes() == whole


def test_files_of_others_are_refused(lorafast):
    train = ["finetune", "--model-base", "tiny.gguf", *RUN, "--distill", "t.bin"]
    assert "cannot read --distill t.bin" in lorafast(*train, status=1)
    ask(lorafast)
    Path("b.jsonl").write_text(Path("a.jsonl").read_text().replace("love", "thy"))
    other = ["b.jsonl" if option == "a.jsonl" else option for option in train]
    assert "written for other data" in lorafast(*other, status=1)
    assert "with --method sft, not dpo" in lorafast(*train, "--method", "dpo", status=2)
    make_tiny(Path("other.gguf"), n_vocab=390)
    ask(lorafast, "other.gguf")
    assert "other.gguf has another vocabulary" in lorafast(*train, status=1)
    ask(lorafast, "tiny.gguf", "--ctx", "5")
    assert "written with a smaller --ctx" in lorafast(*train, status=1)
    Path("t.bin").write_bytes(Path("t.bin").read_bytes()[:-9])
    assert "is broken or was cut short" in lorafast(*train, status=1)
    Path("t.bin").write_text("a diary")
    assert "was not written by lorafast logits" in lorafast(*train, status=1)
    assert "exists and is not a file of lorafast logits" in ask(lorafast, status=2)
    Path("t.bin").unlink()
    assert "--top-k 5000: the vocabulary has" in ask(lorafast, "tiny.gguf", "--top-k", "5000", status=2)
