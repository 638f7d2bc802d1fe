"""The events of a run as a file, a line of JSON each, written as they happen: `{"event": "step", "iteration": 1, ...}`.

The other keys are the fields of the event (events.py), `time` (seconds since 1970), and derived ones. A resumed run
goes on in the same file: what a run that died had written beyond its last save is dropped, so each iteration stands
there once.
"""
from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from ..errors import FormatError, LoraFastError
from ..options.finetune import FinetuneConfig
from ..system.atomic import atomic_write
from ..system.process import resident_bytes
from .events import Evaluation, Event, Observer, Step
from .tensorboard import EventFile
from .trackers import TrackerObserver


def open_observers(config: FinetuneConfig, iteration: int, stack: ExitStack,
                   warn: Callable[[str], None]) -> list[Observer]:
    """The files and trackers that --metrics, --report, --tensorboard and --log-to ask for, to be closed by `stack`.

    warn  is told of trackers that fail
    """
    observers: list[Observer] = []
    if config.metrics_path:
        observers.append(stack.enter_context(MetricsFile(config.metrics_path, iteration)))
    if config.tensorboard:
        observers.append(stack.enter_context(EventFile(config.tensorboard, iteration)))
    observers += [stack.enter_context(TrackerObserver(name, config, warn)) for name in config.log_to]
    return observers


class MetricsFile:
    """Writes events; to be used in a `with` block. An event reaches the system when it happens."""

    def __init__(self, path: str | os.PathLike, iteration: int) -> None:
        """iteration: where the run goes on; 0 begins the file anew. LoraFastError if it cannot be written."""
        self.path = path
        try:
            if iteration and os.path.exists(path):
                kept = [line for line in read_metrics(path) if line["iteration"] <= iteration]
                with atomic_write(path) as file:
                    file.writelines(map(_line, kept))
            self.file = open(path, "ab" if iteration else "wb", buffering=0)
        except OSError as error:
            raise LoraFastError(f"cannot write {path}: {error.strerror}") from None

    def __call__(self, event: Event) -> None:
        record = {"event": type(event).__name__.lower(), "time": round(time.time(), 3), **dataclasses.asdict(event)}
        if isinstance(event, Step | Evaluation):
            del record["rewards"]
            record |= event.rewards.facts() if event.rewards else {}
        if isinstance(event, Step):
            record |= {"tokens_per_second": event.tokens / event.seconds, "memory": resident_bytes()}
        elif isinstance(event, Evaluation):
            record["perplexity"] = event.perplexity
            if event.score is None:
                del record["score"]
        try:
            self.file.write(_line(record))
        except OSError as error:
            raise LoraFastError(f"cannot write {self.path}: {error.strerror}") from None

    def __enter__(self) -> MetricsFile:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.file.close()


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def read_metrics(path: str | os.PathLike) -> Iterator[dict[str, Any]]:
    """The lines of such a file. A last line that a crash cut short is left out. LoraFastError if it cannot be read,
    FormatError if it is another file.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                yield _record(path, number, line)
    except OSError as error:
        raise LoraFastError(f"cannot read {path}: {error.strerror}") from None


NUMBERS = ("time", "loss", "learning_rate", "gradient_norm", "tokens", "tokens_per_second", "seconds", "memory",
           "n_iter", "reward_chosen", "reward_rejected", "reward_margin", "reward_accuracy", "score")
NEEDED = {"step": ("loss", "seconds", "tokens"), "evaluation": ("loss",), "continuation": ("prompt", "text"),
          "ended": ("reason",)}
"""Keys of an event that others read."""

LATEST = 2**37
"""Seconds: of no time since 1970 that has a calendar, and of no step."""


def _is_record(record: Any) -> bool:
    """Whether a line holds what `MetricsFile` writes: names and kinds of what is read again."""
    if not isinstance(record, dict) or not isinstance(record.get("event"), str):
        return False
    numbers = [record[key] for key in NUMBERS if record.get(key) is not None]
    texts = [record[key] for key in ("prompt", "text", "reason") if key in record]
    iteration = record.get("iteration")
    return (type(iteration) is int and 0 <= iteration < 2**63
            and all(type(number) in (int, float) for number in numbers)
            and all(abs(number) < 2**63 or number != number or type(number) is float for number in numbers)
            and all(isinstance(text, str) for text in texts)
            and all(record.get(key) is not None for key in NEEDED.get(record["event"], ()))
            and all(0 <= record[key] < LATEST for key in ("time", "seconds") if record.get(key) is not None)
            and (record["event"] != "step" or record["seconds"] > 0))


def _record(path: str | os.PathLike, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not _is_record(record):
        raise FormatError(f"{path}:{number}: is not a line of metrics; --metrics FILE of a run writes such a file")
    return record
