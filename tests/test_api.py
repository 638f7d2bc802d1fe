"""lorafast from Python, and `lorafast generate`, which is built on it."""
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from make_models import STRING, make_tiny
from numerics import nmse

import lorafast
from lorafast.adapters import AdapterFile, BaseModel, write_adapter
from lorafast.adapters.stack import stack
from lorafast.commands.generate import generate
from lorafast.errors import LoraFastError, UsageError
from lorafast.gguf.file_form import FileForm
from lorafast.gguf.reader import open_model
from lorafast.gguf.roles import LLAMA_FINETUNE_NAMES
from lorafast.network.hparams import read_hparams
from lorafast.network.lora import Adapter, default_ranks, specs_for
from lorafast.options.use import GenerateConfig

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
SAME = 1e-8             # NMSE of logits that are equal but for the rounding of products; measured 2e-10 to 6e-10


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return make_tiny(tmp_path_factory.mktemp("model") / "tiny.gguf",
                     metadata=[("tokenizer.chat_template", STRING, TEMPLATE)])


def random_adapter(path, seed: int, roles=LLAMA_FINETUNE_NAMES, rank: int = 3) -> AdapterFile:
    specs = specs_for(read_hparams(open_model(path)).tensor_shapes(), dict.fromkeys(roles, rank) | {
        role: 0 for role in LLAMA_FINETUNE_NAMES if role not in roles})
    adapter = Adapter(specs, alpha=6, r=3)
    adapter.params[:] = 0.05 * np.random.default_rng(seed).standard_normal(adapter.n_params)
    return AdapterFile.of(adapter)


@pytest.fixture(scope="module")
def adapters(path):
    """Two ggla files: one on everything, norms and token_embd included, one on two roles with another rank."""
    files = [random_adapter(path, 1), random_adapter(path, 2, ("attn_q", "ffn_norm"), rank=2)]
    base = BaseModel.from_gguf(open_model(path))
    names = [path.with_name(f"{i}.bin") for i in (1, 2)]
    for name, file in zip(names, files):
        write_adapter(FileForm.GGLA, name, file, base)
    return names


TOKENS = np.random.default_rng(3).integers(3, 380, 21)


def test_forward_gives_the_logits_of_every_token(path, adapters):
    model = lorafast.Model.open(path, adapters[:1], n_threads=1)
    logits = model.forward(TOKENS)
    assert logits.shape == (21, model.n_vocab) and logits.dtype == np.float32
    for n in (1, 2, 7, 21):
        assert nmse(model.forward(TOKENS[:n])[-1], logits[n - 1]) < SAME
    for wrong in ([], np.zeros((2, 2), int), [384], [-1], [3] * 200, [1.5], "love", None, 3, [[1], [2, 3]]):
        with pytest.raises(LoraFastError, match=r"^token_ids"):
            model.forward(wrong)


def test_adapters_add_up(path, adapters):
    """The change that several make, when it is small, is the sum of theirs; and exactly that of their sum as one
    adapter."""
    def logits(*lora):
        return lorafast.Model.open(path, lora).forward(TOKENS).astype(np.float64)

    base = logits()
    small = [(name, 0.01) for name in adapters]
    changes = [logits(item) - base for item in small]
    assert nmse(logits(*small) - base, sum(changes)) < 0.01
    np.testing.assert_array_equal(logits(f"{adapters[0]}:0.5"), logits((adapters[0], 0.5)))
    assert nmse(logits((adapters[1], 2), (adapters[1], -2)), base) < SAME
    assert nmse(logits(adapters[0], adapters[0]), logits((adapters[0], 2.0))) < SAME


