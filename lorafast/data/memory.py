"""How much memory training data will take, by the beginning of its largest file; the rest is taken to be like it.

Tokens stay on disk (token_store.py). What takes memory is where each sample begins and how long it is, and the order in
which an epoch goes through them.
"""
from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..errors import LoraFastError, UsageError
from ..tokenizer import Tokenizer
from .open import DataOptions, data_files, has_records, open_data
from .text import BYTES_PER_SAMPLE

HEAD = 1 << 18
"""Bytes of a file that are read and tokenised."""

BYTES_PER_CUT_SAMPLE = 56
"""Of a sample with a size of its own, a record or what follows a sample start: place, size, line, source; and
shuffling."""

SHORTEST_RECORD = 24
"""Bytes; to reckon with where the beginning of a file does not tell."""


@dataclass(frozen=True)
class DataMemory:
    """Bytes, and how it is known.

    sample_tokens  mean length of a sample of records, at most the context; None for text, whose samples fill it
    overlaps       a sample begins at every token of a text
    """

    kept: int = 0
    note: str = ""
    sample_tokens: float | None = None
    overlaps: bool = False


def data_memory(options: DataOptions, tokenizer: Tokenizer, metadata: Mapping[str, Any], ctx: int) -> DataMemory:
    """What the data takes that `open_data` opens with these arguments. Of data that it cannot open: nothing, and why
    not."""
    try:
        train, valid, _ = data_files(options)
        sizes = {path: os.path.getsize(path) for path in train + valid}
        largest = max(train, key=sizes.__getitem__)
        if not os.path.isfile(largest):             # what is read from a pipe would be missing later
            return DataMemory(note=f"not counted, {largest} is not a file")
        is_text = not has_records(largest, options.data_format)
        with open(largest, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        return DataMemory(note=f"not counted, cannot read {error.filename}: {error.strerror}")
    except UsageError:
        raise
    except LoraFastError as error:
        return DataMemory(note=f"not counted, {error}")
    if len(head) < sizes[largest]:
        head = head[:head.rfind(b"\n") + 1] or head
    begins_everywhere = is_text and not options.sample_start
    per_byte, sample_tokens = _sampled(head, options, tokenizer, metadata, ctx, is_text)
    n_samples = sum(sizes.values()) * per_byte
    return DataMemory(int(n_samples * (BYTES_PER_SAMPLE if begins_everywhere else BYTES_PER_CUT_SAMPLE)),
                      f"about {n_samples:.0f} samples", sample_tokens,
                      overlaps=begins_everywhere and options.stride == 1)


def _sampled(head: bytes, options: DataOptions, tokenizer: Tokenizer, metadata: Mapping[str, Any], ctx: int,
             is_text: bool) -> tuple[float, float | None]:
    """Samples a byte, and DataMemory.sample_tokens, by opening the beginning of a file as if it were all."""
    with tempfile.NamedTemporaryFile(prefix="lorafast-") as file:
        file.write(head)
        file.flush()
        options = replace(options, train=[file.name], valid=(), valid_split=0.0, cache="",
                          data_format="text" if is_text else "jsonl")
        try:
            samples = open_data(options, tokenizer, metadata, ctx).train
        # the beginning of an array is no array; a line may be bad, a text too short for a sample
        except LoraFastError:
            return 1 / options.stride if is_text else 1 / SHORTEST_RECORD, None
    if is_text:
        n = len(samples) if options.sample_start else len(samples.tokens) / options.stride
        return n / len(head), None
    return len(samples) / len(head), float(samples.size.mean()) - 1
