"""The options of the commands that use a model: generate, perplexity and eval."""
from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from .assignments import ASSIGNMENT
from .declare import Allowed, force, option, same_as
from .finetune import (
    AT_LEAST_0,
    AT_LEAST_1,
    POSITIVE,
    SCORE_NAMES,
    SEED,
    SHARE,
    FinetuneConfig,
    ModelOptions,
    is_regex,
)
from .tools import path_and_scale

TEXT, CHOICE, RUN = "Text", "Choice of the next token, in this order", "Run"


class WithAdapters(ModelOptions):
    """What they have in common beside the model."""

    lora: tuple[str, ...]

    def adapters(self) -> list[tuple[str, float]]:
        """Path and factor of each --lora."""
        return [path_and_scale(text) for text in self.lora]


@dataclass(frozen=True)
class GenerateConfig(WithAdapters):
    """The options of `lorafast generate`."""

    model_base: str = option("", TEXT, "FILE", "model: a GGUF file, or hf:org/name (required)",
                             names=["-m", "--model"])
    lora: tuple[str, ...] = option((), TEXT, "FILE[:SCALE]",
                                   "adapter (of any form) or checkpoint to apply, times SCALE; may "
                                   "be given several times")
    prompt: str = option("", TEXT, "TEXT", "text to continue; with --chat, the message to answer", names=["-p"])
    chat: bool = option(False, TEXT, "", "answer as in a conversation, with the model's chat template")
    system: str = option("", TEXT, "TEXT", "with --chat: text of the system message")
    chat_template: str = option("", TEXT, "FILE", "with --chat: a Jinja template", shown_default="the model's own")
    template_arg: tuple[str, ...] = option((), TEXT, "NAME=VALUE", "with --chat: variable for the template, such as "
                                           "enable_thinking=false; may be given several times", allowed=ASSIGNMENT)
    interactive: bool = option(False, TEXT, "", "read further prompts line by line; with --chat they are one "
                               "conversation. Ctrl-C ends an answer, Ctrl-D the program", names=["-i"])
    n_predict: int = option(128, TEXT, "N", "most tokens to generate", names=["-n"], allowed=AT_LEAST_0)
    stop: tuple[str, ...] = option((), TEXT, "TEXT", "end before this text; may be given several times")
    ctx: int | None = option(None, TEXT, "N", "most tokens of prompt and answer together", names=["-c"],
                             allowed=AT_LEAST_1, shown_default="the model's, at most 8192")

    repeat_penalty: float = option(1.0, CHOICE, "X", "logits of tokens that occurred are divided by X, or multiplied "
                                   "where negative; 1: no penalty", allowed=POSITIVE)
    repeat_last_n: int = option(64, CHOICE, "N", "penalise tokens among the last N, prompt included; -1: all",
                                allowed=Allowed("at least -1", lambda n: n >= -1))
    top_k: int = option(40, CHOICE, "N", "choose among the N likeliest tokens only; 0: all", allowed=AT_LEAST_0)
    top_p: float = option(0.95, CHOICE, "X", "of these, keep the likeliest with X of the probability; 1: all",
                          allowed=SHARE)
    min_p: float = option(0.05, CHOICE, "X", "of these, keep those with at least X times the probability of the "
                                             "likeliest; 0: all", allowed=SHARE)
    temperature: float = option(0.8, CHOICE, "X", "higher: more variety; 0: always the likeliest token",
                                names=["--temp"], allowed=AT_LEAST_0)
    seed: int = option(-1, CHOICE, "N", "seed of the choice of tokens; -1: the time", names=["-s"], allowed=SEED)

    threads: int | None = option(None, RUN, "N", "threads that compute", names=["-t"], allowed=AT_LEAST_1,
                                 shown_default="physical cores")
    precision: str = same_as(FinetuneConfig, "precision", RUN)
    verbose: bool = option(False, RUN, "", "print the speed at the end, on stderr")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("--system", self.system), ("--chat-template", self.chat_template),
                            ("--template-arg", self.template_arg)):
            if value and not self.chat:
                raise UsageError(f"{name}: needs --chat")