def test_stack_joins_along_the_rank(path):
    first, second = random_adapter(path, 1, ("attn_q",)), random_adapter(path, 2, ("attn_q", "attn_k"), rank=2)
    second.warnings.append("odd")
    both = stack([(first, 1.0), (second, 0.5)])
    a, b = both.pairs["blk.0.attn_q.weight"]
    assert len(a) == len(b) == 5 and both.scale == 1 and both.warnings == ["odd"]
    wanted = sum(file.scale * factor * np.matmul(file.pairs["blk.0.attn_q.weight"][1].T,
                                                 file.pairs["blk.0.attn_q.weight"][0])
                 for file, factor in ((first, 1.0), (second, 0.5)))
    np.testing.assert_allclose(b.T @ a, wanted, atol=1e-7)
    np.testing.assert_allclose(both.pairs["blk.1.attn_k.weight"][1], second.pairs["blk.1.attn_k.weight"][1])
    assert stack([]).pairs == {}


def test_magnitudes_are_no_part_of_a_sum():
    def file(*roles, dora=False):
        specs = specs_for({f"blk.0.{role}.weight": (8, 8) for role in roles}, default_ranks(2), dora=dora)
        return AdapterFile.of(Adapter(specs, 2, 2))

    dora = file("attn_q", dora=True)
    both = stack([(dora, 1.0), (file("attn_k"), 0.5)])
    assert both.pairs.keys() == {"blk.0.attn_q.weight", "blk.0.attn_k.weight"}
    assert both.magnitudes.keys() == {"blk.0.attn_q.weight"}
    with pytest.raises(LoraFastError, match=r"not times 0.5.*lorafast merge"):
        stack([(dora, 0.5)])
    with pytest.raises(LoraFastError, match=r"two adapters change blk.0.attn_q.weight.*lorafast merge"):
        stack([(file("attn_q", "attn_k"), 1.0), (dora, 1.0)])


def test_generation_is_the_likeliest_path_and_reads_what_is_new_only(path):
    model = lorafast.Model.open(path)
    prompt = list(model.prompt_tokens("the love of"))
    tokens = list(prompt)
    for _ in range(12):
        tokens.append(int(model.forward(tokens)[-1].argmax()))
        if tokens[-1] in model.tokenizer.eog_ids:
            break
    text = "".join(model.generate("the love of", n_predict=12, temperature=0))
    assert text == model.tokenizer.decode(tokens[len(prompt):], continuation=True)
    assert model.session.speed.prompt_tokens == len(prompt)

    again = "".join(model.generate("the love of", n_predict=12, temperature=0))
    assert again == text and model.session.speed.prompt_tokens == 1
    half_way = model.generate("the love of thy sweet", n_predict=50, temperature=0)
    next(half_way)
    half_way.close()
    assert "".join(model.generate("the love of", n_predict=12, temperature=0)) == text


def test_seed_stop_and_room(path):
    model = lorafast.Model.open(path, n_ctx=40)
    options = dict(n_predict=1000, top_k=0, min_p=0, top_p=1)
    text = "".join(model.generate("love", seed=4, **options))
    assert text == "".join(model.generate("love", seed=4, **options))
    assert text != "".join(model.generate("love", seed=5, **options))
    assert len(model.session.tokens) == 40 or model.session.tokens[-1] in model.tokenizer.eog_ids
    stop = text[5:8]
    assert "".join(model.generate("love", seed=4, stop=[stop], **options)) == text[:text.index(stop)]
    with pytest.raises(UsageError, match="leave no room"):
        list(model.generate("love " * 40))
    assert list(model.generate("love", n_predict=0)) == []


def test_chat(path):
    pytest.importorskip("jinja2")
    model = lorafast.Model.open(path)
    got = "".join(model.chat([{"role": "user", "content": "love"}], n_predict=6, temperature=0))
    assert got == "".join(model.generate("user: love\nassistant:", n_predict=6, temperature=0))


