"""What trackers are told: by stand-ins that write it down, and by the programs themselves, offline, where installed."""
import math
import sys
from types import SimpleNamespace

import pytest

from lorafast.errors import LoraFastError
from lorafast.options.finetune import TRACKERS, FinetuneConfig
from lorafast.reporting.events import Continuation, Ended, Evaluation, Started, Step
from lorafast.reporting.trackers import PROJECT, TrackerObserver

EVENTS = [Started(4, 2, 100, {"ctx": 16, "targets": "attn", "layers": 0}),
          Evaluation(4, 2.0, 30, True), Step(5, 1.5, 1e-3, 0.25, 32, 0, 0.5), Continuation(5, "the ", "love"),
          Step(6, 1.25, 5e-4, 0.5, 32, 1, 0.25), Ended(6, "done", 1.0)]
CURVES = [
    ({"evaluation/loss": 2.0, "evaluation/perplexity": math.exp(2.0)}, 4),
    ({"train/loss": 1.5, "train/learning_rate": 1e-3, "train/gradient_norm": 0.25, "speed/tokens_per_second": 64.0},
     5),
    ({"train/loss": 1.25, "train/learning_rate": 5e-4, "train/gradient_norm": 0.5, "speed/tokens_per_second": 128.0},
     6)]
OPTIONS = EVENTS[0].options


def follow(name, warn=pytest.fail):
    """A run as a tracker of that name sees it."""
    config = FinetuneConfig(model_base="m.gguf", run="runs/first/")
    with TrackerObserver(name, config, warn) as observer:
        for event in EVENTS:
            observer(event)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_what_wandb_and_trackio_are_told(monkeypatch, name):
    told = []
    run = SimpleNamespace(log=lambda values, step: told.append((values, step)), finish=lambda: told.append("finished"))
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(init=lambda **how: told.append(how) or run))
    follow(name)
    assert told == [{"project": PROJECT, "name": "first", "config": OPTIONS}, *CURVES[:2],
                    ({"sample/the ": "the love"}, 5), CURVES[2], "finished"]


def test_what_mlflow_is_told(monkeypatch):
    told = []

    def noted(function):
        return lambda *values, **named: told.append((function, *values, *named.values()))

    names = ("set_experiment", "start_run", "log_params", "log_metrics", "log_text", "end_run")
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(**{name: noted(name) for name in names}))
    follow("mlflow")
    assert told == [("set_experiment", PROJECT), ("start_run", "first"),
                    ("log_params", {key: str(value) for key, value in OPTIONS.items()}),
                    *(("log_metrics", *curve) for curve in CURVES[:2]),
                    ("log_text", "the love", "sample-the -5.txt"), ("log_metrics", *CURVES[2]), ("end_run",)]


def test_a_tracker_that_fails_is_left_out_and_said(monkeypatch):
    calls, warnings = [], []

    def log(values, step):
        calls.append(step)
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **how: SimpleNamespace(log=log)))
    follow("wandb", warnings.append)
    assert calls == [4] and warnings == ["wandb failed and is left out from now on: ConnectionError: no network"]


@pytest.mark.parametrize("name", TRACKERS)
def test_a_tracker_that_is_not_installed_is_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LoraFastError, match=rf"--log-to {name}: .*pip install 'lorafast\[{name}\]'"):
        follow(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRACKERS)
def test_the_program_itself_offline(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for variable, value in {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "TRACKIO_DIR": str(tmp_path / "trackio"),
                            "MLFLOW_ALLOW_FILE_STORE": "true",
                            "MLFLOW_TRACKING_URI": f"file://{tmp_path}/mlruns"}.items():
        monkeypatch.setenv(variable, value)
    pytest.importorskip(name)           # only now: some are read when it is imported
    follow(name)
    assert any(path.is_file() for path in tmp_path.rglob("*"))
