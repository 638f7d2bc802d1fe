"""Training on preferences: losses and derivatives against the twin, gradients however a step is split, whole runs."""
import json
import math
from pathlib import Path

import numpy as np
import pytest
from make_models import make_tiny

from lorafast import cli
from lorafast.data.batches import Batch
from lorafast.gguf.reader import open_model
from lorafast.network.hparams import read_hparams
from lorafast.network.lora import Adapter, Gradients, default_ranks, specs_for
from lorafast.network.network import Network
from lorafast.network.preference_losses import Answers, Hyper, kto_losses, pair_losses
from lorafast.network.trainer import Strategy, Trainer
from lorafast.options.finetune import FinetuneConfig
from lorafast.options.methods import METHODS
from lorafast.reference import preference_losses as twin
from lorafast.reporting.metrics import read_metrics
from lorafast.training.methods import method_of

PAIR_METHODS = [name for name, facts in METHODS.items() if facts.takes == "pairs"]
PREFERENCE_METHODS = [*PAIR_METHODS, "kto"]
RATE = 1e-5
"""Step of the central differences."""

WORDS = "the love of thy sweet all and not to thou that in my with is".split()


def some_answers(n: int) -> Answers:
    rng = np.random.default_rng(n)
    tokens = rng.integers(1, 40, (n, 2))
    log_p = -tokens * rng.uniform(0.05, 3, (n, 2))
    return Answers(log_p, log_p + rng.normal(0, 2, (n, 2)), tokens)


def moved(answers: Answers, i: int, by: float) -> Answers:
    log_p = answers.log_p.copy()
    log_p[..., i] += by
    return Answers(log_p, answers.reference, answers.tokens)


@pytest.mark.parametrize("method", PAIR_METHODS)
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_losses_of_pairs(method, epsilon):
    answers, hyper = some_answers(20), Hyper(0.3, epsilon, 0.7)
    judged = pair_losses(method, answers, hyper)
    wanted = [twin.pair_loss(method, *answers.log_p[i], *answers.reference[i], *answers.tokens[i], 0.3, epsilon, 0.7)
              for i in range(20)]
    np.testing.assert_allclose(judged.losses, wanted, rtol=1e-9)
    for side in (0, 1):
        above, below = (pair_losses(method, moved(answers, side, by), hyper).losses for by in (RATE, -RATE))
        np.testing.assert_allclose(judged.slopes[:, side], (above - below) / (2 * RATE), rtol=1e-5, atol=1e-8)


def test_losses_of_judged_answers():
    pairs = some_answers(20)
    answers = Answers(pairs.log_p[:, 0], pairs.reference[:, 0], pairs.tokens[:, 0])
    pairs_of = answers.reference, answers.tokens
    is_good, hyper = np.arange(20) % 3 == 0, Hyper(0.1)
    judged = kto_losses(answers, is_good, 0.5, hyper)
    wanted = [twin.kto_loss(answers.log_p[i], answers.reference[i], is_good[i], 0.5, 0.1) for i in range(20)]
    np.testing.assert_allclose(judged.losses, wanted, rtol=1e-9)
    above, below = (kto_losses(Answers(answers.log_p + by, *pairs_of), is_good, 0.5, hyper).losses
                    for by in (RATE, -RATE))
    np.testing.assert_allclose(judged.slopes, (above - below) / (2 * RATE), rtol=1e-5, atol=1e-9)


# ------------------------------------------------------------------------------------------------- in the network


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


