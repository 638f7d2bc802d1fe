from lorafast.gguf.strings import Strings

TEXTS = ["a", "", "\u2581gr\u00fc\u00df", "\udcff"]


def test_strings_are_a_sequence():
    strings = Strings.of(text.encode("utf-8", "surrogateescape") for text in TEXTS)
    assert list(strings) == TEXTS and strings == TEXTS and len(strings) == 4
    assert strings[-1] == "\udcff" and strings[1:3] == TEXTS[1:3] and strings.bytes_of(3) == b"\xff"
    assert "a" in strings and strings != TEXTS[:3] and repr(strings) == repr(TEXTS)
    assert not Strings.of([]) and list(Strings.of([])) == []
