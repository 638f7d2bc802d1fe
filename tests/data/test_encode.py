"""Which tokens count, against conversations put together by hand, for templates of the common kinds.

The tokenizer here makes a token of every byte and of every special token, so its tokens never join over a border.
"""
import random
import re

import chat_templates
import numpy as np
import pytest

from lorafast.data.encode import (
    EMPTY,
    ENDLESS,
    HIDDEN,
    MERGED,
    SPECIALS,
    SPLIT,
    SYSTEM,
    UNTRAINED,
    SequenceEncoder,
    chat_tokens,
)
from lorafast.data.records import BadRecord, Completion, Text
from lorafast.data.rendered import Rendered, common_prefix, prefix_end
from lorafast.data.samples import plain
from lorafast.data.shapes import parse_record
from lorafast.data.tokens import masked, n_common

USER = {"role": "user", "content": "q"}
SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
END_IDS = [257, 259, 260]


class ByteTokenizer:
    bos_id, eos_id, add_bos, eog_ids, n_vocab = 256, 257, False, frozenset(END_IDS), 256 + len(SPECIAL)

    def is_control(self, token):
        return token >= 256

    def token_text(self, token):
        return SPECIAL[token - 256]

    def fragments(self, text):
        for part in filter(None, re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", text.decode())):
            yield part.encode(), self.encode(part, parse_special=True), True

    def encode_part(self, text, begins):
        return self.encode(text)

    def encode(self, text, *, add_special=False, parse_special=False):
        text = text if isinstance(text, str) else text.decode("utf-8", "surrogateescape")
        parts = re.split("(" + "|".join(map(re.escape, SPECIAL)) + ")", text) if parse_special else [text]
        ids = []
        for part in parts:
            ids += [256 + SPECIAL.index(part)] if parse_special and part in SPECIAL else part.encode("utf-8",
                                                                                                     "surrogateescape")
        return np.array(ids, np.int32)


class BosTokenizer(ByteTokenizer):
    add_bos = True


def text_of(tokens):
    return "".join(SPECIAL[token - 256] if token >= 256 else chr(token) for token in plain(np.array(tokens)))


def counted(sequence):
    """The texts of the stretches that count."""
    return re.findall("[^\0]+", "".join(text_of([token]) if token >= 0 else "\0" for token in sequence))


BYTES = ByteTokenizer()


def encoder(template, tokenizer=BYTES, **options):
    chat_template = pytest.importorskip("lorafast.data.chat_template")
    return SequenceEncoder(tokenizer, lambda: chat_template.ChatTemplate(template, "the template", bos_token="<s>",
                                                                         eos_token="</s>"), **options)


def chat(*contents, system=None):
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return parse_record({"messages": messages})


CASES = {
    "chatml": (chat_templates.CHATML, chat_templates.chatml_pieces, True),
    "default system": (chat_templates.DEFAULT_SYSTEM, chat_templates.default_system_pieces, True),
    "llama3": (chat_templates.LLAMA3, chat_templates.llama3_pieces, True),
    "mistral": (chat_templates.MISTRAL, chat_templates.mistral_pieces, False),
}


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BosTokenizer()], ids=["no BOS", "BOS"])
@pytest.mark.parametrize("template, pieces, has_system", CASES.values(), ids=CASES)
def test_answers_count_and_nothing_else(template, pieces, has_system, tokenizer):
    rng = random.Random(0)
    # Contents repeat each other and the words of the templates: nothing is found by looking for a text.
    words = ["user", "assistant", "\n", "hi", "hi hi", "<|im_start|>", "[/INST]", "", " x ", "<|end_header_id|>\n\n"]
    answers, all_of_it = encoder(template, tokenizer), encoder(template, tokenizer, train_on_prompt=True)
    for _ in range(20):
        contents = ["".join(rng.choices(words, k=3)) for _ in range(2 * rng.randint(1, 4))]
        record = chat(*contents, system="s" if has_system and rng.random() < 0.5 else None)
        sequence, = answers.encode(record)
        expected = [~tokenizer.encode("<s>", parse_special=True)]
        made_of = list(pieces(record.messages))
        if not tokenizer.add_bos or made_of[0][0] == "<s>":
            expected = []
        for text, counts in made_of:
            tokens = tokenizer.encode(text, parse_special=True)
            expected.append(tokens if counts else ~tokens)
        expected = np.concatenate(expected)
        last = np.flatnonzero(expected >= 0)[-1]
        np.testing.assert_array_equal(sequence, expected[:last + 1])
        assert sequence[-1] in END_IDS

        everything, = all_of_it.encode(record)
        np.testing.assert_array_equal(everything, plain(expected))


