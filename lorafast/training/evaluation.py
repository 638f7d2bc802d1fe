"""How good the model is on data that it is not trained on, when that was best, and when to give up."""
from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.batches import Batch
from ..data.chat_template import ChatTemplate
from ..data.encode import chat_tokens
from ..distributed.world import World, alone
from ..errors import LoraFastError
from ..network.decoder import Decoder
from ..network.generation import Session, chooser
from ..network.lora import Adapter
from ..network.network import Network
from ..network.next_token import Sampling
from ..network.trainer import Trainer
from ..reporting.events import Rewards
from ..tokenizer import Tokenizer
from .methods import Method, StepObjective, rewards_of

SAMPLING = Sampling(temperature=0.7, top_k=0, top_p=1.0, min_p=0.0)


@dataclass(frozen=True)
class Evaluated:
    """Data under a model: the loss, in the mean over tokens or samples, of how many tokens, and the rewards of
    preferences."""

    loss: float
    n_tokens: int
    rewards: Rewards | None = None


def evaluated(method: Method, trainer: Trainer, batches: Iterable[Batch], n_batches: int = 0,
              world: World | None = None) -> Evaluated:
    """The evaluation of the first `n_batches`; 0: of all. What a method takes a mean of over a step (the better
    answers' tokens, KTO's distance) it takes batch by batch. LoraFastError where no token counts.

    world  the ranks that take the batches in turn; None: this one alone
    """
    world = world or alone()
    total, n, n_tokens = 0.0, 0, 0
    objectives = []

    def value(batch: Batch) -> tuple[float, int, StepObjective]:
        objective, passes = method.begin([batch], trainer)
        total = sum(trainer.value(part, objective) for part in passes)
        return total, sum(part.n_counted for part in passes), objective

    for of_batch, counted, objective in world.in_turn(itertools.islice(batches, n_batches or None), value):
        total += of_batch
        n += objective.n
        n_tokens += counted
        objectives.append(objective)
    if not n_tokens:
        raise LoraFastError("the data to evaluate on has no token that counts in the loss; give other --valid-data, or "
                            "more --eval-batches")
    return Evaluated(total / n, n_tokens, rewards_of(objectives))


@dataclass
class Best:
    """The lowest loss so far, and how many evaluations ago it was. A checkpoint keeps it.

    patience   evaluations without improvement after which a run is to stop; 0: never
    evaluated  iteration of the newest evaluation; -1 before the first
    """

    patience: int = 0
    loss: float = math.inf
    iteration: int = -1
    evaluations_since: int = 0
    evaluated: int = -1

    def take(self, loss: float, iteration: int) -> bool:
        """Whether this evaluation is the best."""
        self.evaluated = iteration
        if loss < self.loss:
            self.loss, self.iteration, self.evaluations_since = loss, iteration, 0
            return True
        self.evaluations_since += 1
        return False

    def stop_reason(self) -> str | None:
        """Why the run is to stop, or None."""
        if not 0 < self.patience <= self.evaluations_since:
            return None
        n = self.evaluations_since
        return (f"{'the last evaluation was' if n == 1 else f'{n} evaluations in a row were'} not better than that of "
                f"iteration {self.iteration}, {self.loss:.6f} (--patience)")

    def extras(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"best.loss": self.loss, "best.iteration": self.iteration,
                "best.evaluations_since": self.evaluations_since, "best.evaluated": self.evaluated}

    @classmethod
    def from_extras(cls, patience: int, extras: Mapping[str, Any]) -> Best:
        """The counterpart of `extras`; a new one where the checkpoint has none."""
        new = cls(patience)
        return cls(patience, *(type(default)(extras.get(key, default)) for key, default in new.extras().items()))


def continued(network: Network, adapter: Adapter, tokenizer: Tokenizer, tokens: np.ndarray, n_tokens: int,
              n_threads: int) -> str:
    """`n_tokens` tokens that follow a prompt's, as text. The choice among tokens is the same random one every time."""
    decoder = Decoder(network, adapter, len(tokens) + n_tokens, n_threads)
    chosen = Session(decoder).continuation(tokens, n_tokens, chooser(SAMPLING, seed=0), tokenizer.eog_ids)
    return tokenizer.decode(chosen, continuation=True)


def prompt_tokens(tokenizer: Tokenizer, prompt: str, template: ChatTemplate | None = None) -> np.ndarray:
    """int32 (n,), with BOS as the vocabulary asks for; at least one.

    template   makes a question to the assistant of the prompt
    """
    if template is not None:
        question = template.render([{"role": "user", "content": prompt}], add_generation_prompt=True)
        return chat_tokens(question, tokenizer)
    tokens = tokenizer.encode(prompt, add_special=True, parse_special=True)
    return tokens if len(tokens) else np.array([tokenizer.marks_of_text()[0]], np.int32)
