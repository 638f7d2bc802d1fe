"""A Modelfile for `ollama create`: the model, how a conversation is written for it, where answers end, the system
message.

Ollama's template is one turn of a conversation, in Go's language. It is made from the model's own chat template by
rendering conversations of marks and looking at what stands between these.
"""
from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..data.chat_template import KEY, ChatTemplate, load_chat_template
from ..errors import LoraFastError
from ..gguf.reader import GGUFFile
from ..tokenizer import Tokenizer, load_tokenizer

SYSTEM, PROMPT, ANSWER, NEXT = "⟨system⟩", "⟨prompt⟩", "⟨answer⟩", "⟨next⟩"
QUOTES = '"""'


@dataclass(frozen=True)
class Turn:
    """template: Ollama's, of one turn; system: what the model's template says if nothing else is given, or empty."""

    template: str
    system: str = ""


def modelfile(model_path: str, adapter_path: str | None = None, *, turn: Turn | None = None,
              stop: Sequence[str] = ()) -> str:
    """The text of a Modelfile: the model, and the GGUF adapter if it is not merged into it.

    Ollama takes relative paths from the Modelfile's own folder, which is the adapter's (or the merged model's).
    """
    folder = os.path.dirname(os.path.abspath(adapter_path or model_path))
    lines = [f"FROM {_path_from(folder, model_path)}"]
    if adapter_path:
        lines.append(f"ADAPTER {_path_from(folder, adapter_path)}")
    if turn:
        lines.append(f"TEMPLATE {QUOTES}{turn.template}{QUOTES}")
        lines += [f"SYSTEM {QUOTES}{turn.system}{QUOTES}"] if turn.system else []
    lines += [f'PARAMETER stop "{text}"' for text in stop]
    return "\n".join(lines) + "\n"


def _path_from(folder: str, path: str) -> str:
    """`./name` for a file in the folder, an absolute path for any other."""
    absolute = os.path.abspath(path)
    return f"./{os.path.basename(absolute)}" if os.path.dirname(absolute) == folder else absolute


def turn_of(template: ChatTemplate, bos: str = "") -> Turn | None:
    """A turn as Ollama writes it; None where the template cannot be expressed so.

    bos  text of the token that Ollama puts first by itself
    """
    def rendered(*said: tuple[str, str], ask: bool = True) -> str:
        """The text of these messages; empty if the template refuses them."""
        try:
            messages = [{"role": role, "content": mark} for role, mark in said]
            return template.render(messages, add_generation_prompt=ask).removeprefix(bos)
        except LoraFastError:
            return ""

    user, answer = ("user", PROMPT), ("assistant", ANSWER)
    before, _, after = rendered(user).partition(PROMPT)
    between = rendered(user, answer, ("user", NEXT)).partition(ANSWER)[2].partition(NEXT)[0]
    # Of texts, not of paths.
    end = os.path.commonprefix([rendered(user, answer, ask=False).partition(ANSWER)[2], between])  # noqa: RUF071
    start = between[len(end):]
    turn = Turn(f"{start}{{{{ .Prompt }}}}{after}{{{{ .Response }}}}{end}")
    if not between or not after or QUOTES in turn.template:
        return None
    head, _, rest = rendered(("system", SYSTEM), user).partition(SYSTEM)
    middle = rest.partition(PROMPT)[0]
    if not rest or not middle.endswith(start):
        return turn
    middle, default = middle.removesuffix(start), before.removesuffix(start)
    fits = default.startswith(head) and default.endswith(middle) and len(default) > len(head) + len(middle)
    return Turn(f"{{{{ if .System }}}}{head}{{{{ .System }}}}{middle}{{{{ end }}}}{turn.template}",
                default[len(head):len(default) - len(middle)] if fits else "")


def modelfile_for(model: GGUFFile, model_path: str, adapter_path: str | None = None) -> str:
    """The Modelfile for a model by its own metadata; without a turn where it has no chat template, or none that
    fits.
    """
    tokenizer = load_tokenizer(model)
    turn = None
    if KEY in model.metadata:
        bos = ""
        if tokenizer.add_bos and tokenizer.bos_id is not None:
            bos = tokenizer.token_bytes(tokenizer.bos_id).decode("utf-8", "replace")
        turn = turn_of(load_chat_template(model.metadata, tokenizer), bos)
    return modelfile(model_path, adapter_path, turn=turn, stop=stops(tokenizer) if turn else ())


def stops(tokenizer: Tokenizer) -> list[str]:
    """Texts of the tokens that end an answer."""
    texts = (tokenizer.token_bytes(token).decode("utf-8", "replace") for token in sorted(tokenizer.eog_ids))
    return [text for text in texts if text and '"' not in text]
