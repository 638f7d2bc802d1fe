"""How long a run is, and how the learning rate goes in it."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..data.batches import SamplerState
from ..data.samples import Samples, Sequences
from ..errors import UsageError
from ..options.finetune import ITERATIONS, FinetuneConfig
from ..words import count
from .optim import OriginalSchedule, PlainSchedule


@dataclass(frozen=True)
class Course:
    """The length of a run and its schedule.

    n_iter    iterations planned; exact unless the number of samples in a pass varies
    limit     after so many the run ends in any case; None where only epochs end it
    end       iteration, counted over all runs, at which the learning rate has fallen; a checkpoint keeps it
    warmup    iterations
    schedule  factor of the learning rate by iteration
    """

    n_iter: int
    limit: int | None
    end: int
    warmup: int
    schedule: Callable[[int], float]


def plan_course(config: FinetuneConfig, samples: Samples, position: SamplerState, iteration: int,
                stored_end: int = 0) -> Course:
    """The course of a run that begins after `iteration` iterations at that position in the data.

    With --resume, iterations and epochs count from the run's beginning; UsageError if there is nothing left to do.
    stored_end: `end` of the run that it goes on from. If that was cut short its schedule goes on, unless this run's own
    length, when it is given, leads beyond it.
    """
    by_epochs = config.adam_iter is None and config.epochs > 0
    if config.resume:
        config = _what_is_left(config, position, iteration)
    if by_epochs:
        n_iter = iterations_of_epochs(config, samples, position)
    else:
        n_iter = ITERATIONS if config.adam_iter is None else config.adam_iter
    end = config.decay_iter or iteration + n_iter
    if not config.decay_iter and stored_end > iteration:
        end = stored_end if config.adam_iter is None else max(stored_end, end)
    warmup = config.warmup if config.warmup_ratio is None else round(config.warmup_ratio * end)
    floor = config.adam_min_alpha / config.adam_alpha
    schedule: Callable[[int], float]
    if config.schedule == "original":
        schedule = OriginalSchedule(warmup, config.cos_decay_steps, config.cos_decay_restart, config.cos_decay_min,
                                    config.enable_restart, floor)
    else:
        schedule = PlainSchedule(config.schedule, warmup, end, floor)
    return Course(n_iter, None if by_epochs else n_iter, end, warmup, schedule)


def _what_is_left(config: FinetuneConfig, position: SamplerState, iteration: int) -> FinetuneConfig:
    """The options with iterations and epochs counted from here instead of from the run's beginning."""
    epochs = config.epochs - position.epochs if config.epochs > 0 else config.epochs
    by_epochs = config.adam_iter is None and config.epochs > 0
    iterations = (ITERATIONS if config.adam_iter is None else config.adam_iter) - iteration
    if (config.epochs > 0 and epochs <= 0) or (not by_epochs and iterations <= 0):
        done = f"{count(iteration, 'iteration')}, {count(position.epochs, 'time')} through the data"
        raise UsageError(f"--resume: the run is complete ({done}); give a larger --adam-iter or --epochs to go on")
    return dataclasses.replace(config, adam_iter=None if by_epochs else iterations, epochs=epochs)


def iterations_of_epochs(config: FinetuneConfig, samples: Samples, position: SamplerState) -> int:
    """Iterations until --epochs epochs more are complete. An estimate where a pass takes a varying number of
    samples."""
    n_samples, batch = len(samples), float(config.batch)
    if config.pack and isinstance(samples, Sequences):
        batch *= config.ctx / np.mean(samples.size - 1)
    elif config.fill_with_next_samples and not isinstance(samples, Sequences):
        separators = config.separate_with_eos + config.separate_with_bos
        batch *= max(1.0, config.ctx / (np.mean(samples.size) + separators))
    passes = np.ceil((n_samples - position.next_sample) / batch) + (config.epochs - 1) * np.ceil(n_samples / batch)
    return int(np.ceil(passes / config.n_acc))
