"""A training run, from the options to the files it leaves.

The order of its parts is the original's (llama.cpp's llama-finetune of July 2024): callback, forward and backward, update, tests.
Iteration k saves if a save is due, prints its line with the loss evaluated before it, draws its batch, evaluates it, and makes
update k + 1. So a save holds the parameters after k updates and the position in the data before batch k is drawn: from it a run
goes on as if it had never stopped.
"""
from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from . import __version__, sizes
from .adapters import AdapterFile, BaseModel, write_adapter
from .checkpoint import Checkpoint, Geometry, TrainState, read_checkpoint, write_checkpoint
from .config import FinetuneConfig
from .data import Samples, tokenize_text
from .errors import LoraFastError
from .files import check_disk, check_outputs, form_of
from .gguf import open_model
from .hparams import HParams, read_hparams
from .log import IterationRecord, Log
from .lora import Adapter, specs_for
from .model import Model, Trainer
from .optim import Adam, EpochLimit, LossHistory, Schedule, StopTests
from .sampler import Sampler
from .tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Result:
    """How a run ended: iterations done in all runs, the last loss (nan if none was evaluated), why, and whether by a signal."""

    iteration: int
    loss: float
    reason: str
    interrupted: bool


def finetune(config: FinetuneConfig, log: Log) -> Result:
    """Runs `lorafast finetune`. Raises LoraFastError, in one line, for whatever stands in the way; what was saved stays."""
    check_outputs([*filter(None, [config.checkpoint_output]), *config.adapter_outputs],
                  {"the base model": config.model_base, "the training data": config.train_data})
    seed = config.resolve_seed()
    log.seed(seed)
    log.model_base(config.model_base)
    gguf = open_model(config.model_base)
    hparams = read_hparams(gguf).with_overrides(n_ctx=config.ctx, norm_rms_eps=config.norm_rms_eps,
                                                rope_freq_base=config.rope_freq_base, rope_freq_scale=config.rope_freq_scale)
    tokenizer = load_tokenizer(gguf)
    log.loader(gguf, tokenizer, hparams)
    if 0 < hparams.n_ctx_train < config.ctx:
        log.warning(f"--ctx {config.ctx} is more than the {hparams.n_ctx_train} tokens that the model was trained on")

    adapter = _new_adapter(config, hparams)
    checkpoint = _find_checkpoint(config, log)
    state, history = TrainState(), None
    if checkpoint is None:
        adapter.initialise(seed)
    else:
        checkpoint.load_adapter(adapter, _geometry(hparams))
        if not config.only_write_lora:
            state = checkpoint.load_training_state(adapter, config.opt_past)
            log.note(f"order of the moments in {checkpoint.path}: {state.moments_order}, {checkpoint.moments_evidence}")
            # The original begins its stop tests afresh on resuming; its last save has seen one loss too many to go on exactly.
            if state.iteration and not checkpoint.is_originals:
                history = LossHistory(state.best_loss, state.previous_loss, state.no_improvement, state.past_losses)

    log.params(hparams)
    log.lora_params({spec.role: spec.rank for spec in adapter.specs}, adapter.n_params)
    log.counters(state.iteration, state.sampler.samples_used, state.tokens, state.sampler.epochs)
    log.lora_size(sizes.lora_size(adapter.specs))
    files = _Files(config, log, adapter, hparams, BaseModel.from_gguf(gguf))
    if config.only_write_lora:
        files.save_adapters(state.iteration)
        return Result(state.iteration, math.nan, "only the adapter was asked for", False)

    model = Model(gguf, hparams, config.ctx)
    trainer = Trainer(model, adapter, config.batch * config.ctx, checkpointing=config.use_checkpointing,
                      n_threads=config.n_threads)
    log.sizes(opt_size=sizes.opt_size(adapter.n_params, config.opt_past), opt_iter=state.iteration,
              input_size=sizes.input_size(config.ctx, config.batch, hparams.n_vocab), compute_size=trainer.nbytes,
              order=state.moments_order)
    sampler = _open_data(config, log, tokenizer, hparams, seed, state)
    files.check_disk(state.iteration)
    log.begin(sizes.work_size(config.n_threads, hparams.n_vocab), n_iter=config.adam_iter,
              tokens_per_iter=config.n_acc * config.batch * config.ctx)
    with _interrupts() as interrupted:
        return _Run(config, log, model, adapter, trainer, sampler, state, history, files, interrupted).loop()


