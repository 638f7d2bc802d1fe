"""Vocabularies and texts on which our token ids are compared with llama.cpp's."""
from __future__ import annotations

import json
import lzma
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lorafast.gguf.strings import Strings
from lorafast.tokenizer.token_ids import encode_text

GOLDEN = Path(__file__).parent / "golden"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

PLAIN = ((False, False),)
ALL_WAYS = ((False, False), (True, True), (False, True))     # (add_special, parse_special)


@dataclass(frozen=True)
class Case:
    """A real vocabulary with some of its keys changed."""

    vocabulary: str                                             # golden/vocab-<vocabulary>.json.xz
    changes: Mapping[str, Any] = field(default_factory=dict)    # keys without "tokenizer.ggml.", or with a dot in them
    more_tokens: tuple[tuple[str, int], ...] = ()               # text, type
    ways: tuple[tuple[bool, bool], ...] = PLAIN

    def metadata(self) -> dict[str, Any]:
        out = dict(vocabulary(self.vocabulary))
        if self.more_tokens:
            texts, types = zip(*self.more_tokens)
            out["tokenizer.ggml.tokens"] = [*out["tokenizer.ggml.tokens"], *texts]
            out["tokenizer.ggml.token_type"] = [*out["tokenizer.ggml.token_type"], *types]
            if "tokenizer.ggml.scores" in out:
                out["tokenizer.ggml.scores"] = [*out["tokenizer.ggml.scores"], *[0.0] * len(texts)]
        for key, value in self.changes.items():
            out[key if "." in key else f"tokenizer.ggml.{key}"] = value
        return out


@cache
def vocabulary(name: str) -> Mapping[str, Any]:
    """As a GGUF file's reader gives it."""
    metadata = json.loads(lzma.decompress((GOLDEN / f"vocab-{name}.json.xz").read_bytes()))
    return MappingProxyType({key: Strings.of(map(encode_text, value)) if key.endswith((".tokens", ".merges")) else value
                             for key, value in metadata.items()})


CHAT_TOKENS = (
    ("<|endoftext|>", USER_DEFINED), ("<|im_start|>", USER_DEFINED), ("<|im_end|>", USER_DEFINED),
    ("[PAD]", USER_DEFINED), ("\n\n", USER_DEFINED), ("  x", USER_DEFINED), ("abc", USER_DEFINED),
    ("bcd", USER_DEFINED),
    ("\xe9\xe9", USER_DEFINED), ("<ctrl>", CONTROL), ("<|user|>", CONTROL), ("<|end of text|>", CONTROL),
    ("<unused5>", UNUSED), ("ab\u2581cd", NORMAL),
)


def chat_tokens(name: str) -> tuple[tuple[str, int], ...]:
    """CHAT_TOKENS without those that the vocabulary has."""
    known = set(vocabulary(name)["tokenizer.ggml.tokens"])
    return tuple(token for token in CHAT_TOKENS if token[0] not in known)


def cases() -> dict[str, Case]:
    from lorafast.tokenizer.pretokenizers import PRE_TOKENIZERS

    out = {f"pre {name}": Case("gpt-2", {"pre": name}, ways=((True, False),)) for name in PRE_TOKENIZERS}
    r = random.Random(1)
    shuffled = [float(-r.randrange(400)) for _ in range(32000)]
    tokens = list(vocabulary("gpt-2")["tokenizer.ggml.tokens"])
    for token in r.sample(range(256, 50000), 8000) + r.sample(range(256), 20):
        tokens[token] = f"[gone{token}]"
    out |= {
        "spm": Case("llama-spm", ways=ALL_WAYS),
        "spm without space prefix": Case("llama-spm", {"add_space_prefix": False}, ways=ALL_WAYS),
        "spm with chat tokens": Case("llama-spm", {"add_eos_token": True}, chat_tokens("llama-spm"), ALL_WAYS),
        "spm phi-3": Case("llama-spm", {"general.name": "Phi-3 mini"}, chat_tokens("llama-spm"), ALL_WAYS),
        "spm equal scores": Case("llama-spm", {"scores": [0.0] * 32000}),
        "spm random scores": Case("llama-spm", {"scores": shuffled}),
        "spm space inside": Case("llama-spm", {}, tuple(
            (text, NORMAL) for text in ("\u2581the\u2581", "e\u2581", "e\u2581t", "\n\u2581", "\nt"))),
        "bpe with chat tokens": Case(
            "gpt-2", {"add_bos_token": True, "add_eos_token": True}, chat_tokens("gpt-2"), ALL_WAYS),
        "bpe missing tokens": Case("gpt-2", {"tokens": tokens}),
        "bpe missing tokens, merges ignored": Case("gpt-2", {"tokens": tokens, "pre": "llama-bpe"}),
    }
    of_characters = ("\n", NORMAL), ("\n\n", NORMAL), ("\n\n\n\n", NORMAL)
    for name, changes in (("gemma4", {"model": "gemma4"}), ("sarvam-moe", {"model": "gpt2", "pre": "sarvam-moe"})):
        merges = merges_of_scores("llama-spm")
        out[f"characters {name}"] = Case("llama-spm", {**changes, "merges": merges}, of_characters, ALL_WAYS)
    return out


