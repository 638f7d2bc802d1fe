"""What a save writes: the checkpoint, then each adapter, under the iteration's number and as the latest; the options,
once."""
from __future__ import annotations

import dataclasses
import os
from contextlib import suppress
from typing import Any

from ..adapters import AdapterFile, read_adapter, write_adapter
from ..adapters.checkpoint import Geometry, TrainState, write_checkpoint
from ..errors import LoraFastError, UsageError
from ..gguf.file_form import FileForm, form_of_output
from ..gguf.reader import refuse_folder
from ..network.lora import Moments
from ..options.finetune import FinetuneConfig
from ..options.outputs import check_disk, check_outputs
from ..options.overwriting import Target, check_overwriting
from ..options.toml import write_options
from ..reporting.log import Log
from ..version import __version__
from . import llama_finetune_sizes as sizes
from .opening import Opened
from .reference import reference_path

NOT_RECORDED = ("config", "run", "resume", "force")
"""Options that are about where options come from and what may be replaced, not about the run."""


def check_writing(config: FinetuneConfig) -> None:
    """Raises an error, before any time is spent, for what could not be written or would destroy something."""
    if config.run:
        _make_folder(config.run)
    refuse_folder(config.model_base)
    check_outputs(config.outputs)
    inputs = {config.model_base: "the base model", config.init_lora: "the adapter to start from",
              config.chat_template: "the chat template"}
    inputs |= {path: "the training data" for path in config.train_data}
    inputs |= {path: "the evaluation data" for path in config.valid_data}
    checkpoint = {config.checkpoint_in: "the checkpoint to go on from"}
    for output in config.outputs:
        # A checkpoint may replace the one that the run goes on from: it is the same run.
        read = inputs if output.form is FileForm.CHECKPOINT else inputs | checkpoint
        check_overwriting((Target(output.option, path, output.form) for path in output.existing()), read,
                          force=config.force)
    others = (("--data-cache", config.data_cache, FileForm.TOKENS),
              ("the record of the options", config.options_path, FileForm.OPTIONS),
              (f"--method {config.method}", reference_path(config), FileForm.REFERENCE))
    check_overwriting((Target(option, str(path), form) for option, path, form in others if path), inputs | checkpoint,
                      force=config.force)
    if not config.is_llama_finetune_run and not config.only_write_lora:
        _check_starting_over(config)


def _make_folder(path: str) -> None:
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise LoraFastError(f"--run {path}: cannot make this folder: {error.strerror}") from None


def _check_starting_over(config: FinetuneConfig) -> None:
    """UsageError where a run that starts afresh would replace the results of another one."""
    if config.checkpoint_in and os.path.lexists(config.checkpoint_in):
        return
    existing = _results(config)
    if existing and not config.force:
        raise UsageError(f"{existing[0]} exists, from another run: --resume goes on with that run, "
                         f"--force starts over, and other names, or another --run, keep both")


def _results(config: FinetuneConfig) -> list[str]:
    """Checkpoints and adapters that exist under the names of this run."""
    return [path for output in (*filter(None, [config.checkpoint_output]), *config.adapter_outputs)
            for path in output.existing() if not os.path.isfile(path) or os.path.getsize(path)]


def clear_folder(config: FinetuneConfig) -> None:
    """Makes room for a run that starts over in its folder: a BEST of the run before would seem to be of this one."""
    fresh = not (config.checkpoint_in and os.path.lexists(config.checkpoint_in))
    if config.run and fresh and not config.is_llama_finetune_run and not config.only_write_lora:
        for path in filter(os.path.isfile, _results(config)):
            os.unlink(path)


class Saver:
    """Writes the files of a run. Ranks but the first have a Bystander."""

    def __init__(self, config: FinetuneConfig, log: Log, opened: Opened) -> None:
        self.config, self.log, self.adapter, self.base = config, log, opened.adapter, opened.base
        self.geometry = Geometry.of(opened.hparams)

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
        if self.config.options_path and not (self.config.run and self.config.resume):
            write_options(self.config.options_path, dataclasses.replace(self.config, seed=seed), NOT_RECORDED)

    def save(self, state: TrainState, moments: Moments, extras: dict[str, Any], best: int | None = None) -> None:
        """The numbered and the latest copies.

        best  None where the adapter of the lowest evaluation loss is not kept; its iteration, or -1 before there is one
        """
        output = self.config.checkpoint_output
        if output:
            for path in output.paths(state.iteration):
                self._save_checkpoint(path, state, moments, extras)
        self.save_adapters(state.iteration, best)
        if output:
            output.prune()

    def save_best(self, state: TrainState, moments: Moments, extras: dict[str, Any]) -> None:
        """The copies of the lowest evaluation loss."""
        output = self.config.checkpoint_output
        if output and output.best_path:
            self._save_checkpoint(output.best_path, state, moments, extras)
        for output in self.config.adapter_outputs:
            self.save_adapter(output.best_path or output.name)

    def save_adapters(self, iteration: int, best: int | None = None) -> None:
        """The adapters alone. A name without a placeholder belongs to the best one, as soon as there is one."""
        for output in self.config.adapter_outputs:
            paths = output.paths(iteration)
            if best is not None and not output.best_path:
                paths = (output.beside_best, *(paths if best < 0 or not os.path.exists(output.name) else ()))
            for path in paths:
                self.save_adapter(path)

    def best_adapter(self) -> AdapterFile | None:
        """The one of the lowest evaluation loss, as it was saved; None where no file has it."""
        checkpoint, adapters = self.config.checkpoint_output, self.config.adapter_outputs
        paths = [checkpoint.best_path if checkpoint else "", *(output.best_path or output.name for output in adapters)]
        for path in filter(None, paths):
            with suppress(LoraFastError):
                return read_adapter(path, self.base)
        return None

    def which_is_which(self, best: int, iteration: int) -> list[str]:
        """A line for each adapter that says which files hold the best one and the last."""
        return [f"{output.best_path or output.name} is the best adapter, of iteration {best}; "
                f"{output.latest_path if output.best_path else output.beside_best} is the last, of iteration "
                f"{iteration}"
                for output in self.config.adapter_outputs]

    def _save_checkpoint(self, path: str, state: TrainState, moments: Moments, extras: dict[str, Any]) -> None:
        self.log.saving("checkpoint", path)
        write_checkpoint(path, self.geometry, self.adapter, moments, state, extras={"version": __version__, **extras})

    def save_adapter(self, path: str) -> None:
        """One adapter, in the form that the end of its name says."""
        self.log.saving("adapter", path)
        write_adapter(form_of_output("--lora-out", path), path, AdapterFile.of(self.adapter), self.base)


class Bystander(Saver):
    """The saver of a rank that leaves the files to the first one."""

    def check_disk(self, iteration: int, n_iter: int, keep_best: bool) -> None:
        """See Saver."""

    def save_options(self, seed: int) -> None:
        """See Saver."""

    def save(self, state: TrainState, moments: Moments, extras: dict[str, Any], best: int | None = None) -> None:
        """See Saver."""

    def save_best(self, state: TrainState, moments: Moments, extras: dict[str, Any]) -> None:
        """See Saver."""

    def save_adapters(self, iteration: int, best: int | None = None) -> None:
        """See Saver."""

    def best_adapter(self) -> AdapterFile | None:
        """See Saver."""
        return None

    def save_adapter(self, path: str) -> None:
        """See Saver."""
