"""The methods of training: what each makes of the losses of a step's tokens.

    sft                          the mean loss of the tokens that count
    dpo, ipo, orpo, simpo, cpo   a loss of each pair of answers, and --sft-weight times the mean loss of the better one
    kto                          a loss of each answer that is judged good or bad
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ..data.batches import Batch
from ..network.objective import Objective, TokenSum
from ..network.preference_losses import Answers, Hyper, Judged, kto_losses, pair_losses
from ..network.trainer import Trainer
from ..options.finetune import FinetuneConfig
from ..options.methods import METHODS
from ..reporting.events import Rewards


class StepObjective(Objective, Protocol):
    """The objective of a step: its loss is the sum of the parts' values, divided by `n`.

    n     tokens, or samples
    seen  rewards and labels of the answers whose values were taken, (n,) each; empty where answers are not compared
    """

    n: int
    seen: list[tuple[np.ndarray, np.ndarray]]


def rewards_of(objectives: Sequence[StepObjective]) -> Rewards | None:
    """What all answers together were worth; None where they are not compared."""
    seen = [values for objective in objectives for values in objective.seen]
    if not seen:
        return None
    worth, label = (np.concatenate(values) for values in zip(*seen, strict=True))
    return Rewards.of(worth, label, in_pairs=objectives[0].together == 2)


class Method(Protocol):
    """How to train."""

    def begin(self, batches: Sequence[Batch], trainer: Trainer) -> tuple[StepObjective, Sequence[Batch]]:
        """The objective of a step over these batches together, and what of them has gradients."""


def method_of(config: FinetuneConfig) -> Method:
    """What --method and its options ask for."""
    if config.method == "sft":
        return MeanLoss()
    values = config.method_values()
    hyper = Hyper(values["beta"], values.get("label_smoothing", 0.0), values.get("gamma", 0.0))
    if METHODS[config.method].takes == "judged":
        return JudgedMethod(hyper)
    return PairMethod(config.method, hyper, values["sft_weight"])


class MeanLoss:
    """Supervised: the mean loss of the tokens that count, each times its weight."""

    def begin(self, batches: Sequence[Batch], trainer: Trainer) -> tuple[StepObjective, Sequence[Batch]]:
        return MeanOfTokens(sum(batch.n_counted for batch in batches)), batches


class MeanOfTokens(TokenSum):
    """The objective of a step of n tokens."""

    def __init__(self, n: int) -> None:
        super().__init__(1 / max(1, n))
        self.n = n
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []


class PairMethod:
    """A method for pairs of a better and a worse answer."""

    def __init__(self, method: str, hyper: Hyper, sft_weight: float) -> None:
        self.method, self.hyper, self.sft_weight = method, hyper, sft_weight

    def begin(self, batches: Sequence[Batch], trainer: Trainer) -> tuple[StepObjective, Sequence[Batch]]:
        return PairObjective(self, batches), batches


class OfAnswers:
    """What the objectives of preferences share: from the losses of tokens to the log-probabilities of answers, and with
    derivatives the other way. Rows of a batch are answers.
    """

    together, needs_losses = 1, True

    def __init__(self) -> None:
        self.seen: list[tuple[np.ndarray, np.ndarray]] = []

    def answers(self, batch: Batch, losses: np.ndarray) -> Answers:
        """The answers in the rows of a batch, (n,)."""
        counted = batch.targets >= 0
        of_answer = counted if batch.answers is None else batch.answers
        by_token = np.zeros(len(counted))
        by_token[counted] = losses
        n_rows = len(batch.begin) - 1
        row = np.repeat(np.arange(n_rows), np.diff(batch.begin))[of_answer]
        log_p = -np.bincount(row, by_token[of_answer], n_rows)
        return Answers(log_p, np.asarray(batch.reference), np.maximum(np.bincount(row, minlength=n_rows), 1))

    def spread(self, batch: Batch, slopes: np.ndarray) -> np.ndarray:
        """Derivatives by the loss of each token, (T,), from those (n,) by the log-probability of each answer."""
        of_answer = batch.targets >= 0 if batch.answers is None else batch.answers
        return -np.repeat(slopes, np.diff(batch.begin)) * of_answer


def row_weights(batch: Batch) -> np.ndarray:
    """The factor of each row's loss, float64 (n,): that of its last target, which is its answer's."""
    if batch.weights is None:
        return np.ones(len(batch.begin) - 1)
    return batch.weights[batch.begin[1:] - 1].astype(np.float64)


class PairObjective(OfAnswers):
    """Σ over n pairs, which are rows 2k and 2k + 1, of their losses, and n · sft_weight times the mean loss of the
    better answers' tokens."""

    together = 2

    def __init__(self, method: PairMethod, batches: Sequence[Batch]) -> None:
        super().__init__()
        self.method = method
        self.n = sum(len(batch.begin) // 2 for batch in batches)
        n_tokens = sum(int(np.count_nonzero(self._learnt(batch))) for batch in batches)
        self.per_token = self.n * method.sft_weight / max(1, n_tokens)

    @staticmethod
    def _learnt(batch: Batch) -> np.ndarray:
        """The factors of the targets in the better rows' mean loss, float64 (T,): 0 of the others."""
        by_row = row_weights(batch) * (np.asarray(batch.label) > 0)
        return np.repeat(by_row, np.diff(batch.begin)) * (batch.targets >= 0)

    def _judge(self, batch: Batch, losses: np.ndarray) -> Judged:
        rows = self.answers(batch, losses)
        pairs = Answers(*(part.reshape(-1, 2) for part in (rows.log_p, rows.reference, rows.tokens)))
        return pair_losses(self.method.method, pairs, self.method.hyper)

    def weights(self, batch: Batch, losses: np.ndarray | None) -> np.ndarray:
        assert losses is not None
        slopes = self._judge(batch, losses).slopes * row_weights(batch)[::2, None]
        by_token = self.spread(batch, slopes.ravel()) + self.per_token * self._learnt(batch)
        return (by_token / self.n).astype(np.float32)

    def value(self, batch: Batch, losses: np.ndarray, at_a_time: int) -> float:
        judged = self._judge(batch, losses)
        self.seen.append((judged.rewards.ravel(), np.asarray(batch.label)))
        learnt = self._learnt(batch)[batch.targets >= 0]
        return float(row_weights(batch)[::2] @ judged.losses) + self.per_token * float(learnt @ losses)


class JudgedMethod:
    """KTO: how far the model has gone from its reference is estimated from the second rows, which set each prompt
    beside another's answer."""

    def __init__(self, hyper: Hyper) -> None:
        self.hyper = hyper

    def begin(self, batches: Sequence[Batch], trainer: Trainer) -> tuple[StepObjective, Sequence[Batch]]:
        objective = JudgedObjective(self.hyper, sum(len(batch.begin) // 2 for batch in batches))
        others = [batch.every_other(1) for batch in batches]
        gone = np.concatenate([objective.answers(other, trainer.losses(other)).ratio for other in others])
        objective.distance = max(0.0, float(gone.mean()))
        return objective, [batch.every_other(0) for batch in batches]


class JudgedObjective(OfAnswers):
    """Σ over n answers, which are rows, of their losses."""

    together = 1

    def __init__(self, hyper: Hyper, n: int) -> None:
        super().__init__()
        self.hyper, self.n, self.distance = hyper, n, 0.0

    def _judge(self, batch: Batch, losses: np.ndarray) -> Judged:
        return kto_losses(self.answers(batch, losses), np.asarray(batch.label) > 0, self.distance, self.hyper)

    def weights(self, batch: Batch, losses: np.ndarray | None) -> np.ndarray:
        assert losses is not None
        slopes = self._judge(batch, losses).slopes * row_weights(batch)
        return (self.spread(batch, slopes) / self.n).astype(np.float32)

    def value(self, batch: Batch, losses: np.ndarray, at_a_time: int) -> float:
        judged = self._judge(batch, losses)
        self.seen.append((judged.rewards, np.asarray(batch.label)))
        return float(row_weights(batch) @ judged.losses)
