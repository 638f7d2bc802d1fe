"""From a text file to samples: one array of token ids, and where in it each training sample begins and ends.

Two ways to cut a text, as in llama-finetune. Without a sample start a sample begins at every token (or, new, every
`stride` tokens) and is `ctx` long. With one, samples are the stretches of text after each occurrence of a given string
(`<s>`, a heading, ...), each tokenised by itself.
"""
from __future__ import annotations

import codecs
import mmap
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import LoraFastError
from ..system.live import Meter, Show, silent
from ..words import is_or_are
from .lengths import cut_to_context
from .samples import Samples
from .source import Source, unreadable
from .token_store import StoredTokens, TokenWriter, store_tokens

# Above this share of bytes that are not UTF-8 a file is taken for binary, or for text in another encoding. Random bytes
# reach 45 %; Western European text in Latin-1 stays below 10 %.
_MAX_INVALID_SHARE = 0.25

BYTES_PER_SAMPLE = 20
"""Bytes of memory for each sample while samples are shuffled: place, a random number with the index, order."""

_PIECE = 1 << 20    # bytes


class TextEncoder(Protocol):
    """What is needed of a tokenizer."""

    max_token_length: int   # bytes of the longest token's text
    bos_id: int | None
    eog_ids: frozenset[int]     # the tokens at which generation stops

    def encode(self, text: str | bytes, *, add_special: bool = False, parse_special: bool = False) -> np.ndarray: ...

    def token_text(self, token: int) -> str: ...

    def encode_slices(self, text: bytes | mmap.mmap) -> Iterator[tuple[int, np.ndarray]]: ...


def tokenize_text(
    sources: Sequence[Source],
    tokenizer: TextEncoder,
    ctx: int,
    *,
    stride: int = 1,
    sample_start: str = "",
    include_sample_start: bool = False,
    overlapping_samples: bool = False,
    cache: str = "",
    cache_key: str = "",
    progress: Show = silent,
) -> Samples:
    """Reads and tokenises UTF-8 text. No BOS or EOS is added; the names of special tokens in it are plain text.

    sources               files, each cut by itself; their names go into the samples' hash
    ctx                   tokens a sample should have
    stride                tokens from the beginning of one sample to that of the next, where there is no sample start
    sample_start          empty: samples begin every `stride` tokens. Else after each occurrence of this string
    include_sample_start  a sample begins with the string itself
    overlapping_samples   a sample goes on past the next occurrence, for enough bytes to fill the context
    cache, cache_key      see store_tokens
    progress              is shown how far it is

    Files and tokens are mapped, not loaded. LoraFastError when a file cannot be read, is empty, is binary, or holds
    less than one sample.
    """
    paths = [source.name for source in sources]
    max_bytes = ctx * tokenizer.max_token_length if overlapping_samples else None

    def fill(writer: TokenWriter) -> dict[str, Any]:
        warnings = []
        for source in sources:
            path = source.name
            text, text_warnings = _read_text(source)
            warnings += text_warnings if sample_start else [*text_warnings, *_spelt_out(path, text, tokenizer)]
            if not sample_start:
                _write_text(writer, path, text, tokenizer, progress)
                continue
            pieces, cut_warnings = _cut(text, os.fsencode(sample_start), include_sample_start, max_bytes)
            warnings += cut_warnings
            with Meter(f"tokenising {path}", sum(end - begin for begin, end in pieces), progress) as meter:
                for begin, end in pieces:
                    writer.write(tokenizer.encode(text[begin:end]))
                    writer.end_sample()
                    meter.advance(end - begin)
        return {"warnings": warnings}

    stored = store_tokens(fill, cache, cache_key)
    warnings = stored.facts["warnings"]
    if sample_start:
        size, begin = stored.size, np.cumsum(stored.size) - stored.size
        if not stored.tokens.size:
            raise LoraFastError(f"'{paths[0]}' has no text after --sample-start {sample_start!r}: "
                                "every sample is empty")
        warnings += _size_warnings(size, ctx)
    else:
        begin = np.concatenate([_windows(*text, ctx, stride) for text in _texts(stored, paths)])
        size = np.broadcast_to(np.int64(ctx), begin.shape)   # one number in memory
    return Samples(stored.tokens, begin, size, os.pathsep.join(paths), warnings)


def evaluation_text(sources: Sequence[Source], tokenizer: TextEncoder, ctx: int, progress: Show = silent) -> Samples:
    """All tokens of text files in samples of `ctx` that do not overlap; the last of a file may be shorter."""
    def fill(writer: TokenWriter) -> dict[str, Any]:
        for source in sources:
            _write_text(writer, source.name, _read_text(source)[0], tokenizer, progress)
        return {}

    stored = store_tokens(fill)
    ends = np.cumsum(stored.size)
    pieces = [np.arange(end - size, end, ctx) for end, size in zip(ends, stored.size)]
    size = np.concatenate([np.minimum(ctx, end - begin) for begin, end in zip(pieces, ends)])
    return Samples(stored.tokens, np.concatenate(pieces), size, os.pathsep.join(source.name for source in sources))


def _write_text(writer: TokenWriter, path: str, text: bytes | mmap.mmap, tokenizer: TextEncoder,
                progress: Show) -> None:
    """Writes all of a text's tokens as one sample."""
    with Meter(f"tokenising {path}", len(text), progress) as meter:
        for n_bytes, tokens in tokenizer.encode_slices(text):
            writer.write(tokens)
            meter.advance(n_bytes)
    writer.end_sample()


