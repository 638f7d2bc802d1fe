"""Shows training data as the trainer sees it: how much there is, how long its samples are, and single samples, token by
token, with what counts in the loss.

On a terminal, colours tell the tokens apart: greens count in the loss, greys are only read, two shades in turn.
Elsewhere what counts stands in ⟦ ⟧, and · separates tokens.
"""
from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TextIO

import numpy as np

from ..data.open import Data, DataOptions, open_data
from ..data.preferences import Preferences
from ..data.samples import Row, Samples, Sequences, plain, targets_of
from ..gguf.reader import open_model
from ..options.assignments import assignments, json_assignments
from ..options.tools import InspectOptions
from ..system.live import show_live
from ..tokenizer import Tokenizer, load_tokenizer
from ..words import count

COUNTED, READ = ("\x1b[32m", "\x1b[92m"), ("\x1b[90m", "\x1b[37m")
RESET = "\x1b[0m"
N_BARS = 12
LINE_END = "↵\n"


def show_data(options: InspectOptions, out: TextIO) -> None:
    """Shows the data that the options name, as the model that they name reads it."""
    gguf = open_model(options.model_base)
    tokenizer = load_tokenizer(gguf)
    for warning in tokenizer.warnings:
        print(f"warning: {warning}", file=out)
    data = open_data(DataOptions(
        (options.file,), data_format=options.data_format, chat_template=options.chat_template,
        train_on_prompt=options.train_on_prompt, skip_bad=options.skip_bad, stride=options.stride,
        sample_start=options.start_text, include_sample_start=options.include_sample_start,
        overlapping_samples=options.overlapping_samples, fields=assignments(options.field), raw_pairs=options.raw_pairs,
        template_args=json_assignments(options.template_arg), method=options.method),
        tokenizer, gguf.metadata, options.ctx, show_live)
    inspect_data(data, tokenizer, out, ctx=options.ctx, batch=options.batch,
                 numbers=list(map(int, options.samples.split(","))), width=min(120, shutil.get_terminal_size().columns))


def inspect_data(data: Data, tokenizer: Tokenizer, out: TextIO, *, ctx: int, batch: int,
                 numbers: Sequence[int] = (1, 2, 3), width: int = 80, colour: bool | None = None) -> None:
    """Writes what was recognised, statistics, and the training samples of these numbers (from 1; others are ignored).

    ctx, batch   as the trainer will have them
    width        columns
    colour       None: if `out` is a terminal
    """
    colour = out.isatty() if colour is None else colour
    lines = [*data.notes, *(f"warning: {warning}" for warning in (*data.warnings, *data.train.warnings)), ""]
    for name, samples in (("train", data.train), ("valid", data.valid), ("test", data.test)):
        if samples is not None:
            lines += summary(name, samples)
    lines += ["", *batches(data.train, ctx, batch), "", *histogram(data.train, width)]
    for number in numbers:
        if 1 <= number <= len(data.train):
            lines += ["", *show_sample(data.train, number - 1, tokenizer, width, colour)]
    for line in lines:
        print(line, file=out)


def summary(name: str, samples: Samples) -> list[str]:
    """How many samples and tokens, and how many of these count."""
    n_tokens, n_counted = samples.tokens.size, samples.tokens.size
    what = "tokens of text, all of which count in the loss"
    if isinstance(samples, Sequences):
        rows = [row.stored for i in range(len(samples)) for row in shown_rows(samples, i)]
        n_tokens = sum(map(len, rows))
        n_counted = sum(int((targets_of(stored[1:]) >= 0).sum()) for stored in rows)
        what = f"tokens, of which {n_counted:,} ({n_counted / n_tokens:.0%}) count in the loss"
    return [f"{name}: {count(len(samples), 'sample')}, {n_tokens:,} {what}"]


