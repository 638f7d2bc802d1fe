"""The loop of a training run.

The order of its parts is that of llama.cpp's llama-finetune of July 2024: callback, forward and backward, update,
tests. Iteration k evaluates if that is due, prints its line with the loss of the batch before it, draws its batch,
finds its loss and gradients, and makes update k + 1. A save holds the parameters after k updates and the position in
the data before batch k is drawn: from it a run goes on as if it had never stopped. It is written when that batch's loss
is known to be finite, and announced before the iteration's line.
"""
from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ..data.batches import Batch, evaluation_batches
from ..data.questions import questions_of_samples
from ..data.samples import Samples, Sequences
from ..errors import LoraFastError
from ..network.residency import Residency
from ..options.finetune import FinetuneConfig
from ..planning.plan import Measured, Plan
from ..reporting.events import Continuation, Ended, Evaluation, Event, Observer, Started, Step
from ..reporting.log import IterationRecord, Log
from ..system.process import peak_resident_bytes
from ..words import count
from .diagnose import first_fault
from .evaluation import Best, Evaluated, continued, evaluated, prompt_tokens
from .learner import Learner
from .opening import Opened
from .optim import EpochLimit, StopTests
from .prepare import longest_row
from .saving import Saver
from .scoring import Scorer, Scores
from .sharing import decisive_extras
from .signals import Requests, reason_of
from .starting import Source, Start


