"""A text with its tokens, and where in them a part of the text ends. Finding that encodes no more than the part
around that place: see Tokenizer.fragments."""
from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from .tokens import SpecialTokens, n_common


class Rendered:
    """Text in which special tokens are spelt out. tokens: int32 (T,), with BOS if `add_bos` and the text has none."""

    def __init__(self, text: str, tokenizer: SpecialTokens, *, add_bos: bool = False) -> None:
        self.text, self._tokenizer = text, tokenizer
        self._parts: list[tuple[bytes, bool]] = []      # a text may be long: its ids are here once only, in `tokens`
        ids, self._bytes, self._tokens = array("i"), [0], [0]
        for part, part_ids, begins in tokenizer.fragments(encode(text)):
            if not self._parts:
                self._begin(ids, part_ids, add_bos)
            ids.frombytes(part_ids.tobytes())
            self._parts.append((part, begins))
            self._bytes.append(self._bytes[-1] + len(part))
            self._tokens.append(len(ids))
        if not self._parts:
            self._begin(ids, ids, add_bos)
        self.tokens = np.asarray(ids, dtype=np.int32)

    def _begin(self, ids: array[int], first: Sequence[int] | np.ndarray, add_bos: bool) -> None:
        """Puts BOS before the first ids, where it is wanted and they do not begin with it."""
        bos_id = self._tokenizer.bos_id
        if add_bos and bos_id is not None and not (len(first) and first[0] == bos_id):
            ids.append(bos_id)
            self._tokens[0] = 1

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
        (part, begins), within = self._parts[i], n_bytes - self._bytes[i]
        tokens = self.tokens[self._tokens[i]:self._tokens[i + 1]]
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
