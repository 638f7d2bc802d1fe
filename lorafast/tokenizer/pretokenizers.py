r"""How byte-level BPE cuts text into words before merging: a list of regular expressions for each name that
`tokenizer.ggml.pre` can have, each applied inside the pieces that the ones before it left.

The rules are those of llama.cpp, because its token ids are the ones a model in GGUF meets in use. Where it differs from
a model's own tokenizer.json, we differ with it:

- It matches a *collapsed* text when an expression names a Unicode class (\p{L}, ...): each character beyond ASCII is
  replaced by one mark for its class, so the expression needs no Unicode tables. Upper and lower case are known for
  ASCII only; a letter beyond it counts as either.
- Other expressions match the text itself. In both, white space beyond ASCII counts as a vertical tab, and \s, \d and \b
  are those of ASCII.
"""
from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from .unicode_classes import class_table

MARKS = {"L": "\xd2", "M": "\xd4", "N": "\xd1", "P": "\xd3", "S": "\xd5", "W": "\v", "C": "\xd0"}
"""What stands in the collapsed text for a character beyond ASCII of each class."""

CLASSES = {
    r"\p{L}": "A-Za-z" + MARKS["L"],
    r"\p{Lu}": "A-Z" + MARKS["L"],
    r"\p{Ll}": "a-z" + MARKS["L"],
    r"\p{M}": MARKS["M"],
    r"\p{N}": "0-9" + MARKS["N"],
    r"\p{P}": r"!-#%-*,-/:;?@\[-\]_{}" + MARKS["P"],
    r"\p{S}": r"$+<=>\^`|~" + MARKS["S"],
}
"""These classes as they stand inside [...] of an expression on the collapsed text."""

HAN_MARK = "\xd6"
CLASSES[r"\p{Han}"] = HAN_MARK
HAN_RANGES = ((0x3400, 0x4dc0), (0x4e00, 0xa000), (0xf900, 0xfb00), (0x20000, 0x2a6e0), (0x2a700, 0x2ebf0),
              (0x2f800, 0x2fa20))
"""Han characters as llama.cpp counts them. They are letters, but where an expression names them it has them apart."""

WIDE_SPACE = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")


# Parts that several pre-tokenizers share ------------------------------------------------------------------------------

CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"      # line ends with the space before them; spaces without the last; the rest
ASCII_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""
HAN_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"


def cl100k(numbers: str) -> str:
    """The expression of OpenAI's cl100k_base, which most models took up, with `numbers` for the numbers."""
    return rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"


def o200k(upper: str, lower: str, contraction: str, numbers: str) -> str:
    """The expression of OpenAI's o200k_base: as cl100k, but a word ends where upper case follows lower case."""
    return (rf"[^\r\n\p{{L}}\p{{N}}]?{upper}*{lower}+{contraction}|[^\r\n\p{{L}}\p{{N}}]?{upper}+{lower}*{contraction}"
            rf"|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}")


GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = cl100k(r"\p{N}{1,3}")
QWEN2 = cl100k(r"\p{N}")
DEEPSEEK3 = (ASCII_PUNCTUATION + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + SPACES)
BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
THREES_FROM_THE_RIGHT = r"[^\p{N}]*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
UPPER, LOWER, ANY_CASE = r"[\p{Lu}]", r"[\p{Ll}]", r"[\p{L}\p{M}]"

