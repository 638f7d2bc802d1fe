"""Every option of every command, once: name (the field's), default, help and allowed values.

Where llama.cpp's llama-finetune of July 2024 had an option, `finetune` has it under the same names and
with the same default, except that `--threads` defaults to the physical cores. PRESETS are sets of other defaults.
"""
from __future__ import annotations

import dataclasses
import functools
import math
import re
import shlex
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar

from ..errors import UsageError
from ..gguf.file_form import FileForm, cannot_carry_magnitudes, form_of_output
from ..gguf.roles import EXPERTS_ARE_FROZEN, GROUPS, LLAMA_FINETUNE_ROLES, ROLES, is_of_experts
from ..system.threads import physical_cores
from .assignments import ASSIGNMENT
from .declare import Allowed, Options, option, to_argv, unknown
from .defaults import MODERN, ORIGINAL, PRESETS, RUN_OPTIONS, completed, resume_command
from .methods import METHOD_OPTIONS, METHODS
from .other_names import MODULES
from .outputs import Output, refuse_nameless

AT_LEAST_0 = Allowed("at least 0", lambda n: n >= 0)
AT_LEAST_1 = Allowed("at least 1", lambda n: n >= 1)
POSITIVE = Allowed("above 0", lambda x: x > 0)
SHARE = Allowed("between 0 and 1", lambda x: 0 <= x <= 1)
BELOW_1 = Allowed("at least 0 and below 1", lambda x: 0 <= x < 1)
ABOVE_0_BELOW_1 = Allowed("above 0 and below 1", lambda x: 0 < x < 1)
SEED = Allowed("-1 (take the time) or between 0 and 4294967295", lambda n: -1 <= n < 2**32)
NOT_EMPTY = Allowed("some text", bool)


def one_of(*words: str) -> Allowed:
    return Allowed(f"one of {', '.join(words)}", lambda word: word in words)


RANK_FIELDS = {role.name: role.rank_field for role in LLAMA_FINETUNE_ROLES}
"""The field that holds the rank of a role, for those that have one; other matrices have that of --lora-r."""

NORMS = GROUPS["norms"]
ATTENTION, FEED_FORWARD = GROUPS["attn"], GROUPS["ffn"]

TRACKERS = ("trackio", "wandb", "mlflow")
"""Programs that can be told how a run goes."""

SCHEDULES = ("original", "constant", "linear", "cosine")
DATA_FORMATS = ("auto", "text", "jsonl", "csv", "tsv")
PRECISIONS = ("auto", "float32", "int16", "int8")
"""What activations and gradients can be rounded to before they meet quantised weights."""

MOST_TOKENS = 2**31 - 1
"""The most tokens of a pass: kernels count them in 32 bits."""

DEFAULT_DATA = "shakespeare.txt"
"""The name of the training data if none is given, as in llama-finetune."""

ITERATIONS = 256
"""Iterations of a run, where neither iterations nor epochs are given."""

EVALUATIONS = 5
"""The least number of evaluations after the first, in a run that --save-every alone would give fewer."""

FILES, RUN, METHOD, DATA, EVALUATION, SEEING, ADAPTER, OPTIMISER, STOPPING, MODEL = (
    "Files", "Run", "Method", "Data", "Evaluation", "Seeing how it goes", "Adapter", "Optimiser", "Stopping early",
    "The model's own values, overridden")


def _as_option(field: str, value: object) -> str:
    shown = f"{value:g}" if isinstance(value, float) else value
    return f"--{field.replace('_', '-')} {shown}"


def rank(role: str, default: str = "--lora-r") -> Any:
    """The option for the rank of one role; None means that it was not given."""
    return option(None, ADAPTER, "N", f"rank of {role}; 0 leaves it out", allowed=AT_LEAST_0, shown_default=default)


SCORE_NAMES = ("exact", "contained", "regex", "choice", "choice_norm")
"""What answers can be scored by: see training/scoring.py."""


