"""What a run tells those who watch it, besides its log: small values, in the order in which things happen.

    def watch(event):
        if isinstance(event, Step):
            print(event.iteration, event.loss)

    finetune(config, observers=[watch])
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Started:
    """Training begins. iteration: done in earlier runs; n_iter: planned for this one; options: all of them, by
    field."""

    iteration: int
    n_iter: int
    n_params: int
    options: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """An iteration is done.

    iteration      counted from the very first run, from 1
    loss           mean in nats of the iteration's batch, before the update
    learning_rate  of the update
    gradient_norm  L2 norm before clipping
    tokens         in the batch
    epochs         completed when the batch was drawn
    seconds        for loss, gradients and update
    """

    iteration: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    epochs: int
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """The data to evaluate on was evaluated after so many iterations: mean loss in nats, and of how many tokens."""

    iteration: int
    loss: float
    n_tokens: int
    is_best: bool

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True)
class Continuation:
    """What the model, as trained so far, makes of a prompt."""

    iteration: int
    prompt: str
    text: str


@dataclass(frozen=True)
class Ended:
    """The run is over, and why."""

    iteration: int
    reason: str
    seconds: float


Event = Started | Step | Evaluation | Continuation | Ended
Observer = Callable[[Event], object]