def hold_out_end(samples: Samples, share: float, ctx: int) -> tuple[Samples, Samples]:
    """Training samples and evaluation samples of a text: the last `share` of its tokens is only evaluated.

    Both are without overlap of each other; LoraFastError when nothing would be left of one of them.
    """
    n_tokens = samples.tokens.size
    cut = n_tokens - round(share * n_tokens)
    train = samples.subset(np.flatnonzero(samples.begin + samples.size <= cut))
    if not len(train) or cut == n_tokens:
        raise LoraFastError(f"'{samples.name}' is too short for --valid-split {share}: of {n_tokens} tokens, {cut} are "
                            f"left to train on, and a sample takes {ctx}")
    begin = np.arange(cut, n_tokens, ctx)
    return train, Samples(samples.tokens, begin, np.minimum(ctx, n_tokens - begin), samples.name)


def _texts(stored: StoredTokens, paths: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """Path, first token and number of tokens of each text."""
    return zip(paths, np.cumsum(stored.size) - stored.size, stored.size)


def _windows(path: str, first: int, n_tokens: int, ctx: int, stride: int) -> np.ndarray:
    """Where the samples of one text begin, int64."""
    if n_tokens < ctx:
        raise LoraFastError(f"'{path}' is too short: {n_tokens} tokens, and a sample takes {ctx}; "
                            f"give more text or a smaller --ctx (at most {n_tokens})")
    # With stride 1 the window that ends with the last token is left out, unless it is the only one: as llama-finetune.
    end = max(1, n_tokens - ctx + (stride > 1))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if end // stride * BYTES_PER_SAMPLE > memory:
        raise LoraFastError(f"'{path}' has {n_tokens} tokens, too many for this machine's memory if a sample begins at "
                            f"every {'token' if stride == 1 else f'{stride} tokens'}: give --stride {ctx}")
    return np.arange(first, first + end, stride, dtype=np.int64)


def _spelt_out(path: str, text: bytes | mmap.mmap, tokenizer: TextEncoder) -> list[str]:
    """A warning where special tokens are spelt out in a text: they stay text, other than in records."""
    special = sorted({token for token in (tokenizer.bos_id, *tokenizer.eog_ids) if token is not None})
    marks = [mark for mark in map(tokenizer.token_text, special) if len(mark) > 2 and text.find(mark.encode()) >= 0]
    return [f"'{path}' spells out {', '.join(marks)}: in a text file that is plain text, in records "
            '({"text": ...}) it would be a special token'] if marks else []


def _read_text(source: Source) -> tuple[bytes | mmap.mmap, list[str]]:
    """The bytes of a text file, mapped, and a warning where some of them are not UTF-8."""
    path = source.name
    try:
        with open(source.path, "rb") as file:
            is_mapped = os.path.isfile(source.path) and os.path.getsize(source.path)
            text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if is_mapped else file.read()
    except OSError as error:
        raise unreadable(path, error) from None
    if not text:
        raise LoraFastError(f"training data '{path}' is empty")
    zero = text.find(b"\0")
    if zero >= 0:
        utf16 = text[:2] in (b"\xff\xfe", b"\xfe\xff")
        hint = "it looks like UTF-16: convert it to UTF-8" if utf16 else "give a text file"
        raise LoraFastError(f"training data '{path}' is binary (a zero byte at offset {zero}); {hint}")
    first, invalid = _invalid_bytes(text)
    if not invalid:
        return text, []
    where = f"{invalid:,} of its {len(text):,} bytes {is_or_are(invalid)} not UTF-8, the first at offset {first}"
    if invalid > _MAX_INVALID_SHARE * len(text):
        raise LoraFastError(f"training data '{path}' is binary or in another encoding ({where}); "
                            "give a text file in UTF-8")
    return text, [f"'{path}' is not clean UTF-8: {where}; they are trained on as bytes"]


def _invalid_bytes(text: bytes | mmap.mmap) -> tuple[int, int]:
    """Offset of the first byte that is not part of valid UTF-8, and how many such bytes there are."""
    # surrogateescape turns each of them into a lone surrogate.
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    first, invalid, offset = 0, 0, 0
    for begin in range(0, len(text), _PIECE):
        decoded = decoder.decode(text[begin:begin + _PIECE], final=begin + _PIECE >= len(text))
        if not decoded.isascii() and (surrogates := [match.start() for match in _ESCAPED.finditer(decoded)]):
            if not invalid:
                first = offset + len(decoded[:surrogates[0]].encode())
            invalid += len(surrogates)
        offset += len(decoded.encode("utf-8", "surrogateescape"))
    return first, invalid


_ESCAPED = re.compile("[\udc80-\udcff]")


def _cut(
    text: bytes | mmap.mmap, start: bytes, include_start: bool, max_bytes: int | None
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
    skipped = 0 if include_start else len(start)   # also skipped where it was not found, as in llama-finetune
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
        warnings.append(cut_to_context(longer.size, size.size, ctx, longer.max()))
    if shorter.size:
        warnings.append(f"{shorter.size} of {size.size} samples {is_or_are(shorter.size)} shorter than the context of "
                        f"{ctx} tokens (the shortest has {shorter.min()})")
    if empty.size:
        warnings.append(f"{empty.size} of {size.size} samples {is_or_are(empty.size)} empty")
    return warnings
