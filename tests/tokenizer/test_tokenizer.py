"""Token ids against llama.cpp's, stored (golden/) and live, and back to text."""
from __future__ import annotations

import hashlib
import json
import lzma
import sys
import tracemalloc
import unicodedata
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizer_cases import CONTROL, GOLDEN, NORMAL, USER_DEFINED, Case, cases, texts

from lorafast.errors import FormatError, LoraFastError
from lorafast.tokenizer import Tokenizer, load_tokenizer
from lorafast.tokenizer.bpe import to_characters
from lorafast.tokenizer.merge import merge
from lorafast.tokenizer.pretokenizers import PRE_TOKENIZERS, Splitter
from lorafast.tokenizer.slices import slices
from lorafast.tokenizer.unicode_classes import class_table

CASES = cases()
DISTINCT_PRES = list({pre: name for name, pre in reversed(PRE_TOKENIZERS.items())}.values())     # a name for each rule
OTHER_NAMES = {f"pre {name}" for name in set(PRE_TOKENIZERS) - set(DISTINCT_PRES)}


def unpack(name: str) -> bytes:
    return lzma.decompress((GOLDEN / f"{name}.xz").read_bytes())


def tokenizer(case: Case) -> Tokenizer:
    return load_tokenizer(SimpleNamespace(metadata=case.metadata()))


@pytest.fixture(scope="module")
def golden() -> dict:
    return json.loads(unpack("tokenizer-ids.json"))


@pytest.fixture(scope="module")
def spm() -> Tokenizer:
    return tokenizer(Case("llama-spm"))


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return tokenizer(Case("gpt-2"))


@pytest.fixture(params=["llama-spm", "gpt-2"])
def both(request, spm: Tokenizer, bpe: Tokenizer) -> Tokenizer:
    return spm if request.param == "llama-spm" else bpe


# Ids ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama-spm", "gpt-2"])
def test_vectors_of_llama_cpp(name: str, spm: Tokenizer, bpe: Tokenizer) -> None:
    tokens = spm if name == "llama-spm" else bpe
    for text, ids in json.loads(unpack(f"vocab-{name}.vectors.json")):
        assert tokens.encode(text).tolist() == ids, repr(text)
        assert tokens.decode(ids) == text


@pytest.mark.parametrize("name", [name for name in CASES if name not in OTHER_NAMES])
def test_ids_equal_the_stored_ones_of_llama_cpp(name: str, golden: dict) -> None:
    case = CASES[name]
    tokens = tokenizer(case)
    inputs = [text.encode("latin-1") for text in golden["texts"]]
    expected = iter(golden["ids"][name])
    for add_special, parse_special in case.ways:
        for text in inputs:
            ids = tokens.encode(text, add_special=add_special, parse_special=parse_special)
            assert ids.tolist() == next(expected), (text, add_special, parse_special)


def test_every_name_has_stored_ids_and_names_of_one_rule_the_same(golden: dict) -> None:
    for name in DISTINCT_PRES:
        for other in (other for other, pre in PRE_TOKENIZERS.items() if pre == PRE_TOKENIZERS[name]):
            assert golden["ids"][f"pre {other}"] == golden["ids"][f"pre {name}"], other


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_ids_equal_llama_cpp(name: str) -> None:
    pytest.importorskip("llama_cpp")
    from llama_cpp_tokenizer import llama_cpp_ids

    case = CASES[name]
    inputs = texts(seed=sum(name.encode()), n_texts=500, n_malformed=100)
    expected = iter(llama_cpp_ids(case.metadata(), inputs, case.ways))
    tokens = tokenizer(case)
    for add_special, parse_special in case.ways:
        for text in inputs:
            ids = tokens.encode(text, add_special=add_special, parse_special=parse_special)
            assert ids.tolist() == next(expected), (text, add_special, parse_special)


def test_sonnets(spm: Tokenizer, bpe: Tokenizer) -> None:
    """A whole file, as training reads it. The ids behind the sums are llama.cpp's."""
    sonnets = unpack("sonnets.txt")
    for tokens, count, digest in ((spm, 28_913, "bc45fc5c940b6116"), (bpe, 26_411, "a498086b52de74ed")):
        ids = tokens.encode(sonnets)
        assert ids.dtype == np.int32 and ids.shape == (count,)
        assert hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()[:16] == digest
        assert tokens.decode_bytes(ids) == sonnets


# Options and properties -----------------------------------------------------------------------------------------------


