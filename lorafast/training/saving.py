"""What a save writes: the checkpoint, then each adapter, under the iteration's number and as the latest; the options,
once."""
from __future__ import annotations

import dataclasses
from typing import Any

from .. import __version__
from ..adapters import AdapterFile, write_adapter
from ..adapters.checkpoint import Geometry, TrainState, write_checkpoint
from ..gguf.file_form import form_of_output
from ..network.hparams import HParams
from ..network.lora import Moments
from ..options.finetune import FinetuneConfig
from ..options.outputs import Output, check_disk, check_outputs
from ..options.toml import check_writable, write_options
from ..reporting.log import Log
from . import llama_finetune_sizes as sizes
from .opening import Opened


def check_writing(config: FinetuneConfig) -> None:
    """Raises an error, before any time is spent, for what could not be written or would destroy something."""
    inputs = {config.model_base: "the base model", config.init_lora: "the adapter to start from"}
    inputs |= {path: "the training data" for path in config.train_data}
    inputs |= {path: "the evaluation data" for path in config.valid_data}
    outputs = [*filter(None, [config.checkpoint_output]), *config.adapter_outputs]
    outputs += [Output(option, name, config.pattern_fn_it, config.fn_latest)
                for option, name in (("--metrics", config.metrics_path), ("--report", config.report)) if name]
    check_outputs(outputs, {path: what for path, what in inputs.items() if path})
    if config.options_path:
        check_writable(config.options_path)


class Saver:
    """Writes the files of a run."""

    def __init__(self, config: FinetuneConfig, log: Log, opened: Opened) -> None:
        self.config, self.log, self.adapter, self.base = config, log, opened.adapter, opened.base
        self.geometry = geometry_of(opened.hparams)

    @property
    def folder(self) -> str:
        """Where the files go, or most of them."""
        outputs = [*filter(None, [self.config.checkpoint_output]), *self.config.adapter_outputs]
        return str(outputs[0].folder) if outputs else "."

    def check_disk(self, iteration: int, n_iter: int, keep_best: bool) -> None:
        """LoraFastError if the files of the run do not fit."""
        outputs = [(output, sizes.adapter_bound(self.adapter.specs)) for output in self.config.adapter_outputs]
        if self.config.checkpoint_output:
            outputs.append((self.config.checkpoint_output, sizes.checkpoint_bound(self.adapter.specs)))
        check_disk(outputs, iteration=iteration, n_iter=n_iter, save_every=self.config.save_every, keep_best=keep_best)

    def save_options(self, seed: int) -> None:
        """Records all options, with the seed that -1 stood for."""
        if self.config.options_path:
            write_options(self.config.options_path, dataclasses.replace(self.config, seed=seed), ("config", "preset"))

    def save(self, state: TrainState, moments: Moments, extras: dict[str, Any]) -> None:
        """The numbered and the latest copies."""
        output = self.config.checkpoint_output
        if output:
            for path in output.paths(state.iteration):
                self._save_checkpoint(path, state, moments, extras)
        self.save_adapters(state.iteration)
        if output:
            output.prune()

    def save_best(self, state: TrainState, moments: Moments, extras: dict[str, Any]) -> None:
        """The copies of the lowest evaluation loss."""
        output = self.config.checkpoint_output
        if output and output.best_path:
            self._save_checkpoint(output.best_path, state, moments, extras)
        for output in self.config.adapter_outputs:
            if output.best_path:
                self._save_adapter(output.best_path)

    def save_adapters(self, iteration: int) -> None:
        """The adapters alone."""
        for output in self.config.adapter_outputs:
            for path in output.paths(iteration):
                self._save_adapter(path)

    def _save_checkpoint(self, path: str, state: TrainState, moments: Moments, extras: dict[str, Any]) -> None:
        self.log.saving("checkpoint", path)
        write_checkpoint(path, self.geometry, self.adapter, moments, state, extras={"version": __version__, **extras})

    def _save_adapter(self, path: str) -> None:
        self.log.saving("adapter", path)
        write_adapter(form_of_output("--lora-out", path), path, AdapterFile.of(self.adapter), self.base)


def geometry_of(hparams: HParams) -> Geometry:
    """The model as a checkpoint records it."""
    return Geometry(hparams.n_ctx, hparams.n_embd, hparams.n_ff, hparams.n_head, hparams.n_head_kv, hparams.n_layer,
                    hparams.n_rot, hparams.norm_rms_eps, hparams.rope_freq_base, hparams.rope_freq_scale, hparams.arch)
