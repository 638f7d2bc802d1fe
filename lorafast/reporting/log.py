"""What a training run reports, event by event, and two ways to show it.

On a pipe or in a file `PipeLog` prints the lines of llama.cpp's llama-finetune (July 2024), in its order,
so that scripts and eyes that know its log can read ours. On a terminal `TerminalLog` (terminal.py) shows the same facts
shorter, with live lines.
"""
from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..gguf.roles import LLAMA_FINETUNE_ROLES
from ..options.outputs import megabytes
from ..system.output import Unfailing
from ..words import visible
from .model_summary import loader_lines, meta_lines

if TYPE_CHECKING:
    from ..gguf.reader import GGUFFile
    from ..network.hparams import HParams
    from ..tokenizer import Tokenizer
    from .events import Continuation, Evaluation, Rewards


@dataclass(frozen=True)
class IterationRecord:
    """The line of one iteration. It is written before the iteration's batch is evaluated.

    iteration       counted from the very first run
    done            iterations that this run has completed: 0 on its first line
    sample          number of the batch's first sample in the shuffled order, from 1; sample_count: of how many
    sched           learning rate as a share of --adam-alpha; learning_rate: their product
    loss            of the evaluation before this line; 0 on a run's first line
    step_ms         milliseconds of the iteration before this line, evaluation and saving not counted; None on a run's
                    first line
    gradient_norm   of the update before this line, before clipping; 0 on a run's first line
    n_tokens        in the batch of that iteration
    rewards         of that iteration, of training on preferences
    """

    iteration: int
    done: int
    sample: int
    sample_count: int
    sched: float
    learning_rate: float
    loss: float
    step_ms: float | None = None
    gradient_norm: float = 0.0
    n_tokens: int = 0
    rewards: Rewards | None = None


