"""The id of a token by its text, in an eighth of the memory of a dict."""
from __future__ import annotations

from array import array

import numpy as np

from ..gguf.strings import Strings


class TokenIds:
    """A hash table with open addressing: of each slot the id of the token there, or -1; at most half are taken.

    Source: Knuth, The Art of Computer Programming, vol. 3, section 6.4, algorithm L (linear probing).
    """

    def __init__(self, tokens: Strings) -> None:
        self._bytes_of = tokens.bytes_of
        self._mask = (1 << (2 * len(tokens)).bit_length()) - 1
        hashes = np.fromiter((hash(tokens.bytes_of(token)) for token in range(len(tokens))), np.int64, len(tokens))
        self._slots = array("i", self._place(hashes).tobytes())
        self.twins = self._find_twins(hashes)
        """Two tokens of the same text, or None."""

    def get(self, text: str) -> int | None:
        """The id of the token with this text; None where there is none."""
        key = encode_text(text)
        place, slots = hash(key) & self._mask, self._slots
        while (token := slots[place]) >= 0:
            # Escaped bytes may make up a character when they stand together, but are not the same text.
            if self._bytes_of(token) == key and (key.isascii() or key.decode("utf-8", "surrogateescape") == text):
                return token
            place = (place + 1) & self._mask
        return None

    def __contains__(self, text: str) -> bool:
        return self.get(text) is not None

    def __getitem__(self, text: str) -> int:
        token = self.get(text)
        if token is None:
            raise KeyError(text)
        return token

    def _place(self, hashes: np.ndarray) -> np.ndarray:
        """The slots. All tokens go to their place at once; those that find it taken try the next one."""
        slots = np.full(self._mask + 1, -1, np.int32)
        tokens, places = np.arange(len(hashes), dtype=np.int32), hashes & self._mask
        while len(tokens):
            is_free = slots[places] < 0
            slots[places[is_free]] = tokens[is_free]
            lost = slots[places] != tokens
            tokens, places = tokens[lost], (places[lost] + 1) & self._mask
        return slots

    def _find_twins(self, hashes: np.ndarray) -> tuple[int, int] | None:
        order = np.argsort(hashes, kind="stable")
        alike = np.flatnonzero(hashes[order[1:]] == hashes[order[:-1]])
        pairs = ((int(order[i]), int(order[i + 1])) for i in alike)
        return min((pair for pair in pairs if self._bytes_of(pair[0]) == self._bytes_of(pair[1])),
                   default=None)


def encode_text(text: str) -> bytes:
    """A string's bytes. Bytes that were not UTF-8 when the string was read (surrogateescape) come back as they were."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:      # other lone surrogates, which JSON can hold
        return text.encode("utf-8", "surrogatepass")
