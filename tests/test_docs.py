"""The documentation: its commands run, its options exist and have the defaults it says, its links lead somewhere.

The commands of a page run one after the other, on a tiny model, in a folder with the files that the pages name. In
```sh blocks every line is run that begins with `lorafast`, and must succeed; in ```sh fails blocks it must not.
```python blocks are run too. What needs other programs is marked ```sh elsewhere, ```python elsewhere, and is not run.
"""
from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import quick_cli
from folders import environment, working_in
from make_models import STRING, make_tiny

from lorafast import api, cli
from lorafast.data.shapes import parse_record
from lorafast.options.declare import fields
from lorafast.options.finetune import PRESETS, FinetuneConfig
from lorafast.options.other_names import ALIASES, HINTS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [page.name for page in PAGES]
TEMPLATE = ("{% for m in messages %}{{ '[' + m.role + ']' + m.content + '</s>' }}{% endfor %}"
            "{% if add_generation_prompt %}[assistant]{% endif %}")
SHORT = {"finetune": "--force --adam-iter 1 --ctx 160 --batch 1 --seed 1 --sample-tokens 2 --threads 1".split(),
         "plan": "--ctx 160 --batch 1 --threads 1".split(),
         "generate": "--n-predict 2 --threads 1".split(),
         "logits": "--ctx 160 --batch 2 --threads 1".split(),
         "eval": "--first 2 --ctx 250 --n-predict 2 --threads 1".split(),
         "perplexity": "--ctx 64 --chunks 2 --threads 1".split()}
"""What is added to a command to make it quick; what other pages wrote may be replaced."""