@dataclass(frozen=True)
class PerplexityConfig(WithAdapters):
    """The options of `lorafast perplexity`."""

    model_base: str = option("", TEXT, "FILE", "model: a GGUF file, or hf:org/name (required)",
                             names=["-m", "--model"])
    file: str = option("", TEXT, "FILE", "text to predict (required)", names=["-f"])
    lora: tuple[str, ...] = option((), TEXT, "FILE[:SCALE]",
                                   "adapter (of any form) or checkpoint to compare with the base "
                                   "model, times SCALE; may be given several times")
    base: bool = option(True, TEXT, "", "with --lora: the base model's perplexity as well", off=["--no-base"])
    ctx: int = option(512, TEXT, "N", "tokens in a window, the second half of which is predicted", names=["-c"],
                      allowed=Allowed("at least 4", lambda n: n >= 4))
    stride: int | None = option(None, TEXT, "N", "tokens from the start of one window to the next; of the second "
                                "half, the last N are predicted", allowed=AT_LEAST_1,
                                shown_default="--ctx, as in llama.cpp")
    chunks: int = option(0, TEXT, "N", "only the first N windows; 0: all", allowed=AT_LEAST_0)
    precision: str = same_as(FinetuneConfig, "precision", RUN)
    threads: int | None = option(None, RUN, "N", "threads that compute", names=["-t"], allowed=AT_LEAST_1,
                                 shown_default="physical cores")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.file:
            raise UsageError("--file is missing: name the text to predict")


@dataclass(frozen=True)
class EvalConfig(WithAdapters):
    """The options of `lorafast eval`."""

    model_base: str = option("", TEXT, "FILE", "model: a GGUF file (required)", names=["-m", "--model"])
    data: tuple[str, ...] = option((), TEXT, "FILE", "records to score on (required); may be given several times")
    lora: tuple[str, ...] = option((), TEXT, "FILE[:SCALE]", "adapter to score, times SCALE; each by itself, beside "
                                   "the base model. May be given several times")
    base: bool = option(True, TEXT, "", "with --lora: the base model as well", off=["--no-base"])
    score: str = option("", TEXT, "LIST", "scores to compute: exact, contained, regex, choice, choice_norm, with "
                        "commas between",
                        shown_default="all that the records allow",
                        allowed=Allowed(f"{', '.join(SCORE_NAMES)}, or several with commas between",
                                        lambda text: set(filter(None, text.split(","))) <= set(SCORE_NAMES)))
    pattern: str = option("", TEXT, "REGEX", "regular expression that answers must match, where a record has none",
                          allowed=Allowed("a regular expression", is_regex))
    first: int = option(0, TEXT, "N", "the first N records only; 0: all", allowed=AT_LEAST_0)
    n_predict: int = option(128, TEXT, "N", "most tokens of an answer", names=["-n"], allowed=AT_LEAST_1)
    json: str = option("", TEXT, "FILE", "write scores and answers here", shown_default="none")
    force: bool = force()
    ctx: int | None = option(None, TEXT, "N", "most tokens of prompt and answer together", names=["-c"],
                             allowed=AT_LEAST_1, shown_default="the model's, at most 8192")
    chat_template: str = same_as(FinetuneConfig, "chat_template", TEXT)
    template_arg: tuple[str, ...] = same_as(FinetuneConfig, "template_arg", TEXT)
    field: tuple[str, ...] = same_as(FinetuneConfig, "field", TEXT)
    raw_pairs: bool = same_as(FinetuneConfig, "raw_pairs", TEXT)
    seed: int = option(0, RUN, "N", "accepted, without effect: the likeliest token is always chosen", names=["-s"],
                       allowed=SEED)
    threads: int | None = option(None, RUN, "N", "threads that compute", names=["-t"], allowed=AT_LEAST_1,
                                 shown_default="physical cores")
    precision: str = same_as(FinetuneConfig, "precision", RUN)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.data:
            raise UsageError("--data is missing: name the records to score on")

    @property
    def scores(self) -> tuple[str, ...]:
        """--score, taken apart."""
        return tuple(filter(None, self.score.split(",")))
