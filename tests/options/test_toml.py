"""Options from a TOML file and back."""
from pathlib import Path

import pytest

from lorafast.errors import LoraFastError, UsageError
from lorafast.options.declare import parse
from lorafast.options.finetune import PRESETS, FinetuneConfig
from lorafast.options.toml import read_options, write_options


def parsed(*argv: object) -> FinetuneConfig:
    return parse(FinetuneConfig, ["--model-base", "m.gguf", *map(str, argv)])


@pytest.fixture
def toml(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / "options.toml"
        path.write_text(text)
        return path
    return write


def test_what_is_written_is_read(tmp_path):
    config = parsed("--adam-alpha", "1e-5", "--lora-out", "a.gguf", "--lora-out", 'b"\\ü\n\x7f/', "--use-flash",
                    "--seed", 3,
                    "--sample-start", "\t<s>", "--checkpoint-in", "", "--warmup-ratio", 0.25, "--lora-alpha", 7)
    path = tmp_path / "o.toml"
    write_options(path, config, ("config", "preset"))
    assert parse(FinetuneConfig, ["--config", str(path)]) == config
    assert "# threads: physical cores" in path.read_text() and "preset" not in path.read_text()


def test_the_command_line_comes_before_the_file_and_the_file_before_the_preset(toml):
    path = toml('preset = "modern"\nctx = 99\nlora_r = 7\ntrain-data = "x.txt"\n')
    config = parsed("--config", path, "--lora-r", 5)
    assert (config.lora_r, config.ctx, config.adam_alpha) == (5, 99, PRESETS["modern"]["adam_alpha"])
    assert config.train_data == ("x.txt",) and (config.preset, config.config) == ("modern", "")
    assert parsed("--config", path, "--preset", "original").adam_alpha == 0.001
    assert parsed("--preset", "modern", "--ctx", 128).ctx == 128        # a default that was given is given


@pytest.mark.parametrize("text, error, message", [
    ("ctx = ", LoraFastError, "is not a TOML file"),
    ("cxt = 3", UsageError, "unknown option --cxt (did you mean --ctx?)"),
    ("ctx = 1.5", UsageError, "--ctx 1.5: must be a whole number"),
    ("ctx = true", UsageError, "--ctx True: must be a number"),
    ('ctx = "3"', UsageError, "--ctx 3: must be a number"),
    ("adam-alpha = nan", UsageError, "--adam-alpha nan: must be a number"),
    ("targets = 3", UsageError, "--targets 3: must be text"),
    ("use-flash = 1", UsageError, "--use-flash 1: must be true or false"),
    ("lora-out = [1]", UsageError, "must be text, or a list of texts"),
    ("[files]\nctx = 1", UsageError, "unknown option --files"),
    ("ctx = 0", UsageError, "--ctx 0: must be at least 1"),
    ('preset = "old"', UsageError, "unknown preset old"),
])
def test_what_is_wrong_is_said_in_words(toml, text, error, message):
    with pytest.raises(error) as raised:
        parsed("--config", toml(text))
    assert message in str(raised.value) and "\n" not in str(raised.value)


def test_whole_numbers_serve_as_any_number(toml):
    assert read_options(FinetuneConfig, str(toml("adam-alpha = 1"))) == {"adam_alpha": 1.0}


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(LoraFastError, match=r"nowhere.toml: No such file"):
        parsed("--config", tmp_path / "nowhere.toml")