def blocks(page: Path, language: str) -> Iterator[tuple[str, str]]:
    """(rest of the first line, contents) of the fenced blocks of a language, in order."""
    for info, text in re.findall(r"^```([^\n]*)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        name, _, rest = info.partition(" ")
        if name == language:
            yield rest, text


def commands(page: Path) -> Iterator[tuple[list[str], bool]]:
    """The lorafast commands to run, as arguments, and whether each is to succeed."""
    for rest, text in blocks(page, "sh"):
        assert rest in ("", "fails", "elsewhere"), f"{page.name}: ```sh {rest}"
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("lorafast ") and rest != "elsewhere":
                yield shlex.split(line, comments=True)[1:], rest != "fails"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with every file that the pages' commands start from."""
    pytest.importorskip("jinja2")
    folder = tmp_path_factory.mktemp("docs")
    with working_in(folder):
        make_tiny("model.gguf", n_layer=1, n_ctx=256, metadata=[("tokenizer.chat_template", STRING, TEMPLATE)])
        make_tiny("model-f16.gguf", n_layer=1, n_ctx=256, type="F16")
        Path("template.jinja").write_text(TEMPLATE)
        for name in ("book.txt", "shakespeare.txt"):
            Path(name).write_text("\n\nthe love of my sweet love\nand all that is not thy love" * 20)
        chat = json.dumps({"messages": [{"role": "user", "content": "the"}, {"role": "assistant", "content": "love"}]})
        for name in ("chats.jsonl", "more.jsonl", "orders/train.jsonl", "orders/valid.jsonl", "orders/test.jsonl"):
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_text(f"{chat}\n" * 4)
        Path("pairs.jsonl").write_text('{"prompt": "thy", "completion": " love"}\n' * 4)
        Path("quiz.jsonl").write_text('{"question": "the", "choices": ["love", "thy"], "answer": 1}\n' * 2)
        pair = '{"prompt": "the thy", "chosen": " love", "rejected": " sweet"}\n'
        Path("preferences.jsonl").write_text(pair * 4)
        Path("thumbs.jsonl").write_text('{"prompt": "the thy", "completion": " love", "label": true}\n' * 4)
        Path("tickets.csv").write_text("subject,reply\n" + "the love?,my sweet\n" * 20)
        Path("faq.csv").write_text("question,answer\n" + "the love?,my sweet\n" * 20)
        Path("bad.jsonl").write_text(f'{chat}\n{{"text": 1}}\n')
        Path("run.toml").write_text('lora-r = 2\nwarmup = 1\n')
        train = ["finetune", "--model-base", "model.gguf", "--train-data", "chats.jsonl", "--metrics", "metrics.jsonl"]
        for output in ("skill.gguf", "style.gguf", "peft/", "legacy.bin"):
            assert cli.main([*train, *SHORT["finetune"], "--warmup", "0", "--targets", "attn,ffn", "--lora-out", output,
                             "--checkpoint-out", "checkpoint-ITERATION.gguf", "--checkpoint-in", ""]) == 0
    return folder


def run(argv: list[str], capsys) -> tuple[int, str]:
    """The status and what is said of errors. A memory limit counts the whole process: it takes one of its own, for this
    one has run other tests."""
    if "--mem-limit" in argv:
        done = subprocess.run([sys.executable, quick_cli.__file__, *argv], capture_output=True, text=True,
                              env=environment())
        return done.returncode, done.stderr
    return cli.main(argv), capsys.readouterr().err


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_run(page, files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(shutil.copytree(files, tmp_path / "files"))
    for argv, succeeds in commands(page):
        more = ["--adam-iter", "2"] if "--resume" in argv else []      # one more than it has done
        status, error = run([*argv, *SHORT.get(argv[0], []), *more] if "--help" not in argv else argv, capsys)
        assert (status == 0) == succeeds, f"lorafast {shlex.join(argv)}: {error}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_runs(page, files, tmp_path, monkeypatch):
    monkeypatch.chdir(shutil.copytree(files, tmp_path / "files"))
    quick = {"ctx": 160, "batch": 1, "adam_iter": 1}
    finetune = api.finetune
    monkeypatch.setattr(api, "finetune", lambda **options: finetune(**{**options, **quick}))
    for rest, text in blocks(page, "python"):
        assert rest in ("", "elsewhere"), f"{page.name}: ```python {rest}"
        if rest != "elsewhere":
            exec(compile(text, page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_options_exist(page):
    known = {name for command in cli.COMMANDS.values() for _, spec in fields(command.options)
             for name in (*spec.names, *spec.off)} | {"--help", "--help-all", "--version", "--completion"}
    known |= {name for names in ALIASES.values() for name in names} | set(HINTS)       # other trainers' names
    prose = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    ours = [code for code in re.findall(r"`([^`]+)`", prose) if code.startswith(("-", "lorafast"))]
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", " ".join(ours))) <= known


def test_every_option_of_finetune_is_described_with_its_default():
    text = (ROOT / "docs" / "options.md").read_text("utf-8")
    rows = {}
    for names, default in re.findall(r"^\| (`-.*?) \| (.*?) \|", text, re.MULTILINE):
        for name in re.findall(r"--[a-z0-9-]+", names):
            rows[name] = default
    defaults = FinetuneConfig.__dataclass_fields__
    for field, spec in fields(FinetuneConfig):
        for name in (*spec.names, *spec.off):
            if name.startswith("--"):
                assert name in rows, f"{name} is not in options.md"
        value, told = defaults[field.name].default, rows[spec.names[0]]
        if isinstance(value, bool):
            assert not spec.off or told == ("on" if value else "off"), (field.name, told)
        elif isinstance(value, (int, float)):
            assert float(told) == value, field.name
        elif (isinstance(value, tuple) and value) or (isinstance(value, str) and value):
            assert told == f"`{''.join(value)}`", field.name
    for name, value in PRESETS["modern"].items():
        assert f"`--{name.replace('_', '-')} {value}`" in " ".join(text.split()), name


def test_records_of_the_pages_are_valid():
    for page in PAGES:
        for _, text in blocks(page, "jsonl"):
            for line in text.splitlines():
                parse_record(json.loads(line))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        path, _, heading = target.partition("#")
        if path.startswith(("http:", "https:", "mailto:")):
            continue
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", linked.read_text("utf-8"), re.MULTILINE)
            assert heading in [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings], target