def test_properties(spm: Tokenizer, bpe: Tokenizer) -> None:
    assert (spm.vocab_type, spm.pre, spm.n_vocab, spm.n_merges) == ("SPM", "default", 32000, 0)
    assert spm.max_token_length == 48
    assert (spm.bos_id, spm.eos_id, spm.unk_id, spm.linefeed_id, spm.eog_ids) == (1, 2, 0, 13, {2})
    assert (spm.add_bos, spm.add_eos, spm.is_control(1), spm.is_control(13)) == (True, False, True, False)
    assert (spm.token_text(13), spm.token_bytes(13), spm.token_bytes(278)) == ("<0x0A>", b"\n", b" the")
    assert (bpe.vocab_type, bpe.pre, bpe.n_vocab, bpe.n_merges) == ("BPE", "gpt-2", 50257, 50000)
    assert (bpe.bos_id, bpe.eos_id, bpe.unk_id, bpe.linefeed_id, bpe.eog_ids) == (50256, 50256, None, 198, {50256})
    assert (bpe.add_bos, bpe.token_text(262), bpe.token_bytes(262)) == (False, "\u0120the", b" the")
    assert spm.warnings == bpe.warnings == []


def test_str_and_bytes_are_the_same_text(both: Tokenizer) -> None:
    text = "na\xefve \U0001f642\n"
    assert both.encode(text).tolist() == both.encode(text.encode()).tolist()
    broken = b"na\xe9 \xff"
    assert both.encode(broken.decode("utf-8", "surrogateescape")).tolist() == both.encode(broken).tolist()
    assert both.encode("\ud800").size > 0     # a lone surrogate, as JSON can hold
    assert both.encode("").size == both.encode(b"").size == 0


def test_control_tokens_are_text_unless_parsed() -> None:
    tokens = tokenizer(CASES["bpe with chat tokens"])
    end, start = tokens.encode("<|im_end|>", parse_special=True), tokens.encode("<|im_start|>")
    assert end.size == 1 and tokens.is_control(end[0]) and end[0] in tokens.eog_ids      # made so by its text
    assert start.size == 1 and not tokens.is_control(start[0])      # user-defined: always whole
    assert tokens.encode("<|im_end|>").size > 1
    ids = tokens.encode("hi", add_special=True)
    assert (ids[0], ids[-1]) == (tokens.bos_id, tokens.eos_id)
    assert tokens.decode(ids) == "hi" and tokens.decode(ids, skip_special=False) == "<|endoftext|>hi<|endoftext|>"


def test_decode_inverts_encode(both: Tokenizer) -> None:
    for text in texts(seed=3, n_texts=300, n_malformed=0):
        if b"\xe2\x96\x81" not in text:     # what stands for a space in SentencePiece can't come back as itself
            ids = both.encode(text, add_special=True, parse_special=True)
            text_again = both.decode_bytes(ids, skip_special=False)
            assert text_again.removeprefix(both.token_bytes(both.bos_id) if both.add_bos else b"") == text


def test_decode_inverts_encode_on_characters() -> None:
    tokens = tokenizer(CASES["characters gemma4"])
    assert tokens.add_bos and tokens.vocab_type == "BPE" and tokens.n_merges > 30_000
    for text in texts(seed=4, n_texts=300, n_malformed=0):
        if b"\xe2\x96\x81" not in text:
            assert tokens.decode_bytes(tokens.encode(text), skip_special=False) == text


def test_pieces_join_to_the_text(both: Tokenizer) -> None:
    ids = both.encode(" One\n two \u2603 three")
    assert b"".join(both.token_bytes(token) for token in ids[3:]) == both.decode_bytes(ids[3:], continuation=True)
    assert both.decode_bytes(ids[:3]) + both.decode_bytes(ids[3:], continuation=True) == both.decode_bytes(ids)


def test_malformed_utf8_keeps_its_bytes_in_sentencepiece(spm: Tokenizer) -> None:
    text = b"\xff\xfeab\x80c\xc3(\xe2\x82"
    assert spm.decode_bytes(spm.encode(text)) == text
    assert "\ufffd" in spm.decode(spm.encode(text))


# Parts ----------------------------------------------------------------------------------------------------------------


def test_merge_takes_the_lowest_rank_then_the_leftmost() -> None:
    ranks = {("a", "b"): 1, ("b", "c"): 0, ("a", "a"): 2, ("aa", "a"): 3}
    assert merge("abc", lambda left, right: ranks.get((left, right))) == ["a", "bc"]
    assert merge("aaaaa", lambda left, right: ranks.get((left, right))) == ["aa", "aaa"]
    assert merge("", lambda left, right: 0) == []