DEEPSEEK_LETTERS = (     # cased letters of the scripts that have case, as the model's own expression lists them
    "A-Za-z\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377"
    "\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556"
    "\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc"
    "\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f"
    "\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b"
    "\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
LINES = r"[^\n]+|[\n]+"
ASIAN = ("[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
         "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+")
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


class Expression:
    """One regular expression, compiled for the text it is to match."""

    def __init__(self, pattern: str) -> None:
        self.collapsed = r"\p{" in pattern
        inside, out = False, ""
        for part in re.findall(r"\\p\{\w+\}|\\.|.", pattern, re.DOTALL):
            if part in CLASSES:
                part = CLASSES[part] if inside else f"[{CLASSES[part]}]"
            inside = part == "[" or (inside and part != "]")
            out += part
        self.regex = re.compile(out, re.ASCII)

    def cut(self, text: str, ends: list[int]) -> list[int]:
        """Cuts each piece where a match in it starts and ends. ends: where the pieces end, the last at len(text)."""
        cuts, start = [], 0
        for end in ends:
            for match in self.regex.finditer(text, start, end):
                match_start, match_end = match.span()
                if match_start > start:
                    cuts.append(match_start)
                if match_end > match_start:
                    cuts.append(match_end)
                start = match_end
            if end > start:
                cuts.append(end)
            start = end
        return cuts


@dataclass(frozen=True)
class PreTokenizer:
    """What a value of `tokenizer.ggml.pre` stands for."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False      # a word that is a token as a whole is that token, whether or not merges lead to it
    add_bos: bool = False            # unless tokenizer.ggml.add_bos_token says otherwise
    default_bos: int | None = 11     # where tokenizer.ggml.bos_token_id is missing
    can_slice: bool = True           # no word reaches across a line end that stands between two words
    characters: bool = False         # merges join characters as they are, not those that stand for bytes
    whole_line_ends: bool = False    # line ends in a row that are a token are that token
    must_add_bos: bool = False       # whatever tokenizer.ggml.add_bos_token says


class Splitter:
    """Cuts text into the words of one pre-tokenizer."""

    def __init__(self, pre: PreTokenizer) -> None:
        self._expressions = [Expression(pattern) for pattern in pre.patterns]
        self._has_han = any(r"\p{Han}" in pattern for pattern in pre.patterns)

    def split(self, text: str) -> list[str]:
        """Returns the words, which joined are the text."""
        wide = collapsed = text
        if not text.isascii():
            wide = WIDE_SPACE.sub("\v", text)
            code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
            collapsed = _marks(self._has_han)[code_points].tobytes().decode("latin-1")
        ends = [len(text)] if text else []
        for expression in self._expressions:
            ends = expression.cut(collapsed if expression.collapsed else wide, ends)
        return [text[start:end] for start, end in zip([0, *ends], ends)]


@cache
def _marks(han_apart: bool) -> np.ndarray:
    """uint8 (0x110000): what stands in the collapsed text for each code point."""
    table = class_table("".join(MARKS), "".join(MARKS.values()))
    if han_apart:
        table = table.copy()
        for begin, end in HAN_RANGES:
            table[begin:end] = ord(HAN_MARK)
    return table


# The names ------------------------------------------------------------------------------------------------------------

PRE_TOKENIZERS: dict[str, PreTokenizer] = {}


def _names(names: str, *patterns: str, **options: Any) -> None:
    for name in names.split():
        PRE_TOKENIZERS[name] = PreTokenizer(patterns, **options)


_names("default", r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")
_names("gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 gigachat a.x-4.0 mellum modern-bert roberta-bpe "
       "jina-es jina-de jina-v1-en jina-v2-es jina-v2-de jina-v2-code", GPT2)
_names("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", r"\p{N}", GPT2)
_names("falcon", r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]")
_names("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", LLAMA3,
       ignore_merges=True, add_bos=True)
_names("dbrx smaug-bpe", LLAMA3)
_names("glm4 glm5 chatglm-bpe", LLAMA3, default_bos=None)
_names("minicpm5", r"\p{N}{1,3}", cl100k(r"\p{N}+"), ignore_merges=True)
_names("jais-2", LLAMA3.removesuffix(r"\s+(?!\S)|\s+")
       + "|".join(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4, "1,2")) + r"|\s")
_names("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", QWEN2)
_names("qwen35", rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
       rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}")
_names("laguna", LINES, QWEN2)
_names("ufakzeka", QWEN2.removeprefix(CONTRACTION + "|"))
_names("seed-coder", rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{SPACES}")
_names("bailingmoe bailingmoe2 llada-moe",
       rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+")
_names("exaone-moe", rf"{CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
       r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+")
_names("tekken", o200k(UPPER, LOWER, "", r"\p{N}"), ignore_merges=True, add_bos=True)
_names("gpt-4o llama4 kanana2 talkie minimax-m2", o200k(UPPER, LOWER, f"{CONTRACTION}?", r"\p{N}{1,3}"))
_names("granite-embed-multi-97m", o200k(r"[\p{Lu}\p{M}]", r"[\p{Ll}\p{M}]", f"{CONTRACTION}?", r"\p{N}{1,3}"),
       ignore_merges=True)
_names("tiny_aya cohere2moe", THREES_FROM_THE_RIGHT,
       o200k(ANY_CASE, ANY_CASE, f"{CONTRACTION}?", r"\p{N}{1,3}"))
_names("youtu", "[\uac00-\ud7a3\u3131-\u318e]+"
       "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
       f"|[\u3105-\u312f]+|{HAN_KANA}", o200k(ANY_CASE, ANY_CASE, f"{CONTRACTION}?", r"\p{N}"), ignore_merges=True)
_names("deepseek-llm", r"[\r\n]", rf"\s?[{DEEPSEEK_LETTERS}]+",
       "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+\Z", CJK, r"\p{N}+")
_names("deepseek-coder", r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}")
_names("deepseek-v3 hunyuan-dense joyai-llm hy_v4", r"\p{N}{1,3}", HAN_KANA, DEEPSEEK3)
_names("spark2_5", r"\p{N}{1,3}", HAN_KANA, DEEPSEEK3.replace(rf"[\r\n]*|{SPACES}", r"|[\r\n]|\s+(?!\S)|\s+"), r"\p{N}")
_names("afmoe", THREES_FROM_THE_RIGHT, ASIAN, DEEPSEEK3)
_names("kimi-k2", rf"\p{{Han}}+|[^\r\n\p{{L}}\p{{N}}\p{{Han}}]?\p{{L}}+{CONTRACTION}?|\p{{N}}{{1,3}}"
       rf"| ?[^\s\p{{L}}\p{{N}}\p{{Han}}]+[\r\n]*|{SPACES}")
_names("gemma4 granite-embed-multi-311m", LINES, characters=True, whole_line_ends=True, must_add_bos=True)
_names("sarvam-moe", LINES, characters=True)
_names("poro-chat bloom gpt3-finnish", BLOOM)
_names("viking", BLOOM, r"\p{N}")
_names("chameleon", "<sentinel:[0-9]+>", "IMGIMG[A-I]{1,4}Z", r"[\t\n]|    |  ", r"\p{N}", r"[\p{P}!-/:-@\[-`{-~]",
       GPT2, add_bos=True)
_names("superbpe", r"\p{N}+", r"(?=(\d{3})+(?!\d))", can_slice=False)
