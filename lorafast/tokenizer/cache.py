"""Remembers the token ids of words: a text has far fewer different words than words."""
from __future__ import annotations

from collections.abc import Callable

MAX_WORDS = 1 << 16      # about 15 MB
MAX_LENGTH = 64          # longer ones rarely come again


class WordCache(dict[str, tuple[int, ...]]):
    """word -> token ids; a word that is not there is encoded."""

    def __init__(self, encode_word: Callable[[str], tuple[int, ...]]) -> None:
        super().__init__()
        self._encode_word = encode_word

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = self._encode_word(word)
        if len(word) <= MAX_LENGTH:
            if len(self) >= MAX_WORDS:
                self.clear()
            self[word] = ids
        return ids