class Case:
    """A tiny model, and a batch of pairs with prompts of 3 tokens and answers of different lengths."""

    def __init__(self, path: Path) -> None:
        gguf = open_model(path)
        hparams = read_hparams(gguf)
        self.network = Network(gguf, hparams, 32, "float32")
        self.adapter = Adapter(specs_for(hparams.tensor_shapes(), default_ranks(2)), 2, 2)
        self.adapter.params[:] = 0.1 * np.random.default_rng(0).standard_normal(self.adapter.n_params)
        self.network.refresh(self.adapter)
        self.rng = np.random.default_rng(1)

    def batch(self, method: str, *answers: int) -> Batch:
        """Rows of answers of so many tokens."""
        sizes = [3 + n for n in answers]
        tokens, targets = (self.rng.integers(0, 380, sum(sizes), dtype=np.int32) for _ in range(2))
        is_answer = np.concatenate([np.arange(size) >= 3 for size in sizes])
        begin = np.cumsum([0, *sizes], dtype=np.int32)
        label = np.tile([1, -1], len(sizes) // 2).astype(np.int8)
        learns = np.repeat(label > 0, sizes) if method == "orpo" else np.zeros(len(tokens), bool)
        return Batch(tokens, np.where(is_answer | learns, targets, -1).astype(np.int32), begin, len(sizes), False, None,
                     label, -6.0 * np.array(answers) + self.rng.normal(0, 1, len(sizes)), is_answer)

    def trainer(self, max_tokens: int) -> Trainer:
        return Trainer(self.network, self.adapter, max_tokens, Strategy(n_kept=9, head_tokens=5), 1)


def config(method: str, **options: float) -> FinetuneConfig:
    return FinetuneConfig(model_base="x", method=method, **options)


def step(case: Case, method: str, trainer: Trainer, batches: list[Batch]) -> tuple[float, np.ndarray]:
    gradients = Gradients(case.adapter)
    objective, passes = method_of(config(method)).begin(batches, trainer)
    loss = sum(trainer.minimise(batch, objective, gradients) for batch in passes) / objective.n
    assert sum(trainer.value(batch, objective) for batch in passes) / objective.n == pytest.approx(loss, rel=1e-9)
    return loss, gradients.flat


@pytest.mark.parametrize("method", PREFERENCE_METHODS)
def test_gradients_are_those_of_the_loss_however_it_is_split(tiny, method):
    case = Case(tiny)
    batch = case.batch(method, 5, 2, 1, 9, 4, 4)
    trainer = case.trainer(100)
    loss, gradients = step(case, method, trainer, [batch])
    for batches, max_tokens in (([batch], 16), ([batch.part(0, 2), batch.part(2, 6)], 100)):
        other_loss, other = step(case, method, case.trainer(max_tokens), batches)
        assert other_loss == pytest.approx(loss, rel=1e-6)
        np.testing.assert_allclose(other, gradients, atol=2e-5 * np.abs(gradients).max())
    direction = np.random.default_rng(2).standard_normal(case.adapter.n_params).astype(np.float32)
    start, ends, distance = case.adapter.params.copy(), [], None
    for by in (0.0, 3e-3, -3e-3):
        case.adapter.params[:] = start + np.float32(by) * direction
        case.network.refresh(case.adapter)
        objective, passes = method_of(config(method)).begin([batch], trainer)
        if method == "kto":             # the distance is held fixed
            objective.distance = distance = objective.distance if distance is None else distance
        ends.append(sum(trainer.value(part, objective) for part in passes) / objective.n)
    assert (ends[1] - ends[2]) / 6e-3 == pytest.approx(float(direction @ gradients), rel=2e-2, abs=2e-3)


# ----------------------------------------------------------------------------------------------------- whole runs

RUN = ["--model-base", "tiny.gguf", "--train-data", "a.jsonl", "--ctx", "32", "--batch", "2", "--threads", "1",
       "-s", "1", "--lora-r", "2", "--log", "llama", "--adam-alpha", "0.01",
       "--schedule", "constant"]


def pair(i: int) -> dict:
    words = [WORDS[(i * k) % len(WORDS)] for k in (1, 2, 3, 4, 5)]
    return {"prompt": " ".join(words[:3]) + " ", "chosen": " ".join(words[3:]), "rejected": f"not {words[0]} thou"}


@pytest.fixture
def finetune(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("tiny.gguf").symlink_to(tiny)
    Path("a.jsonl").write_text("".join(json.dumps(pair(i)) + "\n" for i in range(1, 13)))

    def run(*argv: str, status: int = 0) -> str:
        assert cli.main(["finetune", *argv]) == status, capsys.readouterr().err
        shown = capsys.readouterr()
        return shown.out + shown.err

    return run


@pytest.mark.parametrize("method", ["dpo", "orpo", "kto"])
def test_a_run_goes_on_exactly_and_learns(finetune, method):
    score = "contained" if method == "kto" else "choice"
    more = ["--method", method, "--valid-split", "0.2", "--grad-acc", "2", "--eval-score", score]
    shown = finetune(*RUN, *more, "--run", "whole", "--adam-iter", "6")
    assert "rewards chosen=" in shown and "accuracy=" in shown and ", score=" in shown
    finetune(*RUN, *more, "--run", "parts", "--adam-iter", "3")
    finetune("--run", "parts", "--resume", "--adam-iter", "6")
    name = "checkpoint-LATEST.gguf"
    assert Path("whole", name).read_bytes() == Path("parts", name).read_bytes()
    steps = [event for event in read_metrics("whole/metrics.jsonl") if event["event"] == "step"]
    assert {"reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy"} <= steps[0].keys()
    if METHODS[method].reference:
        assert Path("whole/reference").exists()
        assert steps[0]["reward_margin"] == 0 or method == "kto", "the run begins at the reference"
    if method == "dpo":
        assert steps[0]["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert steps[-1]["loss"] < steps[0]["loss"] or method == "kto"
    assert "Rewards" in Path("whole/report.html").read_text()


def test_the_reference_is_kept_beside_the_tokens(finetune):
    more = ["--method", "dpo", "--adam-iter", "1", "--data-cache", "tokens", "--checkpoint-in", "",
            "--checkpoint-out", "", "--lora-out", "", "--force"]
    finetune(*RUN, *more)
    first = Path("tokens.reference").read_bytes()
    assert "found in tokens.reference" in finetune(*RUN, *more)
    Path("a.jsonl").write_text(Path("a.jsonl").read_text().replace("thou", "thy"))
    assert "found in tokens.reference" not in finetune(*RUN, *more)
    assert Path("tokens.reference").read_bytes() != first, "of other data"
    Path("tokens.reference").write_text("a diary")
    assert "exists and is not a cache of log-probabilities" in finetune(*RUN, *more[:-1], status=2)


def test_the_reference_may_be_an_adapter(finetune):
    finetune(*RUN, "--method", "dpo", "--run", "first", "--adam-iter", "4")
    reference = ["--method", "dpo", "--adam-iter", "1", "--ref-lora", "first/adapter.gguf", "--run"]
    finetune(*RUN, *reference, "other")
    rank = RUN.index("--lora-r")
    finetune(*RUN[:rank], *RUN[rank + 2:], *reference, "same", "--init-lora", "first/adapter.gguf")
    loss = {run: read_metrics(f"{run}/metrics.jsonl") for run in ("other", "same")}
    first = {run: next(event["loss"] for event in events if event["event"] == "step") for run, events in loss.items()}
    assert first["same"] == pytest.approx(math.log(2), rel=1e-6), "the run begins at its reference"
    assert abs(first["other"] - math.log(2)) > 1e-3
    finetune("--run", "other", "--resume", "--adam-iter", "2")


def test_pairs_that_are_together_longer_than_the_context(finetune):
    long = {"chosen": " ".join(WORDS * 2), "rejected": " ".join(reversed(WORDS))}
    Path("a.jsonl").write_text("".join(json.dumps({**long, "prompt": word}) + "\n" for word in WORDS[:4]))
    shown = finetune(*RUN, "--method", "dpo", "--adam-iter", "1", "--run", "r")
    assert "4 of 4 samples are longer than the context of 32 tokens and are cut" in shown


def test_packing_checkpointing_and_limits(finetune):
    losses = []
    for more in ([], ["--use-checkpointing", "--micro-batch", "1", "--head-tokens", "3"], ["--pack", "--dora",
                 "--lora-out", "a/"]):
        finetune(*RUN, "--method", "ipo", "--adam-iter", "2", "--metrics", "m.jsonl", "--checkpoint-in", "", "--force",
                 *more)
        losses.append([event["loss"] for event in read_metrics("m.jsonl") if event["event"] == "step"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[2][0] == pytest.approx(losses[0][0], rel=1e-4)


@pytest.mark.parametrize(("record", "method", "message"), [
    ({"chosen": "a", "rejected": "a", "prompt": "q"}, "dpo", "'chosen' and 'rejected' are the same"),
    ({"chosen": "a", "rejected": "", "prompt": "q"}, "dpo", "'rejected' is empty"),
    ({"chosen": "a", "rejected": 3, "prompt": "q"}, "dpo", "'chosen' is a string, but 'rejected' a number"),
    ({"chosen": "a", "rejected": "b", "prompt": "q", "weight": "x"}, "dpo", "'weight' is not a number"),
    ({"chosen": "a", "rejected": "b", "prompt": "q", "weight": -1}, "dpo", "must not be negative"),
    ({"prompt": "q", "completion": "a"}, "dpo", "it is not a preference: --method dpo needs 'chosen' and 'rejected'"),
    ({"prompt": "q", "completion": "a", "label": True}, "dpo", "which --method kto takes"),
    ({"prompt": "q", "completion": "a", "label": "good"}, "kto", "a 'label', true or false"),
    ({"prompt": "q", "completion": "", "label": True}, "kto", "'completion' is empty"),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "sft", "train on it with --method dpo"),
])
def test_bad_records(finetune, record, method, message):
    Path("a.jsonl").write_text(json.dumps(record) + "\n")
    shown = finetune(*RUN, "--method", method, "--adam-iter", "1", status=1)
    assert f"a.jsonl:1: {message}" in shown or message in shown
    assert shown.count("error:") == 1


@pytest.mark.parametrize(("options", "message"), [
    (["--method", "dpo", "--gamma", "1"], "--gamma 1: --method dpo has no use for it, but simpo"),
    (["--method", "orpo", "--ref-lora", "x"], "compares with no reference"),
    (["--method", "dpo", "--train-on-prompt"], "compares answers to the same prompt"),
    (["--eval-score", "choice"], "have no answers to choose from"),
    (["--eval-score", "regex"], "--eval-score regex and --eval-pattern REGEX belong together"),
    (["--beta", "1"], "--method sft has no use for it"),
    (["--temperature", "2"], "--temperature 2: there is no teacher"),
    (["--method", "grpo"], "one of sft, dpo"),
])
def test_bad_options(finetune, options, message):
    assert message in finetune(*RUN, *options, status=2)


def test_text_has_no_preferences(finetune):
    Path("a.txt").write_text("the love of thy sweet " * 20)
    text = ["a.txt" if option == "a.jsonl" else option for option in RUN]
    assert "--method dpo is for records" in finetune(*text, "--method", "dpo", status=2)
