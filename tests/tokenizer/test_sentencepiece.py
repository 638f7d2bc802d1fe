"""Our tokenizer against the sentencepiece library on the same Llama-2 vocabulary: the same ids on well-formed text."""
import lzma
import struct
from types import SimpleNamespace

import pytest
from tokenizer_cases import GOLDEN, Case

from lorafast.tokenizer import load_tokenizer

spm = pytest.importorskip("sentencepiece")


def field(number: int, value: bytes | str | int | float) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def varint(n: int) -> bytes:
    return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)


def model_proto(metadata: dict) -> bytes:
    """A sentencepiece ModelProto of the vocabulary: byte-pair merges by score, byte fallback, no normalisation."""
    key = "tokenizer.ggml."
    pieces = zip(metadata[key + "tokens"], metadata[key + "scores"], metadata[key + "token_type"])
    trainer = field(3, 2) + field(35, 1)
    normalizer = field(1, "identity") + field(3, 1) + field(4, 0)
    return b"".join([*(field(1, field(1, piece) + field(2, float(score)) + field(3, int(type)))
                       for piece, score, type in pieces),
                     field(2, trainer), field(3, normalizer)])


def test_ids_equal_those_of_sentencepiece():
    metadata = Case("llama-spm").metadata()
    tokenizer = load_tokenizer(SimpleNamespace(metadata=metadata))
    library = spm.SentencePieceProcessor(model_proto=model_proto(metadata))
    sonnets = lzma.decompress((GOLDEN / "sonnets.txt.xz").read_bytes()).decode()
    texts = [sonnets, "Hello, world!", "  two  spaces ", "naïve café — “quoted”", "日本語とemoji 😀👩‍👩‍👧",
             "tab\tand\nline", "1234567890 3.14", "the\u00a0end"]
    for text in texts:
        assert tokenizer.encode(text).tolist() == library.encode(text), text[:40]
        assert tokenizer.decode(tokenizer.encode(text)) == text
