"""Text to token ids and back, from the keys `tokenizer.ggml.*` of a GGUF alone. The ids are those of llama.cpp.

Two kinds of tokenizer: SentencePiece (spm.py) and BPE on bytes or characters (bpe.py), which cuts text into words first
(pretokenizers.py). Both merge small pieces into larger ones (merge.py). What a file says about its tokens is read and
checked in vocabulary.py.
"""
from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping
from mmap import mmap
from numbers import Integral
from typing import Any, Protocol

import numpy as np

from ..errors import FormatError, LoraFastError
from .bpe import ByteLevelBPE, CharacterBPE
from .pretokenizers import PRE_TOKENIZERS
from .slices import slices
from .spm import SentencePieceModel
from .token_ids import encode_text
from .vocabulary import KEY, TokenType, Vocabulary, read_vocabulary, string_list

OTHER_MODELS = {
    "bert": "WordPiece", "t5": "unigram", "rwkv": "RWKV", "plamo2": "PLaMo 2",
    "hybriddna": "BPE and DNA", "whitespace": "whole words", "no_vocab": "no vocabulary", "none": "no vocabulary",
}


FRAGMENT_BYTES = 1 << 10
"""The least bytes of a part that `fragments` cuts."""


class HasMetadata(Protocol):
    @property
    def metadata(self) -> Mapping[str, Any]: ...