def is_regex(text: str) -> bool:
    """Whether a text is a regular expression."""
    try:
        re.compile(text)
    except (re.error, RecursionError):
        return False
    return True


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

    MATTER_MOST: ClassVar[tuple[str, ...]] = (
        "model_base", "train_data", "run", "resume", "lora_out", "epochs", "ctx", "batch", "mem_limit", "valid_split",
        "patience", "sample_prompt", "lora_r", "targets", "adam_alpha", "quiet")

    model_base: str = option("", FILES, "FILE", "base model: a GGUF file, or hf:org/name (required)")
    train_data: tuple[str, ...] = option(
        (DEFAULT_DATA,), FILES, "FILE",
        "data to train on: text, or records (chats, pairs, texts in JSONL, CSV, Parquet). May be given several times, "
        "or be a folder with train.jsonl (or .txt) and, if there are any, valid and test")
    lora_out: tuple[str, ...] = option(
        ("ggml-lora-ITERATION-f32.gguf",), FILES, "NAME",
        "adapter to write. The name decides the form: NAME.gguf for llama.cpp and Ollama, NAME/ is a folder for PEFT, "
        "NAME.bin the ggla file of llama-finetune. May be given several times; empty: none")
    init_lora: str = option("", FILES, "FILE", "adapter of any form to start from, instead of a random one; its "
                            "tensors, ranks and scale are used")
    checkpoint_in: str = option("checkpoint.gguf", FILES, "FILE", "checkpoint to go on from; starts afresh if missing")
    checkpoint_out: str = option("checkpoint-ITERATION.gguf", FILES, "FILE", "checkpoint to write; empty: none")
    run: str = option("", FILES, "FOLDER", "keep everything of this run in FOLDER: options, checkpoints, adapter, "
                                           "metrics, report",
                      shown_default="none")
    resume: bool = option(False, FILES, "", "go on from the newest checkpoint of --run, or of --checkpoint-out; "
                                            "--adam-iter and --epochs count from the run's beginning then")
    force: bool = option(False, FILES, "", "replace files of another kind than the output, and the results of another "
                                           "run; go on from a checkpoint in another --precision, with other data, "
                                           "or on another base model")
    only_write_lora: bool = option(False, FILES, "", "do not train: write the adapter of --checkpoint-in and end")
    save_every: int = option(10, FILES, "N", "iterations between two saves; 0: save at the end only")
    keep_best: bool = option(True, FILES, "", "with evaluation: keep a copy of the files of the lowest loss, BEST in "
                             "place of the iteration's number", off=["--no-keep-best"])
    keep: int = option(0, FILES, "N", "numbered checkpoints to keep, the newest; 0: all", allowed=AT_LEAST_0)
    pattern_fn_it: str = option("ITERATION", FILES, "TEXT", "part of output names that the iteration's number replaces",
                                allowed=NOT_EMPTY)
    fn_latest: str = option("LATEST", FILES, "TEXT", "text that replaces it in the name of the newest copy",
                            allowed=NOT_EMPTY)
    config: str = option("", FILES, "FILE", "TOML file of options, `ctx = 64` for --ctx 64; the command line overrides "
                         "it. Every run writes such a file beside its results")
    preset: str = option(ORIGINAL, FILES, "NAME", "other defaults. modern, what today's trainers start from: "
                         + ", ".join(_as_option(name, value) for name, value in PRESETS["modern"].items()),
                         allowed=Allowed(f"one of {', '.join(PRESETS)}", lambda name: name in PRESETS),
                         shown_default="modern with --run or records, else original")

    seed: int = option(-1, RUN, "N", "seed of the initial adapter and of the shuffling; -1: the time", names=["-s"],
                       allowed=SEED)
    ctx: int = option(128, RUN, "N", "tokens in a sample", names=["-c"], allowed=AT_LEAST_1)
    threads: int | None = option(None, RUN, "N", "threads that compute", names=["-t"], allowed=AT_LEAST_1,
                                 shown_default="physical cores")
    precision: str = option("auto", RUN, "NAME", "what activations and gradients are rounded to where they meet "
                            "quantised weights: int16; int8, faster where the processor multiplies bytes; or float32, "
                            "not at all, for comparing. auto: what the checkpoint was computed in; else int16, or with "
                            "--preset modern int8 where the processor gains from it",
                            allowed=one_of(*PRECISIONS))
    batch: int = option(8, RUN, "N", "samples in a pass", names=["-b"], allowed=AT_LEAST_1)
    grad_acc: int | None = option(None, RUN, "N", "passes whose gradients make one iteration; less than 1 means 1",
                                  shown_default="as the checkpoint, else 1, or one a rank")
    ranks: int = option(1, RUN, "N", "start N processes by mpirun, which share the passes of a step, each with "
                        "its share of this machine's cores; for plan: N machines, with --network",
                        allowed=AT_LEAST_1)
    rank_timeout: float = option(600.0, RUN, "SECONDS", "under mpirun: a rank that does not answer for so long ends "
                                 "the run", allowed=POSITIVE)
    exchange: str = option("float32", RUN, "TYPE", "type in which gradients are sent between ranks: float32, exact; "
                           "or bfloat16, half the bytes, but results then depend on the number of ranks",
                           allowed=one_of("float32", "bfloat16"))
    network: str = option("", RUN, "SPEED", "for plan: speed of the network between --ranks machines, 1G, 10G, 25G "
                          "bits a second, or with a latency 1G,0.5ms", shown_default="one machine's memory")
    adam_iter: int | None = option(None, RUN, "N", "iterations of this run", allowed=AT_LEAST_0,
                                   shown_default=f"{ITERATIONS}; if --epochs is given, as many as these take")
    epochs: int = option(-1, RUN, "N", "end after N times through the data; 0 or less: no limit")
    max_minutes: float = option(0.0, RUN, "X", "end after X minutes, and print the command that resumes; 0: no limit",
                                allowed=AT_LEAST_0)
    mem_limit: str = option("", RUN, "SIZE", "memory that the run may take, pages of the model included: 1.5G, 800M, "
                            "50%. A model that is larger is read as it is needed", shown_default="what is available")
    use_checkpointing: bool | None = option(
        None, RUN, "", "recompute activations in the backward pass instead of keeping them: less memory, more time",
        off=["--no-checkpointing"], shown_default="as far as memory needs it")
    checkpoint_every: int | None = option(
        None, RUN, "N", "only one in N blocks keeps its input, and the others recompute it: still less memory, more "
        "time", allowed=AT_LEAST_1, shown_default="1, unless memory needs more")
    head_tokens: int | None = option(None, RUN, "N", "tokens whose logits are in memory at a time", allowed=AT_LEAST_1,
                                     shown_default="128, or fewer if memory needs it")
    micro_batch: int | None = option(
        None, RUN, "N", "samples of --ctx tokens that are computed at a time, or more that are shorter",
        allowed=AT_LEAST_1, shown_default="all, or fewer if memory needs it")
    use_flash: bool = option(False, RUN, "", "accepted, without effect: attention is always fused", off=["--no-flash"])
    n_gpu_layers: int = option(0, RUN, "N", "accepted, without effect: there is no GPU path",
                               names=["-ngl", "--gpu-layers"])

    method: str = option("sft", METHOD, "NAME", "training method: sft, texts and answers as they are; dpo, ipo, "
                         "orpo, simpo or cpo, pairs of a better and a worse answer; kto, answers that are good or bad",
                         allowed=one_of(*METHODS))
    beta: float | None = option(None, METHOD, "X", "beta of the method: how strongly the reference, or a difference "
                                                   "of rewards, counts", allowed=POSITIVE,
                                shown_default="2 with simpo, else 0.1")
    label_smoothing: float | None = option(
        None, METHOD, "X", "dpo, cpo, simpo: share of the pairs assumed to be labelled the wrong way round",
        allowed=Allowed("between 0 and 0.5", lambda x: 0 <= x <= 0.5), shown_default="0")
    gamma: float | None = option(None, METHOD, "X", "simpo: margin between the two answers", allowed=AT_LEAST_0,
                                 shown_default="1")
    sft_weight: float | None = option(None, METHOD, "X", "methods with pairs: factor of the mean loss of the better "
                                      "answers, which is added", allowed=AT_LEAST_0,
                                      shown_default="1 with orpo and cpo, else 0")
    distill: str = option("", METHOD, "FILE", "also learn from a teacher: the file that lorafast logits wrote for "
                          "this data", shown_default="none")
    distill_weight: float = option(1.0, METHOD, "X", "factor of the divergence from the teacher, which is added to the "
                                   "loss", allowed=POSITIVE)
    temperature: float = option(1.0, METHOD, "T", "temperature of that divergence: above 1, unlikely tokens count more",
                                allowed=POSITIVE)
    ref_lora: str = option("", METHOD, "FILE", "dpo, ipo, kto: the reference is the model with this adapter",
                           shown_default="without any")

    prefix_cache: str = option("", RUN, "FOLDER", "with records and --layers: keep the output of the untrained blocks "
                               "for each row here; later epochs start from it", shown_default="none")
    prefix_cache_type: str = option("float32", RUN, "TYPE", "type of these numbers: float32, with the same results as "
                                    "without the cache; or float16, half the disk",
                                    allowed=one_of("float32", "float16"))

    data_format: str = option("auto", DATA, "FORMAT", "text, jsonl (any JSON), csv, tsv, or auto: by what is in the "
                                                      "files",
                              allowed=one_of(*DATA_FORMATS))
    chat_template: str = option("", DATA, "FILE", "Jinja template of chats", shown_default="the model's own")
    template_arg: tuple[str, ...] = option((), DATA, "NAME=VALUE", "variable for the chat template, such as "
                                           "enable_thinking=false; may be given several times", allowed=ASSIGNMENT)
    field: tuple[str, ...] = option((), DATA, "KEY=NAME",
                                    "the records call this key so, as in --field prompt=question; "
                                    "may be given several times", allowed=ASSIGNMENT)
    raw_pairs: bool = option(False, DATA, "",
                             "train on prompts and completions as they are, also where the model has a "
                             "chat template")
    train_on_prompt: bool = option(False, DATA, "", "prompts, and what the other side of a chat says, count in the "
                                   "loss too")
    skip_bad: bool = option(False, DATA, "", "leave out lines that cannot be read, instead of refusing the file")
    pack: bool = option(False, DATA, "", "with records: fill each pass with as many as fit --batch times --ctx tokens")
    data_cache: str = option("", DATA, "FILE", "keep the tokenised data here for the next run")
    stride: int = option(1, DATA, "N", "with text: tokens from the start of one sample to the next", allowed=AT_LEAST_1)
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

    valid_data: tuple[str, ...] = option((), EVALUATION, "FILE", "data to evaluate on; may be given several times")
    valid_split: float = option(0.0, EVALUATION, "X", "hold out this share of the training data to evaluate on",
                                allowed=BELOW_1)
    eval_every: int | None = option(None, EVALUATION, "N", "iterations between two evaluations; 0: at the end only",
                                    allowed=AT_LEAST_0, shown_default="--save-every")
    eval_batches: int = option(0, EVALUATION, "N", "evaluate on the first N batches only; 0: on all",
                               allowed=AT_LEAST_0)
    eval_score: str = option("", EVALUATION, "NAME", "also score answers to the data to evaluate on: exact, contained, "
                             "regex, choice or choice_norm, as lorafast eval does", shown_default="none",
                             allowed=Allowed("exact, contained, regex, choice or choice_norm",
                                             lambda name: not name or name in SCORE_NAMES))
    eval_pattern: str = option("", EVALUATION, "REGEX", "regular expression for --eval-score regex",
                               shown_default="none", allowed=Allowed("a regular expression", is_regex))
    sample_prompt: tuple[str, ...] = option((), EVALUATION, "TEXT",
                                            "show at each evaluation how the model continues this text; may be "
                                            "given several times")
    sample_tokens: int = option(64, EVALUATION, "N", "tokens that are generated for it", allowed=AT_LEAST_1)

    metrics: str = option("", SEEING, "FILE", "write loss, learning rate, gradient norm and speed of each iteration "
                          "here, a line of JSON each", shown_default="none")
    tensorboard: str = option("", SEEING, "FOLDER", "write them here for TensorBoard", shown_default="none")
    log_to: tuple[str, ...] = option((), SEEING, "NAME", "also log to trackio, wandb or mlflow; may be given several "
                                     "times", allowed=Allowed(" or ".join(TRACKERS), set(TRACKERS).issuperset),
                                     shown_default="none")
    report: str = option("", SEEING, "FILE", "at the end, write a page of plots and samples here", shown_default="none")

    log: str = option("auto", SEEING, "FORM", "plain: short rows; llama: the lines of llama-finetune; auto: the latter "
                                              "for "
                      "its runs when the output is no terminal", allowed=one_of("auto", "plain", "llama"))
    quiet: bool = option(False, SEEING, "", "show warnings and errors only")

    lora_r: int = option(4, ADAPTER, "N", "rank of the adapted matrices", allowed=AT_LEAST_1)
    lora_alpha: int | None = option(None, ADAPTER, "N", "the adapter's effect is scaled by alpha / --lora-r",
                                    allowed=AT_LEAST_1, shown_default="--lora-r")
    targets: str = option(
        "", ADAPTER, "LIST", f"tensors to adapt, separated by commas: the groups {', '.join(GROUPS)}, "
        "tensors as lorafast inspect names them (attn_q, ffn_down, output), or patterns such as blk.1?.ffn_*",
        shown_default="attn,ffn; all if only .bin is written")
    layers: int = option(0, ADAPTER, "N", "adapt only the last N blocks and what follows them; 0: all",
                         allowed=AT_LEAST_0)
    dora: bool = option(False, ADAPTER, "", "adapt the direction of each row of a matrix by the pair, and its length "
                        "by a number of its own (DoRA, Liu et al., 2024); for PEFT folders and merged models")
    rslora: bool = option(False, ADAPTER, "", "scale by alpha / sqrt(--lora-r) instead (Kalajdzievski, 2023)")
    lora_dropout: float = option(0.0, ADAPTER, "X", "share of its inputs that each pair of matrices does not see, "
                                 "others in each iteration (Lin et al., 2024)", allowed=BELOW_1)
    init_method: str = option("normal", ADAPTER, "NAME", "how A begins: normal, at random; eva, in the directions of "
                              "most inputs of its matrix (Paischer et al., 2024)", allowed=one_of("normal", "eva"))
    eva_batches: int = option(4, ADAPTER, "N", "batches that eva looks at", allowed=AT_LEAST_1)
    eva_rho: float = option(1.0, ADAPTER, "X", "let eva redistribute ranks over the matrices by what their directions "
                            "explain: at most X times its rank to each, as many in all as before; 1: as they are",
                            allowed=Allowed("at least 1", lambda x: x >= 1))
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
    lora_plus: float = option(1.0, OPTIMISER, "X",
                              "the learning rate of B is X times that of A (LoRA+, Hayou et al., 2024)",
                              allowed=POSITIVE)
    schedule: str = option("original", OPTIMISER, "NAME",
                           "schedule of the learning rate: after the warm-up it is constant, or "
                           "falls (linear, cosine) to --adam-min-alpha when the run ends, or (original) along a cosine "
                           "of given length", allowed=one_of(*SCHEDULES))
    decay_iter: int = option(0, OPTIMISER, "N", "linear and cosine end at iteration N of all runs; 0: with the run",
                             allowed=AT_LEAST_0)
    warmup_ratio: float | None = option(None, OPTIMISER, "X", "the warm-up as a share of the run", allowed=BELOW_1,
                                        shown_default="see --warmup")
    warmup: int = option(100, OPTIMISER, "N", "iterations in which the learning rate rises", allowed=AT_LEAST_0)
    cos_decay_steps: int = option(1000, OPTIMISER, "N", "original: iterations in which it falls",
                                  allowed=AT_LEAST_1)
    cos_decay_min: float = option(0.1, OPTIMISER, "X", "original: the share of it that remains", allowed=SHARE)
    enable_restart: bool = option(False, OPTIMISER, "", "original: restart when the cosine ends",
                                  off=["--disable-restart"])
    cos_decay_restart: float = option(1.1, OPTIMISER, "X", "original: each time, its length grows by this factor",
                                      allowed=Allowed("at least 1", lambda x: x >= 1))

    patience: int = option(0, STOPPING, "N", "stop after N evaluations without a new lowest loss; 0: never",
                           allowed=AT_LEAST_0)
    adam_epsf: float = option(0.0, STOPPING, "X", "stop when an iteration changes the loss by less than this share")
    opt_past: int = option(0, STOPPING, "N", "stop when N iterations changed it by less than the share --opt-delta",
                           allowed=AT_LEAST_0)
    opt_delta: float = option(1e-5, STOPPING, "X", "see --opt-past")
    opt_max_no_improvement: int = option(0, STOPPING, "N", "stop after N iterations without a new lowest loss",
                                         allowed=AT_LEAST_0)

    norm_rms_eps: float | None = option(None, MODEL, "X", "epsilon of the RMS norms", allowed=POSITIVE,
                                        shown_default="the model's")
    rope_freq_base: float | None = option(None, MODEL, "X", "base of the rotary frequencies", allowed=POSITIVE,
                                          shown_default="the model's")
    rope_freq_scale: float | None = option(None, MODEL, "X", "factor of the rotary positions", allowed=POSITIVE,
                                           shown_default="the model's")

    def __new__(cls, *args: Any, **given: Any) -> FinetuneConfig:
        """UsageError for a preset without its values: `complete` fills them in."""
        missing = PRESETS.get(given.get("preset", ORIGINAL), {}).keys() - given.keys()
        if missing:
            raise UsageError(f"preset={given['preset']!r} is for lorafast.finetune(preset=...), or "
                             f"FinetuneConfig.complete, which fill in its values of {', '.join(sorted(missing))}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adam_min_alpha > self.adam_alpha:
            raise UsageError(
                f"--adam-min-alpha {self.adam_min_alpha}: must be at most --adam-alpha, which is {self.adam_alpha}")
        if self.batch * self.ctx > MOST_TOKENS:
            raise UsageError(f"--batch {self.batch}, --ctx {self.ctx}: a pass has {self.batch * self.ctx} tokens then, "
                             f"but at most {MOST_TOKENS} are possible")
        for field, name in (*(("lora-out", name) for name in self.lora_out), ("metrics", self.metrics),
                            ("checkpoint-out", self.checkpoint_out), ("report", self.report)):
            refuse_nameless(f"--{field}", name)
        self._check_adapter()
        self._check_method()
        if self.config:
            raise ValueError("config is for FinetuneConfig.complete, which knows what else was given")
        if self.resume and self.init_lora:
            raise UsageError(f"--resume goes on from a checkpoint, not from --init-lora {self.init_lora}")

    def _check_method(self) -> None:
        if (self.eval_score == "regex") != bool(self.eval_pattern):
            raise UsageError("--eval-score regex and --eval-pattern REGEX belong together")
        if self.eval_score.startswith("choice") and METHODS[self.method].takes != "pairs":
            raise UsageError(f"--eval-score {self.eval_score}: the records of --method {self.method} have no answers "
                             "to choose from")
        if self.distill and self.method != "sft":
            raise UsageError(f"--distill {self.distill}: a teacher is learnt from with --method sft, not {self.method}")
        for name, value in (("--distill-weight", self.distill_weight), ("--temperature", self.temperature)):
            if value != 1 and not self.distill:
                raise UsageError(f"{name} {value:g}: there is no teacher; give --distill FILE")
        facts = METHODS[self.method]
        for field in METHOD_OPTIONS:
            if getattr(self, field) is not None and field not in facts.defaults:
                takers = [name for name, other in METHODS.items() if field in other.defaults]
                raise UsageError(f"{_spelling(field)} {getattr(self, field):g}: --method {self.method} has no use for "
                                 f"it, but {', '.join(takers)}")
        if self.ref_lora and not facts.reference:
            raise UsageError(f"--ref-lora {self.ref_lora}: --method {self.method} compares with no reference")
        if self.method != "sft" and self.train_on_prompt:
            raise UsageError(f"--train-on-prompt: --method {self.method} compares answers to the same prompt")

    def method_values(self) -> dict[str, float]:
        """--beta and what else the method takes, by field."""
        defaults = METHODS[self.method].defaults
        return {field: default if getattr(self, field) is None else getattr(self, field)
                for field, default in defaults.items()}

    def _check_adapter(self) -> None:
        if self.use_checkpointing is False and (self.checkpoint_every or 1) > 1:
            raise UsageError(f"--checkpoint-every {self.checkpoint_every}: but --no-checkpointing keeps everything")
        ranks = self.ranks_by_role()
        if self.dora:
            norm = next((role for role in NORMS if ranks[role]), None)
            if norm:
                raise UsageError(f"--dora: {norm} is not a matrix: it has no directions and lengths to adapt; "
                                 "leave norms out")
            self._check_dora_outputs("--dora")
        defaults = PRESETS[self.preset]
        given = [field for field in _ADAPTER_FIELDS
                 if getattr(self, field) != defaults.get(field, type(self).__dataclass_fields__[field].default)]
        if self.init_lora and given:
            raise UsageError(f"{_spelling(given[0])}: --init-lora brings its own tensors, ranks and scale")
        if self.eva_rho > 1 and self.init_method != "eva":
            raise UsageError(f"--eva-rho {self.eva_rho:g}: ranks are redistributed by --init-method eva only")
        if FileForm.GGLA in self.forms() and self.alpha != int(self.alpha):
            raise UsageError(f"--rslora: {FileForm.GGLA.phrase} holds whole numbers as alpha, not {self.alpha:g}; "
                             "write another form, or take a square number for --lora-r")

    @classmethod
    def complete(cls, given: Mapping[str, Any]) -> FinetuneConfig:
        """The options with these values, by field; the others have the values that defaults.py says."""
        return cls(**completed(cls, given))

    @property
    def is_llama_finetune_run(self) -> bool:
        """Whether defaults, log and overwriting are those of llama.cpp's llama-finetune."""
        return self.preset != MODERN and not self.run

    @property
    def matters_most(self) -> str:
        """The five options that matter most, as a command line has them."""
        length = _as_option("epochs", self.epochs) if self.adam_iter is None and self.epochs > 0 else _as_option(
            "adam_iter", ITERATIONS if self.adam_iter is None else self.adam_iter)
        others = (_as_option(name, getattr(self, name)) for name in ("lora_r", "adam_alpha", "ctx", "batch"))
        return ", ".join([*others, length])

    def evaluation_interval(self, end: int) -> int:
        """Iterations between two evaluations; 0 if there is none but the last.

        end  of the run, counted from its beginning: a short one is evaluated EVALUATIONS times where nothing says how
             often, unless llama-finetune's defaults hold
        """
        if self.eval_every is not None:
            return self.eval_every
        if self.is_llama_finetune_run or self.save_every <= 0:
            return max(0, self.save_every)
        return min(self.save_every, max(1, math.ceil(end / EVALUATIONS)))

    @property
    def options_path(self) -> Path | None:
        """Where the options are recorded: beside the adapter, or the checkpoint if there is none. None if nothing is
        written."""
        if self.run:
            return Path(self.run) / RUN_OPTIONS
        outputs = [*self.adapter_outputs, *filter(None, [self.checkpoint_output])]
        if not outputs:
            return None
        name = Path(outputs[0].name.rstrip("/"))
        stem = name.stem if name.suffix in (".bin", ".gguf") else name.name
        filled = stem.replace(self.pattern_fn_it, "options", 1)
        return name.with_name(f"{filled if filled != stem else stem + '-options'}.toml")

    @property
    def metrics_path(self) -> str:
        """Where a line is written for each iteration: a report needs it even if --metrics was not given. Empty:
        nowhere."""
        return self.metrics or (str(Path(self.report).with_suffix(".jsonl")) if self.report else "")

    @property
    def n_acc(self) -> int:
        """Passes in an iteration: --grad-acc, at least 1."""
        return max(1, self.grad_acc or 1)

    @property
    def alpha(self) -> float:
        """--lora-alpha; by default --lora-r, so that the scale alpha / r is 1. With --rslora, what gives alpha /
        sqrt(r)."""
        alpha = self.lora_alpha or self.lora_r
        return alpha * math.sqrt(self.lora_r) if self.rslora else alpha

    @property
    def start_text(self) -> str:
        """--sample-start, with its escapes decoded if --escape was given."""
        return decode_escapes(self.sample_start) if self.escape else self.sample_start

    @property
    def checkpoint_output(self) -> Output | None:
        """Where checkpoints go; None if none are wanted."""
        if not self.checkpoint_out:
            return None
        return Output("--checkpoint-out", self.checkpoint_out, FileForm.CHECKPOINT, self.pattern_fn_it, self.fn_latest,
                      self.keep)

    @property
    def adapter_outputs(self) -> tuple[Output, ...]:
        """Where adapters go."""
        return tuple(Output("--lora-out", name, form_of_output("--lora-out", name), self.pattern_fn_it, self.fn_latest)
                     for name in self.lora_out if name)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """All that saves and the end of the run write, but for the record of the options."""
        others = (("--metrics", self.metrics_path, FileForm.METRICS), ("--report", self.report, FileForm.REPORT))
        return (*filter(None, [self.checkpoint_output]), *self.adapter_outputs,
                *(Output(option, name, form, self.pattern_fn_it, self.fn_latest)
                  for option, name, form in others if name))

    def forms(self) -> set[FileForm]:
        """The forms of the adapters to write."""
        return {output.form for output in self.adapter_outputs}

    def target_list(self) -> tuple[str, ...] | None:
        """--targets as groups, roles and name patterns; None if it was not given."""
        if not self.targets:
            return None
        targets: list[str] = []
        spelled = [MODULES.get(name, name) for name in re.split(r"[,\s]+", self.targets)]
        for name in filter(None, ",".join(spelled).split(",")):
            if not any(_covers(name, role) for role in ROLES):
                raise UsageError(f"--targets: {name}: {EXPERTS_ARE_FROZEN}" if is_of_experts(name)
                                 else "--targets: " + unknown(name, [*ROLES, *GROUPS, *MODULES], "tensor"))
            targets.append(name)
        return tuple(targets)

    def ranks_by_role(self) -> dict[str, int]:
        """Rank of every role, in llama-finetune's order; 0 for those that are left out.

        Adapted are the roles of --targets; else all twelve if every adapter asked for is a ggla file, as in the
        original, and there is no --dora; else the seven matrices of a block, which every runtime applies. A rank given
        for a role adds it, or leaves it out if 0. UsageError where --targets and the ranks contradict each other or
        leave nothing.
        """
        targets = self.target_list()
        if targets is None:
            as_original = self.forms() <= {FileForm.GGLA} and not self.dora
            targets = tuple(ROLES) if as_original else ATTENTION + FEED_FORWARD
        ranks = {}
        for role in ROLES:
            field = RANK_FIELDS.get(role, "")
            given = getattr(self, field) if field else None
            targeted = any(_covers(target, role) for target in targets)
            if given and self.targets and not targeted:
                raise UsageError(f"{_spelling(field)} {given}: but {role} is not among --targets {self.targets}")
            default = 1 if role in NORMS else self.lora_r
            ranks[role] = default * targeted if given is None else given
        if not any(ranks.values()):
            raise UsageError("nothing is left to train: every rank is 0")
        return ranks

    def check_adapted(self, roles: Collection[str], *, tied: bool, dora: bool = False) -> None:
        """Refuses what the user asked for and cannot have. UsageError names the option and the way out.

        roles: those that will be adapted, of the tensors this model has; tied: it has no output matrix of its own;
        dora: the adapter has magnitudes.
        """
        if dora:
            self._check_dora_outputs("--dora" if self.dora else f"--init-lora {self.init_lora}")
        asked = {role: f"{_spelling(field)} {getattr(self, field)}" for role, field in RANK_FIELDS.items()
                 if getattr(self, field)}
        if "output" in asked and tied:
            raise UsageError(f"{asked['output']}: this model has no output.weight, it uses token_embd.weight twice")
        for form in sorted(self.forms(), key=lambda form: form.value):
            for role in roles:
                reason = _cannot_carry(form, role, tied)
                if reason:
                    raise UsageError(f"{asked.get(role, '--targets ' + self.targets)}: {reason}. "
                                     f"Write a .bin instead, or leave {role} out")

    def _check_dora_outputs(self, cause: str) -> None:
        for output in self.adapter_outputs:
            form = output.form
            if form is not FileForm.PEFT:
                raise UsageError(f"{cause}: --lora-out {output.name}: {cannot_carry_magnitudes(form)}. Write a PEFT "
                                 "folder (--lora-out NAME/), or none (--lora-out '') and have the checkpoint merged "
                                 "into the model (lorafast merge)")

    def resume_command(self, checkpoint: str, iterations: int | None, epochs: int = -1) -> str:
        """The shell command that goes on from `checkpoint` for so many `iterations` (None: as --epochs says) and
        epochs."""
        if self.run:
            return resume_command(self.run)
        going_on = dataclasses.replace(self, checkpoint_in=checkpoint, adam_iter=iterations, epochs=epochs,
                                       force_reshuffle=False, resume=False)
        return shlex.join(["lorafast", "finetune", "--preset", self.preset,
                           *to_argv(dataclasses.replace(going_on, preset=ORIGINAL), PRESETS[self.preset])])


_ADAPTER_FIELDS = ("lora_r", "lora_alpha", "targets", "layers", "dora", "rslora", "init_method", *RANK_FIELDS.values())
"""What an adapter that training starts from decides itself."""


@functools.cache
def _covers(target: str, role: str) -> bool:
    """Whether a target (a group, a role, or a tensor name with * and ?) can mean tensors of that role."""
    name = re.sub(r"^blk\.[^.]*\.|\.weight$", "", target)      # a role may have a point in its name
    return role in GROUPS.get(target, ()) or fnmatchcase(role, name) or fnmatchcase(role, name.rpartition(".")[2])


def _spelling(field: str) -> str:
    return "--" + field.replace("_", "-")


def _cannot_carry(form: FileForm, role: str, tied: bool) -> str:
    """Why an adapter of that form cannot hold a pair for that role; empty if it can."""
    if form is FileForm.GGLA:
        return ""
    if role in NORMS:
        return f"{form.phrase} cannot carry norms: the programs that read it adapt matrices only"
    if form is FileForm.GGUF and role == "token_embd" and tied:
        return f"{form.phrase} cannot carry token_embd for a model that uses the same matrix for its output"
    return ""


def decode_escapes(text: str) -> str:
    r"""`text` with \n \r \t \' \" \\ and \xHH decoded, as llama-finetune does; any other backslash stays as it is.

    Bytes that are not UTF-8 become surrogate escapes, as in file names and arguments.
    """
    letters = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}

    def decoded(match: re.Match[bytes]) -> bytes:
        escape = match[1]
        return bytes([int(escape[1:], 16)]) if len(escape) == 3 else letters.get(escape, escape)

    data = text.encode("utf-8", "surrogateescape")
    return re.sub(rb"""\\(x[0-9a-fA-F]{2}|[nrt'"\\])""", decoded, data).decode("utf-8", "surrogateescape")
