"""What a training run reports, event by event, and two ways to show it.

On a pipe or in a file `PipeLog` prints the lines of the original (llama.cpp's llama-finetune, July 2024), in its order,
so that scripts and eyes that know its log can read ours. On a terminal `TerminalLog` shows the same facts shorter, with
a live line.
"""
from __future__ import annotations

import itertools
import os
import sys
import textwrap
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from .files import megabytes
from .ggml_types import FILE_TYPE_NAMES, GGUFValueType

if TYPE_CHECKING:
    from .gguf import GGUFFile
    from .hparams import HParams
    from .tokenizer import Tokenizer


@dataclass(frozen=True)
class IterationRecord:
    """The line of one iteration. It is written before the iteration's batch is evaluated.

    iteration       counted from the very first run
    done            iterations that this run has completed: 0 on its first line
    sample          number of the batch's first sample in the shuffled order, from 1; sample_count: of how many
    sched           learning rate as a share of --adam-alpha; learning_rate: their product
    loss            of the evaluation before this line; 0 on a run's first line
    step_ms         milliseconds from the end of the last line's saving to this line; None on a run's first line
    """

    iteration: int
    done: int
    sample: int
    sample_count: int
    sched: float
    learning_rate: float
    loss: float
    step_ms: float | None = None


class Log(ABC):
    """The events of a run, in the order in which they happen. Sizes are bytes. To be used in a `with` block."""

    @abstractmethod
    def seed(self, seed: int) -> None: ...

    @abstractmethod
    def model_base(self, path: str) -> None:
        """The base model is about to be opened."""

    @abstractmethod
    def loader(self, gguf: GGUFFile, tokenizer: Tokenizer, hparams: HParams) -> None:
        """It is open: its metadata, tensors, hyper-parameters and special tokens."""

    @abstractmethod
    def params(self, hparams: HParams) -> None:
        """The hyper-parameters used in this run."""

    @abstractmethod
    def lora_params(self, ranks: Mapping[str, int], n_params: int) -> None:
        """Rank by role (a role that is absent has 0), and the number of trained parameters."""

    @abstractmethod
    def counters(self, iterations: int, samples: int, tokens: int, epochs: int) -> None:
        """What earlier runs have done, from the checkpoint."""

    @abstractmethod
    def lora_size(self, nbytes: int) -> None: ...

    @abstractmethod
    def sizes(self, *, opt_size: int, opt_iter: int, input_size: int, compute_size: int, order: str) -> None:
        """order: "LEFT_TO_RIGHT" or "RIGHT_TO_LEFT", the order of the optimiser's moments in checkpoints."""

    @abstractmethod
    def tokenizing(self, path: str, sample_start: str, include_sample_start: bool) -> None: ...

    @abstractmethod
    def data(self, n_samples: int, n_tokens: int, n_unique: int, warnings: Sequence[str]) -> None: ...

    @abstractmethod
    def restarted(self, *, forced: bool) -> None:
        """The epoch begins anew: the data is not the checkpoint's, or (forced) --force-reshuffle was given."""

    @abstractmethod
    def begin(self, work_size: int, *, n_iter: int, tokens_per_iter: int) -> None:
        """Training begins: so many iterations in this run."""

    @abstractmethod
    def saving(self, kind: str, path: str) -> None:
        """kind: "checkpoint" or "adapter"."""

    @abstractmethod
    def iteration(self, record: IterationRecord) -> None: ...

    @abstractmethod
    def reshuffled(self, epochs: int) -> None:
        """An epoch ended; epochs: completed ones, in all runs."""

    @abstractmethod
    def total_time(self, total_ms: float) -> None:
        """Training ended; the last saves may follow."""

    @abstractmethod
    def finished(self, reason: str, resume_command: str = "") -> None:
        """The run is over: why, and the command that goes on from here."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Something the user should know that is no cause for concern."""

    def warning(self, text: str) -> None:
        """Something the user may not have meant."""
        print(f"lorafast: warning: {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def open_log() -> Log:
    """TerminalLog where stdout is a terminal that can move its cursor, else PipeLog."""
    interactive = sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return TerminalLog() if interactive else PipeLog()


def duration(ms: float) -> str:
    """`385.3ms`, `00:05:08` or `2d 03:04:05`."""
    if ms < 1000:
        return f"{ms:.1f}ms"
    seconds = int(ms / 1000)
    days, seconds = divmod(seconds, 86400)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{days}d {clock}" if days else clock


class Progress:
    """What follows from the iterations seen so far: smoothed time of a step, time left, fall of the loss."""

    def __init__(self, n_iter: int):
        self.n_iter = n_iter
        self.step_ms: float | None = None
        self.eta_ms: float | None = None
        self.first_loss: float | None = None
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

    def bar(self) -> str:
        """A dash, and one more for each 0.1 nats that the loss has fallen."""
        dashes = 1 + 10 * self.fall + 0.5
        return "-" * int(max(0.0, dashes)) + ">"


class PipeLog(Log):
    """The original's lines: the model loader's on stderr, the others on stdout, each flushed at once."""

    def __init__(self) -> None:
        self.progress = Progress(0)

    def _print(self, line: str) -> None:
        print(line, flush=True)

    def seed(self, seed: int) -> None:
        self._print(f"main: seed: {seed}")

    def model_base(self, path: str) -> None:
        self._print(f"main: model base = '{path}'")

    def loader(self, gguf: GGUFFile, tokenizer: Tokenizer, hparams: HParams) -> None:
        lines = itertools.chain(loader_lines(gguf), meta_lines(gguf, tokenizer, hparams))
        print("\n".join(lines), file=sys.stderr, flush=True)
        self._print("main: init model")

    def params(self, hparams: HParams) -> None:
        for name in ("n_vocab", "n_ctx", "n_embd", "n_ff", "n_head", "n_head_kv", "n_layer"):
            self._print(f"print_params: {name:<22}: {getattr(hparams, name)}")
        for name in ("norm_rms_eps", "rope_freq_base", "rope_freq_scale"):
            self._print(f"print_params: {name:<22}: {getattr(hparams, name):f}")

    def lora_params(self, ranks: Mapping[str, int], n_params: int) -> None:
        for name, role in (
            ("attention_norm", "attn_norm"), ("wq", "attn_q"), ("wk", "attn_k"), ("wv", "attn_v"),
            ("wo", "attn_output"), ("ffn_norm", "ffn_norm"), ("ffn_gate", "ffn_gate"), ("ffn_down", "ffn_down"),
            ("ffn_up", "ffn_up"), ("tok_embeddings", "token_embd"), ("norm", "output_norm"), ("output", "output"),
        ):
            self._print(f"print_lora_params: {'n_rank_' + name:<22}: {ranks.get(role, 0)}")

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

    def begin(self, work_size: int, *, n_iter: int, tokens_per_iter: int) -> None:
        self.progress = Progress(n_iter)
        self._print("main: begin training")
        self._print_size("work_size", work_size)

    def saving(self, kind: str, path: str) -> None:
        function = {"checkpoint": "save_checkpoint_lora_file", "adapter": "save_as_llama_lora"}[kind]
        self._print(f"{function}: saving to {path}")

    def iteration(self, record: IterationRecord) -> None:
        progress = self.progress
        progress.update(record)
        times = ""
        if progress.step_ms is not None:
            times = f" dt={duration(progress.step_ms)} eta={duration(progress.eta_ms)}"
        self._print(f"train_opt_callback: iter={record.iteration:6d} sample={record.sample}/{record.sample_count} "
                    f"sched={record.sched:f} loss={record.loss:f}{times} |{progress.bar()}")

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


class TerminalLog(Log):
    """The same facts for a person who looks on: a few rows first, a live line during training, a row at each save."""

    LABEL = 10

    def __init__(self) -> None:
        # rich takes 60 ms to import, and only a terminal needs it.
        from rich.console import Console
        from rich.live import Live

        self.console = Console(highlight=False)
        self.progress = Progress(0)
        self.record: IterationRecord | None = None
        self.tokens_per_iter = 0
        self.adapter_size = 0
        self.saved: list[str] = []
        self.live = Live(console=self.console, get_renderable=self._line, refresh_per_second=2, transient=True)

    def close(self) -> None:
        self._flush_saved()
        self.live.stop()

    def _row(self, label: str, text: str) -> None:
        """`text` in the column right of `label`, wrapped to the terminal's width."""
        from rich.text import Text

        lines = textwrap.wrap(text, max(20, self.console.width - self.LABEL - 1), break_on_hyphens=False) or [""]
        for head, line in zip(itertools.chain([label], itertools.repeat("")), lines):
            self.console.print(Text(f"{head:<{self.LABEL}}", "bold") + Text(line, "default"), soft_wrap=True)

    def _flush_saved(self) -> None:
        """One row for all the files of a save."""
        if self.saved:
            at = f"iteration {self.record.iteration}, loss {self.record.loss:.4f}: " if self.record else ""
            self._row("Saved", at + ", ".join(self.saved))
            self.saved = []

    def seed(self, seed: int) -> None:
        self._row("Seed", str(seed))

    def model_base(self, path: str) -> None:
        self._row("Model", path)

    def loader(self, gguf: GGUFFile, tokenizer: Tokenizer, hparams: HParams) -> None:
        count = Counter(tensor.type for tensor in gguf.tensors.values())
        self._row("", f"{gguf.metadata.get('general.name', 'no name')}: {hparams.arch} {hparams.model_type} "
                      f"{file_type(gguf)}, {describe_size(gguf)}")
        self._row("", "tensors: " + ", ".join(f"{n} {kind.label}" for kind, n in sorted(count.items())))
        self._row("Tokens", f"{tokenizer.vocab_type}, vocabulary {hparams.n_vocab}, merges {tokenizer.n_merges}, "
                  + ", ".join(f"{name} {token} {text}" for name, token, text in special_tokens(gguf, tokenizer)))

    def params(self, hparams: HParams) -> None:
        self._row("Shape", f"{hparams.n_layer} layers, n_embd {hparams.n_embd}, n_ff {hparams.n_ff}, {hparams.n_head} "
                  f"heads of {hparams.n_embd_head_k}, {hparams.n_head_kv} for keys and values, context {hparams.n_ctx} "
                  f"of {hparams.n_ctx_train}, norm eps {hparams.norm_rms_eps:g}, rope base {hparams.rope_freq_base:g}, "
                  f"scale {hparams.rope_freq_scale:g}")

    def lora_params(self, ranks: Mapping[str, int], n_params: int) -> None:
        by_rank: dict[int, list[str]] = {}
        for role, rank in ranks.items():
            by_rank.setdefault(rank, []).append(role)
        self._row("Adapter", f"{n_params:,} parameters; " + "; ".join(
            f"rank {rank}: {' '.join(roles)}" for rank, roles in sorted(by_rank.items(), reverse=True) if rank))

    def counters(self, iterations: int, samples: int, tokens: int, epochs: int) -> None:
        if iterations:
            self._row("So far", f"{iterations} iterations, {samples} samples, {tokens} tokens, {epochs} epochs")

    def lora_size(self, nbytes: int) -> None:
        self.adapter_size = nbytes

    def sizes(self, *, opt_size: int, opt_iter: int, input_size: int, compute_size: int, order: str) -> None:
        self._row("Memory", f"buffers {megabytes(compute_size)}; by the original's formulas lora_size "
                  f"{megabytes(self.adapter_size)}, opt_size {megabytes(opt_size)}, input_size {megabytes(input_size)}")

    def tokenizing(self, path: str, sample_start: str, include_sample_start: bool) -> None:
        start = f", samples {'from' if include_sample_start else 'after'} {sample_start!r}" if sample_start else ""
        self._row("Data", path + start)

    def data(self, n_samples: int, n_tokens: int, n_unique: int, warnings: Sequence[str]) -> None:
        self._row("", f"{n_samples} samples, {n_tokens} tokens, {n_unique} different ones")
        for warning in warnings:
            self.warning(warning)

    def restarted(self, *, forced: bool) -> None:
        self._row("", "shuffled anew as asked" if forced else "new to this adapter: shuffled from the seed")

    def begin(self, work_size: int, *, n_iter: int, tokens_per_iter: int) -> None:
        self.progress = Progress(n_iter)
        self.tokens_per_iter = tokens_per_iter
        self._row("Training", f"{n_iter} iterations of {tokens_per_iter} tokens")
        self.live.start()

    def saving(self, kind: str, path: str) -> None:
        self.saved.append(path)

    def iteration(self, record: IterationRecord) -> None:
        self.record = record
        self._flush_saved()
        self.progress.update(record)
        self.live.refresh()

    def _line(self) -> Any:
        """The live line: of its facts, the more important first, as many as the terminal has room for."""
        from rich.text import Text

        facts = self._facts()
        line = facts[0]
        for fact in facts[1:]:
            if len(line) + 2 + len(fact) < self.console.width:
                line += "  " + fact
        return Text(line, no_wrap=True, overflow="crop")

    def _facts(self) -> list[str]:
        record, progress = self.record, self.progress
        if record is None:
            return ["preparing"]
        facts = [f"{record.done}/{progress.n_iter}"]
        if record.done:
            facts.append(f"loss {record.loss:.4f}")
        if progress.step_ms:
            rate = 1000 * self.tokens_per_iter / progress.step_ms
            facts.append(f"ETA {duration(progress.eta_ms)}")
            facts.append(f"{rate:.0f} tok/s" if rate >= 10 else f"{rate:.2f} tok/s")
        facts.append(f"memory {megabytes(resident_bytes())}")
        facts.append(f"lr {record.learning_rate:.2e}")
        if record.done:
            facts.append(f"first loss {progress.first_loss:.4f}")
        if record.iteration != record.done:
            facts.append(f"iteration {record.iteration}")
        facts.append(f"sample {record.sample}/{record.sample_count}")
        return facts

    def reshuffled(self, epochs: int) -> None:
        self._row("Epoch", f"{epochs} completed, samples reshuffled")

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


def loader_lines(gguf: GGUFFile) -> list[str]:
    """What llama.cpp's model loader prints: every metadata key, and the number of tensors of each type."""
    head = "llama_model_loader: "
    lines = [head + f"loaded meta data with {len(gguf.metadata)} key-value pairs and {len(gguf.tensors)} tensors from "
             f"{gguf.path} (version {version(gguf)})"]
    for i, (key, (kind, item)) in enumerate(gguf.value_types.items()):
        value = gguf.metadata[key]
        type_name = kind.label
        if kind is GGUFValueType.ARRAY:
            type_name = f"arr[{item.label},{len(value)}]"
        lines.append(head + f"- kv {i:3d}: {key:>42} {type_name:<16} = {shorten(show_value(value, kind, item))}")
    for kind, n in sorted(Counter(tensor.type for tensor in gguf.tensors.values()).items()):
        lines.append(head + f"- type {kind.label:>4}: {n:4d} tensors")
    return lines


def show_value(value: Any, kind: GGUFValueType, item: GGUFValueType | None = None) -> str:
    """A metadata value as text; of an array, no more elements than `shorten` can show."""
    if kind is GGUFValueType.ARRAY:
        shown = [show_value(v, item) for v in itertools.islice(value, SHOWN_VALUE)]
        if item is GGUFValueType.STRING:
            shown = ['"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in shown]
        return "[" + ", ".join(shown) + "]"
    if kind is GGUFValueType.BOOL:
        return "true" if value else "false"
    if kind in (GGUFValueType.FLOAT32, GGUFValueType.FLOAT64):
        return f"{value:f}"
    return str(value).replace("\n", "\\n")


SHOWN_VALUE = 40
"""Longest text of a metadata value that is shown in full."""


def shorten(text: str) -> str:
    return text if len(text) <= SHOWN_VALUE else text[:SHOWN_VALUE - 3] + "..."


def version(gguf: GGUFFile) -> str:
    return f"GGUF V{gguf.version}" + (" (latest)" if gguf.version == 3 else "")


def file_type(gguf: GGUFFile) -> str:
    """What most matrices are stored as, by the file's own word."""
    return FILE_TYPE_NAMES.get(gguf.metadata.get("general.file_type"), "unknown")


def size_facts(gguf: GGUFFile) -> tuple[str, str]:
    """Number of parameters and bytes of all tensors, each with its unit; after the bytes, bits per weight."""
    n_params = sum(prod(tensor.shape) for tensor in gguf.tensors.values())
    nbytes = sum(tensor.nbytes for tensor in gguf.tensors.values())
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n_params >= unit or letter == "K":
            break
    size = f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.2f} MiB"
    return f"{n_params / unit:.2f} {letter}", f"{size} ({nbytes * 8 / n_params:.2f} BPW)"


def describe_size(gguf: GGUFFile) -> str:
    n_params, size = size_facts(gguf)
    return f"{n_params} parameters in {size}"


def special_tokens(gguf: GGUFFile, tokenizer: Tokenizer) -> list[tuple[str, int, str]]:
    """Name, id and text of those that the vocabulary has."""
    known = (("BOS", tokenizer.bos_id), ("EOS", tokenizer.eos_id), ("UNK", tokenizer.unk_id),
             ("PAD", gguf.metadata.get("tokenizer.ggml.padding_token_id")), ("LF", tokenizer.linefeed_id))
    return [(name, token, tokenizer.token_text(token)) for name, token in known
            if token is not None and 0 <= token < tokenizer.n_vocab]


def meta_lines(gguf: GGUFFile, tokenizer: Tokenizer, hparams: HParams) -> list[str]:
    """The summary of a model that llama.cpp prints. Facts that only other architectures have are zero, as there."""
    n_gqa = hparams.n_head // hparams.n_head_kv
    n_params, size = size_facts(gguf)
    finetuned = gguf.metadata.get(f"{hparams.arch}.rope.scaling.finetuned")
    facts: list[tuple[str, object]] = [
        ("format", version(gguf)), ("arch", hparams.arch), ("vocab type", tokenizer.vocab_type),
        ("n_vocab", hparams.n_vocab), ("n_merges", tokenizer.n_merges), ("n_ctx_train", hparams.n_ctx_train),
        ("n_embd", hparams.n_embd), ("n_head", hparams.n_head), ("n_head_kv", hparams.n_head_kv),
        ("n_layer", hparams.n_layer), ("n_rot", hparams.n_rot), ("n_swa", 0),
        ("n_embd_head_k", hparams.n_embd_head_k), ("n_embd_head_v", hparams.n_embd_head_v), ("n_gqa", n_gqa),
        ("n_embd_k_gqa", hparams.n_embd_head_k * hparams.n_head_kv),
        ("n_embd_v_gqa", hparams.n_embd_head_v * hparams.n_head_kv),
        ("f_norm_eps", "0.0e+00"), ("f_norm_rms_eps", f"{hparams.norm_rms_eps:.1e}"), ("f_clamp_kqv", "0.0e+00"),
        ("f_max_alibi_bias", "0.0e+00"), ("f_logit_scale", "0.0e+00"), ("n_ff", hparams.n_ff), ("n_expert", 0),
        ("n_expert_used", 0), ("causal attn", 1), ("pooling type", 0), ("rope type", 0),
        ("rope scaling", hparams.rope_scaling_type), ("freq_base_train", f"{hparams.rope_freq_base:.1f}"),
        ("freq_scale_train", f"{hparams.rope_freq_scale:g}"), ("n_ctx_orig_yarn", hparams.n_ctx_train),
        ("rope_finetuned", "unknown" if finetuned is None else "yes" if finetuned else "no"),
        ("ssm_d_conv", 0), ("ssm_d_inner", 0), ("ssm_d_state", 0), ("ssm_dt_rank", 0),
        ("model type", hparams.model_type), ("model ftype", file_type(gguf)),
        ("model params", n_params), ("model size", size), ("general.name", gguf.metadata.get("general.name", "n/a")),
        *((f"{name} token", f"{token} '{text}'") for name, token, text in special_tokens(gguf, tokenizer)),
        ("max token length", tokenizer.max_token_length),
    ]
    return [f"llm_load_print_meta: {name:<16} = {fact}" for name, fact in facts]


def resident_bytes() -> int:
    """Memory of this process that is in RAM, mapped pages included; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
