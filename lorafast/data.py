"""From a text file to samples: one array of token ids, and where in it each training sample begins and ends.

Two ways to cut a text, as in the original. Without a sample start a sample begins at every token and is `ctx` long.
With one, samples are the stretches of text after each occurrence of a given string (`<s>`, a heading, ...), each
tokenised by itself.
"""
from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from lorafast.errors import LoraFastError

# Above this share of bytes that are not UTF-8 a file is taken for binary, or for text in another encoding. Random bytes
# reach 45 %; Western European text in Latin-1 stays below 10 %.
_MAX_INVALID_SHARE = 0.25


class TextEncoder(Protocol):
    """What is needed of a tokenizer."""

    max_token_length: int   # bytes of the longest token's text

    def encode(self, text: str | bytes, *, add_special: bool = False, parse_special: bool = False) -> np.ndarray: ...


@dataclass(frozen=True)
class Samples:
    """Training data, tokenised. Sample i is `tokens[begin[i] : begin[i] + size[i]]`; samples may overlap.

    tokens   int32 (n,)
    begin    int64 (S,), in tokens; in the order of the text, never shuffled
    size     int64 (S,), in tokens; may be more or less than the context, or 0. Read-only
    name     the path as the user wrote it, which is part of the hash
    warnings one line each, for the user
    """

    tokens: np.ndarray
    begin: np.ndarray
    size: np.ndarray
    name: str
    warnings: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return self.begin.size

    @property
    def hash(self) -> int:
        """See `samples_hash`."""
        return samples_hash(self.name, self.begin, self.size)

    @property
    def n_unique_tokens(self) -> int:
        return np.unique(self.tokens).size


def tokenize_text(
    path: str,
    tokenizer: TextEncoder,
    ctx: int,
    *,
    sample_start: str = "",
    include_sample_start: bool = False,
    overlapping_samples: bool = False,
) -> Samples:
    """Reads and tokenises a UTF-8 text file. No BOS or EOS is added; the names of special tokens in it are plain text.

    path                  also the name that goes into the samples' hash, so it is kept as given
    ctx                   tokens a sample should have
    sample_start          empty: a sample begins at every token. Else after each occurrence of this string
    include_sample_start  a sample begins with the string itself
    overlapping_samples   a sample goes on past the next occurrence, for enough bytes to fill the context

    LoraFastError when the file cannot be read, is empty, is binary, or holds less than one sample.
    """
    text, warnings = _read_text(path)
    if sample_start:
        max_bytes = ctx * tokenizer.max_token_length if overlapping_samples else None
        pieces, cut_warnings = _cut(text, os.fsencode(sample_start), include_sample_start, max_bytes)
        encoded = [tokenizer.encode(text[begin:end]) for begin, end in pieces]
        tokens = np.concatenate(encoded)
        size = np.array([piece.size for piece in encoded], np.int64)
        begin = np.cumsum(size) - size
        if not tokens.size:
            raise LoraFastError(f"'{path}' has no text after --sample-start {sample_start!r}: every sample is empty")
        warnings += cut_warnings + _size_warnings(size, ctx)
    else:
        tokens = tokenizer.encode(text)
        if tokens.size < ctx:
            raise LoraFastError(f"'{path}' is too short: {tokens.size} tokens, and a sample takes {ctx}; "
                                f"give more text or a smaller --ctx (at most {tokens.size})")
        # The window that ends with the very last token is left out, as in the original, unless it is the only one.
        begin = np.arange(max(1, tokens.size - ctx), dtype=np.int64)
        size = np.broadcast_to(np.int64(ctx), begin.shape)   # one number in memory
    return Samples(tokens, begin, size, path, warnings)


