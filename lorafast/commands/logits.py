"""What a teacher says of each answer token of some data, for students that train on the same data with --distill."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np

from ..data.batches import Batch, evaluation_batches
from ..data.samples import Sequences
from ..data.teacher_file import vocabulary_digest, write_teacher_file
from ..errors import UsageError
from ..gguf.file_form import FileForm
from ..network.lora import Adapter
from ..network.trainer import Trainer
from ..options.distil import LogitsConfig
from ..options.overwriting import Target, check_overwriting
from ..reporting.log import Log
from ..system.live import Meter, show_live
from ..system.output import show
from ..training.opening import Opened, open_run, open_weights
from ..training.prepare import longest_row, open_training_data
from ..words import count


def run(config: LogitsConfig) -> int:
    """The command. Returns the exit status."""
    inputs = {config.model_base: "the teacher", config.lora: "its adapter", **dict.fromkeys(config.data, "the records")}
    check_overwriting([Target("--output", config.output, FileForm.TEACHER)], inputs, force=config.force)
    with ExitStack() as stack:
        log = Log()
        opened = open_run(config.as_run(), log, stack)
        data = open_training_data(opened.config, log, opened.tokenizer, opened.network, opened.gguf)
        samples = data.train
        if not isinstance(samples, Sequences):
            raise UsageError(f"{config.data[0]} is text, but a teacher answers records")
        if config.top_k >= opened.hparams.n_vocab:
            raise UsageError(f"--top-k {config.top_k}: the vocabulary has {opened.hparams.n_vocab} tokens")
        trainer = open_trainer(opened, longest_row(opened.config, data), stack)
        description = {"model": config.model_base, "vocabulary": vocabulary_digest(opened.gguf.metadata),
                       "k": config.top_k}
        meter = stack.enter_context(Meter("computing the teacher's answers", len(samples), show_live))
        batches = evaluation_batches(samples, trainer.max_tokens, bos_id=0, n_vocab=opened.hparams.n_vocab)
        write_teacher_file(config.output, samples, description, asked(trainer, batches, config.top_k, meter))
        show(f"{config.output}: the {config.top_k} likeliest tokens at each token of the answers in "
             f"{count(len(samples), 'sample')}")
    return 0


def open_trainer(opened: Opened, row: int, stack: ExitStack) -> Trainer:
    """What computes the teacher's outputs, with its weights in memory, or streamed where they do not fit."""
    config, plan = opened.config, opened.plan(row)
    adapter = opened.adapter if config.init_lora else Adapter((), 1, 1)
    opened.network.refresh(adapter)
    return Trainer(opened.network, adapter, plan.strategy.max_tokens(config.batch, row), plan.strategy,
                   config.n_threads, weights=open_weights(opened, adapter, plan, row, stack))


def asked(trainer: Trainer, batches: Iterator[Batch], k: int, meter: Meter) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Ids (n, k) and log-probabilities, the likeliest first, of the targets that count, chunk by chunk."""
    for batch in batches:
        for logits in trainer.logits(batch):
            ids = np.argpartition(logits, -k, axis=1)[:, -k:]
            order = np.argsort(-np.take_along_axis(logits, ids, 1), axis=1, kind="stable")
            ids = np.take_along_axis(ids, order, 1)
            highest = logits.max(axis=1, keepdims=True)
            total = highest + np.log(np.exp(logits - highest).sum(axis=1, dtype=np.float64, keepdims=True))
            yield ids.astype(np.int32), np.take_along_axis(logits, ids, 1) - total
        meter.advance(len(batch.begin) - 1)