@pytest.mark.parametrize("name", DISTINCT_PRES)
def test_slicing_changes_no_word(name: str) -> None:
    """Where a pre-tokenizer says that text may be sliced at line ends, words are the same; joined they are the text."""
    splitter = Splitter(PRE_TOKENIZERS[name])
    n_slices = 0
    for text in texts(seed=4, n_texts=150, n_malformed=30):
        text = text.replace(b" ", b"\n", 3)
        words = splitter.split(to_characters(text))
        assert "".join(words) == to_characters(text)
        if PRE_TOKENIZERS[name].can_slice:
            parts = list(slices(text, size=0))
            assert b"".join(parts) == text
            assert [word for part in parts for word in splitter.split(to_characters(part))] == words
            n_slices += len(parts)
    assert n_slices > 300 or not PRE_TOKENIZERS[name].can_slice


@pytest.mark.parametrize("name", [
    "spm", "spm with chat tokens", "spm phi-3", "spm space inside", "pre qwen2", "pre superbpe",
    "bpe with chat tokens"])
def test_slices_together_are_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokenizer(CASES[name])
    monkeypatch.setattr("lorafast.tokenizer.slices", lambda text, **_: slices(text, size=0))
    n_slices = 0
    for text in texts(seed=6, n_texts=200, n_malformed=100):
        text = text.replace(b" ", b"\n", 3)
        parts = list(tokens.encode_slices(text))
        n_slices += len(parts)
        assert [token for _, part in parts for token in part.tolist()] == tokens.encode(text).tolist()
        assert sum(n_bytes for n_bytes, _ in parts) == len(text)
    assert n_slices > 500 or name in ("spm space inside", "pre superbpe")


@pytest.mark.parametrize("name", ["spm", "spm with chat tokens", "spm space inside", "pre qwen2", "pre superbpe",
                                  "bpe with chat tokens"])
