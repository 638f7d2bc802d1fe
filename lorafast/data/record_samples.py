"""From records to samples: each is a sequence of tokens, some of which may be there only to be read."""
from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from ..errors import LoraFastError
from ..rng import MT19937
from ..system.live import Meter, Show
from ..words import count, is_or_are
from .encode import AS_CHATS, AS_MEANT, SequenceEncoder
from .forms import Form, read_records
from .lengths import cut_to_context
from .preferences import preferences_of
from .records import BadRecord, Chat, Completion, Preference, Text, Tokens
from .samples import Samples, Sequences, TokenWeights, targets_of
from .source import Source
from .token_store import StoredTokens, TokenWriter

SomeSamples = TypeVar("SomeSamples", bound=Samples)

_SPLIT_SEED = 0         # fixed, so that a resumed run holds out the same samples whatever its seed
_N_SHOWN = 3
_KINDS = {Text: ("text",), Completion: ("prompt and completion", "prompts and completions"), Chat: ("chat",),
          Preference: ("preference",), Tokens: ("list of token ids", "lists of token ids")}


def write_records(files: Sequence[tuple[Source, Form]], encoder: SequenceEncoder, writer: TokenWriter, progress: Show,
                  *, names: Mapping[str, str], skip_bad: bool) -> dict[str, Any]:
    """Writes the sequences of all files; returns what the user should know.

    names      see parse_record
    skip_bad   leave out records that cannot be used, instead of raising LoraFastError
    """
    recognised, samples_of_source, bad, chats = [], [], [], 0
    for source, form in files:
        kinds: Counter[tuple[str, ...]] = Counter()
        n_samples = 0
        with Meter(f"tokenising {source.name}", source.size, progress) as meter:
            for line, record in read_records(form, source, names, meter.advance):
                try:
                    if isinstance(record, BadRecord):
                        raise record
                    rows = encoder.rows(record)
                except BadRecord as error:
                    bad.append(f"{source.name}:{line}: {error}")
                    if not skip_bad:
                        raise LoraFastError(f"{bad[0]} (--skip-bad leaves such lines out)") from None
                    continue
                kinds[_KINDS[type(record)]] += 1
                chats += isinstance(record, Chat)
                for row in rows:
                    writer.write(row.stored, row.weights)
                    writer.end_sample(line, row.label)
                n_samples += len(rows)
        samples_of_source.append(n_samples)
        found = ", ".join(count(n, *kind) for kind, n in kinds.items()) or "nothing"
        recognised.append(f"{source.name}: {found}")
    recognised += [f"{sentence}: {encoder.notes[sentence]}" for sentence in AS_MEANT if encoder.notes[sentence]]
    warnings = [f"{sentence}: {n}" for sentence, n in encoder.notes.items() if n and sentence not in AS_MEANT]
    if bad:
        more = f"; and {len(bad) - _N_SHOWN} more" if len(bad) > _N_SHOWN else ""
        warnings.append(f"{count(len(bad), 'bad line')} left out: {'; '.join(bad[:_N_SHOWN])}{more}")
    return {"recognised": recognised, "samples_of_source": samples_of_source, "warnings": warnings,
            "chats": bool(chats or encoder.notes[AS_CHATS])}


def sequences_of(stored: StoredTokens, names: Sequence[str], ctx: int, method: str = "sft") -> Sequences:
    """The samples in what `write_records` stored of the files of these names, none longer than the context.

    method  what is trained by: of all but sft they are Preferences
    """
    source = np.repeat(np.arange(len(names)), stored.facts["samples_of_source"])
    weights = TokenWeights(stored.weight_begin, stored.weight) if len(stored.weight) else None
    samples = Sequences(stored.tokens, np.cumsum(stored.size) - stored.size, stored.size, os.pathsep.join(names),
                        stored.facts["warnings"], stored.line, source, tuple(names), weights)
    if not len(samples):
        raise LoraFastError(f"{samples.name} has no records that could be trained on")
    return truncated(samples, ctx) if method == "sft" else preferences_of(samples, stored.label, method, ctx)


def truncated(samples: Sequences, ctx: int) -> Sequences:
    """The samples cut to `ctx` inputs, without those of which nothing is left that counts; warnings say so."""
    long = np.flatnonzero(samples.size > ctx + 1)
    cut = replace(samples, size=np.minimum(samples.size, ctx + 1), warnings=list(samples.warnings))
    empty = [i for i in long if not (targets_of(cut.stored(int(i))[1:]) >= 0).any()]
    if len(long):
        cut.warnings.append(cut_to_context(len(long), len(samples), ctx, samples.size.max() - 1))
    if empty:
        cut.warnings.append(f"{len(empty)} of these {is_or_are(len(empty))} left out: nothing that counts in the loss "
                            f"remains of {'it' if len(empty) == 1 else 'them'}")
    if len(empty) == len(samples):
        raise LoraFastError(f"{samples.name}: no sample has anything that counts in the loss within the context of "
                            f"{ctx} tokens; give a larger --ctx")
    return cut.subset(np.delete(np.arange(len(samples)), empty)) if empty else cut


def hold_out(samples: SomeSamples, share: float) -> tuple[SomeSamples, SomeSamples]:
    """The samples without a random `share` of them, and that share: at least one, and always the same ones."""
    n = len(samples)
    n_held_out = max(1, round(share * n))
    if n_held_out >= n:
        raise LoraFastError(f"'{samples.name}' has too few samples for --valid-split {share}: {n}")
    order = np.argsort(MT19937(_SPLIT_SEED).draw(n), kind="stable")
    held_out = samples.subset(np.sort(order[:n_held_out]))
    return samples.subset(np.sort(order[n_held_out:])), replace(held_out, warnings=[])
