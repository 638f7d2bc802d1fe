"""Every option of every command, once: name (the field's), default, help and allowed values.

The names, short forms and defaults of `finetune` are those of llama.cpp's llama-finetune of July 2024 ("the original"),
except that `--threads` defaults to the physical cores. New are `--targets`, `--keep`, and several `--lora-out`.
"""
from __future__ import annotations

import dataclasses
import re
import shlex
import time
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .errors import UsageError
from .files import Form, Output, form_of
from .options import Allowed, Options, option, to_argv, unknown
from .threads import physical_cores

AT_LEAST_0 = Allowed("at least 0", lambda n: n >= 0)
AT_LEAST_1 = Allowed("at least 1", lambda n: n >= 1)
POSITIVE = Allowed("above 0", lambda x: x > 0)
SHARE = Allowed("between 0 and 1", lambda x: 0 <= x <= 1)
BELOW_1 = Allowed("at least 0 and below 1", lambda x: 0 <= x < 1)
SEED = Allowed("-1 (take the time) or between 0 and 4294967295", lambda n: -1 <= n < 2**32)
NOT_EMPTY = Allowed("some text", bool)

RANK_FIELDS = {
    "token_embd": "rank_tok_embd", "output_norm": "rank_out_norm", "output": "rank_out",
    "attn_norm": "rank_att_norm", "attn_q": "rank_wq", "attn_k": "rank_wk", "attn_v": "rank_wv",
    "attn_output": "rank_wo", "ffn_norm": "rank_ffn_norm",
    "ffn_gate": "rank_ffn_gate", "ffn_down": "rank_ffn_down", "ffn_up": "rank_ffn_up",
}
"""The field that holds the rank of each role of tensor, in the original's order of tensors."""

NORMS = ("output_norm", "attn_norm", "ffn_norm")
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
FEED_FORWARD = ("ffn_gate", "ffn_down", "ffn_up")
TARGET_GROUPS = {"all": tuple(RANK_FIELDS), "attn": ATTENTION, "ffn": FEED_FORWARD, "norms": NORMS}

FILES, RUN, DATA, ADAPTER, OPTIMISER, STOPPING, MODEL, GENERATION = (
    "Files", "Run", "Data", "Adapter", "Optimiser", "Stopping early", "The model's own values, overridden", "Options")


def rank(role: str, default: str = "--lora-r"):
    """The option for the rank of one role; None means that it was not given."""
    return option(None, ADAPTER, "N", f"rank of {role}; 0 leaves it out", allowed=AT_LEAST_0, shown_default=default)


class ModelOptions(Options):
    """What the commands that run a model have in common."""

    model_base: str
    threads: int | None
    seed: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model_base:
            raise UsageError("--model-base is missing: name the GGUF file of the model")

    @property
    def n_threads(self) -> int:
        """Threads that compute: --threads, else the physical cores that this process may use."""
        return self.threads or physical_cores()

    def resolve_seed(self) -> int:
        """The seed as an unsigned 32-bit number; -1 (and 4294967295, which is the same) takes the time."""
        return int(time.time()) & 0xFFFFFFFF if self.seed in (-1, 0xFFFFFFFF) else self.seed


