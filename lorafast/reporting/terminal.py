"""The log of a run for a person who looks on: a few rows first, live lines during training, a row for what is worth
keeping."""
from __future__ import annotations

import itertools
import shutil
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO, cast

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..options.outputs import megabytes
from ..system.live import show_live
from ..system.process import bytes_read, resident_bytes
from ..words import count, visible
from .log import STOPPING, IterationRecord, Log, Progress, duration, say_stopping
from .model_summary import describe_size, file_type, special_tokens

if TYPE_CHECKING:
    from ..gguf.reader import GGUFFile
    from ..network.hparams import HParams
    from ..tokenizer import Tokenizer
    from .events import Continuation, Evaluation

SHORT_EPOCH = 10
"""Iterations: where epochs are shorter, not each of them has its row."""


class TerminalLog(Log):
    """Shows the facts of `PipeLog` shorter, in labelled rows of the terminal's width."""

    LABEL = 12

    def __init__(self) -> None:
        super().__init__()
        self.console = Console(highlight=False, file=cast(TextIO, self.out))
        self.course = Progress(0)
        self.record: IterationRecord | None = None
        self.newest_evaluation: Evaluation | None = None
        self.best_evaluation: Evaluation | None = None
        self.adapter_size = 0
        self.folder = "."
        self.is_stopping = False
        self.last_epoch_row = -SHORT_EPOCH
        self.disk_read = Rate(bytes_read)
        self.saved: list[str] = []
        self.live = Live(console=self.console, get_renderable=self._lines, refresh_per_second=2, transient=True)

    def close(self) -> None:
        self._flush_saved()
        self.live.stop()

    def _row(self, label: str, text: str) -> None:
        """`text` in the column right of `label`, wrapped to the terminal's width."""
        width, text = max(20, self.console.width - self.LABEL - 1), visible(text).replace("\t", " ")
        lines = [line for part in text.split("\n") for line in textwrap.wrap(part, width, break_on_hyphens=False)
                 or [""]]
        for head, line in zip(itertools.chain([label], itertools.repeat("")), lines):
            self.console.print(Text.assemble((f"{head:<{self.LABEL}}", "bold"), line), soft_wrap=True)

    def _flush_saved(self) -> None:
        """One row for all the files of a save."""
        if self.saved:
            at = f"iteration {self.record.iteration}" if self.record else ""
            if self.record and self.record.done:
                at += f", loss {self.record.loss:.4f}"
            self._row("Saved", f"{at}: {', '.join(self.saved)}" if at else ", ".join(self.saved))
            self.saved = []

    def seed(self, seed: int) -> None:
        self._row("Seed", str(seed))

    def model_base(self, path: str) -> None:
        self._row("Model", path)

    def loader(self, gguf: GGUFFile, tokenizer: Tokenizer, hparams: HParams) -> None:
        types = Counter(tensor.type for tensor in gguf.tensors.values())
        kind = f"{hparams.arch} {hparams.model_type}".removesuffix(" ?B")
        self._row("", f"{gguf.metadata.get('general.name', 'no name')}: {kind} {file_type(gguf)}, "
                  f"{describe_size(gguf)}")
        self._row("", "tensors: " + ", ".join(f"{n} {kind.label}" for kind, n in sorted(types.items())))
        self._row("Tokens", f"{tokenizer.vocab_type}, vocabulary {hparams.n_vocab}, merges {tokenizer.n_merges}, "
                  + ", ".join(f"{name} {token} {text}" for name, token, text in special_tokens(gguf, tokenizer)))

    def params(self, hparams: HParams) -> None:
        experts = hparams.experts
        of_experts = f"{experts.n_used} of {experts.E} experts of {experts.n_ff}, " if experts else ""
        self._row("Shape", f"{hparams.n_layer} layers, n_embd {hparams.n_embd}, n_ff {hparams.n_ff}, {of_experts}"
                  f"{hparams.n_head} heads of {hparams.n_embd_head_k}, {hparams.n_head_kv} for keys and values, "
                  f"context {hparams.n_ctx} of {hparams.n_ctx_train}, norm eps {hparams.norm_rms_eps:g}, rope base "
                  f"{hparams.rope_freq_base:g}, scale {hparams.rope_freq_scale:g}")

    def lora_params(self, ranks: Mapping[str, int], n_params: int) -> None:
        by_rank: dict[int, list[str]] = {}
        for role, rank in ranks.items():
            by_rank.setdefault(rank, []).append(role)
        self._row("Adapter", f"{n_params:,} parameters; " + "; ".join(
            f"rank {rank}: {' '.join(roles)}" for rank, roles in sorted(by_rank.items(), reverse=True) if rank))

    def counters(self, iterations: int, samples: int, tokens: int, epochs: int) -> None:
        if iterations:
            self._row("So far", f"{count(iterations, 'iteration')}, {count(samples, 'sample')}, "
                                f"{count(tokens, 'token')}, {count(epochs, 'epoch')}")

    def lora_size(self, nbytes: int) -> None:
        self.adapter_size = nbytes

    def sizes(self, *, opt_size: int, opt_iter: int, input_size: int, compute_size: int, order: str) -> None:
        self._row("Memory", f"buffers {megabytes(compute_size)}; by llama-finetune's formulas lora_size "
                  f"{megabytes(self.adapter_size)}, opt_size {megabytes(opt_size)}, input_size {megabytes(input_size)}")

    def tokenizing(self, path: str, sample_start: str, include_sample_start: bool) -> None:
        start = f", samples {'from' if include_sample_start else 'after'} {sample_start!r}" if sample_start else ""
        self._row("Data", path + start)

    def progress(self, text: str) -> None:
        show_live(text)

    def data(self, n_samples: int, n_tokens: int, n_unique: int, warnings: Sequence[str]) -> None:
        self._row("Samples", f"{n_samples:,} with {count(n_tokens, 'token')}, {n_unique:,} distinct in the data")
        for warning in warnings:
            self.warning(warning)

    def restarted(self, *, forced: bool) -> None:
        self._row("Order", "shuffled anew as asked" if forced
                  else "shuffled from the seed, as this adapter has not seen this data")

    def begin(self, work_size: int, *, n_iter: int, tokens_per_iter: int, folder: str = ".") -> None:
        self.course, self.folder = Progress(n_iter), folder
        self._row("Training", f"{count(n_iter, 'iteration')} of {count(tokens_per_iter, 'token')}")
        self.live.start()

    def saving(self, kind: str, path: str) -> None:
        self.saved.append(path)

    def evaluation(self, evaluation: Evaluation) -> None:
        self.newest_evaluation = evaluation
        if evaluation.is_best:
            self.best_evaluation = evaluation
        more = str(evaluation.rewards) if evaluation.rewards else f"perplexity {evaluation.perplexity:.3f}"
        self._row("Evaluation", f"iteration {evaluation.iteration}, loss {evaluation.loss:.4f}, {more}"
                  + (", the lowest so far" if evaluation.is_best else "")
                  + ("" if evaluation.score is None else f", score {evaluation.score:.3f}"))

    def continuation(self, continuation: Continuation) -> None:
        self._row("Sample", f"{continuation.prompt}│{continuation.text}")

    def iteration(self, record: IterationRecord) -> None:
        self.record = record
        self._flush_saved()
        self.course.update(record)
        self.live.refresh()

    def _lines(self) -> RenderableType:
        """What is shown while training: how far, how good, how fast; of each, as much as the terminal has room for."""
        if self.record is None:
            return Text("preparing")
        if self.is_stopping:
            return Text(STOPPING, "bold", no_wrap=True, overflow="crop")
        rows = (self._how_good(self.record), self._how_fast(self.record))
        return Group(self._how_far(self.record),
                     *(Text(fitting(row, self.console.width), no_wrap=True, overflow="crop") for row in rows if row))

    def _how_far(self, record: IterationRecord) -> RenderableType:
        progress = self.course
        facts = [f"{record.done}/{progress.n_iter}"]
        if progress.eta_ms is not None:
            facts.append(f"ETA {duration(progress.eta_ms)}")
        text = fitting(facts, self.console.width)
        width = self.console.width - len(text) - 3
        if width < 1:
            return Text(text, no_wrap=True, overflow="crop")
        row = Table.grid(padding=(0, 2))
        row.add_row(text, ProgressBar(total=max(1, progress.n_iter), completed=record.done, width=width))
        return row

    def _how_good(self, record: IterationRecord) -> list[str]:
        progress = self.course
        if not record.done:
            return []
        facts = [f"loss {record.loss:.4f}", f"smoothed {progress.smoothed_loss:.4f}"]
        if self.newest_evaluation:
            facts.append(f"evaluation {self.newest_evaluation.loss:.4f}")
        if self.best_evaluation:
            facts.append(f"best {self.best_evaluation.loss:.4f} at {self.best_evaluation.iteration}")
        if record.rewards:
            facts.append(f"margin {record.rewards.margin:.3f}, right {record.rewards.accuracy:.0%}")
        return [*facts, f"first {progress.first_loss:.4f}", f"gradient {record.gradient_norm:.3g}"]

    def _how_fast(self, record: IterationRecord) -> list[str]:
        progress = self.course
        facts = []
        if progress.step_ms:
            rate = 1000 * record.n_tokens / progress.step_ms
            facts.append(f"{rate:.0f} tok/s" if rate >= 10 else f"{rate:.2f} tok/s")
        facts += [f"lr {record.learning_rate:.2e}", f"memory {megabytes(resident_bytes())}",
                  f"disk {gigabytes(shutil.disk_usage(self.folder).free)} free"]
        if (rate := self.disk_read()) > 1e6:
            facts.append(f"reading {megabytes(int(rate))}/s")
        if record.iteration != record.done:
            facts.append(f"iteration {record.iteration}")
        return [*facts, f"sample {record.sample}/{record.sample_count}"]

    def reshuffled(self, epochs: int) -> None:
        done = self.record.done if self.record else 0
        if done - self.last_epoch_row >= SHORT_EPOCH:
            self.last_epoch_row = done
            self._row("Epoch", f"{epochs} completed, samples reshuffled")

    def stopping(self) -> None:
        self.is_stopping = True     # the live lines show it at once; printing is not safe here

    def total_time(self, total_ms: float) -> None:
        self._flush_saved()
        self.live.stop()
        self._row("Time", duration(total_ms))

    def finished(self, reason: str, resume_command: str = "") -> None:
        self._flush_saved()
        self._row("Finished", reason)
        if resume_command:
            self.console.print(f"To go on:\n{resume_command}", markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self._row("Note", text)


class PlainLog(TerminalLog):
    """A log of the same rows without live lines: each iteration has a row."""

    def iteration(self, record: IterationRecord) -> None:
        self.record = record
        self._flush_saved()
        self.course.update(record)
        if record.done:
            facts = [f"{record.done}/{self.course.n_iter}", f"loss {record.loss:.4f}", f"lr {record.learning_rate:.2e}"]
            if record.rewards:
                facts.append(str(record.rewards))
            if self.course.eta_ms is not None:
                facts.append(f"ETA {duration(self.course.eta_ms)}")
            self._row("Iteration", "  ".join(facts))

    def begin(self, work_size: int, *, n_iter: int, tokens_per_iter: int, folder: str = ".") -> None:
        self.course, self.folder = Progress(n_iter), folder
        self._row("Training", f"{count(n_iter, 'iteration')} of {count(tokens_per_iter, 'token')}")

    def progress(self, text: str) -> None:
        """Nothing: what changes while one looks has no place here."""

    def stopping(self) -> None:
        say_stopping()


def fitting(facts: Iterable[str], width: int) -> str:
    """The facts in a row, as many as `width` columns hold; the first in any case."""
    line, *others = facts
    for fact in others:
        if len(line) + 2 + len(fact) < width:
            line += "  " + fact
    return line


class Rate:
    """How fast a counter grows, in units a second, between one call and the next."""

    def __init__(self, counter: Any) -> None:
        self.counter, self.count, self.time, self.rate = counter, counter(), time.monotonic(), 0.0

    def __call__(self) -> float:
        now = time.monotonic()
        if now - self.time >= 1:
            count = self.counter()
            self.rate = (count - self.count) / (now - self.time)
            self.count, self.time = count, now
        return self.rate


def gigabytes(n: int) -> str:
    """`n` bytes in GB of 2^30."""
    return f"{n / 2**30:.1f} GB"
