"""A training run, from the options to the files it leaves, and the plan of one: here is opened, checked and made what
the loop (loop.py) needs.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..data.batches import SamplerState
from ..data.open import Data
from ..data.samples import Sequences
from ..distributed import joining
from ..distributed.wire import WIRES
from ..distributed.world import World
from ..network.lora import Ranks
from ..network.trainer import LLAMA_FINETUNE_FLOOR, Strategy, Trainer, scratch_floats
from ..network.weights import Weights
from ..options.defaults import are_records
from ..options.finetune import FinetuneConfig
from ..planning.plan import Plan
from ..planning.sharing import IN_MEMORY, Sharing, link_of
from ..reporting.events import Observer
from ..reporting.log import Log, Silence
from ..reporting.metrics import open_observers
from ..reporting.report import NothingDone, write_report
from ..reporting.trackers import check_installed
from ..words import count
from . import llama_finetune_sizes as sizes
from .beginning import begin_by_eva, with_ranks_by_data
from .course import Course, plan_course
from .dropout import Dropout
from .learner import Learner
from .loop import Reporting, Result, Run
from .opening import Opened, activation_sizes, open_run, open_weights
from .prefix import completed, open_prefix_cache
from .prepare import check_inputs, longest_row, open_training_data, rows_that_share
from .reference import with_reference
from .repair import claim, write_missing_adapters
from .saving import Bystander, Saver, check_writing, clear_folder
from .sharing import check_alike, own_options, plan_alike, with_passes
from .signals import listening
from .starting import Start, open_source, starting_point
from .teacher import open_teacher


def finetune(config: FinetuneConfig, log: Log | None = None, observers: Sequence[Observer] = (),
             world: World | None = None) -> Result:
    """Runs `lorafast finetune`.

    log        what happens is shown there; None: nowhere
    observers  are called with each event (events.py); one that returns True ends the run, with everything saved
    world      the ranks that compute it together; only the first one logs, saves and calls observers. None: those that
               a launcher of MPI has started with this process

    Raises LoraFastError, in one line, for whatever stands in the way, on all ranks; what was saved stays.
    """
    world = world or joining.world()
    log = log or Log()
    if not world.is_first:
        log, observers = Silence(), ()
    with world.failing_together(), ExitStack() as stack:
        result = _train(config, log, observers, world, stack)
    if config.report and world.is_first and not config.only_write_lora:     # only now: the run's memory is free again
        try:
            for path in write_report(config.metrics_path, config.report):
                log.note(f"report: {path}")
        except NothingDone as error:        # a power cut may take the lines of metrics, and leave the last checkpoint
            log.warning(f"{error}: the report was not written")
        except KeyboardInterrupt:
            log.warning(f"interrupted: the report was not written; lorafast report {config.metrics_path} does it")
    return result


def _train(config: FinetuneConfig, log: Log, observers: Sequence[Observer], world: World, stack: ExitStack) -> Result:
    """All but the report. stack: closes what the run has opened."""
    given, config = config, own_options(config, world, stack)
    check_inputs(config)
    if world.is_first:
        _claim(config, log, stack)
    seed = world.gather(config.resolve_seed())[0]
    log.seed(seed)
    log.model_base(config.model_base)
    opened = with_passes(open_run(config, log, stack), world, log)
    config = opened.config
    new_saver = Saver if world.is_first else Bystander
    given = replace(given, grad_acc=config.grad_acc)
    if config.only_write_lora:
        return _write_adapters(opened, seed, new_saver(given, log, opened), log)

    # The lengths of records decide what a pass takes. Of text they are known, and llama-finetune reads it later.
    data = None
    if reads_records(config) or opened.redistributes_ranks:
        data = open_training_data(config, log, opened.tokenizer, opened.network, opened.gguf)
        opened = opened.knowing(data)
    row = longest_row(config, data)
    memory_plan = plan_alike(opened, row, rows_that_share(data), world, log)
    opened, found = with_ranks_by_data(opened, data, memory_plan, row, world, log)
    saver = new_saver(given, log, opened)
    start = starting_point(opened, seed, log)
    log_start(opened, start, log)
    if start.state.iteration:
        for line in write_missing_adapters(saver, Path(config.checkpoint_in), start.state.iteration):
            log.note(line)
    log_sizes(opened, memory_plan.strategy, row, start, log)
    data = data or open_training_data(config, log, opened.tokenizer, opened.network, opened.gguf)
    check_alike(opened, data, world, log)
    weights = open_weights(opened, opened.adapter, memory_plan, row, stack)
    data = with_reference(opened, data, row, memory_plan.strategy, weights, world, log)
    memory_plan = completed(memory_plan, opened, data)
    dropout = Dropout(opened.adapter, config.lora_dropout,
                      start.extras.get("dropout_seed", seed)) if config.lora_dropout else None
    trainer = _open_trainer(opened, dropout, data, memory_plan.strategy, row, weights, world, stack)
    source = open_source(opened, data, start, seed, log)
    begin_by_eva(opened, trainer, data, found, world, log)
    course = source.course
    warn_of_warmup(course, start, log)
    saver.check_disk(start.state.iteration, course.n_iter, source.data.valid is not None and config.keep_best)

    memory_plan = memory_plan.for_iterations(course.n_iter)
    for line in memory_plan.summary():
        log.note(line)
    observers = [*observers, *open_observers(config, start.state.iteration, stack, log.warning)]
    if world.is_first:          # only now: what stands in the way of a run must not cost the results of the one before
        clear_folder(config)
    saver.save_options(seed)
    log.begin(sizes.work_size(config.n_threads, opened.hparams.n_vocab), n_iter=course.n_iter,
              tokens_per_iter=config.n_acc * config.batch * row, folder=saver.folder)
    requests = stack.enter_context(listening(log))
    stack.enter_context(np.errstate(over="ignore", invalid="ignore"))   # what is not finite ends the run anyway
    learner = Learner(config, opened.network, opened.adapter, start.moments, trainer, dropout, world,
                      WIRES[config.exchange]())
    return Run(opened, learner, source, start, memory_plan, Reporting(log, saver, observers, requests)).loop()


def _open_trainer(opened: Opened, dropout: Dropout | None, data: Data, strategy: Strategy, row: int, weights: Weights,
                  world: World, stack: ExitStack) -> Trainer:
    """What passes over the data are computed with. row: tokens of the longest one."""
    config = opened.config
    prefix = open_prefix_cache(opened, data, world)
    if prefix:
        stack.callback(prefix.close)
    return Trainer(opened.network, dropout.thinned if dropout else opened.adapter,
                   strategy.max_tokens(config.batch, row), strategy, config.n_threads,
                   floor=0.0 if isinstance(data.train, Sequences) else LLAMA_FINETUNE_FLOOR, weights=weights,
                   teacher=open_teacher(opened, data, strategy), prefix=prefix)


def _claim(config: FinetuneConfig, log: Log, stack: ExitStack) -> None:
    """Checks what the run writes, takes the names for it alone, and says where its defaults come from."""
    check_writing(config)
    for line in claim(config, stack):
        log.note(line)
    check_installed(config.log_to)
    if config.is_llama_finetune_run:
        log.warning(f"with llama-finetune's defaults of 2024 ({config.matters_most}); --run NAME or --preset modern "
                    "starts from today's")
    else:
        log.note(f"with the preset {config.preset}: {config.matters_most}")


def _write_adapters(opened: Opened, seed: int, saver: Saver, log: Log) -> Result:
    """All that --only-write-lora asks for."""
    start = starting_point(opened, seed, log)
    log_start(opened, start, log)
    saver.save_adapters(start.state.iteration)
    return Result(start.state.iteration, math.nan, "only the adapter was asked for", False)


def reads_records(config: FinetuneConfig) -> bool:
    """Whether the data is records, as far as that can be told before it is read."""
    return are_records(config.train_data, config.data_format)


def log_sizes(opened: Opened, strategy: Strategy, row: int, start: Start, log: Log) -> None:
    """What llama-finetune tells of its memory, of ours."""
    config, network, adapter = opened.config, opened.network, opened.adapter
    scratch = 4 * scratch_floats(network, adapter, strategy.max_tokens(config.batch, row), strategy)
    log.sizes(opt_size=sizes.opt_size(adapter.n_params, config.opt_past), opt_iter=start.state.iteration,
              input_size=sizes.input_size(config.ctx, config.batch, opened.hparams.n_vocab),
              compute_size=activation_sizes(opened, adapter, strategy, row).nbytes + scratch,
              order=start.state.moments_order)


def warn_of_warmup(course: Course, start: Start, log: Log) -> None:
    """Where the warm-up takes the whole run."""
    last = start.state.iteration + course.n_iter
    if course.warmup >= last > 0:
        log.warning(f"the warm-up of {count(course.warmup, 'iteration')} does not end before the run, at iteration "
                    f"{last}: the learning rate never reaches --adam-alpha (--warmup, --warmup-ratio)")


def log_start(opened: Opened, start: Start, log: Log) -> None:
    """What is trained, and how far it has come."""
    adapter, state = opened.adapter, start.state
    log.params(opened.hparams)
    log.lora_params(Ranks(adapter).by_role(), adapter.n_params)
    log.counters(state.iteration, state.sampler.samples_used, state.tokens, state.sampler.epochs)
    log.lora_size(sizes.lora_size(adapter.specs))


def plan_of(config: FinetuneConfig) -> Plan:
    """Where a run with these options would spend memory and time. LoraFastError, with what would fit, if nothing
    does."""
    link = link_of(config.network) if config.network else IN_MEMORY
    on_host = 1 if config.network else config.ranks
    with ExitStack() as stack:
        log = Log()
        sharing = Sharing(config.ranks, on_host, link, WIRES[config.exchange].itemsize)
        threads = max(1, config.n_threads // on_host)
        opened = open_run(replace(config, threads=threads, grad_acc=config.grad_acc or config.ranks), log, stack)
        by_epochs = config.adam_iter is None and config.epochs > 0
        data = None
        if by_epochs or reads_records(config):
            data = open_training_data(config, log, opened.tokenizer, opened.network, opened.gguf)
            opened = opened.knowing(data)
        memory_plan = opened.plan(longest_row(config, data), sharing, rows_that_share(data))
        if data is None:
            return memory_plan
        memory_plan = completed(memory_plan, opened, data)
        return memory_plan.for_iterations(plan_course(config, data.train, SamplerState(), 0).n_iter)


def plan(config: FinetuneConfig, write: Callable[[str], None]) -> None:
    """Runs `lorafast plan`: writes the plan line by line."""
    for line in plan_of(config).table():
        write(line)