def test_finetune_calls_back(path, tmp_path):
    events = []
    (tmp_path / "text.txt").write_text("the love of thy sweet all " * 60)
    options = dict(model_base=str(path), train_data=(str(tmp_path / "text.txt"),),
                   lora_out=(str(tmp_path / "out.gguf"),), checkpoint_in="", checkpoint_out="", ctx=16, batch=2,
                   adam_iter=3, seed=1)
    result = lorafast.finetune(options, callback=events.append)
    assert result.iteration == 3 and lorafast.finetune(lorafast.FinetuneConfig(**options)).loss == result.loss
    steps = [event for event in events if isinstance(event, lorafast.Step)]
    assert [step.iteration for step in steps] == [1, 2, 3] and all(step.loss > 0 for step in steps)
    assert isinstance(events[0], lorafast.Started) and isinstance(events[-1], lorafast.Ended)
    base, adapted = (lorafast.Model.open(path, lora).forward(TOKENS) for lora in ([], [tmp_path / "out.gguf"]))
    assert nmse(adapted, base) > 0


def test_importing_is_cheap():
    code = ("import sys, lorafast, lorafast.cli; lorafast.FinetuneConfig, lorafast.Step; "
            "sys.exit(any(name in sys.modules for name in ('numpy', 'rich', 'jinja2', 'lorafast.api')))")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError):
        _ = lorafast.Mode


# ---- the command ----

def answers(path, *lines: str, **options) -> list[str]:
    """What is shown for the prompt, if there is one, and for each line of an interactive session."""
    out: list[str] = []
    inputs = iter(lines)

    def read() -> str:
        try:
            line = next(inputs)
        except StopIteration:
            raise EOFError from None
        if line == "^C":
            raise KeyboardInterrupt
        return line

    generate(GenerateConfig(model_base=str(path), n_predict=8, temperature=0, **options), out.append, read)
    ends = [i for i, piece in enumerate(out) if piece == "\n"]
    return ["".join(out[begin:end]) for begin, end in zip([0, *(end + 1 for end in ends)], ends)]


def test_command_continues_a_prompt(path, adapters, capsys):
    text, = answers(path, prompt="the love", verbose=True)
    assert text.startswith("the love")
    assert "generated: 8 tokens in" in capsys.readouterr().err
    assert answers(path, prompt="the love", lora=(f"{adapters[0]}:0",)) == [text]
    assert answers(path, prompt="the love", lora=(str(adapters[0]),)) != [text]
    with pytest.raises(UsageError, match="do not fit into --ctx 9"):
        answers(path, prompt="the love", ctx=9)
    with pytest.raises(UsageError, match="--system: needs --chat"):
        answers(path, system="x")


def test_command_converses(path, capsys):
    pytest.importorskip("jinja2")
    first, second, third = answers(path, "love", "", "thy " * 40, "sweet", "thy " * 90, chat=True, interactive=True,
                                   ctx=100, system="all")
    model = lorafast.Model.open(path, n_ctx=100)
    prompt = "system: all\nuser: love\nassistant:"
    assert first == "".join(model.generate(prompt, n_predict=8, temperature=0))
    thy = "thy " * 40
    prompt += f" {first}\nuser: {thy}\nassistant:"
    assert second == "".join(model.generate(prompt, n_predict=8, temperature=0))
    assert third == "".join(model.generate("system: all\nuser: sweet\nassistant:", n_predict=8, temperature=0))
    too_long, _, error = capsys.readouterr().err.splitlines()
    assert "leave no room in a context of 100 (--ctx); beginning a new conversation" in too_long
    assert error.startswith("lorafast: error: ") and "leave no room" in error


def test_an_answer_can_be_interrupted(path, monkeypatch):
    """Ctrl-C ends the answer, not the session; what was said stays in the conversation."""
    pytest.importorskip("jinja2")
    out: list[str] = []

    def write(piece: str) -> None:
        out.append(piece)
        if len(out) == 3:
            raise KeyboardInterrupt

    lines = iter(["love", "sweet"])

    def read() -> str:
        line = next(lines, None)
        if line is None:
            raise EOFError
        return line

    config = GenerateConfig(model_base=str(path), n_predict=8, temperature=0, chat=True, interactive=True)
    generate(config, write, read)
    assert out[3] == "\n" and len(out) > 5 and out[-1] == "\n"
    assert answers(path, "love", "^C", "sweet", interactive=True) == answers(path, "love", interactive=True)
    out.clear()
    with pytest.raises(KeyboardInterrupt):
        generate(replace(config, interactive=False, prompt="love"), write)
    assert len(out) == 4 and out[-1] == "\n"


