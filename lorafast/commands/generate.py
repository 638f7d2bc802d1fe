"""`lorafast generate`: a prompt, a chat, or a session of them, shown as it comes."""
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

from ..api import Model
from ..errors import LoraFastError, UsageError
from ..network.next_token import Sampling
from ..options.assignments import json_assignments
from ..options.use import GenerateConfig
from ..words import count, visible

Write = Callable[[str], None]
Read = Callable[[], str]


def run(config: GenerateConfig) -> int:
    """Runs the command and returns its exit status."""
    generate(config, write_at_once)
    return 0


def write_at_once(text: str) -> None:
    """Shows a piece of generated text as soon as it is there."""
    print(visible(text) if sys.stdout.isatty() else text, end="", flush=True)


def generate(config: GenerateConfig, write: Write, read: Read | None = None) -> None:
    """Answers the prompts that the options give, or those that come from `read`.

    write  shows a piece of text
    read   the next line of an interactive session, without its end; EOFError when there is none. None: from the
    terminal
    """
    model = Model.open(config.model_base, config.adapters(), n_ctx=config.ctx, n_threads=config.n_threads,
                       precision=config.precision)
    for warning in model.warnings:
        say(f"warning: {warning}")
    session = Chat(config, model) if config.chat else Completion(config, model)
    if config.interactive:
        converse(config, model, session, write, read or read_line)
    else:
        show(session.answer(config.prompt), write)
        report_speed(config, model)


class Completion:
    """Each prompt is continued by itself."""

    def __init__(self, config: GenerateConfig, model: Model) -> None:
        self.model, self.n_predict, self.options = model, config.n_predict, generation_options(config)
        self.must_fit = not config.interactive

    def answer(self, prompt: str) -> Iterator[str]:
        tokens = self.model.prompt_tokens(prompt)
        if self.must_fit and len(tokens) + self.n_predict > self.model.n_ctx:
            raise UsageError(f"the prompt's {count(len(tokens), 'token')} and --n-predict {self.n_predict} do not fit "
                             f"into --ctx {self.model.n_ctx}")
        yield prompt
        yield from self.model.generate(tokens, **self.options)


class Chat:
    """The prompts are one conversation, with what was answered. When that fills the context, a new one begins."""

    def __init__(self, config: GenerateConfig, model: Model) -> None:
        from ..data.chat_template import load_chat_template, without_effect

        args = json_assignments(config.template_arg)
        # At once: where there is none, nothing is asked.
        template = load_chat_template(model.gguf.metadata, model.tokenizer, config.chat_template)
        for line in without_effect(args, template):
            say(f"warning: {line}")
        self.model = model
        self.options = {**generation_options(config), "chat_template": config.chat_template, "template_args": args}
        self.system = [{"role": "system", "content": config.system}] if config.system else []
        self.messages = self.system

    def answer(self, prompt: str) -> Iterator[str]:
        try:
            messages = [*self.messages, {"role": "user", "content": prompt}]
            pieces = self.model.chat(messages, **self.options)
        except UsageError as error:
            if self.messages == self.system:
                raise
            say(f"{error}; beginning a new conversation")
            messages = [*self.system, {"role": "user", "content": prompt}]
            pieces = self.model.chat(messages, **self.options)
        said = ""
        try:
            for piece in pieces:
                said += piece
                yield piece
        finally:                        # also when it is cut short: what was shown belongs to the conversation
            if said:
                self.messages = [*messages, {"role": "assistant", "content": said}]


def converse(config: GenerateConfig, model: Model, session: Completion | Chat, write: Write, read: Read) -> None:
    """Answers --prompt, then line after line until there are no more. Ctrl-C ends an answer, and the session goes on;
    at the prompt it ends the session. An error is told, and the session goes on.
    """
    prompt = config.prompt
    if read is read_line and sys.stdin.isatty():
        say("Ctrl-C ends an answer; Ctrl-D, or Ctrl-C once more, the program")
    while True:
        try:
            if prompt.strip():
                show(session.answer(prompt), write)
                report_speed(config, model)
        except KeyboardInterrupt:
            pass
        except LoraFastError as error:
            say(f"error: {error}")
        try:
            prompt = read()
        except (EOFError, KeyboardInterrupt):
            if sys.stdin.isatty():
                write("\n")
            return


def show(pieces: Iterator[str], write: Write) -> None:
    """Writes the pieces and ends the line, also where Ctrl-C cuts them short."""
    try:
        for piece in pieces:
            write(piece)
    except KeyboardInterrupt:
        write("\n")
        raise
    write("\n")


def generation_options(config: GenerateConfig) -> dict[str, Any]:
    """The arguments of Model.generate but the prompt."""
    sampling = {field.name: getattr(config, field.name) for field in fields(Sampling)}
    return dict(n_predict=config.n_predict, stop=config.stop, seed=config.resolve_seed(), **sampling)


def report_speed(config: GenerateConfig, model: Model) -> None:
    if config.verbose:
        say(f"precision {model.network.precision}: {model.network.arithmetic()}")
        say(str(model.session.speed))


def read_line() -> str:
    """A line from the terminal, with editing and history where Python has them; or from what stdin is."""
    if not sys.stdin.isatty():
        return input()
    try:
        import readline  # noqa: F401  importing it is what gives input() its editing
    except ImportError:
        pass
    return input("> ")


def say(text: str) -> None:
    """Tells something that is no part of the text."""
    print(f"lorafast: {visible(text)}", file=sys.stderr, flush=True)