class Log:
    """The events of a run, in the order in which they happen. Sizes are bytes. To be used in a `with` block.

    This one shows nothing but warnings.

    reader_gone  is called when nobody can read any more what is shown
    is_unread    whether that is so
    """

    def __init__(self) -> None:
        self.reader_gone: Callable[[], None] = lambda: None
        self.is_unread = False
        self.out = Unfailing("stdout", self._unread)
        self.err = Unfailing("stderr")

    def _unread(self) -> None:
        self.is_unread = True
        self.reader_gone()

    def seed(self, seed: int) -> None:
        """The seed of the run."""

    def model_base(self, path: str) -> None:
        """The base model is about to be opened."""

    def loader(self, gguf: GGUFFile, tokenizer: Tokenizer, hparams: HParams) -> None:
        """The base model is open: its metadata, tensors, hyper-parameters and special tokens."""

    def params(self, hparams: HParams) -> None:
        """The hyper-parameters used in this run."""

    def lora_params(self, ranks: Mapping[str, int], n_params: int) -> None:
        """Rank by role (a role that is absent has 0), and the number of trained parameters."""

    def counters(self, iterations: int, samples: int, tokens: int, epochs: int) -> None:
        """What earlier runs have done, from the checkpoint."""

    def lora_size(self, nbytes: int) -> None:
        """The adapter's size by llama-finetune's formula."""

    def sizes(self, *, opt_size: int, opt_iter: int, input_size: int, compute_size: int, order: str) -> None:
        """order: "LEFT_TO_RIGHT" or "RIGHT_TO_LEFT", the order of the optimiser's moments in checkpoints."""

    def tokenizing(self, path: str, sample_start: str, include_sample_start: bool) -> None:
        """The training data is about to be read."""

    def progress(self, text: str) -> None:
        """How far the reading of data has come; empty when it is done."""

    def data(self, n_samples: int, n_tokens: int, n_unique: int, warnings: Sequence[str]) -> None:
        """The training data was read."""

    def restarted(self, *, forced: bool) -> None:
        """The epoch begins anew: the data is not the checkpoint's, or (forced) --force-reshuffle was given."""

    def begin(self, work_size: int, *, n_iter: int, tokens_per_iter: int, folder: str = ".") -> None:
        """Training begins: so many iterations in this run. folder: where its files go."""

    def saving(self, kind: str, path: str) -> None:
        """kind: "checkpoint" or "adapter"."""

    def evaluation(self, evaluation: Evaluation) -> None:
        """The data to evaluate on was evaluated."""

    def continuation(self, continuation: Continuation) -> None:
        """A prompt was continued."""

    def iteration(self, record: IterationRecord) -> None:
        """An iteration begins."""

    def reshuffled(self, epochs: int) -> None:
        """An epoch ended; epochs: completed ones, in all runs."""

    def stopping(self) -> None:
        """A signal asked to stop: the step under way will be finished. Called in the signal's handler."""

    def total_time(self, total_ms: float) -> None:
        """Training ended; the last saves may follow."""

    def finished(self, reason: str, resume_command: str = "") -> None:
        """The run is over: why, and the command that goes on from here."""

    def note(self, text: str) -> None:
        """Something the user should know that is no cause for concern."""

    def warning(self, text: str) -> None:
        """Something the user may not have meant."""
        print(f"lorafast: warning: {visible(text)}", file=self.err, flush=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Silence(Log):
    """The log of a rank that leaves the log to the first one."""

    def warning(self, text: str) -> None:
        """The first rank says it."""


STOPPING = "lorafast: the run will finish this step, save and end; Ctrl-C again ends it at once, without saving"


def say_stopping() -> None:
    """Says that the run is stopping, past Python's own buffers, which may be in use when a signal comes."""
    with suppress(OSError, ValueError):         # closed
        if sys.__stderr__ is not None:
            os.write(sys.__stderr__.fileno(), STOPPING.encode() + b"\n")


def duration(ms: float) -> str:
    """`385.3ms`, `00:05:08` or `2d 03:04:05`."""
    if ms < 1000:
        return f"{ms:.1f}ms"
    seconds = int(ms / 1000)
    days, seconds = divmod(seconds, 86400)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{days}d {clock}" if days else clock


class Progress:
    """What follows from the iterations seen so far: smoothed time of a step, time left, smoothed loss and its fall."""

    MEMORY = 0.9
    """Share of the smoothed loss that an iteration leaves."""

    def __init__(self, n_iter: int):
        self.n_iter = n_iter
        self.step_ms: float | None = None
        self.eta_ms: float | None = None
        self.first_loss: float | None = None
        self.smoothed_loss: float | None = None
        """Mean of the losses so far, each weighing MEMORY times as much as the next."""
        self._weight = 0.0
        self.fall = 0.0
        """First loss of this run less the newest."""

    def update(self, record: IterationRecord) -> None:
        if record.step_ms is not None:
            self.step_ms = record.step_ms if self.step_ms is None else 0.3 * self.step_ms + 0.7 * record.step_ms
            self.eta_ms = (self.n_iter - record.done) * self.step_ms
        if record.done > 0:
            if self.first_loss is None:
                self.first_loss = record.loss
            self.fall = self.first_loss - record.loss
            self._weight = self.MEMORY * self._weight + 1
            last = self.smoothed_loss or 0.0
            self.smoothed_loss = last + (record.loss - last) / self._weight

    def bar(self) -> str:
        """A dash, and one more for each 0.1 nats that the loss has fallen."""
        dashes = 1 + 10 * self.fall + 0.5
        return "-" * int(max(0.0, dashes)) + ">"


class PipeLog(Log):
    """llama-finetune's lines: the model loader's on stderr, the others on stdout, each flushed at once."""

    def __init__(self) -> None:
        super().__init__()
        self.course = Progress(0)

    def _print(self, line: str) -> None:
        print(visible(line), file=self.out, flush=True)

    def seed(self, seed: int) -> None:
        self._print(f"main: seed: {seed}")

    def model_base(self, path: str) -> None:
        self._print(f"main: model base = '{path}'")

    def loader(self, gguf: GGUFFile, tokenizer: Tokenizer, hparams: HParams) -> None:
        lines = itertools.chain(loader_lines(gguf), meta_lines(gguf, tokenizer, hparams))
        print("\n".join(map(visible, lines)), file=self.err, flush=True)
        self._print("main: init model")

    def params(self, hparams: HParams) -> None:
        for name in ("n_vocab", "n_ctx", "n_embd", "n_ff", "n_head", "n_head_kv", "n_layer"):
            self._print(f"print_params: {name:<22}: {getattr(hparams, name)}")
        for name in ("norm_rms_eps", "rope_freq_base", "rope_freq_scale"):
            self._print(f"print_params: {name:<22}: {getattr(hparams, name):f}")

    def lora_params(self, ranks: Mapping[str, int], n_params: int) -> None:
        for role in sorted(LLAMA_FINETUNE_ROLES, key=lambda role: not role.in_block):      # the blocks' first
            self._print(f"print_lora_params: {'n_rank_' + role.log_name:<22}: {ranks.get(role.name, 0)}")

    def counters(self, iterations: int, samples: int, tokens: int, epochs: int) -> None:
        self._print(f"main: total train_iterations {iterations}")
        self._print(f"main: seen train_samples     {samples}")
        self._print(f"main: seen train_tokens      {tokens}")
        self._print(f"main: completed train_epochs {epochs}")

    def _print_size(self, name: str, nbytes: int) -> None:
        self._print(f"main: {name} = {nbytes} bytes ({megabytes(nbytes)})")

    def lora_size(self, nbytes: int) -> None:
        self._print_size("lora_size", nbytes)

    def sizes(self, *, opt_size: int, opt_iter: int, input_size: int, compute_size: int, order: str) -> None:
        self._print_size("opt_size ", opt_size)
        self._print(f"main: opt iter {opt_iter}")
        self._print_size("input_size", input_size)
        self._print_size("compute_size", compute_size)
        self._print(f"main: evaluation order = {order}")

    def tokenizing(self, path: str, sample_start: str, include_sample_start: bool) -> None:
        self._print(f"main: tokenize training data from {path}")
        self._print(f"main: sample-start: {sample_start}")
        self._print(f"main: include-sample-start: {'true' if include_sample_start else 'false'}")

    def data(self, n_samples: int, n_tokens: int, n_unique: int, warnings: Sequence[str]) -> None:
        for warning in warnings:
            self._print(f"tokenize_file: warning: {warning}")
        self._print(f"tokenize_file: total number of samples: {n_samples}")
        self._print(f"main: number of training tokens: {n_tokens}")
        self._print(f"main: number of unique tokens: {n_unique}")

    def restarted(self, *, forced: bool) -> None:
        cause = "forced reshuffling." if forced else "train data seems to have changed."
        self._print(f"main: {cause} restarting shuffled epoch.")

    def begin(self, work_size: int, *, n_iter: int, tokens_per_iter: int, folder: str = ".") -> None:
        self.course = Progress(n_iter)
        self._print("main: begin training")
        self._print_size("work_size", work_size)

    def saving(self, kind: str, path: str) -> None:
        function = {"checkpoint": "save_checkpoint_lora_file", "adapter": "save_as_llama_lora"}[kind]
        self._print(f"{function}: saving to {path}")

    def iteration(self, record: IterationRecord) -> None:
        progress = self.course
        progress.update(record)
        times = ""
        if progress.step_ms is not None and progress.eta_ms is not None:
            times = f" dt={duration(progress.step_ms)} eta={duration(progress.eta_ms)}"
        self._print(f"train_opt_callback: iter={record.iteration:6d} sample={record.sample}/{record.sample_count} "
                    f"sched={record.sched:f} loss={record.loss:f}{times} |{progress.bar()}"
                    + (f" {record.rewards}" if record.rewards else ""))

    def evaluation(self, evaluation: Evaluation) -> None:
        best = ", the lowest so far" if evaluation.is_best else ""
        self._print(f"main: evaluation: iter={evaluation.iteration:6d} loss={evaluation.loss:f} "
                    + (f"{evaluation.rewards}" if evaluation.rewards else f"perplexity={evaluation.perplexity:.4f}")
                    + f" over {evaluation.n_tokens} tokens{best}"
                    + ("" if evaluation.score is None else f", score={evaluation.score:.4f}"))

    def continuation(self, continuation: Continuation) -> None:
        self._print(f"main: continuation: {continuation.prompt!r} -> {continuation.text!r}")

    def stopping(self) -> None:
        say_stopping()

    def reshuffled(self, epochs: int) -> None:
        self._print(f"train_opt_callback: reshuffle samples. completed epochs: {epochs}")

    def total_time(self, total_ms: float) -> None:
        self._print(f"main: total training time: {duration(total_ms)}")

    def finished(self, reason: str, resume_command: str = "") -> None:
        self._print(f"main: finished: {reason}")
        if resume_command:
            self._print(f"main: to go on: {resume_command}")

    def note(self, text: str) -> None:
        self._print(f"main: {text}")