@dataclass(frozen=True)
class FinetuneConfig(ModelOptions):
    """The options of `lorafast finetune`."""

    model_base: str = option("", FILES, "FILE", "base model: a GGUF of architecture llama (required)")
    train_data: str = option("shakespeare.txt", FILES, "FILE", "text to train on")
    lora_out: tuple[str, ...] = option(
        ("ggml-lora-ITERATION-f32.gguf",), FILES, "NAME",
        "adapter to write. The name decides the form: NAME.gguf for llama.cpp and its kin, NAME/ is a folder for PEFT, "
        "NAME.bin is the original's ggla. May be given several times; empty: none")
    checkpoint_in: str = option("checkpoint.gguf", FILES, "FILE", "checkpoint to go on from; starts afresh if missing")
    checkpoint_out: str = option("checkpoint-ITERATION.gguf", FILES, "FILE", "checkpoint to write; empty: none")
    only_write_lora: bool = option(False, FILES, "", "no training: write the adapter of --checkpoint-in and end")
    save_every: int = option(10, FILES, "N", "iterations between two saves; 0: save at the end only")
    keep: int = option(0, FILES, "N", "numbered checkpoints to keep, the newest; 0: all", allowed=AT_LEAST_0)
    pattern_fn_it: str = option("ITERATION", FILES, "TEXT", "part of output names that the iteration's number replaces",
                                allowed=NOT_EMPTY)
    fn_latest: str = option("LATEST", FILES, "TEXT", "what replaces it in the second copy, which is always the newest",
                            allowed=NOT_EMPTY)

    seed: int = option(-1, RUN, "N", "seed of the initial adapter and of the shuffling; -1: the time", names=["-s"],
                       allowed=SEED)
    ctx: int = option(128, RUN, "N", "tokens in a sample", names=["-c"], allowed=AT_LEAST_1)
    threads: int | None = option(None, RUN, "N", "threads that compute", names=["-t"], allowed=AT_LEAST_1,
                                 shown_default="physical cores")
    batch: int = option(8, RUN, "N", "samples in a pass", names=["-b"], allowed=AT_LEAST_1)
    grad_acc: int = option(1, RUN, "N", "passes whose gradients make one iteration; less than 1 is 1")
    adam_iter: int = option(256, RUN, "N", "iterations of this run", allowed=AT_LEAST_0)
    epochs: int = option(-1, RUN, "N", "end after N times through the data; 0 or less: no limit")
    use_checkpointing: bool = option(
        True, RUN, "", "recompute activations in the backward pass instead of keeping them: less memory, more time",
        off=["--no-checkpointing"])
    use_flash: bool = option(False, RUN, "", "accepted, without effect: attention is always fused", off=["--no-flash"])
    n_gpu_layers: int = option(0, RUN, "N", "accepted, without effect: there is no GPU path",
                               names=["-ngl", "--gpu-layers"])

    sample_start: str = option("", DATA, "TEXT", "samples begin after each TEXT; empty: at every token")
    include_sample_start: bool = option(False, DATA, "", "samples begin with that text instead of after it")
    escape: bool = option(False, DATA, "", r"in --sample-start, \n \r \t \' \" \\ \xHH stand for one character")
    overlapping_samples: bool = option(False, DATA, "", "with --sample-start: samples run on past the next start")
    fill_with_next_samples: bool = option(
        False, DATA, "", "samples shorter than --ctx are continued with the next ones, not filled with end-of-text")
    separate_with_eos: bool = option(False, DATA, "", "then an end-of-text token stands between samples",
                                     off=["--no-separate-with-eos"])
    separate_with_bos: bool = option(True, DATA, "", "then a begin-of-text token stands between samples",
                                     off=["--no-separate-with-bos"])
    sample_random_offsets: bool = option(False, DATA, "", "begin each sample at a random place inside it")
    force_reshuffle: bool = option(False, DATA, "", "shuffle anew from --seed, wherever the checkpoint was")

    lora_r: int = option(4, ADAPTER, "N", "rank of the adapted matrices", allowed=AT_LEAST_1)
    lora_alpha: int | None = option(None, ADAPTER, "N", "the adapter's effect is scaled by alpha / --lora-r",
                                    allowed=AT_LEAST_1, shown_default="--lora-r")
    targets: str = option(
        "", ADAPTER, "LIST", f"tensors to adapt, with commas between: {', '.join(RANK_FIELDS)}, "
        f"names with * and ? such as blk.1?.ffn_*, or the groups {', '.join(TARGET_GROUPS)}",
        shown_default="attn,ffn; all if only .bin is written")
    rank_att_norm: int | None = rank("attn_norm", "1")
    rank_ffn_norm: int | None = rank("ffn_norm", "1")
    rank_out_norm: int | None = rank("output_norm", "1")
    rank_tok_embd: int | None = rank("token_embd")
    rank_out: int | None = rank("output")
    rank_wq: int | None = rank("attn_q")
    rank_wk: int | None = rank("attn_k")
    rank_wv: int | None = rank("attn_v")
    rank_wo: int | None = rank("attn_output")
    rank_ffn_gate: int | None = rank("ffn_gate")
    rank_ffn_down: int | None = rank("ffn_down")
    rank_ffn_up: int | None = rank("ffn_up")

    adam_alpha: float = option(0.001, OPTIMISER, "X", "highest learning rate", allowed=POSITIVE)
    adam_min_alpha: float = option(0.0, OPTIMISER, "X", "lowest learning rate, warm-up included", allowed=AT_LEAST_0)
    adam_decay: float = option(0.1, OPTIMISER, "X", "weight decay, a factor of the learning rate", allowed=AT_LEAST_0)
    adam_decay_min_ndim: int = option(2, OPTIMISER, "N", "tensors with fewer dimensions do not decay")
    adam_beta1: float = option(0.9, OPTIMISER, "X", "decay rate of the first moment", allowed=BELOW_1)
    adam_beta2: float = option(0.999, OPTIMISER, "X", "decay rate of the second moment", allowed=BELOW_1)
    adam_gclip: float = option(1.0, OPTIMISER, "X", "highest norm of the whole gradient; 0: no limit")
    warmup: int = option(100, OPTIMISER, "N", "iterations in which the learning rate rises", allowed=AT_LEAST_0)
    cos_decay_steps: int = option(1000, OPTIMISER, "N", "iterations in which it falls along a cosine",
                                  allowed=AT_LEAST_1)
    cos_decay_min: float = option(0.1, OPTIMISER, "X", "the share of it that remains", allowed=SHARE)
    enable_restart: bool = option(False, OPTIMISER, "", "begin again when the cosine ends", off=["--disable-restart"])
    cos_decay_restart: float = option(1.1, OPTIMISER, "X", "each time, the cosine's length grows by this factor",
                                      allowed=Allowed("at least 1", lambda x: x >= 1))

    adam_epsf: float = option(0.0, STOPPING, "X", "stop when an iteration changes the loss by less than this share")
    opt_past: int = option(0, STOPPING, "N", "stop when N iterations changed it by less than the share --opt-delta",
                           allowed=AT_LEAST_0)
    opt_delta: float = option(1e-5, STOPPING, "X", "see --opt-past")
    opt_max_no_improvement: int = option(0, STOPPING, "N", "stop after N iterations without a new lowest loss",
                                         allowed=AT_LEAST_0)

    norm_rms_eps: float | None = option(None, MODEL, "X", "epsilon of the norms", allowed=POSITIVE,
                                        shown_default="the model's")
    rope_freq_base: float | None = option(None, MODEL, "X", "base of the rotary frequencies", allowed=POSITIVE,
                                          shown_default="the model's")
    rope_freq_scale: float | None = option(None, MODEL, "X", "factor of the rotary positions", allowed=POSITIVE,
                                           shown_default="the model's")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adam_min_alpha > self.adam_alpha:
            raise UsageError(
                f"--adam-min-alpha {self.adam_min_alpha}: must be at most --adam-alpha, which is {self.adam_alpha}")
        self.forms()
        self.ranks()

    @property
    def n_acc(self) -> int:
        """Passes in an iteration: --grad-acc, at least 1."""
        return max(1, self.grad_acc)

    @property
    def alpha(self) -> int:
        """--lora-alpha; by default --lora-r, so that the scale alpha / r is 1."""
        return self.lora_alpha or self.lora_r

    @property
    def start_text(self) -> str:
        """--sample-start, with its escapes decoded if --escape was given."""
        return decode_escapes(self.sample_start) if self.escape else self.sample_start

    @property
    def checkpoint_output(self) -> Output | None:
        """Where checkpoints go; None if none are wanted."""
        if not self.checkpoint_out:
            return None
        return Output("--checkpoint-out", self.checkpoint_out, self.pattern_fn_it, self.fn_latest, self.keep)

    @property
    def adapter_outputs(self) -> tuple[Output, ...]:
        """Where adapters go."""
        return tuple(Output("--lora-out", name, self.pattern_fn_it, self.fn_latest) for name in self.lora_out if name)

    def forms(self) -> set[Form]:
        """The forms of the adapters to write."""
        return {form_of(output.name) for output in self.adapter_outputs}

    def target_list(self) -> tuple[str, ...] | None:
        """--targets as roles and name patterns, its groups spelled out; None if it was not given."""
        if not self.targets:
            return None
        targets: list[str] = []
        for name in filter(None, re.split(r"[,\s]+", self.targets)):
            if name not in TARGET_GROUPS and not any(_covers(name, role) for role in RANK_FIELDS):
                raise UsageError("--targets: " + unknown(name, [*RANK_FIELDS, *TARGET_GROUPS], "tensor"))
            targets += TARGET_GROUPS.get(name, (name,))
        return tuple(targets)

    def ranks(self) -> dict[str, int]:
        """Rank of every role, in the original's order; 0 for those that are left out.

        Adapted are the roles of --targets; else all twelve if every adapter asked for is a ggla file, as in the
        original; else the seven matrices of a block, which every runtime applies. A rank given for a role adds it, or
        leaves it out if 0. UsageError where --targets and the ranks contradict each other or leave nothing.
        """
        targets = self.target_list()
        if targets is None:
            targets = TARGET_GROUPS["all"] if self.forms() <= {Form.GGLA} else ATTENTION + FEED_FORWARD
        ranks = {}
        for role, field in RANK_FIELDS.items():
            given = getattr(self, field)
            targeted = any(_covers(target, role) for target in targets)
            if given and self.targets and not targeted:
                raise UsageError(f"{_spelling(field)} {given}: but {role} is not among --targets {self.targets}")
            default = 1 if role in NORMS else self.lora_r
            ranks[role] = default * targeted if given is None else given
        if not any(ranks.values()):
            raise UsageError("nothing is left to train: every rank is 0")
        return ranks

    def check_adapted(self, roles: Collection[str], *, tied: bool) -> None:
        """Refuses what the user asked for and cannot have. UsageError names the option and the way out.

        roles: those that will be adapted, of the tensors this model has; tied: it has no output matrix of its own.
        """
        asked = {role: f"{_spelling(field)} {getattr(self, field)}" for role, field in RANK_FIELDS.items()
                 if getattr(self, field)}
        if "output" in asked and tied:
            raise UsageError(f"{asked['output']}: this model has no output.weight, it uses token_embd.weight twice")
        for form in sorted(self.forms()):
            for role in roles:
                reason = _cannot_carry(form, role, tied)
                if reason:
                    raise UsageError(f"{asked.get(role, '--targets ' + self.targets)}: {reason}. "
                                     f"Write a .bin instead, or leave {role} out")

    def resume_command(self, checkpoint: str, iterations: int) -> str:
        """The shell command that goes on from `checkpoint` for so many `iterations` more."""
        going_on = dataclasses.replace(self, checkpoint_in=checkpoint, adam_iter=iterations, force_reshuffle=False)
        return shlex.join(["lorafast", "finetune", *to_argv(going_on)])