def test_a_system_message_that_moves_makes_a_sample_of_each_answer():
    it = encoder(chat_templates.MISTRAL)
    sequences = it.encode(chat("q1", "a1", "q2", "a2", system="S"))
    assert [text_of(sequence) for sequence in sequences] == [
        "<s>[INST] S\n\nq1[/INST] a1</s>", "<s>[INST] q1[/INST] a1</s>[INST] S\n\nq2[/INST] a2</s>"]
    assert [counted(sequence) for sequence in sequences] == [[" a1</s>"], [" a2</s>"]]
    assert it.notes[SPLIT] == 1
    assert len(it.encode(chat("q1", "a1", system="S"))) == 1 and it.notes[SPLIT] == 1


def test_thoughts_that_are_shown_once():
    it = encoder(chat_templates.THINKING)
    sequences = it.encode(chat("q1", "<think>t1</think>a1", "q2", "a2"))
    assert [counted(sequence) for sequence in sequences] == [
        ["t1</think>a1<|im_end|>"],     # the generation prompt gives "<think>"
        ["a2<|im_end|>"],               # without thoughts, the generation prompt is not what precedes the answer
    ]
    assert it.notes[SPLIT] == 1


def test_messages_that_are_not_trained():
    messages = [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1", "weight": 0},
                {"role": "user", "content": "q2"}, {"role": "assistant", "content": "a2"},
                {"role": "user", "content": "q3"}]
    it = encoder(chat_templates.CHATML)
    sequence, = it.encode(parse_record({"messages": messages}))
    assert counted(sequence) == ["a2<|im_end|>"] and text_of(sequence).endswith("a2<|im_end|>")
    sequence, = it.encode(parse_record({"messages": messages[3:4] + messages[2:4]}))
    assert counted(sequence) == ["a2<|im_end|>"] and it.notes[UNTRAINED] == 1
    for bad, words in ((messages[:3], "no answer of the assistant to train on"),
                       (messages[3:4], "only answer of the assistant comes first, and answers nothing")):
        with pytest.raises(BadRecord, match=words):
            it.encode(parse_record({"messages": bad}))


def test_a_template_without_ends_of_turns():
    it = encoder("{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
                 "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")
    sequence, = it.encode(chat("q", "a", "q", "b"))
    assert counted(sequence) == ["a\n", "b\n"] and it.notes[ENDLESS] == 2


def test_templates_that_fail():
    with pytest.raises(BadRecord, match="the template cannot render it: roles must alternate"):
        encoder(chat_templates.MISTRAL).encode(parse_record({"messages": [
            {"role": "user", "content": "a"}, {"role": "user", "content": "b"},
            {"role": "assistant", "content": "c"}]}))
    silent = "{{ messages | length }}{% for m in messages if m.role == 'user' %}{{ m.content + '</s>' }}{% endfor %}"
    with pytest.raises(BadRecord, match="message 2: the chat template does not show it"):
        encoder(silent).encode(chat("q", "a"))
    whole, = encoder(silent, train_on_prompt=True).encode(chat("q", "a"))
    assert counted(whole) == ["2q</s>"]


def test_what_precedes_changes_once_the_answer_follows():
    """The answer is found by exchanging it."""
    counts_messages = "{{ messages | length }}{% for m in messages %}{{ m.content + '</s>' }}{% endfor %}"
    sequence, = encoder(counts_messages).encode(chat("q", "a"))
    assert text_of(sequence) == "2q</s>a</s>" and counted(sequence) == ["a</s>"]


