"""Which samples a step sees: shuffled epochs, and batches of token ids with their targets.

A position in the data is a small value (`SamplerState`) from which a run resumes exactly.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import LoraFastError
from ..rng import MT19937
from .samples import Identity, Row, Samples, Sequences, plain, targets_of


@dataclass(frozen=True)
class SamplerState:
    """A position in the data: with the same samples and options, all further batches follow from it alone.

    The first four are llama-finetune's `training.shuffle.*`, the others its `training.epoch_count` and `.sample_count`.

    samples_hash   of the data that the position belongs to; 0 in a run that has seen none
    rng_state      text of the generator's state *before* the shuffle of this epoch; empty when there was none
    sample_count   number of samples in the data
    next_sample    place in the shuffled order of the first sample of the next batch
    epochs         completed, in all runs
    samples_used   drawn, in all runs
    data           what identifies the data that the position belongs to; empty in a checkpoint of llama-finetune
    """

    samples_hash: int = 0
    rng_state: str = ""
    sample_count: int = 0
    next_sample: int = 0
    epochs: int = 0
    samples_used: int = 0
    data: Identity = Identity()


@dataclass(frozen=True)
class Batch:
    """Rows of tokens, flattened: row k holds tokens[begin[k]:begin[k + 1]]; targets[i] is the token after tokens[i].
    A row may begin with tokens of the row before, which are not repeated.

    tokens         int32 (T,)
    targets        int32 (T,); -1 where it does not count in the loss
    begin          int32 (n + 1,)
    n_used         samples opened for it; more than n only where short ones are filled up with the next
    epoch_ended    it was the last of its epoch, and the samples have been shuffled again
    weights        float32 (T,), factors of the targets' losses; None: all 1
    label          of preferences int8 (n,): 1 of an answer that is preferred or good, -1 of one that is not, 0 of none
    reference      of preferences float64 (n,), log-probabilities of the answers under the reference
    answers        bool (T,), which targets are of answers; None: those that count
    rows           int64 (n,), numbers of the rows among all of the data to train on; None of other data, and of text
    shared         int32 (n,), tokens of the row before that each begins with: of every other row; None: of none
    """

    tokens: np.ndarray
    targets: np.ndarray
    begin: np.ndarray
    n_used: int
    epoch_ended: bool
    weights: np.ndarray | None = None
    label: np.ndarray | None = None
    reference: np.ndarray | None = None
    answers: np.ndarray | None = None
    rows: np.ndarray | None = None
    shared: np.ndarray | None = None

    @property
    def whole_begin(self) -> np.ndarray:
        """`begin`, had each row all its tokens; int32."""
        if self.shared is None:
            return self.begin
        return self.begin + np.concatenate([[0], np.cumsum(self.shared)]).astype(np.int32)

    @property
    def n_counted(self) -> int:
        """Targets that count in the loss."""
        return int(np.count_nonzero(self.targets >= 0))

    def part(self, first: int, end: int) -> Batch:
        """Its rows from `first` to before `end`."""
        begin = self.begin[first:end + 1]
        return self._of(slice(first, end), slice(begin[0], begin[-1]), begin - begin[0])

    def every_other(self, first: int) -> Batch:
        """Its rows first, first + 2, first + 4 ..."""
        sizes = np.diff(self.begin)
        row = np.repeat(np.arange(len(sizes)), sizes)
        begin = np.concatenate([[0], np.cumsum(sizes[first::2])]).astype(np.int32)
        return self._of(slice(first, None, 2), np.flatnonzero(row % 2 == first), begin)

    def _of(self, rows: slice, tokens: slice | np.ndarray, begin: np.ndarray) -> Batch:
        def picked(values: np.ndarray | None, which: slice | np.ndarray) -> np.ndarray | None:
            return None if values is None else values[which]

        return replace(self, tokens=self.tokens[tokens], targets=self.targets[tokens], begin=begin,
                       weights=picked(self.weights, tokens), answers=picked(self.answers, tokens),
                       label=picked(self.label, rows), reference=picked(self.reference, rows),
                       rows=picked(self.rows, rows), shared=picked(self.shared, rows))


class ShuffledEpochs:
    """An order of samples, a new one each epoch, and the position in it. Subclasses make rows of the samples."""

    def __init__(self, samples: Samples, *, seed: int, force_reshuffle: bool, state: SamplerState) -> None:
        """
        seed             of the first epoch's shuffle, unless `state` goes on
        force_reshuffle  ignore the position in `state`
        state            position to resume; ignored, counters apart, when it is not of these samples

        After this `restarted` tells whether `state` was of other samples, or of none, and `other_contents` whether that
        is because the data itself is another, and not only cut otherwise.
        LoraFastError when there are no samples, FormatError when the state's rng_state is broken.
        """
        if not len(samples):
            raise LoraFastError(f"'{samples.name}' gave no samples to train on")
        self._samples = samples
        self._hash, self._identity = samples.hash, samples.identity
        is_same = state.data == self._identity if state.data.tokens else state.samples_hash == self._hash
        self.restarted = not is_same or state.sample_count != len(samples)
        self.other_contents = state.data.tokens not in ("", self._identity.tokens)
        self._epochs, self._samples_used = state.epochs, state.samples_used
        if self.restarted or force_reshuffle or not state.rng_state:
            self._start_epoch(MT19937(seed))
        else:
            self._start_epoch(MT19937.from_text(state.rng_state))
            self._next_sample = state.next_sample % len(samples)

    @property
    def state(self) -> SamplerState:
        """The position of the next batch. Cheap: take one before every draw that may not be used in the end."""
        return SamplerState(self._hash, self._rng_state, len(self._samples), self._next_sample,
                            self._epochs, self._samples_used, self._identity)

    def _start_epoch(self, rng: MT19937) -> None:
        """Shuffles. The order is that of one random number a sample; a second one, in that order, gives its offset."""
        self._next_sample = 0
        self._rng_state = rng.state_text()
        self._next_rng = rng
        count = len(self._samples)
        self._order = self._offset_draws = np.zeros(0, np.uint32)   # makes room: there may be very many
        # (number, index) pairs in one word: sorting them breaks ties by index, and is quicker than an argsort.
        keys = rng.draw(count).astype(np.uint64)
        keys <<= np.uint64(32)
        keys |= np.arange(count, dtype=np.uint32)
        keys.sort()
        self._order = keys.astype(np.uint32)   # keeps the lower half: the index
        del keys
        self._offset_draws = rng.draw(count)   # drawn in any case: the next epoch's order depends on it

    def _advance(self, n_used: int) -> bool:
        """Moves on by so many samples; whether that ended the epoch."""
        self._samples_used += n_used
        self._next_sample += n_used
        if self._next_sample < len(self._samples):
            return False
        self._epochs += 1
        self._start_epoch(self._next_rng)
        return True


class Sampler(ShuffledEpochs):
    """Batches of text as llama-finetune makes them: rows of `ctx` tokens, each beginning with BOS."""

    def __init__(
        self,
        samples: Samples,
        ctx: int,
        *,
        seed: int,
        bos_id: int,
        eos_id: int,
        n_vocab: int,
        fill_with_next_samples: bool = False,
        separate_with_eos: bool = False,
        separate_with_bos: bool = True,
        random_offsets: bool = False,
        force_reshuffle: bool = False,
        state: SamplerState = SamplerState(),
    ) -> None:
        """
        ctx                     tokens a row
        bos_id, eos_id          first input of every row; padding of a row whose sample has ended, trained on like text
        n_vocab                 token ids of the text from here on become n_vocab - 1
        fill_with_next_samples  a row whose sample has ended goes on with the next one instead of EOS ...
        separate_with_eos, _bos ... after one EOS, one BOS
        random_offsets          a row begins anywhere in its sample

        The others, and errors: see ShuffledEpochs.
        """
        self._ctx, self._n_vocab = ctx, n_vocab
        self._bos, self._eos = np.array([[bos_id], [eos_id]], np.int32)
        self._fill = fill_with_next_samples
        self._separator = np.array([eos_id] * separate_with_eos + [bos_id] * separate_with_bos, np.int32)
        self._random_offsets = random_offsets
        super().__init__(samples, seed=seed, force_reshuffle=force_reshuffle, state=state)

    def next_batch(self, n: int) -> Batch:
        """The next batch of `n` rows. At the end of an epoch it wraps to samples at the front of the same order."""
        targets, n_used = self._filled_rows(n) if self._fill else (self._plain_rows(n), n)
        np.minimum(targets, self._n_vocab - 1, out=targets)
        tokens = np.empty_like(targets)
        tokens[:, 0] = self._bos
        tokens[:, 1:] = targets[:, :-1]
        begin = np.arange(0, targets.size + 1, self._ctx, dtype=np.int32)
        self._samples.let_go()
        return Batch(tokens.ravel(), targets.ravel(), begin, n_used, self._advance(n_used))

    def _open(self, place: int | np.ndarray, at_begin: bool = False) -> tuple[Any, Any]:
        """Begin and size, in tokens, of what a row takes from the sample(s) at this place of the shuffled order."""
        place = place % len(self._samples)
        sample = self._order[place]
        begin, size = self._samples.begin[sample], self._samples.size[sample]
        if self._random_offsets and not at_begin:
            offset = (np.maximum(size - 1, 0) * (self._offset_draws[place] / (2.0**32 - 2))).astype(np.int64)
            begin, size = begin + offset, size - offset
        return begin, size

    def _plain_rows(self, n: int) -> np.ndarray:
        """targets (n, ctx): one sample a row, EOS after its end."""
        begin, size = self._open(self._next_sample + np.arange(n))
        position = np.arange(self._ctx)
        inside = position < size[:, None]
        return np.where(inside, self._samples.tokens[np.where(inside, begin[:, None] + position, 0)], self._eos)

    def _filled_rows(self, n: int) -> tuple[np.ndarray, int]:
        """targets (n, ctx) and the number of samples opened: where a sample ends the next follows in the same row."""
        targets = np.empty((n, self._ctx), np.int32)
        place = self._next_sample
        for row in targets:
            pieces = [self._text(*self._open(place))]
            place += 1
            length = pieces[0].size
            while length < self._ctx:
                pieces.append(self._separator)
                length += self._separator.size
                if length < self._ctx:
                    text = self._text(*self._open(place, at_begin=True))
                    place += 1
                    pieces.append(text if text.size else self._eos)   # an empty sample shows as one EOS
                    length += pieces[-1].size
            row[:] = np.concatenate(pieces)[:self._ctx]
        return targets, place - self._next_sample

    def _text(self, begin: int, size: int) -> np.ndarray:
        """The tokens of one sample, at most ctx."""
        return self._samples.tokens[begin:begin + min(size, self._ctx)]


class SequenceSampler(ShuffledEpochs):
    """Batches of whole sequences, each as long as it is, so that no padding is computed. An epoch shows each once."""

    _samples: Sequences

    def __init__(self, samples: Sequences, ctx: int, *, seed: int, n_vocab: int, pack: bool = False,
                 force_reshuffle: bool = False, state: SamplerState = SamplerState()) -> None:
        """
        samples   none with more than `ctx` inputs
        n_vocab   token ids from here on become n_vocab - 1
        pack      a batch of n takes as many sequences as fit n * ctx tokens, instead of n

        The others, and errors: see ShuffledEpochs.
        """
        self._ctx, self._n_vocab, self._pack = ctx, n_vocab, pack
        super().__init__(samples, seed=seed, force_reshuffle=force_reshuffle, state=state)

    def next_batch(self, n: int) -> Batch:
        """The next batch, of at most n * ctx tokens. The last of an epoch has what is left."""
        if self._pack:
            sizes = self._samples.n_inputs[self._order[self._next_sample:self._next_sample + n * self._ctx]]
            n = max(1, int(np.searchsorted(np.cumsum(sizes), n * self._ctx, side="right")))
        order = self._order[self._next_sample:self._next_sample + n]
        rows = [row for sample in order for row in self._samples.rows(sample)]
        batch = _concatenated(rows, self._n_vocab, len(order), self._advance(len(order)))
        self._samples.let_go()
        of_sample = len(rows) // max(1, len(order))
        numbers = order.astype(np.int64)[:, None] * of_sample + np.arange(of_sample)
        return replace(batch, rows=numbers.ravel())


def evaluation_batches(samples: Samples, max_tokens: int, *, bos_id: int | None, n_vocab: int) -> Iterator[Batch]:
    """Every sample once, in order, in batches of at most `max_tokens` tokens (no sample may have more).

    A sample of text is preceded by BOS, as in training; a sequence is as it is.
    """
    rows: list[Row] = []
    n_tokens = 0
    for of_sample in _evaluation_rows(samples, bos_id):
        size = sum(len(row.stored) - 1 for row in of_sample)
        if n_tokens + size > max_tokens and rows:
            yield _concatenated(rows, n_vocab, len(rows), False)
            samples.let_go()
            rows, n_tokens = [], 0
        rows += of_sample
        n_tokens += size
    yield _concatenated(rows, n_vocab, len(rows), True)


def _evaluation_rows(samples: Samples, bos_id: int | None) -> Iterable[list[Row]]:
    if isinstance(samples, Sequences):
        return map(samples.rows, range(len(samples)))
    bos = np.array([] if bos_id is None else [bos_id], np.int32)
    places = zip(samples.begin, samples.size)
    return ([Row(np.concatenate([bos, samples.tokens[begin:begin + size]]))] for begin, size in places)


def _concatenated(rows: list[Row], n_vocab: int, n_used: int, epoch_ended: bool) -> Batch:
    """A batch of stored sequences: each token but a row's last is input, each but its first a target. What a row shares
    with the one before is left out."""
    begin, firsts = np.zeros(len(rows) + 1, np.int32), [1 + row.shared for row in rows]
    np.cumsum([len(row.stored) - first for row, first in zip(rows, firsts)], out=begin[1:])
    tokens = np.minimum(plain(np.concatenate([row.stored[row.shared:-1] for row in rows])), n_vocab - 1)
    targets = np.concatenate([(plain if row.learns_prompt else targets_of)(row.stored[first:])
                              for row, first in zip(rows, firsts)])
    targets = np.minimum(targets, n_vocab - 1)
    weights = answers = label = reference = shared = None
    if any(row.label for row in rows):
        label, reference = np.array([row.label for row in rows], np.int8), np.array([row.reference for row in rows])
    if any(row.learns_prompt for row in rows):
        answers = np.concatenate([row.stored[first:] >= 0 for row, first in zip(rows, firsts)])
    if any(row.weights is not None for row in rows):
        weights = np.concatenate([np.ones(len(row.stored) - first, np.float32) if row.weights is None
                                  else row.weights[first:] for row, first in zip(rows, firsts)])
    if any(row.shared for row in rows):
        shared = np.array([row.shared for row in rows], np.int32)
    return Batch(tokens, targets, begin, n_used, epoch_ended, weights, label, reference, answers, shared=shared)