@dataclass(frozen=True)
class GenerateConfig(ModelOptions):
    """The options of `lorafast generate`."""

    model_base: str = option("", GENERATION, "FILE", "model: a GGUF of architecture llama (required)",
                             names=["-m", "--model"])
    lora: tuple[str, ...] = option((), GENERATION, "FILE", "adapter (of any form) or checkpoint to apply")
    prompt: str = option("", GENERATION, "TEXT", "text to continue", names=["-p"])
    n_predict: int = option(128, GENERATION, "N", "most tokens to generate", names=["-n"], allowed=AT_LEAST_0)
    temperature: float = option(0.8, GENERATION, "X", "0: always the likeliest token; higher: more variety",
                                names=["--temp"], allowed=AT_LEAST_0)
    seed: int = option(-1, GENERATION, "N", "seed of the choice among tokens; -1: the time", names=["-s"], allowed=SEED)
    ctx: int | None = option(None, GENERATION, "N", "most tokens of prompt and answer together", names=["-c"],
                             allowed=AT_LEAST_1, shown_default="as many as needed")
    threads: int | None = option(None, GENERATION, "N", "threads that compute", names=["-t"], allowed=AT_LEAST_1,
                                 shown_default="physical cores")


def _covers(target: str, role: str) -> bool:
    """Whether a target (a role, or a tensor name with * and ?) can mean tensors of that role."""
    return fnmatchcase(role, target.removesuffix(".weight").rpartition(".")[2])


def _spelling(field: str) -> str:
    return "--" + field.replace("_", "-")


def _cannot_carry(form: Form, role: str, tied: bool) -> str:
    """Why an adapter of that form cannot hold a pair for that role; empty if it can."""
    if form is Form.GGLA:
        return ""
    if role in NORMS:
        return f"a {form.value} cannot carry norms: the programs that read it adapt matrices only"
    if form is Form.GGUF and role == "token_embd" and tied:
        return f"a {form.value} cannot carry token_embd for a model that uses the same matrix for its output"
    return ""


def decode_escapes(text: str) -> str:
    r"""`text` with \n \r \t \' \" \\ and \xHH decoded, as the original does; any other backslash stays as it is.

    Bytes that are not UTF-8 become surrogate escapes, as in file names and arguments.
    """
    letters = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}

    def decoded(match: re.Match[bytes]) -> bytes:
        escape = match[1]
        return bytes([int(escape[1:], 16)]) if len(escape) == 3 else letters.get(escape, escape)

    data = text.encode("utf-8", "surrogateescape")
    return re.sub(rb"""\\(x[0-9a-fA-F]{2}|[nrt'"\\])""", decoded, data).decode("utf-8", "surrogateescape")
