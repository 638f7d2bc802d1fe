"""Patterns from strangers' files: what `re` finds, in a time that the pattern cannot stretch."""
import re
import time

import pytest

from lorafast.adapters.patterns import ends_with

NAMES = ["lm_head", "model.embed_tokens", "model.layers.0.self_attn.q_proj", "model.layers.12.mlp.gate_proj", "a.b",
         "q"]
PATTERNS = ["q_proj", "proj", "q", ".*proj", r"layers\.\d+\.mlp\.(gate|up)_proj", "(q|k|v)_proj", "[a-z_]+", "[^.]+",
            r"model\.layers\.(0|1|12)\.self_attn\.[qk]_proj", "^model.*q_proj$", "^lm_head", "a?b*.c{2,3}", "(a|)b", "",
            r"(?:layers\.)?1{1}2?.*", "x{0,2}q", "[]q]", r"\w+_tokens", "(self_attn|mlp)..*", "((a|.)*)*j"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_equals_re(pattern):
    for name in NAMES:
        assert ends_with(pattern, name) == bool(re.match(rf"(.*\.)?({pattern})$", name)), name


@pytest.mark.parametrize("pattern", ["((a|.)*)*Z", "(.*)*Z", "(a*)*(a*)*(a*)*Z", "((((((.*)*)*)*)*)*)*Z",
                                     "(a|a|a|a)*" * 20 + "Z", "(.{0,100}){0,100}Z"])
def test_no_pattern_takes_long(pattern):
    began = time.monotonic()
    assert not ends_with(pattern, "model.layers.100.self_attn." + "a" * 40)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("pattern", [r"(a)\1", "(?=a)", "(?P<n>a)", "a*?", "a++", "(a", "a)", "[a", "*", "a{1000}",
                                     "a{x}", "a\\", "(" * 500, "a" * 2000, r"\bq", "a{,}"])
def test_what_it_cannot_run_is_refused(pattern):
    with pytest.raises(ValueError):
        ends_with(pattern, "a")
