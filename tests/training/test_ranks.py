"""Runs that several ranks compute together have the bits of one, whatever is trained and wherever it is resumed.

The quick tests have ranks that are threads; the slow ones start processes with mpirun.
"""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from folders import environment
from make_models import make_tiny
from thread_ranks import on_ranks

from lorafast.adapters.checkpoint import read_checkpoint
from lorafast.distributed.world import World
from lorafast.errors import LoraFastError
from lorafast.kernels import build_info
from lorafast.options.declare import to_argv
from lorafast.options.finetune import FinetuneConfig
from lorafast.reporting.log import Log
from lorafast.reporting.metrics import read_metrics
from lorafast.training import sharing
from lorafast.training.run import Result, finetune
from lorafast.training.saving import Saver

TEXT = "the love of thy sweet all and not to thou that in my love with is " * 20
PAIRS = [{"prompt": "the love" + " of thy" * (i % 3), "chosen": "sweet all" + " and" * (i % 4),
          "rejected": "not to thou", "weight": 1 + i % 3} for i in range(16)]
CHATS = [{"messages": [{"role": "user", "content": "the love" + " of thy" * (i % 5)},
                       {"role": "assistant", "content": "sweet all" + " and not" * (i % 7)}]} for i in range(24)]
SCENARIOS: dict[str, dict[str, Any]] = {
    "text": {},
    "packed chats": dict(train_data=("chats.jsonl",), pack=True, chat_template="chat.jinja", train_on_prompt=True),
    "dropout": dict(lora_dropout=0.3, lora_plus=4.0),
    "DoRA": dict(dora=True, lora_out=("adapter/",)),
    "ranks of eva": dict(init_method="eva", eva_batches=2, eva_rho=2.0),
    "limits": dict(adam_gclip=0.1, micro_batch=1, head_tokens=8, valid_split=0.2, eval_every=2),
}
"""On two and three ranks, as threads and as processes."""