def test_the_next_turn_ends_an_answer():
    """As in GLM: what ends generation is the mark of the next role."""
    template = ("{% for m in messages %}{{ '<|im_end|>' if m.role == 'user' else '<|im_start|>' }}{{ m.content }}"
                "{% endfor %}"
                "{% if add_generation_prompt %}<|im_start|>{% endif %}")
    it = encoder(template)
    sequence, = it.encode(chat("q", "a", "p", "b"))
    assert counted(sequence) == ["a<|im_end|>", "b"] and it.notes[ENDLESS] == 1


def test_a_template_without_a_place_for_system_messages():
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    drops = "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
    for start in (refuses, drops):
        it = encoder(start + chat_templates.CHATML)
        sequence, = it.encode(chat("q", "a", system="S"))
        assert text_of(sequence).startswith("<|im_start|>user\nS\n\nq<|im_end|>")
        assert counted(sequence) == ["a<|im_end|>"]
        assert it.notes[SYSTEM] == 1


CALL = {"type": "function", "function": {"name": "w", "arguments": '{"city": "Oslo"}'}}
SHOWS_CALLS = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
               "{% for c in m.tool_calls or [] %}{{ c.function.name }}"
               "{{ ARGUMENTS }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
               "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


@pytest.mark.parametrize("arguments", ["c.function.arguments | tojson", "c.function.arguments",
                                       "'' + c.function.arguments"])
