"""Log-probabilities of answers under the reference: the base model without the adapter, or with that of --ref-lora.

They are computed once, before training, and kept beside the tokens (--data-cache) or in the folder of the run: MAGIC, a
digest of all that they follow from, and float64 numbers.
"""
from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..adapters import read_adapter
from ..data.batches import Batch, evaluation_batches
from ..data.open import Data
from ..data.preferences import Preferences
from ..data.samples import Samples
from ..distributed.world import World
from ..errors import LoraFastError
from ..network.lora import Adapter
from ..network.trainer import Strategy, Trainer
from ..network.weights import Weights
from ..options.finetune import FinetuneConfig
from ..options.methods import METHODS
from ..reporting.log import Log
from ..system.atomic import atomic_write
from ..system.live import Meter
from .methods import OfAnswers
from .opening import Opened

MAGIC = b"lorafast reference\n"


def with_reference(opened: Opened, data: Data, row: int, strategy: Strategy, weights: Weights, world: World,
                   log: Log) -> Data:
    """The data with the log-probabilities that --method needs, found on disk or computed.

    row      tokens of the longest sample
    weights  where the model's bytes come from
    world    the ranks that compute them together; the first one reads and writes the file
    """
    config = opened.config
    if not METHODS[config.method].reference:
        return data
    reference = Reference(opened, row, strategy, weights, world, log)
    parts: dict[str, Any] = {name: reference.added(samples, name) for name in ("train", "valid", "test")
             if isinstance(samples := getattr(data, name), Preferences)}
    return replace(data, **parts)


def reference_path(config: FinetuneConfig) -> str:
    """Where the numbers are kept, the part of the data left out; empty: nowhere."""
    if not METHODS[config.method].reference:
        return ""
    if config.data_cache:
        return f"{config.data_cache}.reference"
    return str(Path(config.run) / "reference") if config.run else ""


class Reference:
    """The model that answers are compared with."""

    def __init__(self, opened: Opened, row: int, strategy: Strategy, weights: Weights, world: World, log: Log) -> None:
        self.opened, self.row, self.strategy, self.weights, self.log = opened, row, strategy, weights, log
        self.world = world

    def added(self, samples: Preferences, part: str) -> Preferences:
        """The samples with their reference, from the file if it holds that of these."""
        base, n = reference_path(self.opened.config), 2 * len(samples)
        path = f"{base}-{part}" if base and part != "train" else base
        digest = self.digest(samples)
        values = self.world.from_first(read_reference(path, digest, n) if path and self.world.is_first else None)
        if values is None:
            values = self.computed(samples)
            if path and self.world.is_first:
                with atomic_write(path) as file:
                    file.write(MAGIC + digest.encode() + values.astype("<f8").tobytes())
        else:
            self.log.note(f"log-probabilities under the reference: found in {path}")
        return replace(samples, reference=values.reshape(-1, 2))

    def digest(self, samples: Preferences) -> str:
        """64 hexadecimal digits of model, precision, reference adapter and tokens, which hold template and cuts."""
        opened, digest = self.opened, hashlib.sha256()
        name = opened.config.ref_lora
        adapter = hashlib.sha256(Path(name).read_bytes()).hexdigest() if name and os.path.isfile(name) else name
        digest.update(f"{opened.fingerprint} {opened.network.precision} {adapter} {samples.is_judged}\n".encode())
        for i in range(len(samples)):
            for row in samples.rows(i):
                digest.update(np.int64(len(row.stored)).tobytes() + np.ascontiguousarray(row.stored, "<i4").tobytes())
        samples.let_go()
        return digest.hexdigest()

    def computed(self, samples: Preferences) -> np.ndarray:
        """float64 (2 S,): a forward pass of every row."""
        opened, config = self.opened, self.opened.config
        adapter = self.adapter()
        opened.network.refresh(adapter)
        trainer = Trainer(opened.network, adapter, self.strategy.max_tokens(config.batch, self.row),
                          replace(self.strategy, n_kept=1), config.n_threads, weights=self.weights)
        answers = OfAnswers()
        with Meter("log-probabilities under the reference", len(samples), self.log.progress) as meter:
            def log_p(batch: Batch) -> np.ndarray:
                found = answers.answers(batch, trainer.losses(batch)).log_p
                meter.advance(len(batch.begin) // 2 * self.world.size)
                return found

            return np.concatenate(self.world.in_turn(self.batches(samples, trainer.max_tokens), log_p))

    def batches(self, samples: Samples, max_tokens: int) -> Iterator[Batch]:
        """All rows, in order."""
        return evaluation_batches(samples, max_tokens, bos_id=self.opened.tokenizer.bos_id,
                                  n_vocab=self.opened.hparams.n_vocab)

    def adapter(self) -> Adapter:
        """The adapter of --ref-lora, or one without pairs."""
        opened = self.opened
        if not opened.config.ref_lora:
            return Adapter((), opened.adapter.alpha, opened.adapter.r)
        file = read_adapter(opened.config.ref_lora, opened.base)
        for warning in file.warnings:
            self.log.warning(warning)
        return file.to_adapter(opened.hparams.tensor_shapes())


def read_reference(path: str, digest: str, n: int) -> np.ndarray | None:
    """The n numbers of a file, if they are those of this digest; None where there is none, or it has others.

    LoraFastError where the path is some other file.
    """
    if not os.path.exists(path):
        return None
    data = Path(path).read_bytes()
    if not data.startswith(MAGIC):
        raise LoraFastError(f"{path} exists and holds no log-probabilities of lorafast: delete it, or name another "
                            "--data-cache")
    begin = len(MAGIC) + len(digest)
    if data[len(MAGIC):begin] != digest.encode() or len(data) != begin + 8 * n:
        return None
    return np.frombuffer(data[begin:], "<f8")