class _Run:
    """The loop and what it changes."""

    def __init__(self, config: FinetuneConfig, log: Log, model: Model, adapter: Adapter, trainer: Trainer, sampler: Sampler,
                 state: TrainState, history: LossHistory | None, files: _Files, interrupted: list[int]) -> None:
        self.config, self.log, self.model, self.adapter = config, log, model, adapter
        self.trainer, self.sampler, self.state, self.files, self.interrupted = trainer, sampler, state, files, interrupted
        self.first_iteration = self.saved_at = state.iteration
        self.schedule = Schedule(config.warmup, config.cos_decay_steps, config.cos_decay_restart, config.cos_decay_min,
                                 config.enable_restart, config.adam_min_alpha / config.adam_alpha)
        self.adam = Adam(config.adam_alpha, config.adam_beta1, config.adam_beta2, config.adam_decay, config.adam_gclip)
        self.n_decayed = adapter.n_decayed(config.adam_decay_min_ndim)
        self.stop_tests = StopTests(config.adam_epsf, config.opt_past, config.opt_delta, config.opt_max_no_improvement,
                                    history, state.past_losses if len(state.past_losses) else None)
        self.epoch_limit = EpochLimit(config.epochs, sampler.state.epochs)
        self.loss = 0.0

    def loop(self) -> Result:
        config, log, state, sampler = self.config, self.log, self.state, self.sampler
        began = time.perf_counter()
        reason, step_began = None, None
        while reason is None:
            step_ms = None if step_began is None else 1000 * (time.perf_counter() - step_began)
            done = state.iteration - self.first_iteration
            state.sampler = sampler.state
            if config.save_every > 0 and state.iteration - self.saved_at >= config.save_every:
                self.save()
            step_began = time.perf_counter()
            schedule = self.schedule(state.iteration)
            log.iteration(IterationRecord(state.iteration, done, min(1 + state.sampler.next_sample, state.sampler.sample_count),
                                          state.sampler.sample_count, schedule, config.adam_alpha * schedule, self.loss,
                                          step_ms or None))
            if done == config.adam_iter:
                reason = f"all {done} iterations are done (--adam-iter)"
            elif self.interrupted:
                reason = f"stopped by {signal.Signals(self.interrupted[0]).name}"
            else:
                reason = self.evaluate() or self.update(schedule)
        log.total_time(1000 * (time.perf_counter() - began))
        if state.iteration > self.saved_at or not config.adam_iter:
            self.save()
        left = config.adam_iter - (state.iteration - self.first_iteration)
        log.finished(reason, self.files.resume_command(left) if self.interrupted and left else "")
        return Result(state.iteration, self.loss if state.iteration else math.nan, reason, bool(self.interrupted))

    def evaluate(self) -> str | None:
        """Loss and gradients of the next batches. Returns why the run is to end instead of going on with an update."""
        config, state, adapter = self.config, self.state, self.adapter
        self.model.merge(adapter)
        adapter.grads.fill(0)
        loss = 0.0
        for _ in range(config.n_acc):
            batch = self.sampler.next_batch(config.batch)
            epochs = self.sampler.state.epochs
            if batch.epoch_ended:
                self.log.reshuffled(epochs)
            reason = self.epoch_limit.check(epochs, state.iteration)
            if reason:
                return reason
            n_counted = np.count_nonzero(batch.targets >= 0)
            loss += self.trainer.loss_and_gradients(batch, 1 / (config.n_acc * n_counted)) / (config.n_acc * n_counted)
        if not math.isfinite(loss):
            raise LoraFastError(f"the loss of iteration {state.iteration} is {loss}; {self.last_good()}")
        self.loss = loss
        return self.stop_tests.check(loss, state.iteration)

    def update(self, schedule: float) -> None:
        state, adapter = self.state, self.adapter
        norm = self.adam.step(adapter.params, adapter.m, adapter.v, adapter.grads, n_decayed=self.n_decayed,
                              iteration=state.iteration + 1, schedule=schedule, n_threads=self.config.n_threads)
        if not math.isfinite(norm):
            raise LoraFastError(f"the gradient of iteration {state.iteration} is not finite; {self.last_good()}")
        state.iteration += 1
        state.tokens += self.config.n_acc * self.config.batch * self.config.ctx

    def last_good(self) -> str:
        saved = self.saved_at > self.first_iteration and self.config.checkpoint_output
        where = (f"the last good checkpoint is {self.config.checkpoint_output.latest_path}, of iteration {self.saved_at}"
                 if saved else "nothing was saved")
        return f"{where}; go on with a lower --adam-alpha"

    def save(self) -> None:
        history = self.stop_tests.history
        if history is not None:
            self.state.best_loss, self.state.previous_loss = history.best_loss, history.previous_loss
            self.state.no_improvement, self.state.past_losses = history.no_improvement, history.past_losses
        self.files.save(self.state)
        self.saved_at = self.state.iteration


