"""The options of `lorafast logits`."""
from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from .declare import force, option, same_as
from .finetune import AT_LEAST_1, SEED, FinetuneConfig, ModelOptions

TEACHER, DATA, RUN = "Teacher", "Data, as finetune reads it", "Run"


@dataclass(frozen=True)
class LogitsConfig(ModelOptions):
    """What a teacher is asked about which data."""

    model_base: str = option("", TEACHER, "FILE", "the teacher: a GGUF file (required)", names=["-m", "--model"])
    lora: str = option("", TEACHER, "FILE", "adapter of the teacher", shown_default="none")
    data: tuple[str, ...] = option((), DATA, "FILE", "records that the student will be trained on (required); may be "
                                   "given several times, in the order of --train-data")
    output: str = option("", TEACHER, "FILE", "file to write, for --distill (required)", names=["-o"])
    force: bool = force()
    top_k: int = option(32, TEACHER, "N", "likeliest tokens to keep for each token of an answer", allowed=AT_LEAST_1)
    ctx: int = option(512, DATA, "N", "tokens in a sample, at least the student's", names=["-c"], allowed=AT_LEAST_1)
    batch: int = same_as(FinetuneConfig, "batch", RUN)
    data_format: str = same_as(FinetuneConfig, "data_format", DATA)
    chat_template: str = same_as(FinetuneConfig, "chat_template", DATA)
    template_arg: tuple[str, ...] = same_as(FinetuneConfig, "template_arg", DATA)
    field: tuple[str, ...] = same_as(FinetuneConfig, "field", DATA)
    raw_pairs: bool = same_as(FinetuneConfig, "raw_pairs", DATA)
    train_on_prompt: bool = same_as(FinetuneConfig, "train_on_prompt", DATA)
    skip_bad: bool = same_as(FinetuneConfig, "skip_bad", DATA)
    mem_limit: str = same_as(FinetuneConfig, "mem_limit", RUN)
    threads: int | None = same_as(FinetuneConfig, "threads", RUN)
    precision: str = same_as(FinetuneConfig, "precision", RUN)
    seed: int = option(0, RUN, "N", "accepted, without effect: nothing is random", names=["-s"], allowed=SEED)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("--data", self.data), ("--output", self.output)):
            if not value:
                raise UsageError(f"{name} is missing: logits needs --model-base, --data and --output")

    def as_run(self) -> FinetuneConfig:
        """The run that would train on this data, which is read and planned as it is."""
        names = ("model_base", "ctx", "batch", "data_format", "chat_template", "template_arg", "field", "raw_pairs",
                 "train_on_prompt", "skip_bad", "mem_limit", "threads", "precision", "seed")
        return FinetuneConfig(**{name: getattr(self, name) for name in names}, train_data=self.data, lora_out=(),
                              checkpoint_in="", checkpoint_out="", init_lora=self.lora)
