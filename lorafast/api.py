"""lorafast from Python: what `import lorafast` offers, and what the commands are built on.

    import lorafast

    result = lorafast.finetune(model_base="model.gguf", train_data="chats.jsonl", run="first", callback=print)

    model = lorafast.Model.open("model.gguf", lora="first/adapter.gguf")
    for piece in model.generate("Once upon a time", temperature=0):
        print(piece, end="")
    logits = model.forward(model.tokenizer.encode("Once upon a time"))
"""
from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from .adapters import BaseModel, read_adapter
from .adapters.stack import stack
from .data.batches import Batch
from .data.encode import chat_tokens
from .errors import LoraFastError, UsageError
from .gguf.reader import GGUFFile, open_model
from .network.decoder import Decoder
from .network.generation import Session, chooser
from .network.hparams import read_hparams
from .network.lora import Adapter, Gradients, Pair
from .network.network import Network
from .network.next_token import Sampling
from .network.precision import resolve
from .network.trainer import Strategy, Trainer
from .options.declare import unknown
from .options.finetune import FinetuneConfig
from .options.tools import path_and_scale
from .options.use import GenerateConfig
from .options.values import options_of, value_of
from .reporting.events import Evaluation, Event, Observer, Step
from .system.threads import physical_cores
from .tokenizer import Tokenizer, load_tokenizer
from .tokenizer.text_stream import TextStream, text_of
from .words import count

if TYPE_CHECKING:
    from .training.run import Result

MOST_POSITIONS = 8192
"""Tokens of a context whose length was not given: a longer one takes memory that few need."""

Lora = str | os.PathLike | tuple[str | os.PathLike, float]
"""An adapter or checkpoint of any form; text may end in `:SCALE`."""


def finetune(config: FinetuneConfig | Mapping[str, Any] | None = None, *,
             data: Iterable[Mapping[str, Any] | Sequence[int]] | None = None,
             callback: Observer | None = None, **options: Any) -> Result:
    """Trains an adapter, as `lorafast finetune` does, and returns how it ended, with the history of losses.

    config    all options at once, or a mapping of them by name, instead of `options`
    data      records to train on, in place of the option train_data: what would be the lines of a JSONL file, or lists
              of token ids
    callback  is called with each event: Started, Step after every iteration, Evaluation, Continuation, Ended
    (lorafast.reporting.events). If it returns True the run ends, with everything saved
    options   those of the command, by name, with `_` for `-`: run="first", model_base=..., train_data=..., epochs=3

    Raises LoraFastError, in one line, for whatever stands in the way; what was saved stays. An exception from the
    callback ends the run. In the main thread SIGINT ends it after the step under way, with everything saved.
    """
    from .training.run import finetune as train

    history: list[Event] = []

    def remember(event: Event) -> None:
        if isinstance(event, (Step, Evaluation)):
            history.append(event)

    if callback is not None and not callable(callback):
        raise UsageError(f"callback {callback!r}: must be a function of one event")
    observers = [remember, *([callback] if callback else [])]
    if isinstance(config, FinetuneConfig):
        if options or data is not None:
            raise UsageError("either a FinetuneConfig, or options by name: not both")
        result = train(config, observers=observers)
    elif config is not None and not isinstance(config, Mapping):
        raise UsageError(f"config {config!r}: must be a FinetuneConfig or a mapping of options by name")
    else:
        given = {**(config or {}), **options}
        if data is None:
            result = train(options_of(FinetuneConfig, given), observers=observers)
        elif "train_data" in given:
            raise UsageError("either data, or train_data: not both")
        else:
            with _as_file(data) as path:
                result = train(options_of(FinetuneConfig, {**given, "train_data": path}), observers=observers)
    return dataclasses.replace(result, history=tuple(history))


