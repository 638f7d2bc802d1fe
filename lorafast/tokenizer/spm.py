"""SentencePiece tokenizers (`tokenizer.ggml.model` = `llama`): characters merged by the scores of the tokens.

Sources: Kudo and Richardson 2018, "SentencePiece"; for malformed UTF-8 and for tokens that are not ordinary pieces,
llama.cpp, whose ids differ from the sentencepiece library's there.
"""
from __future__ import annotations

import re
from array import array
from itertools import chain

from ..errors import FormatError
from .cache import WordCache
from .merge import merge
from .slices import slices
from .token_ids import encode_text
from .vocabulary import KEY, TokenType, Vocabulary

SPACE = "\u2581"     # stands for a space inside tokens
SPACE_BYTES = SPACE.encode()

ONE_SYMBOL = re.compile(rb"[\xc0-\xdf].?|[\xe0-\xef].{0,2}|[\xf0-\xff].{0,3}|.", re.DOTALL)
"""A symbol: as many bytes as the first one announces, whatever the others are."""

RAW_BYTE = 0xdc00
"""Plus a byte: the symbol of a byte that belongs to no character. It occurs in no token."""


class SentencePieceModel:
    """Encodes text between special tokens, and says what bytes a token stands for."""

    vocab_type = "SPM"
    n_merges = 0

    def __init__(self, vocabulary: Vocabulary, *, add_space_prefix: bool) -> None:
        self.add_space_prefix = add_space_prefix
        self._vocabulary = vocabulary
        self._byte_ids = [self._byte_id(byte) for byte in range(256)]
        self.linefeed_id = self._byte_ids[ord("\n")]
        # Each merge makes a token, so where two characters stand together in no token, nothing merges across them and
        # the text may be cut: in the vocabularies known, before a space that follows something else, and after a line
        # end that something else follows.
        cut_at_spaces = not self._some_token_has(f"[^{SPACE}]{SPACE}", b"(?s)." + SPACE_BYTES)
        self._word = re.compile(f"{SPACE}*[^{SPACE}]+|{SPACE}+" if cut_at_spaces else "(?s).+")
        self.can_slice_at_spaces = cut_at_spaces
        self.can_slice = not self._some_token_has("\n[^\n]", b"\n[^\n]")
        self._word_ids = WordCache(self._encode_word)

    def encode(self, text: bytes, ids: array[int], *, after_special: bool) -> None:
        """Appends the text's token ids to ids. after_special: it begins the whole text or follows a special token."""
        if after_special and self.add_space_prefix:
            text = b" " + text
        for part in slices(text, at_spaces=self.can_slice_at_spaces) if self.can_slice else (text,):
            words = self._word.findall(to_symbols(part.replace(b" ", SPACE_BYTES)))
            ids.extend(chain.from_iterable(map(self._word_ids.__getitem__, words)))

    def token_bytes(self, token: int) -> bytes:
        """What an ordinary token or a byte token stands for; nothing for an unused one."""
        text = self._vocabulary.tokens[token]
        match self._vocabulary.types[token]:
            case TokenType.NORMAL:
                return encode_text(text.replace(SPACE, " "))
            case TokenType.BYTE:
                return byte_of_token(text)
            case _:
                return b""

    def _encode_word(self, word: str) -> tuple[int, ...]:
        token_ids = self._vocabulary.ids
        out: list[int] = []
        for piece in merge(word, self._rank):
            token = token_ids.get(piece)
            if token is not None:
                out.append(token)
            else:       # a single symbol that is no token: its bytes
                out += (self._byte_ids[byte] for byte in symbol_bytes(piece))
        return tuple(out)

    def _rank(self, left: str, right: str) -> float | None:
        token = self._vocabulary.ids.get(left + right)
        return None if token is None else -self._vocabulary.scores[token]

    def _byte_id(self, byte: int) -> int:
        for text in (f"<0x{byte:02X}>", chr(byte) if byte < 0x80 else ""):
            if text in self._vocabulary.ids:
                return self._vocabulary.ids[text]
        if self._vocabulary.unk_id is None:
            raise FormatError(f"{KEY}tokens has neither a token <0x{byte:02X}> nor an unknown token for such a byte")
        return self._vocabulary.unk_id

    def _some_token_has(self, pattern: str, of_bytes: bytes) -> bool:
        """Whether merging can make a token in which the pattern occurs. of_bytes: a pattern that then occurs in the
        token's bytes."""
        found, maybe, tokens = re.compile(pattern).search, re.compile(of_bytes).search, self._vocabulary.tokens
        candidates = (tokens[i] for i in range(len(tokens)) if maybe(tokens.bytes_of(i)))
        return any(found(text) and self._is_mergeable(text) for text in candidates)

    def _is_mergeable(self, text: str) -> bool:
        """Whether single symbols can be merged into text: special tokens (`<|end of text|>`) usually can't."""
        if len(text) == 1:
            return True
        return text in self._vocabulary.ids and any(
            self._is_mergeable(text[:cut]) and self._is_mergeable(text[cut:]) for cut in range(1, len(text)))


def to_symbols(text: bytes) -> str:
    """The symbols that merging starts from, one a character: characters, and RAW_BYTE + byte where there is none."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "".join(map(_to_symbol, ONE_SYMBOL.findall(text)))


def _to_symbol(sequence: bytes) -> str:
    try:
        return sequence.decode()
    except UnicodeDecodeError:
        return "".join(chr(RAW_BYTE + byte) for byte in sequence)


def symbol_bytes(symbol: str) -> bytes:
    """The inverse of to_symbols for one symbol."""
    code = ord(symbol)
    return bytes([code - RAW_BYTE]) if RAW_BYTE <= code < RAW_BYTE + 256 else symbol.encode()


def byte_of_token(text: str) -> bytes:
    """`<0x0A>` -> b"\\n". An unreadable byte token stands for nothing."""
    match = re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", text)
    return bytes.fromhex(match[1]) if match else b""
