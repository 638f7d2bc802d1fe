"""Tokens that follow tokens: the loop of generation, and a session that remembers what it has read."""
from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

import numpy as np

from ..words import count
from .decoder import Decoder
from .next_token import Sampling, choose

Choose = Callable[[np.ndarray, list[int]], int]
"""The next token, from the logits (n_vocab,) and all tokens so far."""


def chooser(sampling: Sampling, seed: int) -> Choose:
    """Chooses by the rules of `sampling`; the same seed gives the same choices, one below 0 others each time."""
    rng = np.random.default_rng(seed if seed >= 0 else None)
    return lambda logits, tokens: choose(logits, tokens, sampling, rng)


@dataclass
class Speed:
    """What one continuation took: tokens of the prompt that were read (others were in the cache), tokens made, and the
    seconds."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        def rate(tokens: int, seconds: float) -> str:
            rate = f" ({tokens / seconds:.1f} tokens/s)" if seconds else ""
            return f"{count(tokens, 'token')} in {seconds:.2f} s{rate}"

        return f"prompt: {rate(self.prompt_tokens, self.prompt_seconds)}; generated: {rate(self.tokens, self.seconds)}"


class Session:
    """A Decoder with the tokens in its cache: a prompt that begins as they do is read only from where the two part."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.tokens: list[int] = []
        self.speed = Speed()

    def continuation(self, prompt: np.ndarray, n_predict: int, choose: Choose,
                     ends: Collection[int] = ()) -> Iterator[int]:
        """Yields up to `n_predict` tokens after `prompt` (int32 (n,), n >= 1); fewer if one of `ends` comes or the
        context is full.

        Raises ValueError when the prompt does not fit the context. May be left at any point: the session stays usable.
        """
        decoder, speed = self.decoder, Speed()
        self.speed = speed
        n_kept = 0                                          # the last token is read in any case: its logits are needed
        for old, new in zip(self.tokens[:decoder.n_past], prompt[:-1].tolist()):
            if old != new:
                break
            n_kept += 1
        n_kept = decoder.rewind(n_kept)
        self.tokens = prompt.tolist()
        speed.prompt_tokens = len(prompt) - n_kept
        began = time.perf_counter()
        logits = decoder.append(prompt[n_kept:])
        speed.prompt_seconds = time.perf_counter() - began
        n_predict = min(n_predict, decoder.n_ctx - len(prompt))
        for i in range(n_predict):
            began = time.perf_counter()
            token = choose(logits, self.tokens)
            if token in ends:
                return
            self.tokens.append(token)
            speed.tokens += 1
            speed.seconds += time.perf_counter() - began
            yield token
            if i + 1 < n_predict:
                began = time.perf_counter()
                logits = decoder.append(np.array([token], np.int32))
                speed.seconds += time.perf_counter() - began