@contextmanager
def _as_file(records: Iterable[Mapping[str, Any] | Sequence[int]]) -> Iterator[str]:
    """A JSONL file of the records, for as long as the context lasts. Errors call it `data`."""
    if isinstance(records, (str, os.PathLike)):
        raise UsageError(f"data {records!r}: must be records; a file's name goes to train_data")
    if isinstance(records, Mapping) or not isinstance(records, Iterable):
        raise UsageError(f"data: must be an iterable of records, and not of type {type(records).__name__}")
    with tempfile.TemporaryDirectory(prefix="lorafast-") as folder:
        path = os.path.join(folder, "records.jsonl")
        with open(path, "w", encoding="utf-8") as file:
            for number, record in enumerate(records, 1):
                file.write(_as_line(record, number) + "\n")
        try:
            yield path
        except LoraFastError as error:
            raise type(error)(str(error).replace(path, "data")) from None


def _as_line(record: Mapping[str, Any] | Sequence[int], number: int) -> str:
    """A line of JSONL, of a record or of token ids."""
    if not isinstance(record, Mapping):
        if isinstance(record, (str, bytes)) or not isinstance(record, (Sequence, np.ndarray)):
            raise UsageError(f"data: record {number} is of type {type(record).__name__}: must be a mapping or a list "
                             'of token ids; a text is {"text": ...}')
        record = {"token_ids": _whole_numbers(record, f"data: record {number}").tolist()}
    try:
        return json.dumps(record, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise UsageError(f"data: record {number} cannot be written as JSON: {error}") from None


def _whole_numbers(values: Any, name: str) -> np.ndarray:
    """Token ids as an array (n,) of some integer type; UsageError, which calls them `name`, for anything else."""
    try:
        array = np.asarray(values)
    except (TypeError, ValueError):         # lists of different lengths in a list
        array = np.asarray(None)
    if array.ndim != 1 or (array.size and not np.issubdtype(array.dtype, np.integer)):
        raise UsageError(f"{name}: must be a list of token ids, which are whole numbers")
    return array


class Model:
    """A model with adapters, ready to compute.

    tokenizer  Tokenizer: .encode(text) -> int32 ids, .decode(ids) -> text
    n_vocab    size of the vocabulary
    n_ctx      most tokens of a sequence
    warnings   lines for the user: what was left out of an adapter, what is odd in the model's file

    Sequences of calls keep what they have read: a prompt that begins like the last one continues from there.
    """

    def __init__(self, gguf: GGUFFile, tokenizer: Tokenizer, adapter: Adapter, n_ctx: int, n_threads: int,
                 warnings: Sequence[str] = (), precision: str = "auto") -> None:
        hparams = read_hparams(gguf)
        self.gguf, self.tokenizer, self.adapter, self.n_ctx, self.n_threads = gguf, tokenizer, adapter, n_ctx, n_threads
        self.warnings = [*tokenizer.warnings, *warnings]
        self.n_vocab = hparams.n_vocab
        self.network = Network(gguf, hparams, n_ctx, resolve(precision))
        self.network.refresh(adapter)

    @classmethod
    def open(cls, path: str | os.PathLike, lora: Lora | Sequence[Lora] = (), *, n_ctx: int | None = None,
             n_threads: int | None = None, precision: str = "auto") -> Model:
        """The model at `path` (GGUF) with adapters.

        lora       a path, "PATH:SCALE" or (path, scale), or several of them; their effects add up
        n_ctx      most tokens of a sequence; None: as many as the model was trained on, at most 8192
        n_threads  None: the physical cores that this process may use
        precision  of products with quantised weights: float32, int16, int8, or auto, which is int16

        Raises LoraFastError for files that cannot be read or do not fit each other.
        """
        path = value_of(GenerateConfig, "model_base", path, "path")
        n_ctx = value_of(GenerateConfig, "ctx", n_ctx, "n_ctx")
        n_threads = value_of(GenerateConfig, "threads", n_threads, "n_threads")
        precision = value_of(GenerateConfig, "precision", precision)
        gguf = open_model(path)
        hparams = read_hparams(gguf)
        base = BaseModel.from_gguf(gguf)
        adapters = []
        for name, scale in _paths_and_scales(lora):
            adapters.append((read_adapter(name, base), scale))
        file = stack(adapters)
        return cls(gguf, load_tokenizer(gguf), file.to_adapter(hparams.tensor_shapes()),
                   n_ctx or min(hparams.n_ctx_train or MOST_POSITIONS, MOST_POSITIONS), n_threads or physical_cores(),
                   file.warnings, precision)

    def forward(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """Logits of what follows each token, float32 (T, n_vocab), of a sequence of 1 <= T <= n_ctx ids.

        softmax(result[t]) are the probabilities of token t + 1. Raises UsageError for ids out of range, none, or too
        many.
        """
        tokens = self._checked(token_ids)
        decoder = Decoder(self.network, self.adapter, len(tokens), self.n_threads)
        return np.concatenate([decoder.logits(x) for x in decoder.outputs(tokens)])

    def log_probabilities(self, text: str | Sequence[int] | np.ndarray) -> np.ndarray:
        """ln of the probability of each token of a text (or of token ids) after the first, given all before it,
        float64.

        Their sum is the text's log-probability; exp of minus their mean its perplexity.
        """
        tokens = self.prompt_tokens(text) if isinstance(text, str) else self._checked(text)
        logits = self.forward(tokens)[:-1].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True, initial=-np.inf)
        return logits[np.arange(len(logits)), tokens[1:]] - np.log(np.exp(logits).sum(axis=1))

    def hidden_states(self, token_ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The last block's output at each token, float32 (T, n_embd), before the norm of the output."""
        tokens = self._checked(token_ids)
        decoder = Decoder(self.network, self.adapter, len(tokens), self.n_threads)
        return np.concatenate([x.copy() for x in decoder.outputs(tokens)])

    def gradients(self, token_ids: Sequence[int] | np.ndarray) -> tuple[float, dict[str, Pair]]:
        """Mean loss in nats of each token after the first, and its gradients: for tests, ports and research.

        token_ids  2 to n_ctx + 1 ids
        Returns the loss and, by name of the base tensor, dA (r, K) and dB (r, N), float32, of the adapter's pairs: A
        and B are those of `adapter`, and the scale is alpha / r. Raises UsageError for ids out of range, too few, or
        too many.
        """
        tokens = self._checked(token_ids, least=2, most=self.n_ctx + 1)
        T = len(tokens) - 1
        batch = Batch(tokens[:-1], tokens[1:], np.array([0, T], np.int32), 1, False)
        trainer = Trainer(self.network, self.adapter, T, Strategy(len(self.network.blocks)), self.n_threads)
        gradients = Gradients(self.adapter)
        return trainer.loss_and_gradients(batch, 1 / T, gradients) / T, gradients.pairs

    def generate(self, prompt: str | Sequence[int] | np.ndarray, *, n_predict: int = 128,
                 stop: str | Sequence[str] = (), seed: int = 0, **sampling: Any) -> Iterator[str]:
        """Pieces of the text that follows `prompt`, as they come.

        prompt     text, in which control tokens may be spelled out (`<|im_end|>`), or token ids
        n_predict  most tokens
        stop       text or texts before which to end, beside the model's own end of text
        seed       of the choice among tokens
        sampling   temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n: see sampling.Sampling

        Raises UsageError when the prompt leaves no room in n_ctx, and for values that `lorafast generate` refuses.
        """
        tokens = self.prompt_tokens(prompt) if isinstance(prompt, str) else self._checked(prompt, most=None)
        if len(tokens) >= self.n_ctx:
            raise UsageError(f"the prompt's {len(tokens)} tokens leave no room in a context of {self.n_ctx} (--ctx)")
        known = [field.name for field in dataclasses.fields(Sampling)]
        for name in sampling:
            if name not in known:
                raise UsageError(unknown(name, known, "argument"))
        values = {name: value_of(GenerateConfig, name, value) for name, value in
                  {"n_predict": n_predict, "stop": stop, "seed": seed, **sampling}.items()}
        n_predict, stop, seed = (values.pop(name) for name in ("n_predict", "stop", "seed"))
        choose = chooser(Sampling(**values), seed)
        continuation = self.session.continuation(tokens, n_predict, choose, self.tokenizer.eog_ids)
        return text_of(continuation, TextStream(self.tokenizer, stop))

    def chat(self, messages: Sequence[Mapping[str, Any]], *, chat_template: str | os.PathLike = "",
             template_args: Mapping[str, Any] | None = None, **options: Any) -> Iterator[str]:
        """Pieces of the answer to a conversation, `[{"role": "user", "content": "..."}, ...]`.

        chat_template  file of a Jinja template; by default the model's own
        template_args  variables for the template, such as {"enable_thinking": False}
        options        as of `generate`

        Raises LoraFastError where there is no template, or none that can express these messages; UsageError when there
        is no room for an answer.
        """
        from .data.chat_template import load_chat_template

        if isinstance(messages, str) or not (isinstance(messages, Sequence)
                                             and all(isinstance(message, Mapping) for message in messages)):
            raise UsageError("messages: must be a sequence of mappings with the keys role and content")
        if not isinstance(template_args, (Mapping, type(None))):
            raise UsageError(f"template_args {template_args!r}: must be a mapping of variables by name")
        template = load_chat_template(self.gguf.metadata, self.tokenizer,
                                      value_of(GenerateConfig, "chat_template", chat_template), template_args)
        text = template.render(messages, add_generation_prompt=True)
        return self.generate(chat_tokens(text, self.tokenizer), **options)

    def prompt_tokens(self, text: str) -> np.ndarray:
        """The ids of a prompt, int32 (n,), with BOS as the model wants it; at least one."""
        tokens = self.tokenizer.encode(text, add_special=True, parse_special=True)
        return tokens if len(tokens) else np.array([self.tokenizer.bos_id or 0], np.int32)

    def _checked(self, token_ids: Sequence[int] | np.ndarray, least: int = 1, most: int | None = 0) -> np.ndarray:
        """These ids, int32 (n,). UsageError where they are fewer than `least`, more than `most` (0: n_ctx; None: no
        limit), or not of the vocabulary.
        """
        tokens = _whole_numbers(token_ids, "token_ids")
        most = self.n_ctx if most == 0 else most
        if len(tokens) < least or (most is not None and len(tokens) > most):
            raise UsageError(f"token_ids has {count(len(tokens), 'id')}, wanted {least} to {most}"
                             if most is not None else "token_ids is empty")
        if not 0 <= tokens.min() <= tokens.max() < self.n_vocab:
            raise UsageError(f"token_ids: must be whole numbers from 0 to {self.n_vocab - 1}")
        return np.ascontiguousarray(tokens, np.int32)

    def __repr__(self) -> str:
        pairs = count(len(self.adapter.specs), "adapted tensor")
        return f"<lorafast.Model {self.gguf.path}, {self.network.hparams.arch}, {pairs}, n_ctx {self.n_ctx}>"

    @cached_property
    def session(self) -> Session:
        """What `generate` and `chat` have read; .speed is that of the last call."""
        return Session(Decoder(self.network, self.adapter, self.n_ctx, self.n_threads))


def _paths_and_scales(lora: Lora | Sequence[Lora]) -> Iterator[tuple[str, float]]:
    """Each adapter with its factor."""
    items: Any = [lora] if isinstance(lora, (str, os.PathLike)) or _is_scaled(lora) else lora
    for item in items if isinstance(items, Sequence) else [items]:
        if _is_scaled(item):
            yield os.fspath(item[0]), float(item[1])
        elif isinstance(item, (str, os.PathLike)):
            yield path_and_scale(os.fspath(item))
        else:
            raise UsageError(f"lora {item!r}: must be a path, a pair of a path and a number, or a sequence of these")


def _is_scaled(lora: Any) -> bool:
    """Whether this is one adapter with its factor rather than several adapters."""
    return (isinstance(lora, tuple) and len(lora) == 2 and isinstance(lora[0], (str, os.PathLike))
            and isinstance(lora[1], Real) and not isinstance(lora[1], bool))