def _read_text(path: str) -> tuple[bytes, list[str]]:
    """The bytes of a text file, and a warning where some of them are not UTF-8."""
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        raise LoraFastError(f"cannot read training data '{path}': {error.strerror}") from None
    if not text:
        raise LoraFastError(f"training data '{path}' is empty")
    zero = text.find(b"\0")
    if zero >= 0:
        utf16 = text[:2] in (b"\xff\xfe", b"\xfe\xff")
        hint = "it looks like UTF-16: convert it to UTF-8" if utf16 else "give a text file"
        raise LoraFastError(f"training data '{path}' is binary (a zero byte at offset {zero}); {hint}")
    try:
        text.decode("utf-8")
    except UnicodeDecodeError as error:
        # surrogateescape turns every byte that is not part of a valid sequence into a lone surrogate.
        invalid = sum(1 for _ in re.finditer("[\udc80-\udcff]", text.decode("utf-8", "surrogateescape")))
        where = f"{invalid} of its {len(text)} bytes are not UTF-8, the first at offset {error.start}"
        if invalid > _MAX_INVALID_SHARE * len(text):
            raise LoraFastError(f"training data '{path}' is binary or in another encoding ({where}); "
                                "give a text file in UTF-8") from None
        return text, [f"'{path}' is not clean UTF-8: {where}; they are trained on as bytes"]
    return text, []


def _cut(
    text: bytes, start: bytes, include_start: bool, max_bytes: int | None
) -> tuple[list[tuple[int, int]], list[str]]:
    """(begin, end) in bytes of the sample after each occurrence of `start`, and warnings.

    Text before the first occurrence is dropped. A sample ends at the next one, or `max_bytes` after its begin where
    samples may overlap.
    """
    occurrences = [match.start() for match in re.finditer(re.escape(start), text)]
    warnings = []
    if not occurrences:
        shown = start.decode("utf-8", "replace")
        warnings.append(f"--sample-start {shown!r} does not occur: the whole text is one sample")
        occurrences = [0]
    skipped = 0 if include_start else len(start)   # also skipped where it was not found, as in the original
    pieces = []
    for occurrence, following in zip(occurrences, [*occurrences[1:], len(text)]):
        begin = min(occurrence + skipped, len(text))
        end = following if max_bytes is None else min(begin + max_bytes, len(text))
        while end < len(text) and text[end] & 0xC0 == 0x80:   # inside a UTF-8 sequence: on to its end
            end += 1
        pieces.append((begin, end))
    return pieces, warnings


def _size_warnings(size: np.ndarray, ctx: int) -> list[str]:
    warnings = []
    longer, shorter, empty = size[size > ctx], size[(size < ctx) & (size > 0)], size[size == 0]
    if longer.size:
        warnings.append(f"{longer.size} of {size.size} samples are longer than the context of {ctx} tokens and are cut "
                        f"(the longest has {longer.max()})")
    if shorter.size:
        warnings.append(f"{shorter.size} of {size.size} samples are shorter than the context of {ctx} tokens "
                        f"(the shortest has {shorter.min()})")
    if empty.size:
        warnings.append(f"{empty.size} of {size.size} samples are empty")
    return warnings


def samples_hash(name: str, begin: np.ndarray, size: np.ndarray) -> int:
    """64 bits by which a checkpoint knows its data again: name, number and geometry of the samples, not the text.

    hash(name) ^ hash(S) << 1 ^ (for each sample) hash(begin) << 1 ^ hash(size) << 1, with libstdc++'s hashes, where an
    integer's hash is the integer.
    """
    numbers = begin.size ^ int(np.bitwise_xor.reduce(begin)) ^ int(np.bitwise_xor.reduce(size))
    return string_hash(os.fsencode(name)) ^ (numbers << 1 & _MASK64)


_MASK64 = (1 << 64) - 1


def string_hash(data: bytes) -> int:
    """libstdc++'s `std::hash<std::string>` on 64-bit machines: MurmurHash64A (Appleby) with seed 0xc70f6907."""
    multiplier = 0xC6A4A7935BD1E995

    def mix(word: int) -> int:
        return (word ^ word >> 47) * multiplier & _MASK64

    h = 0xC70F6907 ^ len(data) * multiplier & _MASK64
    whole = len(data) & ~7
    for i in range(0, whole, 8):
        word = int.from_bytes(data[i:i + 8], "little") * multiplier & _MASK64
        h = (h ^ mix(word)) * multiplier & _MASK64
    if whole < len(data):
        h = (h ^ int.from_bytes(data[whole:], "little")) * multiplier & _MASK64
    h = mix(h)
    return h ^ h >> 47
