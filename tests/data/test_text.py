"""Cutting texts into samples. The tokenizer here makes a token of every byte, so positions can be read off the text."""
import numpy as np
import pytest

from lorafast.data.samples import Samples
from lorafast.data.source import Source, open_source
from lorafast.data.text import tokenize_text
from lorafast.errors import LoraFastError


class ByteTokenizer:
    max_token_length, bos_id, eog_ids = 2, None, frozenset([300])

    def token_text(self, token):
        return "<end>"

    def encode(self, text, *, add_special=False, parse_special=False):
        assert not add_special and not parse_special
        return np.frombuffer(bytes(text), np.uint8).astype(np.int32)

    def encode_slices(self, text):
        for begin in range(0, len(text), 5):
            yield len(text[begin:begin + 5]), self.encode(text[begin:begin + 5])


@pytest.fixture
def tokenize(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(text, ctx, **options):
        (tmp_path / "text.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
        return tokenize_text([open_source("text.txt")], ByteTokenizer(), ctx, **options)

    return run


def texts(samples: Samples) -> list[bytes]:
    return [bytes(samples.tokens[b:b + n].astype(np.uint8)) for b, n in zip(samples.begin, samples.size)]


def test_without_sample_start_a_sample_begins_at_every_token(tokenize):
    samples = tokenize("abcdefg", 3)
    assert texts(samples) == [b"abc", b"bcd", b"cde", b"def"]   # not "efg": the last token is never seen
    assert len(samples) == 4 and samples.warnings == []
    assert samples.tokens.dtype == np.int32 and samples.begin.dtype == samples.size.dtype == np.int64
    assert tokenize("aabc", 3).n_unique_tokens == 3


@pytest.mark.parametrize("text, expected", [("abc", [b"abc"]), ("abcd", [b"abc"]), ("abcde", [b"abc", b"bcd"])])
def test_shortest_texts(tokenize, text, expected):
    assert texts(tokenize(text, 3)) == expected


def test_sample_start(tokenize):
    text = "dropped<s>one two<s>three<s><s>x"
    samples = tokenize(text, 5, sample_start="<s>")
    assert texts(samples) == [b"one two", b"three", b"", b"x"]
    assert samples.begin.tolist() == [0, 7, 12, 12]
    assert samples.warnings == [
        "1 of 4 samples is longer than the context of 5 tokens and is cut (the longest has 7)",
        "1 of 4 samples is shorter than the context of 5 tokens (the shortest has 1)",
        "1 of 4 samples is empty",
    ]
    samples = tokenize(text, 5, sample_start="<s>", include_sample_start=True)
    assert texts(samples) == [b"<s>one two", b"<s>three", b"<s>", b"<s>x"]


def test_sample_start_is_found_left_to_right_without_overlap_and_is_no_pattern(tokenize):
    assert texts(tokenize("aaaab", 1, sample_start="aa")) == [b"", b"b"]
    assert texts(tokenize("x.y", 1, sample_start=".")) == [b"y"]


def test_overlapping_samples_run_on_for_the_bytes_that_can_fill_the_context(tokenize):
    text, options = "#abc#defghij", dict(sample_start="#", overlapping_samples=True)
    assert texts(tokenize(text, 3, **options)) == [b"abc#de", b"defghi"]
    assert texts(tokenize(text, 3, **options, include_sample_start=True)) == [b"#abc#d", b"#defgh"]
    assert texts(tokenize(text, 9, **options)) == [b"abc#defghij", b"defghij"]


def test_an_end_inside_a_utf8_sequence_moves_to_the_next_character(tokenize):
    text = "#a€b"   # € has three bytes; two bytes on from "a" lies its second
    assert texts(tokenize(text, 1, sample_start="#", overlapping_samples=True)) == ["a€".encode()]
    assert texts(tokenize("#€", 1, sample_start="#", overlapping_samples=True)) == ["€".encode()]


def test_sample_start_that_does_not_occur(tokenize):
    samples = tokenize("abcdef", 4, sample_start="##")
    assert texts(samples) == [b"cdef"]   # its length is skipped all the same
    assert samples.warnings == ["--sample-start '##' does not occur: the whole text is one sample"]
    assert texts(tokenize("abcdef", 4, sample_start="##", include_sample_start=True)) == [b"abcdef"]


@pytest.mark.parametrize("text, ctx, options, message", [
    ("", 4, {}, "training data 'text.txt' is empty"),
    ("abc", 4, {}, r"'text.txt' is too short: 3 tokens, and a sample takes 4; .* --ctx \(at most 3\)"),
    (b"abc\0def", 4, {}, r"is binary \(a zero byte at offset 3\)"),
    ("some text".encode("utf-16"), 4, {}, "UTF-16: convert it to UTF-8"),
    ("Русский текст".encode("koi8-r"), 4, {}, "another encoding .12 of its 13 bytes are not UTF-8"),
    (bytes(np.random.default_rng(0).integers(1, 256, 1000, dtype=np.uint8)), 4, {}, "binary or in another encoding"),
    ("##", 4, {"sample_start": "##"}, "no text after --sample-start '##'"),
    ("#", 4, {"sample_start": "##"}, "no text after --sample-start '##'"),
])
def test_unfit_texts(tokenize, text, ctx, options, message):
    with pytest.raises(LoraFastError, match=message):
        tokenize(text, ctx, **options)


def test_unreadable_file(tmp_path):
    with pytest.raises(LoraFastError, match="cannot read the data 'here': Is a directory"):
        tokenize_text([Source("here", str(tmp_path), "")], ByteTokenizer(), 4)


def test_special_tokens_stay_text_and_are_told(tokenize):
    warning, = tokenize("a b <end> c", 4).warnings
    assert warning.startswith("'text.txt' spells out <end>: in a text file that is plain text, in records")
    assert tokenize("a b <end> c <end> d <end>", 4, sample_start="<end>").warnings[0].startswith("2 of 3 samples")


def test_a_few_bytes_that_are_not_utf8_are_a_warning(tokenize):
    samples = tokenize("Ein Gedicht über die Höhe".encode("latin-1"), 4)
    assert samples.warnings == ["'text.txt' is not clean UTF-8: 2 of its 25 bytes are not UTF-8, the first at "
                                "offset 12; they are trained on as bytes"]
    assert len(samples) == 21