def test_calls_in_the_form_that_the_template_wants(arguments):
    it = encoder(SHOWS_CALLS.replace("ARGUMENTS", arguments))
    sequence, = it.encode(parse_record({"messages": [
        {"role": "user", "content": "q"}, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}))
    assert counted(sequence) == ['w{"city": "Oslo"}<|im_end|>'] and not it.notes[HIDDEN.format("tool_calls")]


def test_what_the_template_does_not_show():
    it = encoder(chat_templates.CHATML)
    record = parse_record({"tools": [{"name": "w"}], "messages": [
        {"role": "user", "content": "q", "name": "Ann"}, {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "5"}, {"role": "assistant", "content": "a", "reasoning_content": "r",
                                           "thinking": ""}]})
    sequence, = it.encode(record)
    assert counted(sequence) == ["a<|im_end|>"]
    hidden = [key for key in ("tools", "name", "tool_calls", "reasoning_content",
                              "thinking") if it.notes[HIDDEN.format(key)]]
    assert hidden == ["tools", "name", "tool_calls", "reasoning_content"] and it.notes[EMPTY] == 1


def test_what_the_template_insists_on_is_shown():
    insists = "{% for tool in tools %}{{ tool | tojson }}{% endfor %}" + chat_templates.CHATML
    it = encoder(insists)
    record = parse_record({"tools": [{"name": "w"}], "messages": [USER, {"role": "assistant", "content": "a"}]})
    assert counted(it.encode(record)[0]) == ["a<|im_end|>"] and not it.notes[HIDDEN.format("tools")]
    assert counted(encoder(insists).encode(chat("q", "a"))[0]) == ["a<|im_end|>"]


def test_variables_of_a_record():
    it = encoder(chat_templates.CHATML + "{% if x %}</s>{% endif %}", train_on_prompt=True)
    sequence, = it.encode(parse_record({"messages": [{"role": "user", "content": "q"}, {"role": "assistant",
                                                                                        "content": "a"}],
                                        "chat_template_kwargs": {"x": True}}))
    assert text_of(sequence).endswith("</s>")


def test_pairs_as_chats():
    it = encoder(chat_templates.CHATML, pairs_as_chats=True)
    sequence, = it.encode(Completion("q ", " a", "S"))
    assert text_of(sequence) == ("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
                                 "<|im_start|>assistant\na<|im_end|>") and counted(sequence) == ["a<|im_end|>"]
    sequence, = it.encode(Completion("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hello<|im_end|>"))
    assert text_of(sequence) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>"
    assert counted(sequence) == ["Hello<|im_end|>"] and it.notes[SPECIALS] == 1
    sequence, = encoder(chat_templates.CHATML).encode(Completion("Name one.", "a", is_instruction=True))
    assert text_of(sequence).endswith("### Instruction:\nName one.\n\n### Response:\na</s>")
    assert counted(sequence) == ["a</s>"]


def test_weights():
    it = encoder(chat_templates.CHATML)
    assert it.encode(Text("ab", weight=0.0)) == [] and not it.encode(Text("ab", weight=0.5))[0].size == 0
    assert sum(n for sentence, n in it.notes.items() if "weight" in sentence) == 2
    assert it.rows(Completion("q", "a"))[0].weights is None
    row, = it.rows(parse_record({"weight": 0.5, "messages": [
        USER, {**USER, "role": "assistant", "content": "a", "weight": 3}, USER,
        {"role": "assistant", "content": "b", "weight": 0}, USER, {"role": "assistant", "content": "c"}]}))
    tokens, counts = plain(row.stored), row.stored >= 0
    assert row.weights[counts & (tokens == ord("a"))] == 1.5 and row.weights[counts & (tokens == ord("c"))] == 0.5
    assert not (counts & (tokens == ord("b"))).any() and set(row.weights[counts]) == {1.5, 0.5}
    row, = encoder(chat_templates.CHATML, train_on_prompt=True).rows(Completion("q", "a", weight=2.0))
    assert (row.weights == 2).all()


@pytest.mark.parametrize("seed", range(5))
def test_an_index_is_where_the_tokens_of_the_prefix_end(seed):
    rng = random.Random(seed)
    text = "".join(rng.choices([*SPECIAL, "a", "é", " ", "\n", "bc"], k=30))
    tokenizer = BosTokenizer()
    rendered = Rendered(text, tokenizer, add_bos=True)
    for n in range(len(text) + 1):
        prefix = Rendered(text[:n], tokenizer, add_bos=True).tokens
        assert rendered.index(n) == n_common(prefix, rendered.tokens)


def test_common_prefix():
    assert [common_prefix(*pair) for pair in (("abc", "abd"), ("", "a"), ("ab", "ab"), ("ab", "abc"), ("x", "y"))] == [
        2, 0, 2, 2, 0]


def test_a_long_chat_is_not_encoded_again_at_each_turn():
    encoded = []

    class Counting(ByteTokenizer):
        def encode(self, text, **options):
            encoded.append(len(text))
            return super().encode(text, **options)

    record = chat(*["word " * 10] * 200)
    encoder(chat_templates.CHATML, Counting()).encode(record)
    assert sum(encoded) < 3 * sum(len(m["content"]) + 40 for m in record.messages)


@pytest.mark.parametrize("tokenizer, bos", [(ByteTokenizer(), ""), (BosTokenizer(), "<s>")])
def test_texts_and_completions(tokenizer, bos):
    it = SequenceEncoder(tokenizer, None)
    sequence, = it.encode(Text("ab<s>"))
    assert counted(sequence) == [f"{bos}ab<s></s>"] and it.notes[SPECIALS] == 1
    for text in ("<s>ab</s>", "<s>ab<|im_end|>\n"):                   # no second BOS or EOS
        assert counted(it.encode(Text(text))[0]) == [text]
    sequence, = it.encode(Completion("Q: ", "A"))
    assert text_of(sequence) == f"{bos}Q: A</s>" and counted(sequence) == ["A</s>"]
    sequence, = it.encode(Completion("Q", ""))
    assert counted(sequence) == ["</s>"]
    sequence, = SequenceEncoder(tokenizer, None, train_on_prompt=True).encode(Completion("Q", "A"))
    assert counted(sequence) == [f"{bos}QA</s>"]
    assert it.notes[MERGED] == 0


def test_a_single_token_is_bad():
    class NoEnds(ByteTokenizer):
        eos_id = None
    with pytest.raises(BadRecord, match="single token"):
        SequenceEncoder(NoEnds(), None).encode(Text("a"))


class PairTokenizer(ByteTokenizer):
    """Two bytes a token, from the left: tokens join over borders wherever the first part is odd."""

    n_vocab = 1000 + 2**16

    def is_control(self, token):
        return 256 <= token < 1000

    def fragments(self, text):
        yield text, self.encode(text), True

    def encode(self, text, **options):
        data = text.encode() if isinstance(text, str) else text
        return np.array([int.from_bytes(data[i:i + 2], "big") + 1000 for i in range(0, len(data), 2)], np.int32)


def test_tokens_over_the_border_belong_to_the_completion():
    it = SequenceEncoder(PairTokenizer(), None)
    sequence, = it.encode(Completion("abc", "def"))             # ab cd ef
    assert (sequence >= 0).tolist() == [False, True, True, True] and it.notes[MERGED] == 1
    sequence, = it.encode(Completion("abcd", "ef"))
    assert (sequence >= 0).tolist() == [False, False, True, True] and it.notes[MERGED] == 1


@pytest.mark.parametrize("prefix, whole, rest, end", [
    ([1, 2], [1, 2, 3], [3], 2),
    ([1, 9], [1, 2, 3], [4], 1),            # joined
    ([1, 9], [1, 2, 2, 3], [3], 3),         # the first part alone ends otherwise, but the second is whole
    ([1, 2], [1, 2], [], 2),
    ([5], [1, 2], [1, 2], 0),
])
def test_prefix_end(prefix, whole, rest, end):
    assert prefix_end(*(np.array(tokens, np.int32) for tokens in (prefix, whole, rest))) == end


def test_small_functions():
    assert n_common(np.array([1, 2, 3]), np.array([1, 2, 4, 5])) == 2
    assert n_common(np.array([1]), np.array([1, 2])) == 1 and n_common(np.array([], int), np.array([1])) == 0
    assert masked(np.array([5, 6, 7, 8, 9]), [(1, 2), (3, 4)]).tolist() == [~5, 6, ~7, 8]
    assert chat_tokens("<s>a", BosTokenizer()).tolist() == [256, 97] == chat_tokens("a", BosTokenizer()).tolist()
    assert chat_tokens("a", ByteTokenizer()).tolist() == [97]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["<|end|>", "[over]"], ids=["end of turn", "ordinary text"])
