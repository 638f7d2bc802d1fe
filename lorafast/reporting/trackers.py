"""Tells trackio, wandb or mlflow how a run goes: `--log-to NAME`. Each is an extra, imported only when it is asked for.

Where they keep or send what they are told follows from their own settings: WANDB_MODE=offline, MLFLOW_TRACKING_URI,
TRACKIO_DIR and the like. A tracker that fails in the middle of a run is left out from then on; the run goes on.

Sources: the documentation of wandb (init, Run.log, Run.finish), trackio (the same names) and mlflow (start_run,
log_params, log_metrics, end_run).
"""
from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Protocol

from ..errors import LoraFastError
from ..options.finetune import TRACKERS, FinetuneConfig
from .events import Continuation, Ended, Event, Started, numbers

PROJECT = "lorafast"
"""The project under which trackers file runs."""


class Tracker(Protocol):
    """A run in a tracker. `log` is told numbers by name, or a text, after an iteration."""

    def log(self, values: Mapping[str, Any], iteration: int) -> None: ...

    def finish(self) -> None: ...


class WandbRun:
    """A run of wandb, or of trackio, which has the same functions."""

    def __init__(self, module: ModuleType, name: str | None, options: Mapping[str, Any]) -> None:
        self.run = module.init(project=PROJECT, name=name, config=dict(options))

    def log(self, values: Mapping[str, Any], iteration: int) -> None:
        self.run.log(dict(values), step=iteration)

    def finish(self) -> None:
        self.run.finish()


class MlflowRun:
    """A run of mlflow, which knows numbers only; texts become files."""

    LONGEST = 500
    """Characters of a parameter's value that every server takes."""

    def __init__(self, module: ModuleType, name: str | None, options: Mapping[str, Any]) -> None:
        self.module = module
        module.set_experiment(PROJECT)
        module.start_run(run_name=name)
        module.log_params({key: str(value)[:self.LONGEST] for key, value in options.items()})

    def log(self, values: Mapping[str, Any], iteration: int) -> None:
        texts = {name: value for name, value in values.items() if isinstance(value, str)}
        for name, text in texts.items():
            self.module.log_text(text, f"{name.replace('/', '-')[:80]}-{iteration}.txt")
        if figures := {name: value for name, value in values.items() if name not in texts}:
            self.module.log_metrics(figures, step=iteration)

    def finish(self) -> None:
        self.module.end_run()


RUNS: dict[str, Callable[[ModuleType, str | None, Mapping[str, Any]], Tracker]] = {
    "trackio": WandbRun, "wandb": WandbRun, "mlflow": MlflowRun}
assert tuple(RUNS) == TRACKERS


def check_installed(names: Sequence[str]) -> None:
    """LoraFastError where one of these trackers is not; tells it without importing any."""
    for name in names:
        if name not in sys.modules and find_spec(name) is None:
            raise _missing(name, f"No module named {name!r}")


def _missing(name: str, reason: object) -> LoraFastError:
    return LoraFastError(f"--log-to {name}: it cannot be imported ({reason}); pip install 'lorafast[{name}]'")


class TrackerObserver:
    """Passes a run's events on to a tracker; to be used in a `with` block."""

    def __init__(self, name: str, config: FinetuneConfig, warn: Callable[[str], None]) -> None:
        """LoraFastError if the tracker is not installed."""
        self.name, self.warn = name, warn
        self.run_name = os.path.basename(os.path.abspath(config.run)) if config.run else None
        self.tracker: Tracker | None = None
        self.has_failed = False
        try:
            self.module = import_module(name)
        except ImportError as error:
            raise _missing(name, error) from None

    def __call__(self, event: Event) -> None:
        self._attempt(lambda: self._pass_on(event))

    def _pass_on(self, event: Event) -> None:
        if isinstance(event, Started):
            self.tracker = RUNS[self.name](self.module, self.run_name, event.options)
        elif self.tracker is None or isinstance(event, Ended):
            return
        elif isinstance(event, Continuation):
            self.tracker.log({f"sample/{event.prompt}": event.prompt + event.text}, event.iteration)
        else:
            self.tracker.log(numbers(event), event.iteration)

    def _attempt(self, act: Callable[[], None]) -> None:
        """A tracker is somebody else's program, and may raise anything: that must not end a run of hours."""
        if self.has_failed:
            return
        try:
            act()
        except Exception as error:
            self.has_failed = True
            self.warn(f"{self.name} failed and is left out from now on: {type(error).__name__}: {error}")

    def __enter__(self) -> TrackerObserver:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.tracker:
            self._attempt(self.tracker.finish)
