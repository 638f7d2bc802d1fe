"""Small training runs in processes that may die at any moment, and what must hold of the files that they leave.

The processes are forked from this one, which has imported everything and computed nothing: so a run takes tenths of a
second.
"""
from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from make_models import make_tiny  # noqa: E402

from lorafast import cli  # noqa: E402
from lorafast.adapters import BaseModel, read_adapter  # noqa: E402
from lorafast.adapters.checkpoint import read_checkpoint  # noqa: E402
from lorafast.commands import finetune as _imported_before_forking  # noqa: E402, F401
from lorafast.gguf.reader import GGUFFile  # noqa: E402
from lorafast.options.finetune import FinetuneConfig  # noqa: E402
from lorafast.options.toml import read_options  # noqa: E402
from lorafast.reporting.metrics import read_metrics  # noqa: E402
from lorafast.training.saving import Saver  # noqa: E402

ITERATIONS = 8
COMMON = ["--ctx", "16", "--batch", "2", "--warmup", "2", "-s", "7", "--save-every", "2", "--metrics", "metrics.jsonl",
          "--checkpoint-out", "c-ITERATION.gguf"]
TEXT = ["--train-data", "text.txt", "--lora-out", "a-ITERATION.bin"]
SCENARIOS = {
    "text": TEXT,
    "dropout": [*TEXT, "--lora-dropout", "0.2"],
    "accumulation": [*TEXT, "--grad-acc", "2"],
    "packed records": ["--train-data", "records.jsonl", "--pack", "--lora-out", "a-ITERATION.bin"],
    "DoRA": ["--train-data", "text.txt", "--dora", "--lora-out", "a-ITERATION/"],
    "several outputs": ["--train-data", "text.txt", "--targets", "attn,ffn", "--lora-out", "a-ITERATION.gguf",
                        "--lora-out", "p-ITERATION/", "--lora-out", "b-ITERATION.bin"],
    "evaluation": [*TEXT, "--valid-split", "0.1", "--eval-every", "2", "--sample-prompt", "the ",
                   "--sample-tokens", "4"],
    "report": [*TEXT, "--report", "report.html"],
}


@dataclass
class Ground:
    """A folder with a model, data, and a folder `work` for a run's files."""

    folder: Path

    @classmethod
    def prepare(cls, folder: Path) -> Ground:
        folder.mkdir(parents=True, exist_ok=True)
        make_tiny(folder / "tiny.gguf", n_layer=1)
        return cls(folder)

    def begin(self, name: str) -> Path:
        """A fresh working folder."""
        work = self.folder / name.replace(" ", "-")
        work.mkdir()
        text = "the love of thy sweet all and not to thou that in my love with is " * 20
        (work / "text.txt").write_text(text)
        (work / "records.jsonl").write_text("".join(json.dumps({"text": text[i:i + 40]}) + "\n" for i in range(60)))
        return work

    def command(self, work: Path, scenario: str, threads: int = 1, iterations: int = ITERATIONS) -> list[str]:
        """The command line that brings the run to its end from wherever its files stand."""
        done = {read_checkpoint(path).state.iteration: path.name for path in work.glob("c-*.gguf")
                if "BEST" not in path.name}
        newest = max(done, default=0)
        return ["finetune", "--model-base", str(self.folder / "tiny.gguf"), *COMMON, *SCENARIOS[scenario], "--threads",
                str(threads), "--adam-iter", str(iterations - newest), "--checkpoint-in", done.get(newest, "")]


def start(work: Path, argv: list[str], before: Callable[[], None] = lambda: None) -> tuple[int, int]:
    """Forks a process that runs the command line there. Its id, and a pipe from which `s` comes when a save begins and
    `e` when it ended. before: is called in the process first.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    status = 70
    try:
        os.close(reader)
        os.chdir(work)
        for stream, name in ((1, "../out.txt"), (2, "../err.txt")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), stream)
        save = Saver.save

        def told(self: Saver, *arguments: object) -> None:
            os.write(writer, b"s")
            save(self, *arguments)
            os.write(writer, b"e")

        Saver.save = told
        before()
        status = cli.main(argv)
        sys.stdout.flush()
    finally:
        os._exit(status)


def finish(work: Path, argv: list[str], before: Callable[[], None] = lambda: None) -> int:
    """Runs the command line there to its end; the exit status, or less than 0 for a signal."""
    pid, reader = start(work, argv, before)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(reader)
    return status


def said(work: Path) -> str:
    """What the last process wrote on stderr."""
    return (work.parent / "err.txt").read_text(errors="replace")


def outputs(work: Path) -> list[Path]:
    """What runs have written under real names."""
    inputs = ("text.txt", "records.jsonl")
    return sorted(path for path in work.iterdir() if path.name not in inputs and not path.name.startswith("."))


def check_whole(ground: Ground, work: Path) -> int:
    """Reads every file under a real name; returns how many. Raises what reading raises."""
    base = BaseModel.from_gguf(GGUFFile(ground.folder / "tiny.gguf"))
    for path in outputs(work):
        if path.name.endswith(".jsonl"):
            list(read_metrics(path))
        elif path.name.endswith(".html"):
            if not path.read_text().rstrip().endswith("</html>"):
                raise AssertionError(f"{path} is cut short")
        elif path.name.endswith(".toml"):
            read_options(FinetuneConfig, str(path))
        elif path.name.startswith("c-"):
            read_checkpoint(path)
        else:
            read_adapter(path, base)
    return len(outputs(work))


def contents(work: Path) -> dict[str, bytes]:
    """Every file with its bytes; of metrics, the numbers without times, memory and speed; of a report, its name."""
    found = {}
    for path in outputs(work):
        if path.name.endswith(".toml"):         # the number of threads differs, and what iterations are left
            continue
        if path.name == "metrics.jsonl":
            found[path.name] = json.dumps(logged(path)).encode()
        elif path.name.endswith(".html"):
            found[path.name] = b""
        else:
            for file in sorted(path.iterdir()) if path.is_dir() else [path]:
                found[str(file.relative_to(work))] = file.read_bytes()
    return found


def logged(path: Path) -> dict[str, dict[str, object]]:
    """By event and iteration what was logged of it, but for what differs from machine to machine."""
    changing = {"time", "seconds", "tokens_per_second", "memory", "config", "n_iter"}
    return {f"{record['event']} {record['iteration']}": {
                key: value for key, value in record.items() if key not in changing}
            for record in read_metrics(path) if record["event"] not in ("started", "ended")}
