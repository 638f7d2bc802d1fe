"""The command line from outside: exit statuses, one-line errors, help, and what it hands to the commands."""
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
from make_models import make_tiny

import lorafast.commands.finetune
import lorafast.commands.generate
from lorafast import cli
from lorafast.errors import FormatError, UsageError
from lorafast.options.declare import fields, given_in, parse
from lorafast.options.distil import LogitsConfig
from lorafast.options.finetune import FinetuneConfig
from lorafast.options.other_names import ALIASES, HINTS

ROOT = Path(__file__).parent.parent


def run_lorafast(*argv: str, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "lorafast", *argv], capture_output=True, text=True, cwd=ROOT, **kwargs)


def replace_finetune(monkeypatch, run) -> None:
    monkeypatch.setattr(lorafast.commands.finetune, "run", run)


def raising(error):
    def run(config):
        raise error
    return run


@pytest.mark.parametrize("argv, status, shown", [
    (["train"], 2, "did you mean finetune?"),
    (["finetune", "--optim", "sgd"], 2, "unknown option --optim: AdamW is the optimiser"),
    (["fine-tune"], 2, "did you mean finetune?"),
    (["finetune"], 2, "--model-base is missing"),
    (["finetune", "--ctx", "12abc"], 2, "--ctx 12abc"),
    (["finetune", "--modelbase", "x"], 2, "did you mean --model-base?"),
    (["finetune", "m.gguf"], 2, "each value follows the name of its option"),
    (["finetune", "--model-base", "org/name"], 1, "(from Hugging Face: hf:org/name)"),
    (["finetune", "--model-base", __file__], 1, "name your data with --train-data"),
    (["finetune", "--model-base", "x", "--targets", "q_prj"], 2, "did you mean q_proj?"),
    (["help", "nonsense"], 2, "unknown command nonsense"),
    (["inspect", __file__], 1, "To show training data, add --model-base"),
])
def test_usage_errors(capsys, argv, status, shown):
    assert cli.main(argv) == status
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("lorafast: error: ") and shown in err


@pytest.mark.parametrize("error, status, shown", [
    (FormatError("m.gguf: is no\nGGUF file"), 1, "lorafast: error: m.gguf: is no GGUF file\n"),
    (KeyboardInterrupt(), 130, "lorafast: interrupted\n"),
    (MemoryError(), 1, "lorafast: error: out of memory\n"),
    (OSError(28, "No space left on device", "x"), 1, "lorafast: error: [Errno 28] No space left on device: 'x'\n"),
    (ZeroDivisionError("division by zero"), 1, "lorafast: error: a bug in lorafast, please report it with what "
                                               "LORAFAST_DEBUG=1 shows: ZeroDivisionError: division by zero\n"),
])
def test_failures_are_one_line(monkeypatch, capsys, error, status, shown):
    monkeypatch.delenv("LORAFAST_DEBUG", raising=False)
    replace_finetune(monkeypatch, raising(error))
    assert cli.main(["finetune", "--model-base", "m"]) == status
    assert capsys.readouterr().err == shown


