"""How much memory training data will take, by the beginning of its largest file; the rest is taken to be like it.

Tokens stay on disk (token_store.py). What takes memory is where each sample begins and how long it is, and the order in
which an epoch goes through them.
"""
from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import LoraFastError, UsageError
from ..tokenizer import Tokenizer
from ..words import count
from .files import data_files
from .forms.recognise import recognise
from .lengths import row_lengths
from .open import Data, DataOptions, open_data
from .samples import Sequences, plain
from .source import Source, open_source
from .text import BYTES_PER_SAMPLE

HEAD = 1 << 18
"""Bytes of a file that are read and tokenised."""

LONGEST_LINE = 1 << 24
"""Bytes that are read where the first record is longer than HEAD."""

LOOKED_AT = 512
"""Tokens that are kept of it."""

BYTES_PER_CUT_SAMPLE = 56
"""Bytes for a sample with a size of its own, a record or what follows a sample start: place, size, line, source; and
shuffling."""

BYTES_PER_PREFERENCE = BYTES_PER_CUT_SAMPLE + 49
"""Bytes for a preference: also the other row's place and size, what it shares, the label, and two log-probabilities."""

SHORTEST_RECORD = 24
"""Bytes of a record that are assumed where the beginning of a file does not show how long records are."""


@dataclass(frozen=True)
class DataMemory:
    """Bytes, and how it is known.

    sample_tokens  mean length of a sample of records, at most the context; None for text, whose samples fill it
    overlaps       a sample begins at every token of a text
    beginning      its first tokens, int32
    """

    kept: int = 0
    note: str = ""
    sample_tokens: float | None = None
    overlaps: bool = False
    beginning: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32), compare=False, repr=False)


def data_memory(options: DataOptions, tokenizer: Tokenizer, metadata: Mapping[str, Any], ctx: int) -> DataMemory:
    """What the data takes that `open_data` opens with these arguments. Of data that it cannot open: nothing, and why
    not."""
    try:
        train, valid, _ = data_files(options.train, options.valid, options.valid_split)
        sources = [open_source(path) for path in train + valid]
        largest = max(sources[:len(train)], key=lambda source: source.size)
        form = recognise(largest, options.data_format, options.fields)
        is_text = form is None
        head = b"" if largest.is_folder else _head(largest, HEAD if is_text else LONGEST_LINE)
    except UsageError:
        raise
    except (LoraFastError, OSError) as error:
        return DataMemory(note=f"not counted, {error}")
    begins_everywhere = is_text and not options.sample_start
    per_byte, sample_tokens, beginning = _sampled(head, largest.suffix, options, tokenizer, metadata, ctx, is_text)
    n_samples = sum(source.size for source in sources) * per_byte
    return DataMemory(int(n_samples * (BYTES_PER_SAMPLE if begins_everywhere else bytes_per_cut(options.method))),
                      f"about {n_samples:.0f} samples", sample_tokens,
                      overlaps=begins_everywhere and options.stride == 1, beginning=beginning)


def memory_of(data: Data, method: str) -> DataMemory | None:
    """What records that are open take, which need not be looked at again; None for text."""
    if not isinstance(data.train, Sequences):
        return None
    n_samples = sum(map(len, data.parts))
    return DataMemory(n_samples * bytes_per_cut(method), count(n_samples, "sample"), float(data.train.n_inputs.mean()),
                      beginning=plain(np.array(data.train.tokens[:LOOKED_AT])))


def bytes_per_cut(method: str) -> int:
    """Bytes for a sample with a size of its own, by the method that it is for."""
    return BYTES_PER_CUT_SAMPLE if method == "sft" else BYTES_PER_PREFERENCE


def _head(source: Source, longest_line: int) -> bytes:
    """The beginning of a file, up to a line end: at least one line, if none is longer than that."""
    with open(source.path, "rb") as file:
        head = file.read(HEAD)
        if len(head) < HEAD:
            return head
        return head[:head.rfind(b"\n") + 1] or head + file.readline(longest_line - len(head))


def _sampled(head: bytes, suffix: str, options: DataOptions, tokenizer: Tokenizer, metadata: Mapping[str, Any],
             ctx: int, is_text: bool) -> tuple[float, float | None, np.ndarray]:
    """Samples a byte, and DataMemory's sample_tokens and beginning, by opening the beginning of a file as if it were
    all."""
    with tempfile.NamedTemporaryFile(prefix="lorafast-", suffix=suffix) as file:
        file.write(head)
        file.flush()
        options = replace(options, train=[file.name], valid=(), valid_split=0.0, cache="",
                          data_format="text" if is_text else options.data_format)
        try:
            samples = open_data(options, tokenizer, metadata, ctx).train
        # the beginning of an array is no array; a line may be bad, a text too short for a sample
        except LoraFastError:
            return 1 / options.stride if is_text else 1 / SHORTEST_RECORD, None, np.zeros(0, np.int32)
        beginning = plain(np.array(samples.tokens[:LOOKED_AT]))
    if is_text:
        n = len(samples) if options.sample_start else len(samples.tokens) / options.stride
        return n / len(head), None, beginning
    return len(samples) / len(head), float(row_lengths(samples, ctx).mean()), beginning