class _Files:
    """What a save writes: the checkpoint under its number and as the latest, then each adapter likewise."""

    def __init__(self, config: FinetuneConfig, log: Log, adapter: Adapter, hparams: HParams, base: BaseModel) -> None:
        self.config, self.log, self.adapter, self.hparams, self.base = config, log, adapter, hparams, base

    def check_disk(self, iteration: int) -> None:
        n_params, n_pairs = self.adapter.n_params, len(self.adapter.specs)
        outputs = [(output, sizes.adapter_bound(n_params, n_pairs)) for output in self.config.adapter_outputs]
        if self.config.checkpoint_output:
            outputs.append((self.config.checkpoint_output, sizes.checkpoint_bound(n_params, n_pairs)))
        check_disk(outputs, iteration=iteration, n_iter=self.config.adam_iter, save_every=self.config.save_every)

    def save(self, state: TrainState) -> None:
        output = self.config.checkpoint_output
        if output:
            for path in output.paths(state.iteration):
                self.log.saving("checkpoint", path)
                write_checkpoint(path, _geometry(self.hparams), self.adapter, state, extras={"version": __version__})
        self.save_adapters(state.iteration)
        if output:
            output.prune()

    def save_adapters(self, iteration: int) -> None:
        for output in self.config.adapter_outputs:
            for path in output.paths(iteration):
                self.log.saving("adapter", path)
                write_adapter(form_of(output.name), path, AdapterFile.of(self.adapter), self.base)

    def resume_command(self, iterations: int) -> str:
        output = self.config.checkpoint_output
        return self.config.resume_command(output.latest_path, iterations) if output else ""


def _geometry(hparams: HParams) -> Geometry:
    return Geometry(hparams.n_ctx, hparams.n_embd, hparams.n_ff, hparams.n_head, hparams.n_head_kv, hparams.n_layer,
                    hparams.n_rot, hparams.norm_rms_eps, hparams.rope_freq_base, hparams.rope_freq_scale, hparams.arch)


def _new_adapter(config: FinetuneConfig, hparams: HParams) -> Adapter:
    specs = specs_for(hparams.tensor_shapes(), config.ranks(), config.target_list())
    config.check_adapted({spec.role for spec in specs}, tied=hparams.tied)
    return Adapter(specs, config.alpha, config.lora_r, training=not config.only_write_lora)


def _find_checkpoint(config: FinetuneConfig, log: Log) -> Checkpoint | None:
    """The checkpoint to go on from; None, and a word about it, where there is none."""
    path = config.checkpoint_in
    if path and os.path.lexists(path):
        return read_checkpoint(path)
    if path:
        log.note(f"no checkpoint {path}: starting fresh")
    return None


def _open_data(config: FinetuneConfig, log: Log, tokenizer: Tokenizer, hparams: HParams, seed: int,
               state: TrainState) -> Sampler:
    log.tokenizing(config.train_data, config.start_text, config.include_sample_start)
    samples: Samples = tokenize_text(
        config.train_data, tokenizer, config.ctx, sample_start=config.start_text,
        include_sample_start=config.include_sample_start, overlapping_samples=config.overlapping_samples)
    log.data(len(samples), len(samples.tokens), len(np.unique(samples.tokens)), samples.warnings)
    sampler = Sampler(
        samples, config.ctx, seed=seed, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id, n_vocab=hparams.n_vocab,
        fill_with_next_samples=config.fill_with_next_samples, separate_with_eos=config.separate_with_eos,
        separate_with_bos=config.separate_with_bos, random_offsets=config.sample_random_offsets,
        force_reshuffle=config.force_reshuffle, state=state.sampler)
    if sampler.restarted or config.force_reshuffle:
        log.restarted(forced=config.force_reshuffle)
    return sampler


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """A list that the first SIGINT or SIGTERM enters, so that the step under way can end; the second one acts at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:                  # not in the main thread: whoever runs it handles signals
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
