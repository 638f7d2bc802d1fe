"""The command line: `lorafast COMMAND OPTIONS`.

Exit status: 0 done, 1 something outside the program stood in the way, 2 the command line is wrong, 128 and the signal's
number if one ended it, 130 for Ctrl-C (a training run has saved its work then).
Each error is one line. A command's module is imported when the command runs, so `--help` is quick.
"""
from __future__ import annotations

import errno
import os
import sys
import textwrap
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module

from .distributed.launch import launch, pin
from .distributed.launcher import launched_size
from .errors import LoraFastError, UsageError
from .options.completion import completion
from .options.declare import HELP_WIDTH, Options, fields, help_text, parse, unknown
from .options.defaults import EPOCHS, MODERN, PRESETS
from .options.distil import LogitsConfig
from .options.finetune import FinetuneConfig
from .options.tools import CheckOptions, ConvertOptions, InspectOptions, MergeOptions, ReportOptions
from .options.use import EvalConfig, GenerateConfig, PerplexityConfig
from .system.output import discard, open_standard_streams
from .words import visible

INTERRUPTED = 130    # 128 + SIGINT, as shells report it
READER_GONE = 141    # 128 + SIGPIPE
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of writing to a disk that is full, or broken."""

MAX_MESSAGE = 2000
"""Characters of an error that are shown."""


@dataclass(frozen=True)
class Command:
    """A command: what it does in a line, and its options. The module `commands/NAME.py` runs it."""

    summary: str
    options: type[Options]


COMMANDS = {
    "finetune": Command("train a LoRA adapter for a GGUF model", FinetuneConfig),
    "plan": Command("tell the memory and time that a run of finetune would take", FinetuneConfig),
    "generate": Command("continue a text with a model and adapters", GenerateConfig),
    "eval": Command("score how a model and its adapters answer records", EvalConfig),
    "perplexity": Command("measure how well a model predicts a text", PerplexityConfig),
    "inspect": Command("show a model, adapter, checkpoint, or data as the trainer sees it", InspectOptions),
    "logits": Command("write a teacher's likeliest tokens, for finetune --distill", LogitsConfig),
    "report": Command("write a page of plots and samples that shows how a run went", ReportOptions),
    "convert": Command("convert an adapter or a checkpoint into another form", ConvertOptions),
    "merge": Command("write a model with its adapters merged in", MergeOptions),
    "check": Command("tell whether llama.cpp will load an adapter, and if not, why", CheckOptions),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line (without the program's name; by default the process's own) and returns the exit status."""
    try:
        open_standard_streams()
        status = run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()      # not at exit, where Python tells errors its own way
        return status
    except LoraFastError as error:
        return fail(str(error), error.exit_status)
    except KeyboardInterrupt:
        print("lorafast: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        discard(sys.stdout, for_good=True)      # Python flushes it once more at exit; that must not fail again
        return READER_GONE
    except MemoryError as error:
        return fail(f"out of memory{f': {error}' if str(error) else ''}")
    except OSError as error:
        if error.filename or error.errno not in UNWRITABLE:
            return fail(str(error))
        with suppress(OSError):         # errors of files have a name, so it is the output
            sys.stdout.flush()
        discard(sys.stdout, for_good=True)
        return fail(f"standard output cannot be written: {error.strerror}")
    except Exception as error:
        if os.environ.get("LORAFAST_DEBUG"):
            raise
        return fail("a bug in lorafast, please report it with what LORAFAST_DEBUG=1 shows: "
                    f"{type(error).__name__}: {error}")


def fail(message: str, exit_status: int = 1) -> int:
    """Prints an error as one line; of one that is too long its beginning and its end."""
    if len(message) > MAX_MESSAGE:
        message = f"{message[:MAX_MESSAGE // 2]} ... {message[-MAX_MESSAGE // 2:]}"
    with suppress(OSError):
        print("lorafast: error:", visible(" ".join(message.split("\n"))), file=sys.stderr)
    return exit_status


def run(argv: Sequence[str]) -> int:
    name, *rest = argv or ("--help",)
    if name == "help":
        return run([*rest[:1], "--help"])
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        from .version import __version__

        print("lorafast", __version__)
    elif name == "--completion":
        print(completion(rest[0] if rest else "", {name: command.options for name, command in COMMANDS.items()}))
    elif name not in COMMANDS:
        raise UsageError(unknown(name, list(COMMANDS), "command"))
    else:
        if name == "finetune" and launched_size() > 1:
            pin()
            return import_module(".commands.finetune", __package__).run_as_rank(rest)
        options = parse(COMMANDS[name].options, rest)
        if options is None:
            print(command_help(name, everything="--help-all" in rest))
        elif name == "finetune" and isinstance(options, FinetuneConfig) and options.ranks > 1:
            return launch(options.ranks, argv)
        else:
            from .kernels.pages import on_bus_error

            on_bus_error(b"lorafast: error: a file in use was cut short or cannot be read any more: restore it\n")
            return import_module(f".commands.{name}", __package__).run(options)
    return 0


def overview() -> str:
    commands = "\n".join(f"  {name:<12}{command.summary}" for name, command in COMMANDS.items())
    return ("usage: lorafast COMMAND OPTIONS\n\nLoRA fine-tuning of GGUF models on CPUs.\n\n"
            f"Commands:\n{commands}\n\n"
            "The first steps:\n"
            "  lorafast finetune --run NAME --model-base MODEL.gguf --train-data chats.jsonl\n"
            "  lorafast generate --model-base MODEL.gguf --lora NAME/adapter.gguf --chat -i\n\n"
            "lorafast COMMAND --help shows its options, lorafast --version the version;\n"
            "lorafast --completion bash (or zsh, fish) prints the completion for that shell.")


def command_help(name: str, everything: bool = True) -> str:
    """Usage, purpose and options of a command; of one with very many options those that matter most, unless
    `everything`.
    """
    command = COMMANDS[name]
    needed = [spec.metavar for _, spec in fields(command.options) if spec.is_argument]
    needed += [f"{spec.names[0]} {spec.metavar}" for _, spec in fields(command.options) if "(required)" in spec.help]
    usage = textwrap.fill(f"usage: lorafast {name} {' '.join(needed)} OPTIONS", HELP_WIDTH, subsequent_indent="  ")
    summary = f"{command.summary[0].upper()}{command.summary[1:]}. In brackets: the default."
    parts = [usage, textwrap.fill(summary, HELP_WIDTH), help_text(command.options, everything)]
    if command.options.MATTER_MOST and not everything:
        modern = ", ".join(f"--{field.replace('_', '-')} {value}" for field, value in PRESETS[MODERN].items())
        rest = (f"With --run or with records as data these are the defaults: {modern}, and for records "
                f"--epochs {EPOCHS}. "
                f"lorafast {name} --help-all lists all options.")
        parts.append(textwrap.fill(rest, HELP_WIDTH, break_on_hyphens=False))
    return "\n\n".join(parts)
