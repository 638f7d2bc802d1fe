"""Perplexity of a text: how well a model predicts it, exp of the mean loss a token.

The windows are those of llama.cpp's llama-perplexity, so that the figures can be compared: the text is cut into windows
of n_ctx tokens; of each, the second half is predicted, each token from all before it in the window, of which there are
thus at least n_ctx / 2. Where the vocabulary wants BOS, it takes the place of each window's first token. A rest is left
out.
"""
from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..api import Model
from ..errors import LoraFastError, UsageError
from ..kernels.cross_entropy import cross_entropy_forward
from ..network.decoder import Decoder
from ..options.use import PerplexityConfig
from ..system.live import show_live
from ..system.output import show
from ..words import count, visible

HEAD_TOKENS = 64
"""Tokens whose logits exist at a time."""


@dataclass(frozen=True)
class Perplexity:
    """The losses in nats of the predicted tokens, float64 (n,)."""

    losses: np.ndarray

    def __repr__(self) -> str:
        return f"<Perplexity {self.value:.4f} ± {self.standard_error:.4f}, {count(len(self.losses), 'token')}>"

    @property
    def value(self) -> float:
        return math.exp(min(self.losses.mean(), 700.0))

    @property
    def standard_error(self) -> float:
        """The standard error of the value, from the spread of the losses, as if tokens were independent of each
        other."""
        return self.value * standard_error(self.losses)


def standard_error(values: np.ndarray) -> float:
    """The standard error of the mean of these values."""
    return float(values.std(ddof=1) / math.sqrt(len(values)))


def perplexity(model: Model, tokens: np.ndarray, n_ctx: int, *, stride: int | None = None, n_windows: int = 0,
               progress: Callable[[int, int, float], None] | None = None) -> Perplexity:
    """Perplexity of `tokens` (int32, with BOS at the front if the vocabulary wants one).

    n_ctx      tokens in a window
    stride     from the start of one to the next; None: n_ctx. Of the second half the last `stride` tokens are predicted
    n_windows  how many, from the first on; 0: all
    progress   is told how many windows are done, of how many, and the perplexity so far

    Raises LoraFastError when the text is shorter than two windows, UsageError when the model has room for fewer tokens
    than one.
    """
    if len(tokens) < 2 * n_ctx:
        raise LoraFastError(f"the text is too short: {count(len(tokens), 'token')}, and with --ctx {n_ctx} it takes at "
                            f"least {2 * n_ctx}; give more text or a smaller --ctx")
    if n_ctx > model.n_ctx:
        raise UsageError(f"--ctx {n_ctx}: the model was opened for {model.n_ctx} tokens")
    step = stride or n_ctx
    begins = range(0, len(tokens) - n_ctx + 1, step)
    begins = begins[:n_windows or len(begins)]
    first = max(n_ctx // 2, n_ctx - 1 - step)
    decoder = Decoder(model.network, model.adapter, n_ctx, model.n_threads, chunk=256)
    losses = np.empty((len(begins), n_ctx - 1 - first))
    for i, begin in enumerate(begins):
        window = tokens[begin:begin + n_ctx].copy()
        if model.tokenizer.add_bos:
            window[0] = model.tokenizer.bos_id
        losses[i] = np.concatenate(list(window_losses(decoder, window, first)))
        if progress:
            progress(i + 1, len(begins), Perplexity(losses[:i + 1]).value)
    return Perplexity(losses.ravel())


def window_losses(decoder: Decoder, window: np.ndarray, first: int) -> Iterator[np.ndarray]:
    """Losses of the tokens after those at `first` and later in a window, some at a time."""
    decoder.rewind(0)
    at = 0
    for x in decoder.outputs(window[:-1]):
        for begin in range(max(first - at, 0), len(x), HEAD_TOKENS):
            part = x[begin:begin + HEAD_TOKENS]
            losses = np.empty(len(part), np.float32)
            targets = window[at + begin + 1:at + begin + 1 + len(part)]
            cross_entropy_forward(losses, decoder.logits(part), targets, 0, 0, decoder.n_threads)
            yield losses
        at += len(x)


def run(config: PerplexityConfig, write: Callable[[str], None] = show) -> int:
    """The command: the base model, the adapted one, and what the adapter changes, each a line to `write`. Returns the
    exit status.
    """
    results = measured(config, write)
    if len(results) == 2:
        write(change_line(*results))
    return 0


def _show_progress(name: str, done: int, of: int, value: float) -> None:
    show_live(f"{name}: window {done} of {of}, perplexity {value:.4f}")


def measured(config: PerplexityConfig, write: Callable[[str], None] = lambda line: None) -> list[Perplexity]:
    """The perplexities of the base model and of the adapted one, as far as they are asked for; `write` gets a line
    each."""
    try:
        with open(config.file, "rb") as file:
            text = file.read()
    except OSError as error:
        raise LoraFastError(f"cannot read {config.file}: {error.strerror}") from None
    results, tokens = [], None
    for name, adapters in variants(config):
        model = Model.open(config.model_base, adapters, n_ctx=config.ctx, n_threads=config.n_threads,
                           precision=config.precision)
        for warning in model.warnings:
            print(f"lorafast: warning: {visible(warning)}", file=sys.stderr)
        if tokens is None:
            print(f"lorafast: precision {model.network.precision}: {model.network.arithmetic()}", file=sys.stderr)
            tokens = model.tokenizer.encode(text, add_special=True)
        began = time.perf_counter()
        try:
            result = perplexity(
                model, tokens, config.ctx, stride=config.stride, n_windows=config.chunks,
                progress=partial(_show_progress, name))
        finally:
            show_live("")
        speed = len(result.losses) / (time.perf_counter() - began)
        write(f"{name}: perplexity {result.value:.4f} ± {result.standard_error:.4f}, "
              f"{count(len(result.losses), 'token')} predicted, {speed:.0f} a second")
        broken = np.count_nonzero(~np.isfinite(result.losses))
        if broken:
            raise LoraFastError(f"{name}: the losses of {broken} of {count(len(result.losses), 'token')} are not "
                                "finite: the model or the adapter is damaged, or its values overflow")
        results.append(result)
    return results


def variants(config: PerplexityConfig) -> list[tuple[str, list[tuple[str, float]]]]:
    """What to measure, with the adapters of each."""
    adapted = [(" + ".join(config.lora), config.adapters())] if config.lora else []
    return [("base", []), *adapted] if config.base or not adapted else adapted


def change_line(base: Perplexity, adapted: Perplexity) -> str:
    """The change of the mean loss. Both predict the same tokens, so its error comes from the differences token by
    token."""
    differences = adapted.losses - base.losses
    change, error = float(differences.mean()), standard_error(differences)
    return (f"change: perplexity times {math.exp(change):.4f}, loss {change:+.4f} ± {error:.4f}"
            + ("" if abs(change) > 2 * error else ", which may be chance"))
