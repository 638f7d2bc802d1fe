"""What signals ask of a run: to end with everything saved, or to save and go on. Each reaches this process."""
import os
import signal
from pathlib import Path

import pytest
from make_models import make_tiny

from lorafast.adapters.checkpoint import read_checkpoint
from lorafast.options.finetune import FinetuneConfig
from lorafast.reporting.events import Step
from lorafast.training.run import Result, finetune


def run_with(number: signal.Signals, *, at: int = 2, **options: object) -> Result:
    """A run of five iterations in the present folder that is sent a signal after some."""
    make_tiny(Path("tiny.gguf"), n_layer=1)
    Path("text.txt").write_text("the love of thy sweet all and not to thou " * 20)

    def send(event):
        if isinstance(event, Step) and event.iteration == at:
            os.kill(os.getpid(), number)

    config = FinetuneConfig(model_base="tiny.gguf", train_data=("text.txt",), ctx=16, batch=2, seed=1, threads=1,
                            adam_iter=5, save_every=0, checkpoint_in="", checkpoint_out="c-ITERATION.gguf",
                            lora_out=("a.gguf",), **options)
    return finetune(config, observers=[send])


def checkpoints() -> set[str]:
    return {path.name for path in Path().glob("c-*.gguf")}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_after_the_step_with_everything_saved(tmp_path, monkeypatch, number):
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(number)
    result = run_with(number)
    assert (result.iteration, result.interrupted, result.signal) == (2, True, number)
    assert result.reason == f"stopped by {number.name}"
    assert read_checkpoint("c-LATEST.gguf").state.iteration == 2 and checkpoints() == {"c-2.gguf", "c-LATEST.gguf"}
    assert signal.getsignal(number) == before


def test_sigusr1_saves_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_with(signal.SIGUSR1)
    assert result.iteration == 5 and not result.interrupted
    assert checkpoints() == {"c-2.gguf", "c-5.gguf", "c-LATEST.gguf"}


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_ignored_stays_so(tmp_path, monkeypatch, number):
    """Under nohup a run outlives its terminal."""
    monkeypatch.chdir(tmp_path)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert run_with(number).iteration == 5
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_signal_after_the_last_save_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run_with(signal.SIGINT, at=5)
    assert result.iteration == 5 and checkpoints() == {"c-5.gguf", "c-LATEST.gguf"}