def test_no_chat_template(path, tmp_path):
    pytest.importorskip("jinja2")
    with pytest.raises(LoraFastError, match="no chat template"):
        answers(make_tiny(tmp_path / "bare.gguf"), prompt="x", chat=True)


def test_probabilities_states_and_what_a_model_is(tmp_path):
    model = lorafast.Model.open(make_tiny(tmp_path / "model.gguf"), n_ctx=32)
    tokens = [1, 300, 17, 263]
    logits = model.forward(tokens).astype(np.float64)
    expected = [row[token] - np.log(np.exp(row).sum()) for row, token in zip(logits, tokens[1:])]
    np.testing.assert_allclose(model.log_probabilities(tokens), expected, rtol=1e-6)
    assert model.log_probabilities(tokens[:1]).shape == (0,)
    assert model.hidden_states(tokens).shape == (4, 64) and "model.gguf, llama, 0 adapted tensors" in repr(model)
    with pytest.raises(UsageError, match=r"unknown argument temprature \(did you mean temperature\?\)"):
        model.generate("x", temprature=1)


WRONG_ARGUMENTS = [
    (lambda model: list(model.generate("x", temperature="0")), "temperature '0': must be a number"),
    (lambda model: list(model.generate("x", temperature=-1)), "temperature -1: must be at least 0"),
    (lambda model: list(model.generate("x", n_predict=1.5)), "n_predict 1.5: must be a whole number"),
    (lambda model: list(model.generate("x", seed="a")), "seed 'a': must be a whole number"),
    (lambda model: list(model.generate("x", stop=3)), "stop 3: must be"),
    (lambda model: list(model.generate([1.5])), "token_ids: must be a list of token ids"),
    (lambda model: list(model.chat("hello")), "messages: must be a sequence of mappings"),
    (lambda model: list(model.chat([], template_args=["a=1"])), "template_args"),
    (lambda model: model.gradients([1]), "token_ids has 1 id, wanted 2 to 33"),
    (lambda model: model.tokenizer.encode(3), "text 3: must be text or bytes"),
    (lambda model: model.tokenizer.decode([384]), "token 384: must be a whole number from 0 to 383"),
    (lambda model: lorafast.Model.open(3), "path 3: must be a path or text"),
    (lambda model: lorafast.Model.open("model.gguf", 3), "lora 3: must be a path"),
    (lambda model: lorafast.Model.open("model.gguf", [("a.gguf", "x")]), "must be a path, a pair of a path"),
    (lambda model: lorafast.Model.open("model.gguf", n_ctx="32"), "n_ctx '32': must be a whole number"),
    (lambda model: lorafast.Model.open("model.gguf", n_ctx=-4), "n_ctx -4: must be at least 1"),
    (lambda model: lorafast.Model.open("model.gguf", n_threads=0), "n_threads 0: must be at least 1"),
    (lambda model: lorafast.Model.open("model.gguf", precision="in16"), "precision 'in16': must be one of auto"),
    (lambda model: lorafast.finetune([1]), "config [1]: must be a FinetuneConfig or a mapping"),
    (lambda model: lorafast.finetune(callback=3), "callback 3: must be a function"),
    (lambda model: lorafast.finetune(data=3), "data: must be an iterable of records, and not of type int"),
    (lambda model: lorafast.finetune(data={"text": "x"}), "data: must be an iterable of records, and not of type dict"),
    (lambda model: lorafast.finetune(data=["x"]), "data: record 1 is of type str"),
    (lambda model: lorafast.finetune(data=[[1, 2.5]]), "data: record 1: must be a list of token ids"),
    (lambda model: lorafast.finetune(data=[{"text": model}]), "data: record 1 cannot be written as JSON"),
    (lambda model: lorafast.finetune(data=[], model_base="model.gguf", preset="modern"), "data has no records"),
    (lambda model: lorafast.finetune(data=[], train_data="a.txt"), "either data, or train_data"),
    (lambda model: lorafast.finetune(output_dir="x"), "unknown argument output_dir: --run FOLDER keeps"),
    (lambda model: lorafast.finetune(lr=1e-4), "unknown argument lr (did you mean adam_alpha?)"),
    (lambda model: lorafast.finetune(adam_alpha=float("nan")), "adam_alpha nan: must be a number"),
    (lambda model: lorafast.finetune(zzz=1), "unknown argument zzz (docs/options.md lists them)"),
]


