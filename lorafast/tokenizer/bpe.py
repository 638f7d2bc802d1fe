"""BPE tokenizers (`tokenizer.ggml.model` = `gpt2` or `gemma4`): words of bytes or characters, merged by a list.

Sources: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2; for malformed UTF-8
and for bytes that are no token, llama.cpp.
"""
from __future__ import annotations

import re
from array import array
from itertools import chain

from ..errors import FormatError
from ..gguf.strings import Strings
from .cache import WordCache
from .merge import merge
from .pretokenizers import PreTokenizer, Splitter
from .slices import slices
from .spm import SPACE, SPACE_BYTES, byte_of_token
from .token_ids import encode_text
from .vocabulary import KEY, TokenType, Vocabulary


def _byte_characters() -> str:
    """The characters that stand for bytes 0 to 255 in tokens: the printable ones of Latin-1 for themselves, U+0100 and
    on for the others, so that tokens hold no spaces or controls."""
    printable = [*range(0x21, 0x7f), *range(0xa1, 0xad), *range(0xae, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return "".join(chr(byte) if byte in printable else chr(0x100 + others.index(byte)) for byte in range(256))


BYTE_CHARACTERS = _byte_characters()
CHARACTER_BYTES = {ord(character): bytes([byte]) for byte, character in enumerate(BYTE_CHARACTERS)}

ONE_CHARACTER = re.compile(
    rb"[\x00-\x7f]+|[\xc0-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf7][\x80-\xbf]{3}|.", re.DOTALL)
"""UTF-8 by its form alone: surrogates and needlessly long sequences included, each other byte by itself."""

_WORD_AND_SPACE = re.compile(f"[A-Za-z][ {BYTE_CHARACTERS[ord(' ')]}]")
"""A piece that reaches from a word over the space after it."""


class ByteLevelBPE:
    """Encodes text between special tokens, and says what bytes a token stands for."""

    vocab_type = "BPE"
    add_space_prefix = False

    def __init__(self, vocabulary: Vocabulary, merges: Strings, pre: PreTokenizer) -> None:
        self._vocabulary = vocabulary
        self._ranks: dict[tuple[str, str], int] = {}
        for rank, text in enumerate(merges):
            cut = text.find(" ", 1)     # the left part is never empty, and may itself begin with a space
            if cut < 0:
                raise FormatError(f"{KEY}merges[{rank}] is {text!r}: two parts with a space between them are expected")
            self._ranks.setdefault((text[:cut], text[cut + 1:]), rank)
        self.n_merges = len(self._ranks)
        self.can_slice = pre.can_slice
        self.can_slice_at_spaces = pre.can_slice and not any(
            _WORD_AND_SPACE.search(left + right) for left, right in self._ranks)
        self._ignore_merges = pre.ignore_merges
        self._splitter = Splitter(pre)
        self._word_ids = WordCache(self._encode_word)
        linefeed = self._encode_word("\n")
        self.linefeed_id = linefeed[0] if linefeed else None

    def encode(self, text: bytes, ids: array[int], *, after_special: bool) -> None:
        """Appends the text's token ids to ids. after_special: has no effect in this kind of tokenizer."""
        for part in slices(text, at_spaces=self.can_slice_at_spaces) if self.can_slice else (text,):
            words = self._splitter.split(to_characters(part))
            ids.extend(chain.from_iterable(map(self._word_ids.__getitem__, words)))

    def token_bytes(self, token: int) -> bytes:
        """What an ordinary token or a byte token stands for; nothing for an unused one."""
        text = self._vocabulary.tokens[token]
        match self._vocabulary.types[token]:
            case TokenType.NORMAL:      # a character that stands for no byte can only come from an odd added token
                return b"".join(CHARACTER_BYTES.get(ord(character)) or encode_text(character) for character in text)
            case TokenType.BYTE:
                return byte_of_token(text)
            case _:
                return b""

    def _encode_word(self, word: str) -> tuple[int, ...]:
        token_ids = self._vocabulary.ids
        text = word.encode("utf-8", "surrogatepass").decode("latin-1").translate(BYTE_CHARACTERS)
        if self._ignore_merges and text in token_ids:
            return (token_ids[text],)
        out: list[int] = []
        for piece in merge(text, lambda left, right: self._ranks.get((left, right))):
            if piece in token_ids:
                out.append(token_ids[piece])
            else:       # bytes that are no token of their own are lost: such a vocabulary can't express them
                out += (token_ids[character] for character in piece if character.isascii() and character in token_ids)
        return tuple(out)


class CharacterBPE(ByteLevelBPE):
    """BPE on the text's own characters, with a mark for the space and byte tokens, as SentencePiece has: Gemma 4's."""

    def __init__(self, vocabulary: Vocabulary, merges: Strings, pre: PreTokenizer) -> None:
        self._whole_line_ends = pre.whole_line_ends
        super().__init__(vocabulary, merges, pre)

    def encode(self, text: bytes, ids: array[int], *, after_special: bool) -> None:
        super().encode(text.replace(b" ", SPACE_BYTES), ids, after_special=after_special)

    def token_bytes(self, token: int) -> bytes:
        text = self._vocabulary.tokens[token]
        if self._vocabulary.types[token] == TokenType.NORMAL:
            return encode_text(text.replace(SPACE, " "))
        return super().token_bytes(token)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        token_ids = self._vocabulary.ids
        if self._whole_line_ends and word in token_ids and not word.strip("\n"):
            return (token_ids[word],)
        out: list[int] = []
        for piece in merge(word, lambda left, right: self._ranks.get((left, right))):
            if piece in token_ids:
                out.append(token_ids[piece])
            else:
                names = (f"<0x{byte:02X}>" for byte in piece.encode("utf-8", "surrogatepass"))
                out += (token_ids[name] for name in names if name in token_ids)
        return tuple(out)


def to_characters(text: bytes) -> str:
    """The text's characters, and U+FFFD for each byte that belongs to none: the vocabulary is one of characters."""
    try:
        return text.decode()
    except UnicodeDecodeError:
        return "".join(map(_to_character, ONE_CHARACTER.findall(text)))


def _to_character(sequence: bytes) -> str:
    first, *rest = sequence
    if first < 0x80:
        return sequence.decode("ascii")
    if not rest:
        return "\ufffd"
    code = first & 0x3f >> len(rest)
    for byte in rest:
        code = code << 6 | byte & 0x3f
    return chr(code) if code < 0x110000 else "\ufffd"
