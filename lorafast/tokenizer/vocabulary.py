"""The vocabulary in a GGUF's `tokenizer.ggml.*` keys: read, checked, and completed as llama.cpp does.

Sources: the GGUF specification, section "Tokenizer"; for defaults and for tokens recognised by their text, llama.cpp.
"""
from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np

from ..errors import FormatError
from ..gguf.strings import Strings
from .token_ids import TokenIds, encode_text

KEY = "tokenizer.ggml."


class TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Tokens that end a text or a turn. A model's converter often marks them as ordinary tokens, so their text decides: they
# are control tokens, and generation stops at them.
END_TEXTS = frozenset("""
    <|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|>
    <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response>
    <\uff5cend\u2581of\u2581sentence\uff5c> [e~[
""".split())

# Tokens for filling in the middle of a file, by the name of the key that may give their id. The last three end a text.
FIM_TEXTS = {
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <\uff5cfim\u2581begin\uff5c> <PRE> \u2581<PRE> "
               "<|code_prefix|> <|prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <\uff5cfim\u2581hole\uff5c> <SUF> \u2581<SUF> "
               "<|code_suffix|> <|suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <\uff5cfim\u2581end\uff5c> <MID> \u2581<MID> "
               "<|code_middle|> <|middle|>",
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}
FIM_ENDS = ("fim_pad", "fim_rep", "fim_sep")


@dataclass
class Vocabulary:
    """tokens[id] is a token's text as it stands in the file, types[id] its TokenType, ids the inverse of tokens."""

    tokens: Strings
    types: array[int]
    scores: array[float]
    ids: TokenIds
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    add_bos: bool
    add_eos: bool
    eog_ids: frozenset[int] = frozenset()
    warnings: list[str] = field(default_factory=list)
    _special: list[tuple[int, bytes, bool]] = field(default_factory=list)    # id, text, swallows the space after it

    @property
    def is_cut_by_line_ends(self) -> bool:
        """Whether a user-defined token goes on after a line end, so that cutting a text there could cut it."""
        return any(re.search(rb"\n[^\n]", text) for token, text, _ in self._special
                   if self.types[token] == TokenType.USER_DEFINED)

    @property
    def is_cut_by_spaces(self) -> bool:
        """Whether a user-defined token has a space inside."""
        return any(b" " in text for token, text, _ in self._special if self.types[token] == TokenType.USER_DEFINED)

    def special_fragments(self, text: bytes, parse_special: bool) -> Iterator[bytes | int]:
        """Cuts out the tokens that are matched as a whole, before any splitting: yields their ids and the text between.

        User-defined tokens always are, control and unknown tokens only with parse_special. The longest is looked for
        first, in the whole text.
        """
        fragments: list[bytes | int] = [text] if text else []
        for token, token_text, strips_right in self._special:
            if not parse_special and self.types[token] != TokenType.USER_DEFINED:
                continue
            if not any(token_text in fragment for fragment in fragments if isinstance(fragment, bytes)):
                continue
            parts: list[bytes | int] = []
            for fragment in fragments:
                if isinstance(fragment, int):
                    parts.append(fragment)
                    continue
                if strips_right:
                    first, *others = re.split(re.escape(token_text) + rb"\s*", fragment)
                else:
                    first, *others = fragment.split(token_text)
                parts.append(first)
                for other in others:
                    parts += token, other
            fragments = [part for part in parts if part != b""]
        yield from fragments


