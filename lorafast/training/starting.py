"""Where a run begins: the adapter's values, counters, and the position in the data."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..adapters.checkpoint import Checkpoint, Geometry, TrainState
from ..data.batches import Sampler, SequenceSampler
from ..data.open import Data
from ..network import dora
from ..network.lora import Moments
from ..reporting.log import Log
from .course import Course, plan_course
from .opening import Opened
from .optim import LossHistory
from .prepare import open_sampler


@dataclass(frozen=True)
class Start:
    """What a checkpoint has of the run that goes on; of a new run what it begins with.

    history  of the stop tests; None: they begin
    extras   what a checkpoint keeps that llama-finetune's did not
    """

    state: TrainState
    moments: Moments
    history: LossHistory | None
    extras: dict[str, Any]


def starting_point(opened: Opened, seed: int, log: Log) -> Start:
    """Gives the adapter its values: the checkpoint's, those that --init-lora brought, or new ones."""
    config, adapter, checkpoint = opened.config, opened.adapter, opened.checkpoint
    moments = Moments(adapter)
    if checkpoint is None:
        if not config.init_lora:
            adapter.initialise(seed)
            dora.initialise(adapter, opened.network.dora_gains(), opened.weights, config.n_threads,
                            after_each=opened.files.let_go_pages)
        return Start(TrainState(), moments, None, {})
    checkpoint.load_adapter(adapter, Geometry.of(opened.hparams))
    if config.only_write_lora:
        return Start(checkpoint.state or TrainState(), moments, None, {})
    state = checkpoint.load_training_state(adapter, moments, config.opt_past)
    log.note(f"order of the moments in {checkpoint.path}: {state.moments_order}, {checkpoint.moments_evidence}")
    return Start(state, moments, _history(checkpoint, state), checkpoint.extras)


def _history(checkpoint: Checkpoint, state: TrainState) -> LossHistory | None:
    """The history of the stop tests. llama-finetune begins them afresh on resuming: its last save has seen one loss too
    many to go on exactly."""
    if not state.iteration or checkpoint.is_originals:
        return None
    return LossHistory(state.best_loss, state.previous_loss, state.no_improvement, state.past_losses)


@dataclass(frozen=True)
class Source:
    """What a run trains on: the data, what draws batches from it, and how long that goes on."""

    data: Data
    sampler: Sampler | SequenceSampler
    course: Course


def open_source(opened: Opened, data: Data, start: Start, seed: int, log: Log) -> Source:
    """What draws from the data, from where the run had come to."""
    config = opened.config
    sampler = open_sampler(config, log, data, opened.tokenizer, opened.hparams, seed, start.state)
    course = plan_course(config, data.train, sampler.state, start.state.iteration, start.extras.get("schedule_end", 0))
    return Source(data, sampler, course)
