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
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Started:
    """Training begins. iteration: done in earlier runs; n_iter: planned for this one; options: all of them, by
    field."""

    iteration: int
    n_iter: int
    n_params: int
    options: dict[str, Any]


@dataclass(frozen=True)
class Rewards:
    """What answers were worth to a model that is trained on preferences, in the mean; nan where there were none.

    chosen    of those that are preferred, or good
    rejected  of the others
    accuracy  share of pairs whose better answer has the higher reward; of judged answers, of those whose reward is
              positive if they are good, negative if not
    """

    chosen: float
    rejected: float
    accuracy: float

    @property
    def margin(self) -> float:
        return self.chosen - self.rejected

    @classmethod
    def of(cls, rewards: np.ndarray, label: np.ndarray, *, in_pairs: bool) -> Rewards:
        """The means over single answers, both (n,); label: 1, or -1 of the worse ones.

        in_pairs  2k and 2k + 1 are the better and the worse of a pair
        """
        if in_pairs:
            is_right = rewards[::2] > rewards[1::2]
        else:
            is_right = rewards * label > 0
        sides = rewards[label > 0], rewards[label < 0]
        chosen, rejected = [float(values.mean()) if len(values) else math.nan for values in sides]
        return cls(chosen, rejected, float(is_right.mean()))

    def facts(self) -> dict[str, float]:
        """The rewards by the names that metrics have for them."""
        return {"reward_chosen": self.chosen, "reward_rejected": self.rejected, "reward_margin": self.margin,
                "reward_accuracy": self.accuracy}

    def __str__(self) -> str:
        return (f"rewards chosen={self.chosen:.4f} rejected={self.rejected:.4f} margin={self.margin:.4f} "
                f"accuracy={self.accuracy:.3f}")


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
    rewards        of training on preferences
    """

    iteration: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    epochs: int
    seconds: float
    rewards: Rewards | None = None


@dataclass(frozen=True)
class Evaluation:
    """The data to evaluate on was evaluated after so many iterations: mean loss in nats, and of how many tokens.

    score  share of questions that were answered rightly, where --eval-score asks for it
    """

    iteration: int
    loss: float
    n_tokens: int
    is_best: bool
    rewards: Rewards | None = None
    score: float | None = None

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


def numbers(event: Step | Evaluation) -> dict[str, float]:
    """What curves are drawn of, by the names that TensorBoard and trackers have for them."""
    part = "train" if isinstance(event, Step) else "evaluation"
    values = {f"{part}/loss": event.loss}
    if isinstance(event, Step):
        values |= {"train/learning_rate": event.learning_rate, "train/gradient_norm": event.gradient_norm,
                   "speed/tokens_per_second": event.tokens / event.seconds}
    else:
        values["evaluation/perplexity"] = event.perplexity
        if event.score is not None:
            values["evaluation/score"] = event.score
    if event.rewards:
        values |= {f"{part}/{name}": value for name, value in event.rewards.facts().items()}
    return values


Event = Started | Step | Evaluation | Continuation | Ended
Observer = Callable[[Event], object]