def read_vocabulary(
    metadata: Mapping[str, Any], *, add_bos: bool, bos: int | None, eos: int | None, unk: int | None,
) -> Vocabulary:
    """Reads tokens, types, scores and special tokens. The keyword arguments are the defaults of this kind of tokenizer.

    Raises FormatError naming the key that is missing or does not fit.
    """
    tokens = string_list(metadata, "tokens")
    if not tokens.lengths.all():
        tokens = Strings.of(tokens.bytes_of(token) or b"[EMPTY_%d]" % token for token in range(len(tokens)))
    ids = TokenIds(tokens)
    if ids.twins:
        one, other = ids.twins
        raise FormatError(f"{KEY}tokens: {tokens[one]!r} is there twice, as tokens {one} and {other}")
    types = _numbers(metadata, "token_type", len(tokens), array("i", [TokenType.NORMAL]))
    scores = _numbers(metadata, "scores", len(tokens), array("d", [0]))

    warnings: list[str] = []

    def special_id(name: str, default: int | None) -> int | None:
        if default is not None and default >= len(tokens):
            default = None
        value = metadata.get(f"{KEY}{name}_token_id", default)
        if value is not None and not isinstance(value, int):
            raise FormatError(f"{KEY}{name}_token_id is {value!r} and not the number of a token")
        if value is None or 0 <= value < len(tokens):
            return value
        warnings.append(f"{KEY}{name}_token_id is {value}, but there are {len(tokens)} tokens: using {default}")
        return default

    vocabulary = Vocabulary(
        tokens, types, scores, ids,
        bos_id=special_id("bos", bos), eos_id=special_id("eos", eos), unk_id=special_id("unknown", unk),
        add_bos=bool(metadata.get(f"{KEY}add_bos_token", add_bos)),
        add_eos=bool(metadata.get(f"{KEY}add_eos_token", False)),
        warnings=warnings,
    )
    for name, wanted, token in (("bos", vocabulary.add_bos, vocabulary.bos_id),
                                ("eos", vocabulary.add_eos, vocabulary.eos_id)):
        if wanted and token is None:
            raise FormatError(f"{KEY}add_{name}_token is true, but {KEY}{name}_token_id is missing")
    ends = (special_id("eot", None), special_id("eom", None), vocabulary.eos_id)
    marked = _mark_control_tokens(metadata, vocabulary)
    vocabulary.eog_ids = frozenset(marked | {end for end in ends if end is not None})
    vocabulary._special = _special_tokens(metadata, vocabulary)
    return vocabulary


def string_list(metadata: Mapping[str, Any], name: str) -> Strings:
    """The array of strings in `tokenizer.ggml.<name>`. Raises FormatError where it is missing or something else."""
    value = metadata.get(KEY + name)
    if value is None:
        raise FormatError(f"{KEY}{name} is missing: the model has no vocabulary that text could be tokenised with")
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        value = Strings.of(map(encode_text, value))
    if not isinstance(value, Strings) or not value:
        raise FormatError(f"{KEY}{name} is not an array of strings")
    return value


def _numbers(metadata: Mapping[str, Any], name: str, length: int, default: array) -> array:
    """The first `length` numbers of `tokenizer.ggml.<name>`, or as many times the default where it is missing."""
    value = metadata.get(KEY + name)
    if value is None:
        return default * length
    if isinstance(value, (str, int, float, Strings)) or (len(value) and isinstance(value[0], str)):
        raise FormatError(f"{KEY}{name} is not an array of numbers")
    if len(value) < length:
        raise FormatError(f"{KEY}{name} has {len(value)} values for {length} tokens")
    if isinstance(value, np.ndarray) and np.can_cast(value.dtype, default.typecode):
        return array(default.typecode, value[:length].astype(default.typecode).tobytes())
    number = float if default.typecode == "d" else int
    try:
        return array(default.typecode, map(number, value[:length]))
    except (TypeError, ValueError, OverflowError):
        raise FormatError(f"{KEY}{name} holds a number of the wrong kind") from None


def _mark_control_tokens(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> set[int]:
    """Gives control-looking tokens their type and returns the ids that end a text."""
    ends = {vocabulary.ids[text] for text in END_TEXTS if text in vocabulary.ids}
    control = set(ends)
    for name, texts in FIM_TEXTS.items():
        given = metadata.get(f"{KEY}{name}_token_id")
        found = {vocabulary.ids[text] for text in texts.split() if text in vocabulary.ids}
        if given is None:
            control |= found
        if name in FIM_ENDS:
            ends |= found if given is None else {given}
    for token in control:
        vocabulary.types[token] = TokenType.CONTROL
    return ends


def _special_tokens(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> list[tuple[int, bytes, bool]]:
    """The tokens that special_fragments looks for, the longest first."""
    # Phi-3's special tokens swallow the white space that follows them; no key of the file says so.
    name = str(metadata.get("general.name", "")).lower()
    swallow = "phi-3" in name or "phi3" in name
    special_types = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    special = []
    for token in (token for token, type_ in enumerate(vocabulary.types) if type_ in special_types):
        text = vocabulary.tokens[token]
        strips = swallow and text not in ("<unk>", "<s>", "<|endoftext|>")
        special.append((token, vocabulary.tokens.bytes_of(token), strips))
    return sorted(special, key=lambda entry: len(entry[1]), reverse=True)
