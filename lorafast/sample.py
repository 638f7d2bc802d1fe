"""Generating text: prompt in, one token after the other out."""
from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator

import numpy as np

from .adapters import BaseModel, read_adapter
from .config import GenerateConfig
from .errors import LoraFastError, UsageError
from .gguf import open_model
from .hparams import read_hparams
from .lora import Adapter
from .model import Model, Sequence
from .tokenizer import load_tokenizer


def generate(config: GenerateConfig, write: Callable[[str], None]) -> None:
    """Runs `lorafast generate`: passes the prompt and its continuation to `write`, piece by piece, and a newline at the end."""
    gguf = open_model(config.model_base)
    hparams = read_hparams(gguf)
    tokenizer = load_tokenizer(gguf)
    if len(config.lora) > 1:
        raise UsageError("--lora may be given once; several adapters at a time are not supported yet")
    base = BaseModel.from_gguf(gguf)
    adapter = Adapter((), 1, 1)
    for path in config.lora:
        file = read_adapter(path, base)
        for warning in file.warnings:
            write(f"[{warning}]\n")
        adapter = file.to_adapter(hparams.tensor_shapes())

    prompt = tokenizer.encode(config.prompt, add_special=True, parse_special=True)
    if len(prompt) == 0:
        prompt = np.array([tokenizer.bos_id], np.int32)
    n_ctx = config.ctx or len(prompt) + config.n_predict
    if len(prompt) + config.n_predict > n_ctx:
        raise UsageError(f"the prompt's {len(prompt)} tokens and --n-predict {config.n_predict} do not fit --ctx {n_ctx}")

    model = Model(gguf, hparams, n_ctx)
    model.merge(adapter)
    sequence = Sequence(model, adapter, n_ctx, config.n_threads)
    rng = np.random.default_rng(config.resolve_seed())
    decoder = codecs.getincrementaldecoder("utf-8")("replace")            # a character may be split over tokens
    write(config.prompt)
    for token in continuation(sequence, prompt, config.n_predict, config.temperature, rng):
        if token in tokenizer.eog_ids:
            break
        write(decoder.decode(tokenizer.token_bytes(token)))
    write(decoder.decode(b"", final=True) + "\n")


def continuation(sequence: Sequence, prompt: np.ndarray, n_predict: int, temperature: float,
                 rng: np.random.Generator) -> Iterator[int]:
    """Up to `n_predict` tokens after `prompt`, each chosen with the ones before it in the cache."""
    if n_predict == 0:
        return
    logits = sequence.append(prompt)
    for i in range(n_predict):
        if not np.isfinite(logits).all():
            raise LoraFastError("the model's logits are not finite; is the adapter broken?")
        token = choose(logits, temperature, rng)
        yield token
        if i + 1 < n_predict:
            logits = sequence.append(np.array([token], np.int32))


def choose(logits: np.ndarray, temperature: float, rng: np.random.Generator) -> int:
    """A token drawn from softmax(logits / temperature); the likeliest one at temperature 0."""
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    p = np.exp(scaled - scaled.max())
    cumulative = np.cumsum(p)
    return int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