def batches(samples: Samples, ctx: int, batch: int) -> list[str]:
    """What an epoch is."""
    n_rows = samples.n_inputs if isinstance(samples, Sequences) else samples.size
    n_batches = -(-len(samples) // batch)
    tokens = n_rows.sum() / n_batches if n_batches == 1 else n_rows.mean() * batch
    lines = [f"an epoch: {count(n_batches, 'batch', 'batches')} of {count(min(batch, len(samples)), 'sample')}, "
             f"{tokens:,.0f} tokens{' each' * (n_batches > 1)}"]
    if isinstance(samples, Sequences):
        budget = batch * ctx
        n_packed = -(-int(n_rows.sum()) // budget)
        lines.append(f"with --pack: about {count(n_packed, 'batch', 'batches')} of up to {budget:,} tokens "
                     f"(--batch {batch} x --ctx {ctx})")
    return lines


def histogram(samples: Samples, width: int) -> list[str]:
    """The lengths of the samples: in figures, and as bars."""
    size = np.asarray(samples.size)
    low, median, high, most = np.percentile(size, [0, 50, 95, 100]).astype(int)
    lines = [f"tokens in a sample: minimum {low}, median {median}, 95 % at most {high}, maximum {most}"]
    if low == most:
        return lines
    step = -(-(most - low + 1) // N_BARS)
    counts = np.bincount((size - low) // step)
    label_width = len(f"{most:,}")
    for i, n in enumerate(counts):
        first, last = low + i * step, min(low + (i + 1) * step - 1, most)
        label = f"  {first:>{label_width},}" + (f" to {last:>{label_width},} " if step > 1 else " ")
        room = width - len(label) - len(f" {counts.max():,}")
        lines.append(f"{label}{'█' * -(-int(n) * room // int(counts.max()))} {n:,}")
    return lines


def shown_rows(samples: Sequences, number: int) -> list[Row]:
    """The sequences of a sample: one, or a better and a worse one. What KTO sets beside a judged one is not shown."""
    rows = samples.rows(number)
    return [row for row in rows if row.label] if isinstance(samples, Preferences) else rows


def show_sample(samples: Samples, number: int, tokenizer: Tokenizer, width: int, colour: bool) -> list[str]:
    """One sample: where it comes from, and its tokens."""
    title = f"sample {number + 1:,} of {len(samples):,}"
    if isinstance(samples, Sequences):
        title += f" ({samples.sources[samples.source[number]]}:{samples.line[number]}"
        return [line for row in shown_rows(samples, number)
                for line in show_row(title + said_of(row), row.stored, tokenizer, width, colour)]
    begin = samples.begin[number]
    tokens = samples.tokens[begin:begin + samples.size[number]]
    return show_row(f"{title} ({samples.name}, from token {begin:,})", tokens, tokenizer, width, colour, whole=True)


def said_of(row: Row) -> str:
    """What a record says of a sequence, beside its text."""
    said = {0: "", 1: ", preferred", -1: ", not preferred"}[row.label]
    if row.weights is not None:
        factors = np.unique(row.weights[1:][targets_of(row.stored[1:]) >= 0])
        said += f", times {', '.join(f'{factor:g}' for factor in factors)}" if any(factors != 1) else ""
    return said + ")"


def show_row(title: str, stored: np.ndarray, tokenizer: Tokenizer, width: int, colour: bool, *,
             whole: bool = False) -> list[str]:
    """A sequence and how much of it counts. whole: it is a text, of which all does."""
    tokens, counts = plain(stored), targets_of(stored) >= 0
    if not whole:
        counts[0] = False                                   # nothing predicts the first token
    title += f": {len(tokens):,} tokens, {counts.sum():,} count"
    texts = [token_text(tokenizer, int(token)) for token in tokens]
    return [title, *wrapped(coloured(texts, counts) if colour else marked(texts, counts), width)]


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """What a token stands for, fit to be shown: half characters and control characters as \\xHH, line ends as ↵."""
    shown = tokenizer.token_bytes(token).decode("utf-8", "backslashreplace")
    return "".join(LINE_END if character == "\n" else character if character.isprintable()
                   else character.encode("unicode_escape").decode() for character in shown)


def marked(texts: Sequence[str], counts: np.ndarray) -> Iterator[tuple[str, str]]:
    """(visible text, text to write) of each token, with marks."""
    for i, text in enumerate(texts):
        goes_on = i > 0 and counts[i] == counts[i - 1]
        before = "·" if goes_on and not texts[i - 1].endswith("\n") else "⟦" if counts[i] and not goes_on else ""
        body, line_end = text.removesuffix("\n"), text[len(text.removesuffix("\n")):]
        after = "⟧" if counts[i] and (i + 1 == len(texts) or not counts[i + 1]) else ""
        yield (before + body + after + line_end,) * 2


def coloured(texts: Sequence[str], counts: np.ndarray) -> Iterator[tuple[str, str]]:
    """(visible text, text to write) of each token, with colours."""
    for i, text in enumerate(texts):
        colour = (COUNTED if counts[i] else READ)[i % 2]
        yield text, "".join(f"{colour}{part}{RESET}" if part != "\n" else part for part in text.partition("\n") if part)


def wrapped(pieces: Iterator[tuple[str, str]], width: int) -> Iterator[str]:
    """Lines of at most `width` columns, broken between tokens and at the line ends in them."""
    line, used = "", 0
    for visible, text in pieces:
        columns = n_columns(visible.replace("\n", ""))
        if used + columns > width and line:
            yield line
            line, used = "", 0
        *full, rest = text.split("\n")
        for part in full:
            yield line + part
            line, used = "", 0
        line, used = line + rest, used + (n_columns(visible.rpartition("\n")[2]) if full else columns)
    if line:
        yield line


def n_columns(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)
