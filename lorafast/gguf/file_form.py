"""The forms of the files around a model: one vocabulary, by which the whole program names them.

recognise.py tells by its content what form a file has.
"""
from __future__ import annotations

from enum import Enum

from ..errors import UsageError


class FileForm(Enum):
    """What a file or folder is. The value is what people call it, and completes "is no ...".
    """

    MODEL = "base model"
    CHECKPOINT = "training checkpoint"
    GGUF = "GGUF adapter"
    GGLA = "ggla adapter"
    PEFT = "PEFT adapter"
    MLX = "adapter of mlx-lm"
    OPTIONS = "file of options"
    METRICS = "file of metrics"
    REPORT = "report"
    MODELFILE = "Modelfile"
    CARD = "model card"
    TOKENS = "cache of tokens"
    REFERENCE = "cache of log-probabilities"
    TEACHER = "file of lorafast logits"
    SCORES = "file of scores"

    @property
    def phrase(self) -> str:
        """The form's name with its article, to complete "this is ..."."""
        return f"{'an' if self is FileForm.MLX else 'a'} {self.value}"


ADAPTER_FORMS = (FileForm.GGLA, FileForm.GGUF, FileForm.PEFT)
"""Forms in which an adapter is written."""

WRITTEN_FORMS = {"ggla": FileForm.GGLA, "gguf": FileForm.GGUF, "peft": FileForm.PEFT, "checkpoint": FileForm.CHECKPOINT}
"""Forms that `convert` writes, by their names on the command line."""


def form_of_name(name: str) -> FileForm | None:
    """The form of an adapter to write, which the end of its name decides: `.bin` ggla, `.gguf` GGUF, `/` PEFT. None for
    others.
    """
    for end, form in ((".bin", FileForm.GGLA), (".gguf", FileForm.GGUF), ("/", FileForm.PEFT)):
        if name.lower().endswith(end):
            return form
    return None


def cannot_carry_magnitudes(form: FileForm) -> str:
    """Why DoRA's adapters do not go into that form, which is none of PEFT's."""
    return f"{form.phrase} cannot carry DoRA's magnitudes: what reads it adds pairs to the weights, and no more"


def form_of_output(option: str, name: str) -> FileForm:
    """The form of the adapter that an option names; UsageError where the name ends in none of the known ends."""
    form = form_of_name(name)
    if form is None:
        raise UsageError(f"{option} {name}: end the name in .gguf (adapter for llama.cpp), / (folder for PEFT), "
                         "or .bin (ggla, for programs of before July 2024)")
    return form