SLOWER: dict[str, dict[str, Any]] = {
    "weighted pairs, reference": dict(train_data=("pairs.jsonl",), method="dpo", ctx=48, valid_split=0.25, eval_every=2,
                                      eval_score="choice", adam_alpha=0.01),
    "answers, score, patience": dict(train_data=("answers.jsonl",), valid_split=0.25, eval_every=1, patience=2,
                                     eval_score="contained", sample_tokens=4, adam_alpha=0.5, adam_iter=9),
}
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
ENVIRONMENT = environment()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(TEXT)
    Path("chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in CHATS))
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    Path("answers.jsonl").write_text("".join(json.dumps({
        "prompt": pair["prompt"], "completion": pair["chosen"], "weight": pair["weight"]}) + "\n" for pair in PAIRS))
    Path("chat.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    return tmp_path


def options(model: Path, name: str = "", **given: Any) -> FinetuneConfig:
    """Files of a run are called by its name."""
    outputs = given.pop("lora_out", ("a.bin",))
    return FinetuneConfig.complete({
        "model_base": str(model), "train_data": ("text.txt",), "preset": "original", "ctx": 16, "batch": 2,
        "warmup": 2, "threads": 1, "seed": 7, "adam_iter": 4, "checkpoint_in": "", "save_every": 2,
        "checkpoint_out": f"{name}c-ITERATION.gguf", "lora_out": tuple(name + output for output in outputs), **given})


def train(size: int, config: FinetuneConfig, log: Log | None = None) -> list[Result]:
    results = on_ranks(size, lambda world: finetune(config, log, world=world))
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def contents(name: str) -> dict[str, bytes]:
    """Files of that name, without it; but for records of options and metrics, which have names and times in them."""
    return {str(path).replace(name, "", 1): path.read_bytes() for path in sorted(Path().rglob("*"))
            if path.is_file() and str(path).startswith(name) and path.suffix != ".toml" and "card" not in str(path)
            and not str(path).endswith("-metrics")}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_any_number_of_ranks_gives_the_same_bits(folder, model, scenario):
    losses = {size: train(size, options(model, f"{size}-", grad_acc=3, **SCENARIOS[scenario]))[0].loss
              for size in (1, 2, 3)}
    assert len(contents("1-")) > 2
    assert contents("1-") == contents("2-") == contents("3-")
    assert losses[1] == losses[2] == losses[3]


def test_a_run_goes_on_with_fewer_and_more_ranks(folder, model):
    train(1, options(model, "whole-", adam_iter=6, grad_acc=3))
    train(3, options(model, "parts-", adam_iter=2))                 # one pass a rank, which the checkpoint keeps
    train(1, options(model, "parts-", adam_iter=2, checkpoint_in="parts-c-2.gguf"))
    train(2, options(model, "parts-", adam_iter=2, checkpoint_in="parts-c-4.gguf"))
    assert contents("whole-") == contents("parts-")
    assert read_checkpoint("parts-c-6.gguf").extras["passes"] == 3


def test_an_iteration_has_a_pass_a_rank_and_the_log_says_so(folder, model):
    notes: list[str] = []

    class Noted(Log):
        def note(self, text: str) -> None:
            notes.append(text)

    train(2, options(model), Noted())
    assert any("2 ranks" in note and "2 passes of 2 samples, 4 in all" in note for note in notes)


def test_a_full_disk_of_the_first_rank_ends_all_and_keeps_what_was_saved(folder, model, monkeypatch):
    save = Saver.save

    def full(self: Saver, state: Any, *arguments: Any) -> None:
        if state.iteration == 4:
            raise LoraFastError("cannot write c-4.gguf: No space left on device")
        save(self, state, *arguments)

    monkeypatch.setattr(Saver, "save", full)
    errors = on_ranks(2, lambda world: finetune(options(model, adam_iter=6), world=world))
    assert all("No space left on device" in str(error) for error in errors)
    assert read_checkpoint("c-LATEST.gguf").state.iteration == 2


def test_other_models_data_and_options_are_refused_with_the_rank(folder, model):
    other = make_tiny(folder / "other.gguf", seed=1)
    Path("other.txt").write_text(TEXT.replace("sweet", "thy"))

    def run(config: FinetuneConfig) -> list[str]:
        return [str(error) for error in on_ranks(3, lambda world: finetune(
            config if world.rank == 1 else options(model), world=world))]

    assert all("rank 1 on" in error and "base model" in error for error in run(options(other)))
    assert all("rank 1 on" in error and "adam_alpha 0.5" in error for error in run(options(model, adam_alpha=0.5)))
    assert all("rank 1 on" in error and "train_data" in error
               for error in run(options(model, train_data=("other.txt",))))


def test_data_that_differs_under_the_same_name_is_refused(folder, model, monkeypatch):
    refuse = sharing.refuse_differences

    def other_contents(world: World, facts: dict[str, Any], advice: str) -> None:
        is_data = [name.startswith("the ") and name.endswith(" data") for name in facts]
        refuse(world, {name: f"{value} {world.rank // 2 if this else 0}"
                       for this, (name, value) in zip(is_data, facts.items())}, advice)

    monkeypatch.setattr(sharing, "refuse_differences", other_contents)
    errors = list(map(str, on_ranks(3, lambda world: finetune(options(model), world=world))))
    assert all("rank 2 on" in error and "the training data" in error and "copy the same files" in error
               for error in errors), errors


def test_unlike_processors_are_told_with_their_ranks(folder, model, monkeypatch):
    warnings: list[str] = []

    class Warned(Log):
        def warning(self, text: str) -> None:
            warnings.append(text)

    def run(world: World) -> Result:
        gather = world.gather
        world.gather = lambda value: gather(        # type: ignore[method-assign]
            f"isa{world.rank // 2}" if value == build_info.isa() else value)
        return finetune(options(model), Warned(), world=world)

    on_ranks(3, run)
    assert any("isa0 on rank 0 on" in text and "isa1 on rank 2 on" in text and "LORAFAST_ISA" in text
               for text in warnings)


def test_a_rank_that_hangs_ends_the_run(folder, model, capsys):
    def run(world: World) -> object:
        if world.rank == 1:
            world.gather = lambda value: time.sleep(1) or []        # type: ignore[method-assign, assignment]
        try:
            return finetune(options(model, rank_timeout=0.3), world=world)
        except Exception:
            return world.transport.aborted                          # type: ignore[attr-defined]

    on_ranks(2, run, timeout=0.3)
    assert "rank 1 on" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------------- processes

needs_mpi = pytest.mark.skipif(MPIRUN is None, reason="needs mpirun: pip install mpi4py mpich")


def mpirun(size: int, *argv: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command(size, *argv), capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert done.returncode == status, done.stdout[-1000:] + done.stderr[-1000:]
    return done


def command(size: int, *argv: object) -> list[str]:
    return [str(MPIRUN), "-n", str(size), sys.executable, "-m", "lorafast", "finetune", *map(str, argv)]


def arguments(model: Path, name: str, *more: object) -> list[object]:
    return ["--model-base", model, "--train-data", "text.txt", "--ctx", 16, "--batch", 2, "--warmup", 2, "--threads", 1,
            "-s", 7, "--checkpoint-out", f"{name}c-ITERATION.gguf", "--lora-out", f"{name}a.bin", "--save-every", 2,
            *more]


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("scenario", [*SCENARIOS, *SLOWER])
def test_mpirun_gives_the_bits_of_one_process(folder, model, scenario):
    given = {**SCENARIOS, **SLOWER}[scenario]
    train(1, options(model, "1-", grad_acc=3, metrics="1-metrics", **given))
    for size in (2, 3):
        argv = to_argv(options(model, f"{size}-", grad_acc=3, metrics=f"{size}-metrics", **given))
        mpirun(size, "--preset", "original", *argv)
    assert len(contents("1-")) > 2
    assert contents("1-") == contents("2-") == contents("3-")
    assert numbers("1-metrics") == numbers("2-metrics") == numbers("3-metrics")
    if "patience" in given:
        last = read_checkpoint("1-c-LATEST.gguf").state.iteration
        assert last < given["adam_iter"], "it ends early"
        assert list(Path().glob("3-c-BEST*"))


def numbers(metrics: str) -> list[dict[str, Any]]:
    """Losses, rewards and scores of a run."""
    return [{name: value for name, value in event.items()
             if name not in ("seconds", "time", "tokens_per_second", "memory")}
            for event in read_metrics(metrics) if event["event"] in ("step", "evaluation")]


@pytest.mark.slow
@needs_mpi
def test_mpirun_resumes_with_other_numbers_of_ranks(folder, model):
    mpirun(1, *arguments(model, "whole-", "--adam-iter", 6, "--checkpoint-in", "", "--grad-acc", 3))
    for size, start in ((3, ""), (1, "parts-c-2.gguf"), (2, "parts-c-4.gguf")):
        mpirun(size, *arguments(model, "parts-", "--adam-iter", 2, "--checkpoint-in", start))
    assert contents("whole-") == contents("parts-")


@pytest.mark.slow
@needs_mpi
def test_errors_under_mpirun_are_one_line(folder, model):
    done = mpirun(2, *arguments(Path("none.gguf"), "x-"), status=1)
    assert done.stderr.count("lorafast: error: cannot read none.gguf") == 1 and "Traceback" not in done.stderr
    done = mpirun(2, *arguments(model, "x-", "--no-such-option"), status=2)
    assert done.stderr.count("unknown option") == 1


@pytest.mark.slow
@needs_mpi
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_every_rank_saves(folder, model, number):
    with open("log.txt", "w") as log:
        run = subprocess.Popen(command(2, *arguments(model, "s-", "--adam-iter", 100000, "--checkpoint-in", "")),
                               stdout=log, stderr=log, env=ENVIRONMENT)
        while "iter=     9" not in Path("log.txt").read_text():
            time.sleep(0.1)
        for pid in ranks_of(run.pid):
            os.kill(pid, number)
        run.wait(60)
    assert "finished: stopped by" in Path("log.txt").read_text()
    assert read_checkpoint("s-c-LATEST.gguf").state.iteration >= 9


def ranks_of(launcher: int) -> list[int]:
    """Processes of lorafast under a launcher."""
    children = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in children.splitlines()[1:]]
    family = {launcher}
    for _ in rows:
        family |= {int(pid) for pid, parent, _ in rows if int(parent) in family}
    return [int(pid) for pid, _, command in rows if int(pid) in family and "-m lorafast" in command
            and "mpirun" not in command.split()[0] and "hydra" not in command]
