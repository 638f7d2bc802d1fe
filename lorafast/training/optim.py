"""The optimiser: schedule of the learning rate, Adam with weight decay and a clipped gradient, tests that end a run.

All of it computes in float32, as llama-finetune does, so that the printed schedule is equal to the last digit.

Sources: Kingma and Ba, "Adam" (2015); Loshchilov and Hutter, "SGDR" (2017, cosine with restarts) and "Decoupled weight
decay regularization" (2019); Hayou et al., "LoRA+" (2024, a learning rate of its own for B).
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..kernels.adam import adam_step, sum_of_squares
from ..network.lora import Adapter
from ..words import count

EPS = 1e-8   # keeps Adam's division finite; llama-finetune has no option for it
f32 = np.float32


@dataclass(frozen=True)
class OriginalSchedule:
    """The factor of the learning rate as llama-finetune had it: a linear rise over `warmup` steps, then a cosine down
    to `cos_decay_min`.

    The cosine counts from step 0, not from the end of the rise, unless it restarts. Where it restarts each period is
    `cos_decay_restart` (>= 1) times as long as the one before. `floor` is the least factor, also while rising.
    """

    warmup: int = 100
    cos_decay_steps: int = 1000
    cos_decay_restart: float = 1.1
    cos_decay_min: float = 0.1
    enable_restart: bool = False
    floor: float = 0.0

    def __call__(self, step: int) -> float:
        """The factor, 0 to 1, that iteration `step` prints.

        The update after that iteration's evaluation uses it: update k uses the factor of step k - 1, and with a warm-up
        the very first update has a learning rate of 0.
        """
        if step < self.warmup:
            factor = f32(step) / f32(self.warmup)
        elif self.enable_restart:
            factor = self._cosine(*self._within_period(step - self.warmup))
        else:
            factor = self._cosine(step, self.cos_decay_steps)
        floor = f32(self.floor)
        return float(floor + factor * (f32(1) - floor))

    def _cosine(self, step: int, period: int) -> np.float32:
        least = f32(self.cos_decay_min)
        angle = f32(math.pi) * f32(min(step, period)) / f32(period)
        return (f32(1) - least) * (f32(0.5) * (f32(1) + f32(math.cos(angle)))) + least

    def _within_period(self, step: int) -> tuple[int, int]:
        """The step counted from the last restart, and the length of the period it lies in."""
        period = self.cos_decay_steps
        while step > period:
            step -= period
            period = int(f32(self.cos_decay_restart) * f32(period))
        return step, period


@dataclass(frozen=True)
class PlainSchedule:
    """The factor of the learning rate as today's trainers have it: up to 1 in `warmup` steps, then on as `shape` says.

    shape   "constant", "linear" or "cosine"; the latter two fall to `floor` at step `end`
    """

    shape: str
    warmup: int
    end: int
    floor: float = 0.0

    def __call__(self, step: int) -> float:
        """The factor, 0 to 1, of the update after the evaluation of iteration `step`; the first one is not wasted on
        0."""
        if step < self.warmup:
            factor = (step + 1) / self.warmup
        elif self.shape == "constant":
            return 1.0
        else:
            done = min(1.0, (step - self.warmup) / max(1, self.end - self.warmup))
            factor = 1 - done if self.shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        return float(f32(self.floor + factor * (1 - self.floor)))


def clip_scale(norm: float, limit: float) -> float:
    """Factor that brings a gradient of this L2 norm down to `limit`; 1 where it is below, or no limit (<= 0) is set."""
    return limit / norm if 0 < limit < norm else 1.0


@dataclass(frozen=True)
class Group:
    """Parameters `begin` to `end` of the flat store: do they decay, and by what is their learning rate multiplied."""

    begin: int
    end: int
    decays: bool
    rate_factor: float = 1.0


@dataclass(frozen=True)
class Adam:
    """Adam with decoupled weight decay.

        g' = g·clip_scale(|g|, gclip)
        m  = beta1·m + (1 - beta1)·g'
        v  = beta2·v + (1 - beta2)·g'²
        x  = x·(1 - decay·lr) - lr·m/(1 - beta1^t) / (sqrt(v/(1 - beta2^t)) + 1e-8)

    with lr = alpha·schedule·(the group's factor).
    """

    alpha: float = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    decay: float = 0.1
    gclip: float = 1.0

    def step(
        self,
        params: np.ndarray,
        m: np.ndarray,
        v: np.ndarray,
        grads: np.ndarray,
        *,
        groups: Sequence[Group],
        iteration: int,
        schedule: float,
        n_threads: int,
    ) -> float:
        """One update in place. Returns the gradient's L2 norm before clipping; if it is not finite nothing is changed.

        params, m, v, grads  float32 (n_params,)
        groups               cover all parameters
        iteration            t above: 1 for the first update ever, going on where a run resumes
        schedule             the Schedule's factor
        """
        norm = math.sqrt(sum_of_squares(grads, n_threads))
        if not math.isfinite(norm):
            return norm
        scale = clip_scale(norm, self.gclip)
        bias1 = f32(1) - f32(f32(self.beta1) ** iteration)
        c_t = f32(1) / (f32(1) - f32(f32(self.beta2) ** iteration))
        for group in groups:
            part = slice(group.begin, group.end)
            rate = f32(self.alpha) * f32(schedule) * f32(group.rate_factor)
            decay = f32(self.decay) * rate if group.decays else 0.0
            adam_step(params[part], m[part], v[part], grads[part], scale, self.beta1, self.beta2, rate / bias1, c_t,
                      EPS, decay, n_threads)
        return norm


@dataclass(frozen=True)
class LossHistory:
    """What the stop tests remember, and what a checkpoint keeps of them. All float32.

    past_losses is a ring (past,): slot (k - 1) mod past holds the loss evaluated in iteration k, 0 before that.
    """

    best_loss: float
    previous_loss: float
    no_improvement: int
    past_losses: np.ndarray


@dataclass
class StopTests:
    """The tests of the loss, after each evaluation, that end a run early. All are off by default.

    epsf                stop when the loss changed by less than this share of itself since the evaluation before
    past, delta         ... by less than `delta` of itself in `past` iterations
    max_no_improvement  ... when so many evaluations in a row brought no new lowest loss. Where this is off best_loss
                        stays the first loss
    history             of the run that goes on; without one the first loss is only remembered. It is replaced, never
                        changed in place: to come back to a point keep its history
    """

    epsf: float = 0.0
    past: int = 0
    delta: float = 1e-5
    max_no_improvement: int = 0
    history: LossHistory | None = None
    past_losses: np.ndarray | None = None

    def check(self, loss: float, iteration: int) -> str | None:
        """Takes the loss evaluated after `iteration` updates in all. Returns why the run is to stop, or None.

        When it is to stop the history stays as it was, so that a resumed run comes to the same end.
        """
        loss = float(f32(loss))
        if self.history is None:
            past_losses = np.zeros(self.past, f32) if self.past_losses is None else self.past_losses.copy()
            if self.past:
                past_losses[iteration % self.past] = loss
            self.history = LossHistory(loss, loss, 0, past_losses)
            return None

        last = self.history
        best_loss, no_improvement, past_losses = last.best_loss, last.no_improvement, last.past_losses
        if abs(loss - last.previous_loss) < self.epsf * abs(loss):
            return f"the loss changed by less than {self.epsf:g} of itself in one iteration (--adam-epsf)"
        if self.past > 0:
            slot = (iteration - 1) % self.past
            if iteration > self.past and abs(past_losses[slot] - loss) < self.delta * abs(loss):
                return (f"the loss changed by less than {self.delta:g} of itself in "
                        f"{count(self.past, 'iteration')} "
                        "(--opt-past, --opt-delta)")
            past_losses = past_losses.copy()
            past_losses[slot] = loss
        if self.max_no_improvement > 0:
            if loss < best_loss:
                best_loss, no_improvement = loss, 0
            else:
                no_improvement += 1
                if no_improvement >= self.max_no_improvement:
                    return (f"the loss has not fallen below {best_loss:.6f} for "
                            f"{count(no_improvement, 'iteration')} "
                            "(--opt-max-no-improvement)")
        self.history = LossHistory(best_loss, loss, no_improvement, past_losses)
        return None


@dataclass
class EpochLimit:
    """Ends a run after `epochs` completed epochs (0 or less: never), counted from `completed_before` at its start."""

    epochs: int
    completed_before: int = 0
    _reached_in: int | None = field(default=None, init=False)

    def check(self, completed: int, iteration: int) -> str | None:
        """Why the run is to end, or None. To be called after each draw of a batch, with epochs and updates of all runs.

        The batch that completes the last epoch is still trained on: the reason comes one iteration after it was drawn.
        """
        if self.epochs <= 0 or completed - self.completed_before < self.epochs:
            return None
        if self._reached_in is None:
            self._reached_in = iteration
        if iteration == self._reached_in:
            return None
        return f"{count(self.epochs, 'epoch')} completed (--epochs)"


def parameter_groups(adapter: Adapter, decay_min_ndim: int, lora_plus: float) -> list[Group]:
    """The groups of an adapter's parameters; B's learning rate is `lora_plus` times that of A and of magnitudes.

    Without LoRA+ there are at most two: the parameters that decay stand first in the store.
    """
    n_decayed = adapter.n_decayed(decay_min_ndim)
    if lora_plus == 1:
        groups = [Group(0, n_decayed, True), Group(n_decayed, adapter.n_params, False)]
    else:
        groups = [Group(part.start, part.stop, part.stop <= n_decayed, factor)
                  for _, a, b in adapter.spans() for part, factor in ((a, 1.0), (b, lora_plus))]
        groups.append(Group(adapter.n_params - adapter.n_magnitudes, adapter.n_params, False))
    return [group for group in groups if group.begin < group.end]
