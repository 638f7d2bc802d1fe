"""Chat templates: the jinja2 program by which a model turns a list of messages into the text it was trained on.

A template comes with a model file, from whoever made it: it runs in a sandbox (template_sandbox.py), and sees only what
is passed to it. What templates may use is what Hugging Face's `apply_chat_template` gives them (transformers, "Writing
a chat template").
"""
from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from threading import Lock
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from ..errors import FormatError, LoraFastError, TemplateRefusal
from ..tokenizer import Tokenizer
from .template_sandbox import MeteredEnvironment

KEY = "tokenizer.chat_template"

FIXED = {"messages", "tools", "functions", "documents", "add_generation_prompt", "bos_token", "eos_token", "datetime",
         "raise_exception", "strftime_now"}
"""Variables that no user sets."""

LONGEST_DATE = 1000     # characters of the form in which a template asks for the date


class ChatTemplate:
    """A compiled template. `source` is its text, `name` how messages to the user call it."""

    def __init__(self, source: str, name: str, *, bos_token: str, eos_token: str,
                 variables: Mapping[str, Any] | None = None) -> None:
        """variables: what the template may use beside what it is to render.

        FormatError when the source is not a jinja2 template.
        """
        self.source, self.name = source, name
        environment = MeteredEnvironment(trim_blocks=True, lstrip_blocks=True,
                                         extensions=[loopcontrols, GenerationBlocks])
        environment.filters["tojson"] = environment.metered("tojson", to_json)
        now = datetime.now()            # of loading: the same in all renderings, which are compared with each other
        environment.globals.update(raise_exception=raise_exception,
                                   strftime_now=lambda form: now.strftime(form[:LONGEST_DATE]))
        self._variables = {"bos_token": bos_token, "eos_token": eos_token, "documents": None,
                           "datetime": f"{now:%b %d %Y %H:%M:%S}", **(variables or {})}
        self._meter, self._lock = environment.meter, Lock()
        try:
            self._template = environment.from_string(source)
            self._asks_for = meta.find_undeclared_variables(environment.parse(source))
        except jinja2.TemplateSyntaxError as error:
            raise FormatError(f"{name} is not a jinja2 template: line {error.lineno}: {error.message}") from None
        except Exception as error:      # from Python's compiler as well: too deep a nesting, a break outside of a loop
            raise FormatError(f"{name} is not a usable jinja2 template: {one_line(error)}") from None

    def unused(self, names: Iterable[str]) -> list[str]:
        """A line for each of these variables that the template does not ask for: giving it changes nothing."""
        known = sorted(self._asks_for - FIXED)
        lines = []
        for name in names:
            if name not in self._asks_for:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"it asks for {', '.join(known) or 'none'}"
                lines.append(f"{name}: {self.name} does not ask for such a variable ({hint})")
        return lines

    def render(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = False,
               tools: Sequence[Mapping[str, Any]] | None = None, variables: Mapping[str, Any] | None = None) -> str:
        """The text of a conversation, special tokens spelled out.

        add_generation_prompt   ends with what precedes an answer of the assistant
        tools                   descriptions of functions that the model may call
        variables               others that the template may use; they go before those of the constructor
        Raises TemplateRefusal, also where the template takes more time or memory than any needs.
        """
        given = {**self._variables, **(variables or {}), "messages": messages, "tools": tools,
                 "add_generation_prompt": add_generation_prompt}
        if "functions" in self._asks_for:       # Firefunction's name for the tools, as text
            given = {"functions": to_json(tools or [], indent=4), **given}
        with self._lock:
            self._meter.start([messages, tools])
            try:
                return self._template.render(given)
            except Exception as error:          # whatever a stranger's program can raise
                raise TemplateRefusal(f"{self.name} cannot render it: {one_line(error)}") from None


def without_effect(names: Collection[str], template: ChatTemplate | None) -> list[str]:
    """What to say of --template-arg's variables that change nothing; `template` is None where no record was a chat."""
    if template:
        return [f"--template-arg {line}" for line in template.unused(names)]
    return ["--template-arg changes nothing: no record is a chat"] if names else []


def one_line(error: Exception) -> str:
    """What an error says, or else its kind."""
    return " ".join(str(error).split())[:300] or type(error).__name__


class GenerationBlocks(Extension):
    """`{% generation %} ... {% endgeneration %}`, which marks an answer for transformers; here its contents show."""

    tags = {"generation"}  # noqa: RUF012 -- as Extension declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
            separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """The filter `tojson`; jinja2's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys,
                      default=_listed)


def _listed(value: Any) -> list[Any]:
    """What a filter such as `map` yields."""
    if isinstance(value, Iterator):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def raise_exception(message: str) -> None:
    """Templates call this function to refuse messages that they cannot express."""
    raise jinja2.TemplateError(message)


def load_chat_template(metadata: Mapping[str, Any], tokenizer: Tokenizer, path: str = "",
                       variables: Mapping[str, Any] | None = None) -> ChatTemplate:
    """The template in the file `path`, or by default a model's own, from its metadata.

    LoraFastError when the file cannot be read or the model has none; FormatError when it is not a template.
    """
    if path:
        try:
            source, name = Path(path).read_text("utf-8"), f"--chat-template {path}"
        except OSError as error:
            raise LoraFastError(f"cannot read --chat-template {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise FormatError(f"--chat-template {path} is not UTF-8") from None
    elif KEY in metadata:
        source, name = str(metadata[KEY]), "the model's chat template"
    else:
        raise LoraFastError("the model has no chat template, which chats need: give one with --chat-template FILE")
    bos, eos = ("" if token is None else tokenizer.token_text(token) for token in (tokenizer.bos_id, tokenizer.eos_id))
    return ChatTemplate(source, name, bos_token=bos, eos_token=eos, variables=variables)