@dataclass(frozen=True)
class Result:
    """How a run ended: iterations done in all runs, the last loss (nan if none was evaluated), why, whether a signal
    cut it short, the lowest loss on the data to evaluate on (inf if there is none), and that of the best adapter, where
    it is kept, on the data to test on.
    history: every step and evaluation, where lorafast.finetune was called.
    """

    iteration: int
    loss: float
    reason: str
    interrupted: bool
    best_loss: float = math.inf
    test_loss: float = math.nan
    signal: int = 0
    """Which one cut it short; 0: none."""
    history: tuple[Event, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Asked:
    """What was asked of the run from outside, as all ranks know it.

    stop              the number of the signal that is to end it; 0: none
    save              it is to save as soon as it can
    stop_by_callback  an observer is to end it
    seconds           that it has taken so far
    """

    stop: int = 0
    save: bool = False
    stop_by_callback: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Reporting:
    """Whom the run tells what happens, and what signals ask of it."""

    log: Log
    saver: Saver
    observers: Sequence[Observer]
    requests: Requests


class Run:
    """The loop and what it changes.

    state    counters, and the position in the data before the next batch
    """

    def __init__(self, opened: Opened, learner: Learner, source: Source, start: Start, plan: Plan,
                 reporting: Reporting) -> None:
        config, state = opened.config, start.state
        self.config, self.opened, self.learner, self.plan, self.state = config, opened, learner, plan, state
        self.world = learner.world
        self.data, self.sampler, self.course = source.data, source.sampler, source.course
        self.log, self.saver, self.observers = reporting.log, reporting.saver, reporting.observers
        self.requests = reporting.requests
        self.first_iteration = self.saved_at = state.iteration
        self.stop_tests = StopTests(config.adam_epsf, config.opt_past, config.opt_delta, config.opt_max_no_improvement,
                                    start.history, state.past_losses if len(state.past_losses) else None)
        self.epoch_limit = EpochLimit(config.epochs, 0 if config.resume else self.sampler.state.epochs)
        self.best = Best.from_extras(config.patience, start.extras)
        self.evaluates = self.data.valid is not None or bool(config.sample_prompt)
        self.lowest_loss, self.best_iteration = self.best.loss, self.best.iteration
        self.keeps_best = config.keep_best and self.data.valid is not None
        self.asked_to_stop = self.is_cut_short = False
        self.asked = Asked()
        self.loss = self.gradient_norm = 0.0
        self.measured = Measured()
        self.batches: list[Batch] = []
        self.n_tokens = 0
        """Tokens of the newest batch, all passes together."""
        self.plausible_at: int | None = None
        """Iteration of the newest save whose loss was below that of guessing."""

    @property
    def done(self) -> int:
        """Iterations of this run."""
        return self.state.iteration - self.first_iteration

    @property
    def bytes_read(self) -> int:
        """Bytes of weights that were read from disk where they stream."""
        weights = self.learner.trainer.weights
        return weights.bytes_read if isinstance(weights, Residency) else 0

    @property
    def has_saved(self) -> bool:
        """Whether this run has left files that are ahead of those it began with."""
        return self.saved_at > self.first_iteration

    def loop(self) -> Result:
        config, log, state = self.config, self.log, self.state
        began = time.perf_counter()
        self.world.begin_counting()
        reason, step_seconds = None, None
        self.tell(Started(state.iteration, self.course.n_iter, self.opened.adapter.n_params, _as_dict(config)))
        while reason is None:
            state.sampler = self.sampler.state
            self.remember_history()
            if self.evaluation_is_due():
                reason = self.evaluate()
            schedule = self.course.schedule(state.iteration)
            record = IterationRecord(
                state.iteration, self.done, min(1 + state.sampler.next_sample, state.sampler.sample_count),
                state.sampler.sample_count, schedule, config.adam_alpha * schedule, self.loss,
                1000 * step_seconds if step_seconds else None, self.gradient_norm, self.n_tokens, self.learner.rewards)
            self.listen(time.perf_counter() - began)
            save_is_due = self.save_is_due()
            if not save_is_due:
                log.iteration(record)
            step_began, read_before = time.perf_counter(), self.bytes_read
            reason = reason or self.end_reason() or self.step()
            saving_began = time.perf_counter()
            if save_is_due:     # only now: parameters whose loss is not finite must not replace the last good ones
                if reason is None or not self.evaluates:    # the last save comes after the last evaluation
                    self.save()
                log.iteration(record)
            for epochs in range(state.sampler.epochs, self.sampler.state.epochs):
                log.reshuffled(epochs + 1)
            step_began += time.perf_counter() - saving_began
            if reason is None:
                self.update(schedule)
                step_seconds = time.perf_counter() - step_began
                self.measured.add(step_seconds, self.bytes_read - read_before)
                self.tell(Step(state.iteration, self.loss, config.adam_alpha * schedule, self.gradient_norm,
                               self.n_tokens, state.sampler.epochs, step_seconds, self.learner.rewards))
        seconds = time.perf_counter() - began
        log.total_time(1000 * seconds)
        self.listen(seconds)
        if self.evaluates and not self.asked.stop and self.best.evaluated != state.iteration:
            self.evaluate(is_last=True)
        if state.iteration > self.saved_at or not self.course.n_iter:
            self.save()
        if self.done:
            log.note(self.plan.comparison(peak_resident_bytes(), self.measured))
            if self.world.size > 1:
                log.note(f"{self.world.communicating / seconds:.1%} of the time was spent on exchanges between ranks, "
                         f"waiting included; {self.world.sent / self.done / 1e6:.1f} MB sent a step by each")
        test_loss = self.test_loss()
        self.tell(Ended(state.iteration, reason, seconds))
        log.finished(reason, self.resume_command())
        if self.keeps_best and self.best_iteration >= 0:
            for line in self.saver.which_is_which(self.best_iteration, state.iteration):
                log.note(line)
        return Result(state.iteration, self.loss if state.iteration else math.nan, reason, self.is_cut_short,
                      self.lowest_loss, test_loss, self.asked.stop if self.is_cut_short else 0)

    def listen(self, seconds: float) -> None:
        """Takes over what has been asked of any rank, so that all do the same; how long it has taken the first one
        says."""
        heard = self.world.gather(Asked(self.requests.stop, self.requests.save, self.asked_to_stop, seconds))
        self.asked = Asked(max(each.stop for each in heard), any(each.save for each in heard),
                           heard[0].stop_by_callback, heard[0].seconds)

    def save_is_due(self) -> bool:
        """Whether so many iterations have passed since the last save, or a signal asked for one."""
        every, ahead = self.config.save_every, self.state.iteration - self.saved_at
        return ahead > 0 and (self.asked.save or 0 < every <= ahead)

    def test_loss(self) -> float:
        """The mean loss on the data to test on, of the best adapter where it is kept; nan if there is none."""
        self.listen(self.asked.seconds)
        if self.data.test is None or self.asked.stop:
            return math.nan
        which = self.take_best()
        self.learner.show_all()
        test = self.evaluated(self.data.test)
        more = str(test.rewards) if test.rewards else f"perplexity {math.exp(min(test.loss, 700)):.4f}"
        self.log.note(f"loss on {self.data.test.name}: {test.loss:.6f}, {more} over {count(test.n_tokens, 'token')}"
                      f"{which}")
        return test.loss

    def take_best(self) -> str:
        """Puts the best adapter, where it is kept, in the place of the last one, which is saved. Returns which one is
        there then, for the log.
        """
        if not self.keeps_best or self.best_iteration < 0:
            return ""
        if self.best_iteration != self.state.iteration:
            best = self.world.from_first(self.saver.best_adapter())
            if best is None:
                return f" (the last adapter, of iteration {self.state.iteration})"
            best.fill(self.opened.adapter)
        return f" (the best adapter, of iteration {self.best_iteration})"

    def batches_of(self, samples: Samples) -> Iterator[Batch]:
        """The samples in batches for an evaluation."""
        config, opened = self.config, self.opened
        row = longest_row(config, self.data)
        return evaluation_batches(samples, config.batch * row, bos_id=opened.tokenizer.bos_id,
                                  n_vocab=opened.hparams.n_vocab)

    def end_reason(self) -> str | None:
        """Why the run is to end before the next step, or None."""
        if self.done == self.course.limit:
            which = "the one iteration is" if self.done == 1 else f"all {self.done} iterations are"
            return f"{which} done (--adam-iter)"
        if self.asked.stop_by_callback:
            return "stopped by the callback"
        if self.asked.stop:
            self.is_cut_short = True
            return reason_of(self.asked.stop)
        if 0 < self.config.max_minutes <= self.asked.seconds / 60:
            minutes = self.config.max_minutes
            return f"{minutes:g} {'minute has' if minutes == 1 else 'minutes have'} passed (--max-minutes)"
        return None

    def step(self) -> str | None:
        """Loss and gradients of the next batch. Returns why the run is to end instead of going on with an update."""
        config, state = self.config, self.state
        batches = []
        for _ in range(config.n_acc):
            batches.append(self.sampler.next_batch(config.batch))
            reason = self.epoch_limit.check(self.sampler.state.epochs, state.iteration)
            if reason:
                return reason
        self.n_tokens = sum(len(batch.tokens) for batch in batches)
        loss = self.learner.loss_and_gradients(batches, state.iteration)
        self.opened.files.check()       # before anything is made of it
        if not math.isfinite(loss):
            cause = self.cause(lambda: self.learner.loss_and_gradients(batches, state.iteration))
            raise LoraFastError(f"the loss of iteration {state.iteration} is {loss}, {cause}; {self.last_good()}")
        self.loss, self.batches = loss, batches
        return self.stop_tests.check(loss, state.iteration)

    def update(self, schedule: float) -> None:
        state = self.state
        self.gradient_norm = self.learner.update(state.iteration, schedule)
        if not math.isfinite(self.gradient_norm):
            cause = self.cause(lambda: self.learner.loss_and_gradients(self.batches, state.iteration))
            raise LoraFastError(f"the gradient of iteration {state.iteration} is not finite, {cause}; "
                                f"{self.last_good()}")
        state.iteration += 1
        state.tokens += self.n_tokens

    def cause(self, repeat: Callable[[], object]) -> str:
        """What was not finite first, found by computing the same once more."""
        opened = self.opened
        return first_fault(opened.network, opened.gguf.tensors, opened.adapter, self.learner.gradients, repeat)

    def evaluation_is_due(self) -> bool:
        """Whether this iteration is one of those at which a run evaluates, and none has done so yet."""
        every, iteration = self.config.evaluation_interval(self.course.end), self.state.iteration
        return self.evaluates and every > 0 and iteration % every == 0 and self.best.evaluated != iteration

    def evaluate(self, is_last: bool = False) -> str | None:
        """Loss on the data to evaluate on, and how the prompts go on. Returns why the run is to stop, or None.

        The last one comes where no other run would evaluate: what a checkpoint keeps does not change, so that a resumed
        run is the same as one that was never cut.
        """
        config, state, opened = self.config, self.state, self.opened
        self.learner.show_all()
        reason = None
        if self.data.valid is not None:
            valid = self.evaluated(self.data.valid, config.eval_batches)
            loss = valid.loss
            self.lowest_loss = min(loss, self.lowest_loss)
            is_best = loss < self.best.loss if is_last else self.best.take(loss, state.iteration)
            evaluation = Evaluation(state.iteration, loss, valid.n_tokens, is_best, valid.rewards,
                                    self.score(self.data.valid))
            self.log.evaluation(evaluation)
            self.tell(evaluation)
            if is_best:
                self.best_iteration = state.iteration
            if is_best and config.keep_best:
                self.saver.save_best(self.state, self.learner.moments, self.extras())
            reason = self.best.stop_reason()
        else:
            self.best.evaluated = state.iteration
        for prompt in config.sample_prompt if self.world.is_first else ():
            tokens = prompt_tokens(opened.tokenizer, prompt, self.data.template)
            text = continued(opened.network, opened.adapter, opened.tokenizer, tokens, config.sample_tokens,
                             config.n_threads)
            continuation = Continuation(state.iteration, prompt, text)
            self.log.continuation(continuation)
            self.tell(continuation)
        return reason

    def evaluated(self, samples: Samples, n_batches: int = 0) -> Evaluated:
        """The adapter as it is on data that is not trained on. LoraFastError where the loss is not finite."""
        learner = self.learner

        def once() -> Evaluated:
            return evaluated(learner.method, learner.trainer, self.batches_of(samples), n_batches, self.world)

        result = once()
        if not math.isfinite(result.loss):
            raise LoraFastError(f"the loss on {samples.name} after iteration {self.state.iteration} is {result.loss}, "
                                f"{self.cause(once)}; {self.last_good()}")
        return result

    def score(self, samples: Samples) -> float | None:
        """The share of questions to which the adapter answers as --eval-score has it; None without that. The ranks take
        them in turn."""
        config, opened = self.config, self.opened
        if not config.eval_score or not isinstance(samples, Sequences):
            return None
        n_ctx, limit = opened.network.n_positions, config.eval_batches * config.batch or None
        questions = itertools.islice(questions_of_samples(samples, opened.tokenizer, config.eval_pattern), limit)
        with Scorer(opened.network, opened.adapter, opened.tokenizer, n_ctx, config.sample_tokens, config.n_threads,
                    self.learner.trainer.weights) as scorer:
            fitting = (question for question in questions if question.n_tokens <= n_ctx)
            return Scores.sum(self.world.in_turn(
                fitting, lambda question: scorer.scores([question], [config.eval_score]))).share(config.eval_score)

    def save(self) -> None:
        best = self.best_iteration if self.keeps_best else None
        self.saver.save(self.state, self.learner.moments, self.extras(), best)
        self.saved_at = self.state.iteration
        if self.is_plausible(self.loss):
            self.plausible_at = self.saved_at
        self.requests.save = False

    def remember_history(self) -> None:
        """Enters into the state what the stop tests remember."""
        history = self.stop_tests.history
        if history is not None:
            self.state.best_loss, self.state.previous_loss = history.best_loss, history.previous_loss
            self.state.no_improvement, self.state.past_losses = history.no_improvement, history.past_losses

    def extras(self) -> dict[str, Any]:
        """What an exact resume needs of options and state that llama-finetune did not have."""
        extras: dict[str, Any] = {"precision": self.opened.network.precision, "base_model": self.opened.fingerprint,
                                  **decisive_extras(self.config, self.plan.strategy)}
        if self.config.schedule != "original" or self.config.warmup_ratio is not None:
            extras["schedule_end"] = self.course.end
        if self.learner.dropout:
            extras["dropout_seed"] = self.learner.dropout.seed
        if self.evaluates:
            extras |= self.best.extras()
        return extras

    def resume_command(self) -> str:
        """What goes on with a run that was cut short; empty if it was not, or left no checkpoint."""
        output, limit = self.config.checkpoint_output, self.course.limit
        epochs = self.config.epochs
        if epochs > 0:
            epochs -= self.state.sampler.epochs - self.epoch_limit.completed_before
        cut_short = self.asked.stop or self.config.max_minutes
        if not output or not cut_short or self.done == limit or (self.config.epochs > 0 and epochs <= 0):
            return ""
        checkpoint = output.latest_path if self.has_saved else self.config.checkpoint_in
        return self.saver.config.resume_command(checkpoint, None if limit is None else limit - self.done, epochs)

    def is_plausible(self, loss: float) -> bool:
        """Whether a loss is below that of a model that takes all tokens for equally likely."""
        return loss < math.log(self.opened.hparams.n_vocab)

    def last_good(self) -> str:
        """Where to go on from. A checkpoint that is worse than guessing is not called good if an earlier one was
        better."""
        output, latest = self.config.checkpoint_output, ""
        if self.has_saved and output:
            latest = output.latest_path
        elif self.first_iteration:
            latest = self.config.checkpoint_in
        if not latest:
            where = "nothing was saved"
        elif not self.has_saved or self.plausible_at in (None, self.saved_at):
            where = f"the last good checkpoint is {latest}, of iteration {self.saved_at}"
        else:
            numbered = output.paths(self.plausible_at)[0] if output else ""
            kept = numbered if numbered != latest and os.path.exists(numbered) else "not kept (--keep)"
            where = (f"the last checkpoint, {latest} of iteration {self.saved_at}, has a loss above that of guessing; "
                     f"the last good one, of iteration {self.plausible_at}, is {kept}")
        return f"{where}; go on with a lower --adam-alpha"

    def tell(self, event: Event) -> None:
        for observer in self.observers:
            self.asked_to_stop |= observer(event) is True


def _as_dict(config: FinetuneConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in fields(config)}
