"""A text with its tokens, and where in them a part of the text ends. Finding that encodes no more than the part
around that place: see Tokenizer.fragments."""
from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate

import numpy as np

from .tokens import SpecialTokens, n_common


class Rendered:
    """Text in which special tokens are spelt out. tokens: int32 (T,), with BOS if `add_bos` and the text has none."""

    def __init__(self, text: str, tokenizer: SpecialTokens, *, add_bos: bool = False) -> None:
        self.text, self._tokenizer = text, tokenizer
        self._parts = list(tokenizer.fragments(encode(text)))
        ids = [tokens for _, tokens, _ in self._parts]
        lacks_bos = add_bos and (not ids or not len(ids[0]) or ids[0][0] != tokenizer.bos_id)
        bos = np.array([tokenizer.bos_id] if lacks_bos else [], np.int32)
        self.tokens = np.concatenate([bos, *ids])
        self._bytes = [0, *accumulate(len(part) for part, _, _ in self._parts)]
        self._tokens = list(accumulate(map(len, ids), initial=len(bos)))

    def index(self, n_characters: int) -> int:
        """Where in the tokens the first `n_characters` end. A token that reaches over belongs to what follows."""
        return self._index(n_characters)[0]

    def is_border(self, n_characters: int) -> bool:
        """Whether the first `n_characters` by themselves are tokenised as they are within the text."""
        return self._index(n_characters)[1]

    def _index(self, n_characters: int) -> tuple[int, bool]:
        n_bytes = len(encode(self.text[:n_characters]))
        i = bisect_right(self._bytes, n_bytes) - 1
        if n_bytes == self._bytes[i]:
            return self._tokens[i], True
        (part, tokens, begins), within = self._parts[i], n_bytes - self._bytes[i]
        prefix = self._tokenizer.encode_part(part[:within], begins)
        rest = self._tokenizer.encode_part(part[within:], True)
        at = prefix_end(prefix, tokens, rest)
        return self._tokens[i] + at, at == len(prefix)


def encode(text: str) -> bytes:
    """UTF-8, with the lone surrogates that JSON can hold."""
    return text.encode("utf-8", "surrogatepass")


def prefix_end(prefix: np.ndarray, whole: np.ndarray, rest: np.ndarray) -> int:
    """Where in the tokens of a whole text, of which the tokens of both parts are given, the first part ends.

    Tokens can join over the border. If the whole does not begin with the first part's tokens, it may still end with the
    second part's; else the tokens that neither has belong to the second part.
    """
    n = n_common(prefix, whole)
    if n < len(prefix) and np.array_equal(whole[len(whole) - len(rest):], rest):
        return len(whole) - len(rest)
    return n


def common_prefix(a: str, b: str) -> int:
    """Number of characters with which both texts begin."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
