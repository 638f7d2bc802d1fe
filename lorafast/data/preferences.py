"""Preferences as samples: a pair of rows each, which a pass keeps together."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import LoraFastError
from ..options.methods import METHODS
from ..words import count, is_or_are
from .lengths import cut_to_context
from .records import BadRecord, Chat, Completion, Preference, Record
from .samples import Row, Sequences, targets_of

Encode = Callable[[Completion | Chat], list[Row]]


def preference_rows(record: Record, method: str, encode: Encode) -> list[Row]:
    """The sequences of a preference, with labels: the better one and the worse, or one that is judged. Raises
    BadRecord.

    encode  makes sequences of a record that is no preference
    """
    needed = METHODS[method].takes
    if not isinstance(record, Preference):
        keys = {"pairs": "'chosen' and 'rejected'", "judged": "'prompt', 'completion' and a 'label', true or false"}
        raise BadRecord(f"it is not a preference: --method {method} needs {keys[needed]}")
    if needed == "pairs" and None in (record.chosen, record.rejected):
        raise BadRecord(f"it has one answer and a label, which --method kto takes; --method {method} needs 'chosen' "
                        "and 'rejected'")
    rows = [replace(_only(encode(side)), label=label)
            for side, label in ((record.chosen, 1), (record.rejected, -1)) if side is not None]
    if len(rows) == 2 and np.array_equal(rows[0].stored, rows[1].stored):
        raise BadRecord("'chosen' and 'rejected' are the same, once they are tokens")
    return rows


def _only(rows: list[Row]) -> Row:
    if len(rows) != 1:
        raise BadRecord("the chat template shows its answers differently once others follow, so that they are no "
                        "single sequence")
    return rows[0]


@dataclass(frozen=True)
class Preferences(Sequences):
    """Samples of two rows each. The first is the sample as Sequences have it.

    Of pairs the second is the worse answer to the same prompt. Of judged answers it is the prompt with the answer of
    the sample before it, which KTO needs to estimate how far the model has gone from its reference.

    label          int8 (S,), of the first row: 1, or -1 of an answer that is not good
    shared         int64 (S,), tokens of the first row that the second begins with (of pairs 0: it has its own) ...
    other_begin    int64 (S,), and the tokens that follow them in it: where they begin ...
    other_size     int64 (S,), and how many they are
    in_common      int64 (S,), of pairs: tokens that both rows begin with and that are computed once, with the first
    is_judged      the samples are single answers with a label
    learns_prompt  in the better row of a pair the prompt counts in the loss, too
    reference      float64 (S, 2), log-probabilities of the rows' answers under the reference; None before that is known
    """

    label: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))
    shared: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    other_begin: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    other_size: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    in_common: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    is_judged: bool = False
    learns_prompt: bool = False
    reference: np.ndarray | None = None

    @property
    def n_inputs(self) -> np.ndarray:
        """Tokens that each sample is computed with; of judged answers those of the longer row, as the rows take
        turns."""
        other = self.shared + self.other_size - 1
        return np.maximum(self.size - 1, other) if self.is_judged else self.size - 1 + other

    @property
    def n_shared(self) -> np.ndarray:
        """See Sequences."""
        return self.in_common

    def subset(self, index: np.ndarray) -> Preferences:
        """Only the samples of these numbers. Judged answers keep the answers that they were set beside."""
        names = ("begin", "size", "line", "source", "label", "shared", "other_begin", "other_size",
                 "in_common")
        picked = {name: getattr(self, name)[index] for name in names}
        return replace(self, **picked, reference=None if self.reference is None else self.reference[index])

    def other(self, sample: int) -> np.ndarray:
        """The second row of a sample, as it is stored, int32."""
        begin, other = int(self.begin[sample]), int(self.other_begin[sample])
        rest = self.tokens[other:other + self.other_size[sample]]
        shared = int(self.shared[sample])
        return np.concatenate([self.tokens[begin:begin + shared], rest]) if shared else rest

    def rows(self, sample: int) -> list[Row]:
        reference = (0.0, 0.0) if self.reference is None else self.reference[sample]
        label = int(self.label[sample])
        first = replace(self.row(sample), label=label, reference=reference[0], learns_prompt=self.learns_prompt)
        second = Row(self.other(sample), label=0 if self.is_judged else -label, reference=reference[1],
                     shared=int(self.in_common[sample]))
        return [first, second]

    def with_whole_rows(self) -> Preferences:
        """These samples for a network in which rows cannot share their beginning."""
        return replace(self, in_common=np.zeros_like(self.in_common))


def preferences_of(rows: Sequences, label: np.ndarray, method: str, ctx: int) -> Preferences:
    """The samples that stored rows make, cut to `ctx` inputs a row as TRL does it, with what that left out in the
    warnings. LoraFastError where nothing is left.

    label  int8, of each row
    """
    step = 2 if METHODS[method].takes == "pairs" else 1
    first = slice(0, None, step)
    prompt = np.array([prompt_size(rows.stored(i)) for i in range(len(rows))], np.int64)
    begin, size, other = rows.begin[first], rows.size[first], slice(1, None, 2)
    if step == 2:
        shared, other_begin, other_size = np.zeros_like(begin), rows.begin[other], rows.size[other]
    else:
        shared, other_begin, other_size = prompt, np.roll(begin + prompt, 1), np.roll(size - prompt, 1)
    warnings = list(rows.warnings)
    if (n_long := int((np.maximum(rows.size.reshape(-1, step).max(axis=1), 0) > ctx + 1).sum())):
        warnings.append(cut_to_context(n_long, len(begin), ctx, rows.size.max() - 1))
    samples = Preferences(
        rows.tokens, begin, np.minimum(size, ctx + 1), rows.name, warnings, rows.line[first], rows.source[first],
        rows.sources, rows.weights, label[first], shared, other_begin, np.minimum(other_size, ctx + 1 - shared),
        np.zeros_like(begin) if step == 1 else inputs_in_common(rows, prompt), is_judged=step == 1,
        learns_prompt=method == "orpo")
    kept = np.flatnonzero(prompt.reshape(-1, step).max(axis=1) < ctx + 1)
    if len(kept) < len(samples):
        n = len(samples) - len(kept)
        warnings.append(f"{count(n, 'sample')} {is_or_are(n)} left out: the prompt alone fills the context of {ctx} "
                        "tokens")
    if not len(kept):
        raise LoraFastError(f"{rows.name}: every prompt fills the context of {ctx} tokens; give a larger --ctx")
    if step == 1 and len(kept) < 2:
        raise LoraFastError(f"{rows.name}: --method {method} needs at least two answers: it sets each beside another's "
                            "prompt")
    return samples.subset(kept)


def inputs_in_common(rows: Sequences, prompt: np.ndarray) -> np.ndarray:
    """How many tokens of their prompts are the same, and are followed by the same, in each pair of rows, int64 (P,).

    prompt  int64 (2 P,), tokens of each row's prompt
    """
    found = np.zeros(len(rows) // 2, np.int64)
    for i, n in enumerate(prompt.reshape(-1, 2).min(axis=1).tolist()):
        differ = rows.stored(2 * i)[:n] != rows.stored(2 * i + 1)[:n]
        found[i] = max(0, (int(differ.argmax()) if differ.any() else n) - 1)
    return found


def prompt_size(stored: np.ndarray) -> int:
    """Tokens before the first that counts in the loss; all where none does."""
    counts = targets_of(stored) >= 0
    counts[:1] = False
    return int(counts.argmax()) if counts.any() else len(stored)