def merges_of_scores(name: str) -> list[str]:
    """A list of merges that makes the tokens of a SentencePiece vocabulary, the most probable first."""
    tokens = list(vocabulary(name)["tokenizer.ggml.tokens"])
    known = set(tokens)
    return [f"{text[:cut]} {text[cut:]}" for text in tokens for cut in range(1, len(text))
            if text[:cut] in known and text[cut:] in known]


TEXTS = [
    "", " ", "  ", "   a", "\n", "\n\n", "\n\n\n a", "\t\t a", "a\r\nb\r\n\r\nc", " \n \n x", "x  \n\n  y",
    "a \xa0\u3000b", "\u3000\n字", "a \u2028\u2029 23",
    "I'm you're he'll WE'VE it's IT'S o'clock 'tis 'Twas 'S'T ''s ’s",
    "1 12 123 1234 12345 1234567890 3.14159 1,000,000 0x1F ²³ ½ Ⅷ \u0663\u0664\u0665 12345b",
    "def f(x):\n    return x**2  # comment\n\n\tif (a != b) { c->d[i]++; }\n#include <stdio.h>\nint main(){return 0;}",
    "<html><body class=\"a\">&nbsp;</body></html>", "/path/to/file\n/next //x\n//y !\n/z \\n",
    "日本語のテキスト、漢字とカタカナ。ひらがな！",
    "你好，世界！\n\u3000\u3000第二段", "한국어 텍스트 ㄱㄅ",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0646\u0635، \u0661\u0662\u0663", "\u05e2\u05d1\u05e8\u05d9\u05ea",
    "ภาษาไทย", "ह\u093fन\u094dद\u0940 प\u093eठ",
    "Ελληνικά Русский ПРИВЕТ",
    "🙂👍🏽 👨\u200d👩\u200d👧 🇩🇪 ❤\ufe0f",
    "e\u0301a\u0308o\u0302\u0323 H\u0338\u0321\u032aZ", "\x00\x01\x02a\x1b[0m\x7f\x85b",
    "\u200b\u200d\ufeff\u2060x\xad",
    "<s>", "</s>", "a<s>b</s> <unk>", "<0x0A>", "<|endoftext|>", "<|im_start|>user\nhi<|im_end|>\n",
    "[INST] hi [/INST]",
    "\u2581\u2581a\u2581b", "Ġ Ċ âĢ", "~a ~~ a~b !~ $+<=>^`| ~!~", "CamelCase XMLHttp ÉcoleÉTÉ iPhone ǅ",
    "a" * 50, " " * 40 + "x", "\n" * 20, "(c) [d] {e} \"f\" 'g' `h` _i_ \\j", "€ £ ¥ © ™ ° ± ×",
    "ſ 's 'K'K", "𝒜𐐀𑢠 \U00031350\U0002ebf0 \u2ffc \ue000\U0010ffff",
]
PARTS = [
    *"abZ1 \n\r\t.,!?'\"()[]{}<>=+*&^%$#@~|`;:-_/\\", " ", "  ", "\n", "the", " the", "Hello", "WORD", "'s", "'LL",
    "word's",
    "23", "456", "2024-01-01", "é", "É", "ß", "ж", "Ж", "字", "か", "한", "\u0627", "०",
    "½", "Ⅷ", "²", "🙂", "\u200d", "\u0301", "\u093f", "\xa0", "\u3000", "\u2028", "\x85", "\x0b", "\x1c",
    "\x00", "\x7f", "\u200b", "。", "，", "“", "—", "€", "ª", "ǅ", "ʰ", "〇", "\u0378",
    "<s>", "</s>", "<unk>", "\u2581", "\n\n", "    ", "ing", "tion", " of", *(text for text, _ in CHAT_TOKENS),
    "ab cd", "abcd",
]


def texts(seed: int, n_texts: int, n_malformed: int) -> list[bytes]:
    """TEXTS and random ones. The malformed ones avoid code points beyond U+10FFFF, at which llama.cpp aborts."""
    r = random.Random(seed)
    out = [text.encode() for text in TEXTS]
    out += ["".join(r.choice(PARTS) for _ in range(r.choice([2, 5, 9, 20, 40]))).encode() for _ in range(n_texts)]
    for _ in range(n_malformed):
        text = bytearray("".join(r.choice(PARTS) for _ in range(12)).encode())
        for _ in range(4):
            text[r.randrange(len(text))] = r.choice([0x80, 0xbf, 0xc0, 0xc3, 0xe2, 0xed, 0xf0, 0xf8, 0xff, 0x20])
        out.append(bytes(text))
    return out
