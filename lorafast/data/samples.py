"""Training data: one array of token ids, often mapped from disk, and where in it each sample begins and ends."""
from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from . import token_store

_PIECE = 1 << 16   # tokens

S = TypeVar("S", bound="Samples")


@dataclass(frozen=True)
class Identity:
    """What data is recognised by, under whatever name; fields are empty where they are not known.

    tokens   16 hexadecimal digits of all tokens, which follow from the files, the tokenizer and the template, and of
             their weights
    cuts     `samples_hash` of where samples begin and end, without a name
    """

    tokens: str = ""
    cuts: int = 0


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
    def identity(self) -> Identity:
        """Reads the arrays piece by piece."""
        digest = hashlib.blake2b(digest_size=8)
        for array in self.contents():
            for begin in range(0, array.size, _PIECE):
                digest.update(np.ascontiguousarray(array[begin:begin + _PIECE]).data)
        self.let_go()
        return Identity(digest.hexdigest(), samples_hash("", self.begin, self.size))

    def contents(self) -> tuple[np.ndarray, ...]:
        """What is trained on, without how it is cut."""
        return (self.tokens,)

    @property
    def n_unique_tokens(self) -> int:
        """How many different tokens occur. Reads the array piece by piece."""
        unique = np.zeros(0, np.int32)
        for begin in range(0, self.tokens.size, _PIECE):
            unique = np.union1d(unique, plain(self.tokens[begin:begin + _PIECE]))
        self.let_go()
        return len(unique)

    def let_go(self) -> None:
        """Takes the tokens out of this process's memory, where they are mapped. They come back when they are read."""
        token_store.let_go(self.tokens)

    def subset(self: S, index: np.ndarray) -> S:
        """Only the samples of these numbers."""
        return replace(self, begin=self.begin[index], size=self.size[index])


@dataclass(frozen=True)
class TokenWeights:
    """Factors of the losses of tokens: from token begin[i] on it is weight[i], before the first 1.

    begin   int64 (R,), ascending
    weight  float32 (R,)
    """

    begin: np.ndarray
    weight: np.ndarray

    def of(self, begin: int, size: int) -> np.ndarray:
        """The factors of `size` tokens from token `begin` on, float32 (size,)."""
        run = np.searchsorted(self.begin, np.arange(begin, begin + size), side="right") - 1
        return np.where(run >= 0, self.weight[run], np.float32(1))


@dataclass(frozen=True)
class Row:
    """A sequence as it is stored, int32 (n,), and the factors of its tokens' losses, float32 (n,); None: all 1.

    label          of preferences: 1 of an answer that is preferred or good, -1 of one that is not
    reference      log-probability of its answer under the reference
    learns_prompt  the tokens that are stored as not counting do so, too
    shared         its first tokens that are also those of the row before it, with which they are computed
    """

    stored: np.ndarray
    weights: np.ndarray | None = None
    label: int = 0
    reference: float = 0.0
    learns_prompt: bool = False
    shared: int = 0


@dataclass(frozen=True)
class Sequences(Samples):
    """Samples that are whole sequences, of which some tokens may be there only to be read.

    A token that does not count in the loss is stored as its complement, ~token. The first one of a sequence is only
    input.

    line     int64 (S,), line of its source that each sample comes from
    source   int64 (S,), number of that source in `sources`
    weights  None: every token that counts does so alike
    """

    line: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    source: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    sources: tuple[str, ...] = ()
    weights: TokenWeights | None = None

    @property
    def n_inputs(self) -> np.ndarray:
        """Tokens that each sample is computed with, int64 (S,)."""
        return self.size - 1

    @property
    def n_shared(self) -> np.ndarray:
        """Those of them that one row of a sample has of another, and that take no time or memory, int64 (S,)."""
        return np.zeros_like(self.size)

    def subset(self, index: np.ndarray) -> Sequences:
        return replace(self, begin=self.begin[index], size=self.size[index], line=self.line[index],
                       source=self.source[index])

    def contents(self) -> tuple[np.ndarray, ...]:
        return (self.tokens, self.weights.begin, self.weights.weight) if self.weights else (self.tokens,)

    def stored(self, sample: int) -> np.ndarray:
        """One sample as it is stored, int32 (size,)."""
        return self.tokens[self.begin[sample]:self.begin[sample] + self.size[sample]]

    def row(self, sample: int) -> Row:
        """One sample, with its weights."""
        begin, size = int(self.begin[sample]), int(self.size[sample])
        return Row(self.stored(sample), self.weights.of(begin, size) if self.weights else None)

    def rows(self, sample: int) -> list[Row]:
        """What a batch holds of one sample."""
        return [self.row(sample)]


def plain(stored: np.ndarray) -> np.ndarray:
    """Token ids, whether they count in the loss or not."""
    return np.maximum(stored, ~stored)


def targets_of(stored: np.ndarray) -> np.ndarray:
    """Token ids, -1 for those that do not count."""
    return np.maximum(stored, -1)


def samples_hash(name: str, begin: np.ndarray, size: np.ndarray) -> int:
    """64 bits by which llama-finetune's checkpoints know their data again: name, number and geometry of the samples.

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