def test_slices_at_spaces_change_no_ids(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text without line ends is sliced between words, and its parts of `fragments` are whole with the same ids."""
    tokens = tokenizer(CASES[name])
    monkeypatch.setattr("lorafast.tokenizer.FRAGMENT_BYTES", 1 << 7)
    one_word = name in ("spm space inside", "pre superbpe")     # their words go on over spaces: there is no slicing
    n_parts = 0
    for text in texts(seed=7, n_texts=8, n_malformed=0):
        text = (text.replace(b"\n", b" ") + b" and so on" * 25) * 2
        parts = list(tokens.fragments(text))
        n_parts += len(parts)
        assert b"".join(part for part, _, _ in parts) == text
        ids = [token for _, part_ids, _ in parts for token in part_ids.tolist()]
        assert ids == tokens.encode(text, parse_special=True).tolist()
    assert n_parts > 30 or one_word


@pytest.mark.parametrize("space", " \x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000")
def test_white_space_beyond_ascii_is_white_space(space: str) -> None:
    """Ids seldom show it: few vocabularies merge such a space with anything."""
    assert Splitter(PRE_TOKENIZERS["deepseek-llm"]).split(f"\u5b57{space}.") == ["\u5b57", f"{space}."]
    assert Splitter(PRE_TOKENIZERS["gpt-2"]).split(f"a{space}{space}b")[1] == space


def test_slices_change_no_ids_of_sentencepiece(spm: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [text.replace(b" ", b"\n", 3) for text in texts(seed=5, n_texts=300, n_malformed=300)]
    whole = [spm.encode(text).tolist() for text in inputs]
    monkeypatch.setattr("lorafast.tokenizer.spm.slices", lambda text, **_: slices(text, size=0))
    assert [spm.encode(text).tolist() for text in inputs] == whole


def test_classes_agree_with_unicode_data() -> None:
    """With the version in this Python: what it knows has the same class, save for what Unicode changed since."""
    table = class_table("LMNPSWC", "LMNPSWC").tobytes().decode("latin-1")
    assert len(table) == sys.maxunicode + 1
    version = tuple(map(int, unicodedata.unidata_version.split(".")))
    assigned = [chr(code) for code in range(0x80, len(table)) if unicodedata.category(chr(code)) != "Cn"]
    if version > (15, 1, 0):     # assigned later than the table
        assigned = [character for character in assigned if table[ord(character)] != "C"]
    different = [character for character in assigned
                 if table[ord(character)] != unicodedata.category(character)[0].replace("Z", "W")
                 and not (character == "\x85" and table[0x85] == "W")]
    assert len(different) <= (0 if version == (15, 1, 0) else 10), different
    if version == (15, 1, 0):
        unassigned = (code for code in range(0x80, len(table)) if unicodedata.category(chr(code)) == "Cn")
        assert all(table[code] == "C" for code in unassigned)


def test_memory_is_for_a_slice_and_the_ids(bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorafast.tokenizer.bpe.slices", lambda text, **_: slices(text, size=1 << 14))
    text = unpack("sonnets.txt") * 5 + "\U0001f642\n".encode()     # an emoji would make the str four times as large
    bpe.encode(text[:100_000])
    tracemalloc.start()
    ids = bpe.encode(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * ids.nbytes + (1 << 19), f"{peak} bytes for a text of {len(text)}"


# Broken files ---------------------------------------------------------------------------------------------------------

BPE = {"model": "gpt2", "pre": "gpt-2", "tokens": ["a", "b", "ab"], "token_type": [1, 1, 1], "merges": ["a b"]}
SPM = {"model": "llama", "tokens": ["<unk>", "a"], "scores": [0.0, -1.0], "token_type": [2, 1]}


def load(keys: dict) -> Tokenizer:
    return load_tokenizer(SimpleNamespace(metadata={f"tokenizer.ggml.{key}": value for key, value in keys.items()
                                                    if value is not None}))


@pytest.mark.parametrize("keys, message", [
    ({}, r"tokenizer\.ggml\.model is missing"),
    (BPE | {"model": "bert"}, r"tokenizer\.ggml\.model is 'bert' \(WordPiece\)"),
    (BPE | {"model": "whatever"}, r"tokenizer\.ggml\.model is 'whatever'"),
    (BPE | {"pre": "whitespace"}, r"tokenizer\.ggml\.pre is 'whitespace'"),
    (BPE | {"pre": ["gpt-2"]}, r"tokenizer\.ggml\.pre is"),
    (BPE | {"tokens": None}, r"tokenizer\.ggml\.tokens is missing"),
    (BPE | {"tokens": np.arange(3)}, r"tokenizer\.ggml\.tokens is not an array of strings"),
    (BPE | {"tokens": ["a", "b", "a"]}, r"tokenizer\.ggml\.tokens: 'a' is there twice, as tokens 0 and 2"),
    (BPE | {"token_type": [1, 1]}, r"tokenizer\.ggml\.token_type has 2 values for 3 tokens"),
    (BPE | {"token_type": "1"}, r"tokenizer\.ggml\.token_type is not an array of numbers"),
    (BPE | {"merges": None}, r"tokenizer\.ggml\.merges is missing"),
    (BPE | {"merges": ["ab"]}, r"tokenizer\.ggml\.merges\[0\] is 'ab'"),
    (BPE | {"add_bos_token": True}, r"\.add_bos_token is true, but tokenizer\.ggml\.bos_token_id is missing"),
    (BPE | {"bos_token_id": "0"}, r"tokenizer\.ggml\.bos_token_id is '0'"),
    (SPM | {"scores": None}, r"tokenizer\.ggml\.scores is missing"),
    (SPM | {"scores": [0.0]}, r"tokenizer\.ggml\.scores has 1 values for 2 tokens"),
    (SPM | {"unknown_token_id": 7, "tokens": []}, r"tokenizer\.ggml\.tokens is not an array of strings"),
])
def test_broken_keys_are_named_in_one_line(keys: dict, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        load(keys)
    assert "\n" not in str(caught.value)


def test_odd_keys_are_taken_with_a_warning() -> None:
    tokens = load(BPE | {"pre": None, "eos_token_id": 99})
    assert tokens.pre == "default" and tokens.eos_id is None
    assert len(tokens.warnings) == 2
    assert "eos_token_id is 99" in tokens.warnings[0] and "pre is missing" in tokens.warnings[1]
    assert tokens.encode("abba").tolist() == [2, 1, 0]


def test_small_vocabularies() -> None:
    tokens = load(SPM | {"add_space_prefix": False})
    assert tokens.encode("aba").tolist() == [1, 0, 1]     # no byte tokens: the unknown token
    tokens = load({"model": "llama", "tokens": ["<unk>", "", "x"], "scores": [0.0, 0.0, 0.0], "token_type": [2, 1, 5]})
    assert tokens.token_text(1) == "[EMPTY_1]" and tokens.token_bytes(2) == b""
    tokens = load(BPE | {"tokens": ["a", "b", "ab", "<s>", "[U]", "\u4e00"],
                         "token_type": [NORMAL, NORMAL, NORMAL, CONTROL, USER_DEFINED, NORMAL]})
    assert tokens.encode("ab<s>[U]c").tolist() == [2, 4]  # bytes that the vocabulary lacks are lost, as in llama.cpp
    assert tokens.token_bytes(5) == "\u4e00".encode()


def test_eos_stands_for_a_bos_that_is_missing(spm: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spm.marks_of_text() == (1, 2)
    monkeypatch.setattr(spm, "bos_id", None)
    assert spm.marks_of_text() == (2, 2)
    monkeypatch.setattr(spm, "eos_id", None)
    with pytest.raises(LoraFastError, match="neither a BOS nor an EOS token"):
        spm.marks_of_text()