def test_debugging_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("LORAFAST_DEBUG", "1")
    replace_finetune(monkeypatch, raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        cli.main(["finetune", "--model-base", "m"])


@pytest.mark.parametrize("interrupted, status", [(False, 0), (True, 130)])
def test_finetune_gets_its_options_and_a_log(monkeypatch, capsys, interrupted, status):
    seen = []

    def finetune(config, log):
        seen.append((config, log))
        return types.SimpleNamespace(interrupted=interrupted, signal=2)

    monkeypatch.setattr(lorafast.commands.finetune, "finetune", finetune)
    assert cli.main(["finetune", "--model_base", "m", "-ngl", "3"]) == status
    (config, log), = seen
    assert config.model_base == "m" and config.n_gpu_layers == 3 and hasattr(log, "iteration")
    assert capsys.readouterr().err.startswith("lorafast: warning: -ngl has no effect")


def test_generated_text_appears_as_it_comes(monkeypatch, capsys):
    monkeypatch.setattr(lorafast.commands.generate, "generate",
                        lambda config, write: [write(piece) for piece in (config.prompt, "x", "\udcff")])
    assert cli.main(["generate", "-m", "m", "-p", "-n", "--lora", "a", "--lora", "b"]) == 0
    assert capsys.readouterr().out == "-nx\\udcff"


@pytest.mark.parametrize("argv", [[], ["--help"], *([name, "--help"] for name in cli.COMMANDS), ["generate", "-h"],
                                  ["finetune", "--help-all"], ["help"], ["help", "plan"]])
def test_help_is_on_stdout_in_80_columns(argv, capsys):
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("usage: lorafast ") and max(map(len, out.splitlines())) <= 80


def test_usage_names_what_is_needed(capsys):
    for name, needed in (("finetune", "--model-base FILE"), ("convert", "IN OUT"),
                         ("check", "ADAPTER --model-base FILE")):
        cli.main([name, "--help"])
        assert capsys.readouterr().out.startswith(f"usage: lorafast {name} {needed} OPTIONS\n\n")


def test_inspect_shows_files_and_data(tmp_path, capsys):
    model = make_tiny(tmp_path / "tiny.gguf")
    (tmp_path / "text.txt").write_text("the love of thy sweet all " * 9)
    assert cli.main(["inspect", str(model)]) == 0
    assert "a base model" in capsys.readouterr().out
    assert cli.main(["inspect", str(tmp_path / "text.txt"), "-m", str(model), "--ctx", "8", "--samples", "2"]) == 0
    out = capsys.readouterr().out
    assert "text.txt: text" in out and "sample 2 of" in out and "sample 1 of" not in out
    assert cli.main(["inspect", str(model), "--samples", "2,x"]) == 2


def test_help_loads_nothing_heavy():
    code = ("import sys, lorafast.cli; lorafast.cli.main(['finetune', '--help']); "
            "print([name for name in ('numpy', 'rich', 'sentencepiece', 'tokenizers') if name in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.stdout.endswith("\n[]\n")


def test_version():
    result = run_lorafast("--version")
    assert result.returncode == 0 and result.stdout.startswith("lorafast 0.")


@pytest.mark.skipif(os.name != "posix", reason="pipes that break")
def test_a_reader_that_goes_away_is_no_error():
    # Nothing reads the other end of this pipe.
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([sys.executable, "-m", "lorafast", "finetune", "--help"], stdout=writer,
                            stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert result.returncode == cli.READER_GONE and result.stderr == ""


def test_the_short_help_shows_a_screen_and_says_where_the_rest_is(capsys):
    cli.main(["finetune", "--help"])
    short = capsys.readouterr().out
    cli.main(["finetune", "--help-all"])
    every = capsys.readouterr().out
    assert short.count("\n") < 60 < every.count("\n") and "--help-all lists all" in " ".join(short.split())
    assert "--run FOLDER" in short and "--cos-decay-restart" in every and "--cos-decay-restart" not in short


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_commands_and_options(shell, capsys):
    assert cli.main(["--completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in (*cli.COMMANDS, "adam-alpha", "no-keep-best"))
    if shell == "bash" and shutil.which("bash"):
        words = ('COMP_CWORD=2; COMP_WORDS=(lorafast finetune --lora-r); _lorafast lorafast --lora-r; '
                 'echo "${COMPREPLY[@]}"')
        result = subprocess.run(["bash", "-c", f"{script}\n{words}"], capture_output=True, text=True)
        assert result.stdout.split() == ["--lora-r"], result.stderr
    assert cli.main(["--completion", "tcsh"]) == 2
    assert cli.main(["--completion"]) == 2
    assert "--completion needs a shell: bash, zsh, fish" in capsys.readouterr().err


def test_names_that_people_type_are_taken():
    line = ("-m m.gguf --data a.jsonl --lr 1e-4 --iters 7 --batch-size 2 --max-seq-length 64 --rank 8 --alpha 16 "
            "-o x.gguf")
    config = parse(FinetuneConfig, [*line.split(), "--target-modules", "q_proj,v_proj,in_proj_z", "--grad-checkpoint"])
    assert (config.model_base, config.train_data, config.lora_out) == ("m.gguf", ("a.jsonl",), ("x.gguf",))
    assert (config.adam_alpha, config.adam_iter, config.batch, config.ctx) == (1e-4, 7, 2, 64)
    assert (config.lora_r, config.lora_alpha, config.use_checkpointing) == (8, 16, True)
    assert config.target_list() == ("attn_q", "attn_v", "attn_gate")


@pytest.mark.parametrize("given, field, value", [
    ("--cutoff-len 64", "ctx", 64),
    ("--num-iters 3", "adam_iter", 3),
    ("--train-on-inputs", "train_on_prompt", True),
    ("--val-split 0.1", "valid_split", 0.1),
    ("-f a.jsonl", "train_data", ("a.jsonl",)),
    ("--overwrite-output-dir", "force", True),
    ("--loraplus-lr-ratio 16", "lora_plus", 16.0),
])
def test_names_of_other_trainers(given, field, value):
    assert given_in(FinetuneConfig, given.split()) == {field: value}


def test_data_is_called_alike_everywhere():
    assert given_in(LogitsConfig, ["--train-data", "a.jsonl"]) == given_in(LogitsConfig, ["--data", "a.jsonl"])


@pytest.mark.parametrize("given, hint", [
    ("--adapter-path x", "--run FOLDER keeps everything of a run; --lora-out names the adapter"),
    ("--completion-only-loss", "this is what happens, unless --train-on-prompt is given"),
    ("--stage dpo", "--method says what is trained by"),
    ("--zz", "(--help-all lists every option)"),
])
def test_names_that_mean_something_else_are_answered_by_meaning(given, hint):
    with pytest.raises(UsageError, match=re.escape(hint)):
        given_in(FinetuneConfig, given.split())


def test_every_other_name_belongs_to_a_field_and_to_nobody_else():
    known = {field.name for command in cli.COMMANDS.values() for field, _ in fields(command.options)}
    assert set(ALIASES) <= known
    for command in cli.COMMANDS.values():
        names = [name for field, spec in fields(command.options) for name in (*spec.names, *spec.off)]
        assert not set(names) & set(HINTS)