class Tokenizer:
    """A vocabulary and the rules for cutting text into its tokens.

    n_vocab, n_merges     sizes
    bos_id, eos_id, unk_id, linefeed_id    special tokens, None where the model has none
    eog_ids               the tokens at which generation stops
    add_bos, add_eos      whether encode(add_special=True) adds them
    vocab_type, pre       "SPM" or "BPE"; the name of the pre-tokenizer ("default" with SPM)
    max_token_length      bytes of the longest token's text
    warnings              lines for the user: what was odd in the file and how it was taken
    """

    def __init__(self, vocabulary: Vocabulary, model: SentencePieceModel | ByteLevelBPE, pre: str) -> None:
        self._vocabulary = vocabulary
        self._model = model
        self.pre = pre
        self.vocab_type = model.vocab_type
        self.n_vocab = len(vocabulary.tokens)
        self.n_merges = model.n_merges
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.unk_id = vocabulary.unk_id
        self.linefeed_id = model.linefeed_id
        self.add_bos = vocabulary.add_bos
        self.add_eos = vocabulary.add_eos
        self.eog_ids = vocabulary.eog_ids
        self.warnings = vocabulary.warnings
        self.max_token_length = int(vocabulary.tokens.lengths.max())

    def __repr__(self) -> str:
        return f"<lorafast Tokenizer {self.vocab_type}, n_vocab {self.n_vocab}, pre {self.pre}>"

    def marks_of_text(self) -> tuple[int, int]:
        """BOS and EOS around rows of text; where the model has only one of them, it stands for both.

        Raises LoraFastError where it has neither.
        """
        marks = [token for token in (self.bos_id, self.eos_id) if token is not None]
        if not marks:
            raise LoraFastError("the model has neither a BOS nor an EOS token, one of which rows of text begin with: "
                                "use records as data")
        return marks[0], marks[-1]

    def encode(self, text: str | bytes, *, add_special: bool = False, parse_special: bool = False) -> np.ndarray:
        """Returns the token ids of a text, int32 (n,).

        add_special:   add BOS and EOS as the model asks for
        parse_special: take the text of a control token (`</s>`) for that token; user-defined tokens always are
        Malformed UTF-8 gives byte tokens (SentencePiece) or U+FFFD (BPE). Memory beyond text and ids is small.
        """
        ids = array("i")
        if add_special and self.add_bos and self.bos_id is not None:
            ids.append(self.bos_id)
        if not isinstance(text, (str, bytes, bytearray, memoryview, mmap)):
            raise LoraFastError(f"text {text!r}: must be text or bytes")
        data = encode_text(text) if isinstance(text, str) else bytes(text)
        self._append(data, ids, parse_special=parse_special, after_special=True)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return np.asarray(ids, dtype=np.int32)

    def encode_slices(self, text: bytes | mmap) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the ids of encode(text), those of a part of it at a time: for a mapped file larger than memory.
        Before them, how many bytes of text they stand for.

        With a vocabulary whose tokens may reach across any line end (slices.py), that is the whole text at once.
        """
        can_slice = self._model.can_slice and not self._vocabulary.is_cut_by_line_ends
        at_spaces = self._model.can_slice_at_spaces and not self._vocabulary.is_cut_by_spaces
        after_special = True
        for part in slices(text, at_spaces=at_spaces) if can_slice else (text[:],):
            ids = array("i")
            after_special = self._append(part, ids, parse_special=False, after_special=after_special)
            yield len(part), np.asarray(ids, dtype=np.int32)

    def fragments(self, text: bytes) -> Iterator[tuple[bytes, np.ndarray, bool]]:
        """Yields the text in parts that tokens never join across, each with its ids as encode(text, parse_special=True)
        has them: special tokens, and the stretches between them, which are cut at line ends where they are long.

        The third says whether a part begins the text or follows a special token, see `encode_part`.
        """
        begin, can_slice, at_spaces = 0, self._model.can_slice, self._model.can_slice_at_spaces
        for fragment in self._vocabulary.special_fragments(text, parse_special=True):
            if isinstance(fragment, int):
                fragment_bytes = encode_text(self._vocabulary.tokens[fragment])
                end = text.index(fragment_bytes, begin) + len(fragment_bytes)       # a token may swallow space after it
                yield text[begin:end], np.array([fragment], np.int32), True
                begin = end
                continue
            begins = True
            for part in slices(fragment, FRAGMENT_BYTES, at_spaces) if can_slice else (fragment,):
                end = text.index(part, begin) + len(part)
                yield text[begin:end], self.encode_part(part, begins), begins
                begin, begins = end, False

    def encode_part(self, text: bytes, begins: bool) -> np.ndarray:
        """Ids of a text without special tokens, int32 (n,), that begins, or follows a special token, or does not."""
        ids = array("i")
        if text:
            self._model.encode(text, ids, after_special=begins)
        return np.asarray(ids, dtype=np.int32)

    def _append(self, text: bytes, ids: array[int], *, parse_special: bool, after_special: bool) -> bool:
        """Appends the ids of a text that begins, or not, after a special token; returns whether it ends with one."""
        for fragment in self._vocabulary.special_fragments(text, parse_special):
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                self._model.encode(fragment, ids, after_special=after_special)
            after_special = isinstance(fragment, int)
        return after_special

    def decode_bytes(self, ids: Iterable[int], *, skip_special: bool = True, continuation: bool = False) -> bytes:
        """The inverse of encode. ids: token ids, each in [0, n_vocab).

        skip_special: leave out control and unknown tokens instead of giving their text
        continuation: the ids follow others, so a space they begin with is one
        The space that encode puts before text that begins or follows a special token is taken away again. Unlike in
        llama.cpp's detokenize, no space before punctuation is dropped: the text comes back as it was.
        LoraFastError for what is no id.
        """
        out = bytearray()
        after_special = not continuation
        for token in ids:
            if not (isinstance(token, Integral) and 0 <= token < self.n_vocab):
                raise LoraFastError(f"token {token!r}: must be a whole number from 0 to {self.n_vocab - 1}")
            type_ = self._vocabulary.types[token]
            piece = self.token_bytes(token)
            if after_special and self._model.add_space_prefix and type_ == TokenType.NORMAL:
                piece = piece.removeprefix(b" ")
            if not (skip_special and type_ in (TokenType.CONTROL, TokenType.UNKNOWN)):
                out += piece
            after_special = type_ in SPECIAL_TYPES
        return bytes(out)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, continuation: bool = False) -> str:
        """The text of these ids, with U+FFFD for what is not UTF-8."""
        return self.decode_bytes(ids, skip_special=skip_special, continuation=continuation).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """What one token adds to a text; a special token its own text."""
        type_ = self._vocabulary.types[token]
        return encode_text(self.token_text(token)) if type_ in SPECIAL_TYPES else self._model.token_bytes(token)

    def token_text(self, token: int) -> str:
        """A token as the vocabulary writes it: `<0x0A>` or `Ċ` for a line end, `▁the` or `Ġthe` with a space."""
        return self._vocabulary.tokens[token]

    def is_control(self, token: int) -> bool:
        """Whether a token is a mark and not text, such as BOS or the end of a turn."""
        return self._vocabulary.types[token] == TokenType.CONTROL


SPECIAL_TYPES = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)


def load_tokenizer(gguf: HasMetadata) -> Tokenizer:
    """Makes the tokenizer of a model from its metadata.

    Raises FormatError, one line that names the key, where the vocabulary is missing, broken, or of another kind.
    """
    metadata = gguf.metadata
    model = metadata.get(KEY + "model")
    if model == "llama":
        return _sentence_piece(metadata)
    if model == "gpt2":
        return _bpe(metadata, str(metadata.get(f"{KEY}pre") or "default"), default_eos=11)
    if model == "gemma4":
        return _bpe(metadata, "gemma4", default_eos=None)
    if model is None:
        raise FormatError(f"{KEY}model is missing: the file has no tokenizer")
    kind = f" ({OTHER_MODELS[str(model)]})" if str(model) in OTHER_MODELS else ""
    raise FormatError(f"{KEY}model is {model!r}{kind}: not among those that lorafast knows, 'llama' "
                      "(SentencePiece), 'gpt2' (byte-level BPE) and 'gemma4' (BPE)")


def _sentence_piece(metadata: Mapping[str, Any]) -> Tokenizer:
    if KEY + "scores" not in metadata:
        raise FormatError(f"{KEY}scores is missing: without it a SentencePiece vocabulary can't be used")
    vocabulary = read_vocabulary(metadata, add_bos=True, bos=1, eos=2, unk=0)
    model = SentencePieceModel(vocabulary, add_space_prefix=bool(metadata.get(f"{KEY}add_space_prefix", True)))
    return Tokenizer(vocabulary, model, "default")


def _bpe(metadata: Mapping[str, Any], name: str, *, default_eos: int | None) -> Tokenizer:
    pre = PRE_TOKENIZERS.get(name)
    if pre is None:
        raise FormatError(f"{KEY}pre is {name!r}: lorafast does not know how this pre-tokenizer cuts text into words")
    if pre.must_add_bos:
        metadata = {**metadata, f"{KEY}add_bos_token": True}
    vocabulary = read_vocabulary(metadata, add_bos=pre.add_bos, eos=default_eos, unk=None,
                                 bos=None if default_eos is None else pre.default_bos)
    if name == "default" and not metadata.get(f"{KEY}pre"):
        vocabulary.warnings.append(
            f"{KEY}pre is missing: using 'default', which the model may not have been trained with")
    model = CharacterBPE if pre.characters else ByteLevelBPE
    return Tokenizer(vocabulary, model(vocabulary, string_list(metadata, "merges"), pre), name)
