"""Options of the file commands: arguments by their place, adapters with scales, checks."""
import pytest
from make_models import make_tiny

from lorafast.commands.inspect_model import inspect_file
from lorafast.errors import UsageError
from lorafast.gguf.recognise import is_data
from lorafast.gguf.types import GGMLType
from lorafast.options.declare import HELP_WIDTH, help_text, parse, to_argv
from lorafast.options.tools import CheckOptions, ConvertOptions, InspectOptions, MergeOptions, path_and_scale

MERGE = ["--model-base", "m.gguf", "--lora", "a.gguf", "--output", "o.gguf"]


@pytest.mark.parametrize("text, expected", [
    ("a.gguf", ("a.gguf", 1.0)), ("a.gguf:0.5", ("a.gguf", 0.5)), ("a:-2", ("a", -2.0)),
    ("C:/a.gguf", ("C:/a.gguf", 1.0)), ("C:/a.gguf:1e-1", ("C:/a.gguf", 0.1)), (":1", (":1", 1.0)),
    ("a:b", ("a:b", 1.0))])
def test_path_and_scale(text, expected):
    assert path_and_scale(text) == expected


def test_merge():
    options = parse(MergeOptions, [*MERGE, "--lora", "b:2", "--type", "Q4_K"])
    assert options.adapters() == [("a.gguf", 1.0), ("b", 2.0)] and options.ggml_type is GGMLType.Q4_K
    assert parse(MergeOptions, MERGE).ggml_type is None
    for missing in range(0, 6, 2):
        with pytest.raises(UsageError, match=f"{MERGE[missing]} is missing"):
            parse(MergeOptions, MERGE[:missing] + MERGE[missing + 2:])
    with pytest.raises(UsageError, match="--type q9: must be one of f32, f16"):
        parse(MergeOptions, [*MERGE, "--type", "q9"])


@pytest.mark.parametrize("line", ["a b", "--to peft a --drop norms b", "a --card b -m m"])
def test_arguments_stand_anywhere(line):
    options = parse(ConvertOptions, line.split())
    assert (options.source, options.target) == ("a", "b")
    assert parse(ConvertOptions, to_argv(options)) == options


@pytest.mark.parametrize("cls, argv, message", [
    (ConvertOptions, [], "IN is missing: adapter or checkpoint"), (ConvertOptions, ["a"], "OUT is missing"),
    (ConvertOptions, ["a", "b", "c"], "unexpected argument 'c'"), (InspectOptions, [], "FILE is missing"),
    (CheckOptions, ["-m", "m"], "ADAPTER is missing"), (ConvertOptions, ["--source", "a"], "unknown option --source")])
def test_arguments_that_are_missing_or_too_many(cls, argv, message):
    with pytest.raises(UsageError, match=message):
        parse(cls, argv)


def test_drop_list():
    assert parse(ConvertOptions, ["a", "b", "--drop", "norms, token_embd,,"]).drop_list() == ("norms", "token_embd")


@pytest.mark.parametrize("cls", [ConvertOptions, CheckOptions, InspectOptions, MergeOptions])
def test_help(cls):
    text = help_text(cls)
    assert max(map(len, text.splitlines())) <= HELP_WIDTH
    assert ("Arguments:\n  " in text) is (cls is not MergeOptions)


def test_inspect_and_what_it_leaves_to_data(tmp_path):
    model = make_tiny(tmp_path / "model.gguf")
    assert "blk.1.attn_q.weight" in "\n".join(inspect_file(str(model), everything=True))
    (tmp_path / "text").write_text("abc")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text("{}")
    for name, expected in {"model.gguf": False, "text": True, "peft": False, "peft/adapter_config.json": False,
                           "": True, "none": False}.items():
        assert is_data(tmp_path / name) is expected


def test_inspect_takes_the_context_of_a_run_on_the_same_data():
    for argv, ctx in ((["a.jsonl", "-m", "m.gguf"], 512), (["a.txt", "-m", "m.gguf"], 128), (["a.gguf"], 128),
                      (["a.jsonl", "-m", "m.gguf", "--ctx", "9"], 9)):
        options = parse(InspectOptions, argv)
        assert options is not None and options.ctx == ctx
