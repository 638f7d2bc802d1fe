"""Tokens to text as they come: no broken characters, and an end at stop strings."""
from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence

from . import Tokenizer


class TextStream:
    """Turns a sequence of tokens into pieces of text that can be shown at once.

    stop   texts before which the stream ends. What may be the beginning of one is held back until more is known

    A character whose bytes are split over tokens comes with the last of them. Control tokens have no text.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.tokenizer, self.stop = tokenizer, [text for text in stop if text]
        self.stopped = False
        """Whether a stop string has come."""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, token: int) -> str:
        """What can be shown now that this token has come; may be empty."""
        piece = b"" if self.tokenizer.is_control(token) else self.tokenizer.token_bytes(token)
        return self._show(self._decoder.decode(piece))

    def end(self) -> str:
        """What was held back, when no more tokens come."""
        if self.stopped:
            return ""
        shown = self._show(self._decoder.decode(b"", final=True))
        return shown if self.stopped else shown + self._held

    def _show(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        at = min((i for i in map(self._held.find, self.stop) if i >= 0), default=-1)
        if at >= 0:
            self.stopped = True
            end = at
        else:
            end = len(self._held) - max((overlap(self._held, stop) for stop in self.stop), default=0)
        shown, self._held = self._held[:end], self._held[end:]
        return shown


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`, but not all of it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def text_of(tokens: Iterable[int], stream: TextStream) -> Iterator[str]:
    """The pieces of text of tokens that come one after the other, until they or the stream end; none is empty."""
    for token in tokens:
        piece = stream.push(token)
        if piece:
            yield piece
        if stream.stopped:
            return
    piece = stream.end()
    if piece:
        yield piece
