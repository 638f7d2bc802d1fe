"""lorafast from Python: what `import lorafast` offers, and what the commands are built on.

    import lorafast

    config = lorafast.FinetuneConfig(model_base="model.gguf", train_data=("chats.jsonl",), lora_out=("skill.gguf",))
    lorafast.finetune(config, callback=print)

    model = lorafast.Model.open("model.gguf", lora=["skill.gguf"])
    for piece in model.generate("Once upon a time", temperature=0):
        print(piece, end="")
    logits = model.forward(model.tokenizer.encode("Once upon a time"))
"""
from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from .adapters import BaseModel, read_adapter
from .adapters.stack import stack
from .data.encode import chat_tokens
from .errors import UsageError
from .gguf.reader import GGUFFile, open_model
from .network.decoder import Decoder
from .network.generation import Session, chooser
from .network.hparams import read_hparams
from .network.lora import Adapter
from .network.network import Network
from .network.next_token import Sampling
from .options.finetune import FinetuneConfig
from .options.tools import path_and_scale
from .reporting.events import Observer
from .system.threads import physical_cores
from .tokenizer import Tokenizer, load_tokenizer
from .tokenizer.text_stream import TextStream, text_of

if TYPE_CHECKING:
    from .training.run import Result

MOST_POSITIONS = 8192
"""Of a context whose length was not given: longer ones take memory that few need."""

Lora = str | os.PathLike | tuple[str | os.PathLike, float]
"""An adapter or checkpoint of any form; text may end in `:SCALE`."""


def finetune(config: FinetuneConfig | Mapping[str, Any], callback: Observer | None = None) -> Result:
    """Trains an adapter, as `lorafast finetune` does, and returns how it ended.

    config    the options, or a mapping of them by name (`preset` and `config` may be among them)
    callback  is called with each event: Started, Step after every iteration, Evaluation, Continuation, Ended
    (lorafast.reporting.events)

    Raises LoraFastError, in one line, for whatever stands in the way; what was saved stays. An exception from the
    callback ends the run. In the main thread SIGINT ends it after the step under way, with everything saved.
    """
    from .training.run import finetune as train

    if not isinstance(config, FinetuneConfig):
        config = FinetuneConfig.complete(config)
    return train(config, observers=[callback] if callback else [])


class Model:
    """A model with adapters, ready to compute.

    tokenizer  Tokenizer: .encode(text) -> int32 ids, .decode(ids) -> text
    n_vocab    size of the vocabulary
    n_ctx      most tokens of a sequence
    warnings   lines for the user: what was left out of an adapter, what is odd in the model's file

    Sequences of calls keep what they have read: a prompt that begins like the last one continues from there.
    """

    def __init__(self, gguf: GGUFFile, tokenizer: Tokenizer, adapter: Adapter, n_ctx: int, n_threads: int,
                 warnings: Sequence[str] = ()) -> None:
        hparams = read_hparams(gguf)
        self.gguf, self.tokenizer, self.adapter, self.n_ctx, self.n_threads = gguf, tokenizer, adapter, n_ctx, n_threads
        self.warnings = [*tokenizer.warnings, *warnings]
        self.n_vocab = hparams.n_vocab
        self.network = Network(gguf, hparams, n_ctx)
        self.network.refresh(adapter)

    @classmethod
    def open(cls, path: str | os.PathLike, lora: Sequence[Lora] = (), *, n_ctx: int | None = None,
             n_threads: int | None = None) -> Model:
        """The model at `path` (GGUF) with adapters.

        lora       paths, "PATH:SCALE" or (path, scale); their effects add up
        n_ctx      most tokens of a sequence; None: as many as the model was trained on, at most 8192
        n_threads  None: the physical cores that this process may use

        Raises LoraFastError for files that cannot be read or do not fit each other.
        """
        gguf = open_model(path)
        hparams = read_hparams(gguf)
        base = BaseModel.from_gguf(gguf)
        adapters = []
        for item in lora:
            name, scale = item if isinstance(item, tuple) else path_and_scale(os.fspath(item))
            adapters.append((read_adapter(name, base), scale))
        file = stack(adapters)
        return cls(gguf, load_tokenizer(gguf), file.to_adapter(hparams.tensor_shapes()),
                   n_ctx or min(hparams.n_ctx_train or MOST_POSITIONS, MOST_POSITIONS), n_threads or physical_cores(),
                   file.warnings)

    def forward(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Logits of what follows each token, float32 (T, n_vocab), of a sequence of 1 <= T <= n_ctx ids.

        softmax(result[t]) are the probabilities of token t + 1. Raises ValueError for ids out of range, none, or too
        many.
        """
        tokens = np.ascontiguousarray(token_ids, np.int32)
        if tokens.ndim != 1 or not 0 < len(tokens) <= self.n_ctx:
            raise ValueError(f"token_ids has shape {tokens.shape}, wanted 1 to {self.n_ctx} (n_ctx) ids")
        decoder = Decoder(self.network, self.adapter, len(tokens), self.n_threads)
        return np.concatenate([decoder.logits(x) for x in decoder.outputs(tokens)])

    def generate(self, prompt: str | Sequence[int] | np.ndarray, *, n_predict: int = 128, stop: Sequence[str] = (),
                 seed: int = 0, **sampling: Any) -> Iterator[str]:
        """Pieces of the text that follows `prompt`, as they come.

        prompt     text, in which control tokens may be spelled out (`<|im_end|>`), or token ids
        n_predict  most tokens
        stop       texts before which to end, beside the model's own end of text
        seed       of the choice among tokens
        sampling   temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n: see sampling.Sampling

        Raises UsageError when the prompt leaves no room in n_ctx.
        """
        tokens = self.prompt_tokens(prompt) if isinstance(prompt, str) else np.ascontiguousarray(prompt, np.int32)
        if len(tokens) >= self.n_ctx:
            raise UsageError(f"the prompt's {len(tokens)} tokens leave no room in a context of {self.n_ctx} (--ctx)")
        choose = chooser(Sampling(**sampling), seed)
        continuation = self.session.continuation(tokens, n_predict, choose, self.tokenizer.eog_ids)
        return text_of(continuation, TextStream(self.tokenizer, stop))

    def chat(self, messages: Sequence[Mapping[str, Any]], *, chat_template: str = "", **options: Any) -> Iterator[str]:
        """Pieces of the answer to a conversation, `[{"role": "user", "content": "..."}, ...]`.

        chat_template  file of a Jinja template; by default the model's own
        options        as of `generate`

        Raises LoraFastError where there is no template, or none that can express these messages; UsageError when there
        is no room for an answer.
        """
        from .data.chat_template import load_chat_template

        template = load_chat_template(self.gguf.metadata, self.tokenizer, chat_template)
        text = template.render(messages, add_generation_prompt=True)
        return self.generate(chat_tokens(text, self.tokenizer), **options)

    def prompt_tokens(self, text: str) -> np.ndarray:
        """The ids of a prompt, int32 (n,), with BOS as the model wants it; at least one."""
        tokens = self.tokenizer.encode(text, add_special=True, parse_special=True)
        return tokens if len(tokens) else np.array([self.tokenizer.bos_id or 0], np.int32)

    @cached_property
    def session(self) -> Session:
        """What `generate` and `chat` have read; .speed is that of the last call."""
        return Session(Decoder(self.network, self.adapter, self.n_ctx, self.n_threads))