def test_masks_are_those_of_transformers(tmp_path, end):
    """With {% generation %} around what counts, transformers marks the same tokens of the same conversation."""
    transformers = pytest.importorskip("transformers")
    from make_models import make_tiny

    from lorafast.data.chat_template import load_chat_template
    from lorafast.gguf.reader import open_model
    from lorafast.tokenizer import load_tokenizer

    path = make_tiny(tmp_path / "tiny.gguf", vocab="BPE")
    template = ("{% for m in messages %}{{ '[' + m.role + ']\\n\\n' }}{% generation %}{% if m.role == 'assistant' %}"
                "{{ m.content + END }}{% endif %}{% endgeneration %}{% if m.role != 'assistant' %}{{ m.content + END }}"
                "{% endif %}{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]\\n\\n' }}{% endif %}")
    (tmp_path / "t.jinja").write_text(template.replace("END", repr(end)))
    tokenizer = load_tokenizer(open_model(path))
    it = SequenceEncoder(tokenizer, lambda: load_chat_template({}, tokenizer, str(tmp_path / "t.jinja")))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    rng = random.Random(0)
    words = "the love of my sweet, and \n not for thee! é  all 12".split(" ")
    for _ in range(50):
        messages = [{"role": ("user", "assistant")[i % 2], "content": " ".join(rng.choices(words, k=rng.randint(1, 9)))}
                    for i in range(2 * rng.randint(1, 3))]
        sequence, = it.encode(parse_record({"messages": messages}))
        answer = theirs.apply_chat_template(messages, chat_template=it.template.source, return_dict=True,
                                            return_assistant_tokens_mask=True)
        ids, mask = np.array(answer["input_ids"]), np.array(answer["assistant_masks"])
        np.testing.assert_array_equal(plain(sequence), ids[:len(sequence)])
        if end == "[over]":     # not known as an end of turn: the line end after it counts as well
            mask[1:] |= mask[:-1] & ~mask[1:] & 1
        np.testing.assert_array_equal(sequence >= 0, mask[:len(sequence)] == 1)
        assert not mask[len(sequence):].any()
