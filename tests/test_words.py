"""Texts as people see them."""
import pytest

from lorafast.words import visible


@pytest.mark.parametrize("text, seen", [
    ("plain, Zürich, 東京\n\tx", "plain, Zürich, 東京\n\tx"),
    ("\x1b[31mred", r"\x1b[31mred"),
    ("a\rb\x07\x7f", r"a\rb\x07\x7f"),
    ("\x9b2J", r"\x9b2J"),
    ("exe.\u202etxt", r"exe.\u202etxt"),
    ("\udcff", "\udcff"),           # a byte of a file's name; the stream shows it
])
def test_nothing_steers_the_terminal(text, seen):
    assert visible(text) == seen