@pytest.mark.parametrize("call, words", WRONG_ARGUMENTS, ids=[words for _, words in WRONG_ARGUMENTS])
def test_wrong_arguments_are_errors_of_one_line(call, words, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.gguf").symlink_to(path)
    model = lorafast.Model.open("model.gguf", n_ctx=32)
    with pytest.raises(LoraFastError) as raised:
        call(model)
    text = str(raised.value)
    assert words in text and "\n" not in text and "/records.jsonl" not in text


def test_numbers_may_be_numpys(path):
    model = lorafast.Model.open(path, n_ctx=np.int64(32), n_threads=np.int32(1))
    assert len(list(model.generate("love", n_predict=np.int64(3), temperature=np.float32(0)))) <= 3
    assert len(list(model.generate("love", n_predict=2, seed=-1))) <= 2
    assert "n_vocab 384" in repr(model.tokenizer)


def test_variables_of_a_chat_template(path, tmp_path, capsys):
    template = tmp_path / "t.jinja"
    template.write_text("{% if not enable_thinking %}my {% endif %}{% for m in messages %}{{ m.content }}{% endfor %}")
    model = lorafast.Model.open(path)
    options = dict(n_predict=8, temperature=0)
    got = "".join(model.chat([{"role": "user", "content": "love"}], chat_template=template,
                             template_args={"enable_thinking": True}, **options))
    assert got == "".join(model.generate("love", **options)) != "".join(model.generate("my love", **options))
    by_command = dict(chat=True, chat_template=str(template), prompt="love")
    assert "".join(answers(path, template_arg=("enable_thinking=true",), **by_command)) == got
    assert capsys.readouterr().err == ""
    answers(path, template_arg=("enable_thinkin=true",), **by_command)
    assert ("warning: --template-arg enable_thinkin: --chat-template" in (err := capsys.readouterr().err)
            and "(did you mean enable_thinking?)" in err)
    with pytest.raises(UsageError, match="--template-arg: needs --chat"):
        GenerateConfig(str(path), template_arg=("a=1",))


def test_own_records_history_and_a_callback_that_stops(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = dict(model_base=make_tiny("model.gguf"), ctx=16, batch=2, adam_iter=5, raw_pairs=True)
    result = lorafast.finetune(data=({"prompt": "the", "completion": " love"} for _ in range(8)), run="r", **options,
                               callback=lambda event: isinstance(event, lorafast.Step) and event.iteration == 2)
    assert (result.iteration, result.reason) == (2, "stopped by the callback")
    assert [event.iteration for event in result.history] == [1, 2]
    assert (tmp_path / "r" / "adapter.gguf").exists()
    assert "convert" in dir(lorafast) and lorafast.check("r/adapter.gguf", "model.gguf") == []
    ids = lorafast.Model.open("model.gguf").tokenizer.encode("the love of thy sweet")
    plain = dict(options, checkpoint_out="", quiet=True, force=True, preset="modern", seed=1)
    texts, tokens = (lorafast.finetune(data=[record] * 4, lora_out=f"{name}.gguf", **plain)
                     for name, record in (("text", {"text": "the love of thy sweet"}), ("ids", [1, *ids, 2])))
    assert texts.loss == tokens.loss
    with pytest.raises(lorafast.LoraFastError, match=r"'token_ids' must be whole numbers from 0 to 383"):
        lorafast.finetune(data=[[1, 384]], lora_out="ids.gguf", **plain)
    with pytest.raises(lorafast.LoraFastError, match="must be records; a file's name goes to train_data"):
        lorafast.finetune(data="chats.jsonl", **plain)
