"""Text as it comes: whole characters, and stop strings that arrive in parts."""
import pytest

from lorafast.tokenizer.text_stream import TextStream, overlap, text_of


class Bytes:
    """A tokenizer with a token for each byte, and a control token."""

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b"<control>"

    def is_control(self, token: int) -> bool:
        return token == 256


def pieces(text: str, *stop: str) -> list[str]:
    return list(text_of(text.encode(), TextStream(Bytes(), stop)))


def test_characters_are_not_cut():
    assert pieces("aé€") == ["a", "é", "€"]
    assert list(text_of([0xC3, 256, 0xA9, 0xE2, 0x82], TextStream(Bytes()))) == ["é", "\ufffd"]


@pytest.mark.parametrize("text, stop, shown", [
    ("one\nUser: two", ["User:"], "one\n"), ("one User", ["User:"], "one User"), ("UsUser:x", ["User:"], "Us"),
    ("aab", ["ab"], "a"), ("abc", ["bc", "abc"], ""), ("abcd", ["cd", "b"], "a"), ("abc", ["x", ""], "abc"),
    ("né!", ["é"], "n")])
def test_stop_strings(text, stop, shown):
    assert "".join(pieces(text, *stop)) == shown


def test_nothing_is_held_longer_than_needed():
    assert pieces("ab: \n#!x", "\n##") == ["a", "b", ":", " ", "\n#!", "x"]


def test_nothing_comes_after_a_stop():
    stream = TextStream(Bytes(), ["b"])
    assert (stream.push(ord("a")), stream.push(ord("b")), stream.push(ord("c")), stream.end()) == ("a", "", "", "")
    assert stream.stopped


def test_overlap():
    assert [overlap("xab", "abc"), overlap("ab", "ab"), overlap("aba", "abab"), overlap("", "a")] == [2, 0, 3, 0]
