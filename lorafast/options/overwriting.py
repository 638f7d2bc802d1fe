"""One rule for what a command may overwrite, asked before any work: no output is any input, links included, and a file
that exists is replaced only by one of its own form, whichever program wrote it, unless --force says otherwise.
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import FormatError, LoraFastError, UsageError
from ..gguf.file_form import FileForm
from ..gguf.recognise import form_of_file
from .outputs import refuse_nameless

BEGINNINGS = {
    FileForm.OPTIONS: re.compile(rb"# All options of a lorafast run"),
    FileForm.METRICS: re.compile(rb'\{"event": "'),
    FileForm.REPORT: re.compile(rb'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>'),
    FileForm.MODELFILE: re.compile(rb"(#[^\n]*\n)*FROM "),
    FileForm.CARD: re.compile(rb"---\n(?s:.*?)\n- lorafast\n"),
    FileForm.TOKENS: re.compile(rb"lorafast tokens\n"),
    FileForm.REFERENCE: re.compile(rb"lorafast reference\n"),
    FileForm.TEACHER: re.compile(rb"lorafast teacher\n"),
    FileForm.SCORES: re.compile(rb'\{\n "model": '),
}
"""How files begin that lorafast writes beside models and adapters."""

LONGEST_BEGINNING = 4096
SPLIT = re.compile(r"(.*)-\d{5}-of-(\d{5})\.gguf")


@dataclass(frozen=True)
class Target:
    """A file or folder that a command is about to write: the option that named it, its path, and the form it will
    have.
    """

    option: str
    path: str
    form: FileForm


def check_overwriting(targets: Iterable[Target], inputs: Mapping[str, str], *, force: bool = False) -> None:
    """UsageError for a target that is one of the inputs, or has no name, or, without `force`, is a file of another
    form. LoraFastError, without `force`, for one that cannot be read.

    inputs  paths of files and folders that are read, with what each is ("the base model"); empty paths are ignored
    """
    read = {path: what for given, what in inputs.items() if given for path in _files(given)}
    for target in targets:
        path = target.path
        refuse_nameless(target.option, path)
        if not os.path.exists(path):
            continue
        for source, what in read.items():
            if os.path.exists(source) and os.path.samefile(path, source):
                raise UsageError(f"{target.option} {path}: would overwrite {what}, {source}")
        if not force and not _may_replace(path, target.form):
            raise UsageError(f"{target.option} {path}: exists and is not {target.form.phrase}; give another name, move "
                             "it away, or replace it with --force")


def _files(path: str) -> Iterator[str]:
    """All that belongs to an input: the other parts of a model that was split, and what lies in a folder."""
    yield path
    split = SPLIT.fullmatch(os.path.basename(path))
    if split:
        yield from map(str, Path(path).parent.glob(f"{_literal(split[1])}-*-of-{split[2]}.gguf"))
    if os.path.isdir(path):
        yield from (str(file) for file in Path(path).iterdir() if file.is_file())


def _literal(text: str) -> str:
    """`text` as a pattern of pathlib that means nothing but itself."""
    return re.sub(r"([*?[])", r"[\1]", text)


def _may_replace(path: str, form: FileForm) -> bool:
    """Whether what is there has that form, or is nothing that could be lost: an empty file, a pipe, a folder for a
    folder.
    """
    if os.path.isdir(path):
        return form is FileForm.PEFT and form_of_existing(path) in (None, FileForm.PEFT)
    if not os.path.isfile(path) or not os.path.getsize(path):
        return True
    return form_of_existing(path) is form


def form_of_existing(path: str) -> FileForm | None:
    """The form of a file or folder that exists; None if it has none of those that lorafast writes. LoraFastError where
    it cannot be read: it may well have one.
    """
    try:
        if os.path.isfile(path):
            with open(path, "rb") as file:
                beginning = file.read(LONGEST_BEGINNING)
            for form, pattern in BEGINNINGS.items():
                if pattern.match(beginning):
                    return form
        return form_of_file(path)
    except FormatError:
        return None
    except OSError as error:
        raise LoraFastError(f"cannot read {path}: {error.strerror or error}") from error
