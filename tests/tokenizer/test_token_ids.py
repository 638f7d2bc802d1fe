import pytest

from lorafast.gguf.strings import Strings
from lorafast.tokenizer.token_ids import TokenIds


def table(texts: list[str]) -> TokenIds:
    return TokenIds(Strings.of(text.encode("utf-8", "surrogateescape") for text in texts))


@pytest.mark.parametrize("n", [1, 2, 3, 1000])
def test_every_text_has_its_token(n):
    texts = [f"\u2581{token}" for token in range(n)]
    ids = table(texts)
    assert [ids[text] for text in texts] == list(range(n)) and ids.twins is None
    assert ids.get("none") is None and f"\u2581{n}" not in ids
    with pytest.raises(KeyError):
        ids["none"]


def test_twins():
    assert table(["a", "b", "c", "b"]).twins == (1, 3)


def test_bytes_that_make_up_a_character_are_not_that_character():
    ids = table(["\u00ec", "\udcc3"])
    assert ids["\u00ec"] == 0 and ids["\udcc3"] == 1 and ids.get("\udcc3\udcac") is None
    assert ids.get("\udc41") is None               # a lone surrogate that stands for no byte of a file
