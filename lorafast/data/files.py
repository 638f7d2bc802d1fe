"""Which files a run trains on, which it is evaluated on, and which are left for a test."""
from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Sequence

from ..errors import LoraFastError, UsageError
from ..options.finetune import DEFAULT_DATA
from .forms.arrow import dataset_splits, is_dataset
from .source import unreadable

_ROLE = re.compile(r"(train|valid|validation|val|dev|test)([-_.][^/]*)?"
                   r"\.(jsonl|ndjson|json|csv|tsv|parquet|arrow|txt|text)(\.gz)?", re.IGNORECASE)
_VALID_NAMES = ("valid", "validation", "val", "dev")

Files = tuple[list[str], list[str], list[str]]
"""Files to train on, to evaluate on, and to test on. A folder that holds a data set counts as a file."""


def data_files(train: Sequence[str], valid: Sequence[str] = (), valid_split: float = 0.0) -> Files:
    """The files that options name. LoraFastError or UsageError where that is none, or too much."""
    folders = [path for path in train if os.path.isdir(path) and not is_dataset(path)]
    if not folders:
        found, found_valid, test = list(train), list[str](), list[str]()
    elif len(train) > 1:
        raise UsageError(f"--train-data {folders[0]} is a folder: it must be the only one")
    else:
        found, found_valid, test = _folder(folders[0])
    if not any(found):
        raise UsageError("--train-data is missing: name a file or a folder")
    valid = list(valid) or found_valid
    if valid and valid_split:
        raise UsageError(f"--valid-split {valid_split}: but {valid[0]} is there to evaluate on")
    return found, valid, test


def check_files(files: Files) -> None:
    """Raises LoraFastError where one of these is missing or must not be read. Opens none: a pipe is read but once."""
    for name in itertools.chain(*files):
        try:
            os.stat(name)
        except OSError as error:
            given = "" if name != DEFAULT_DATA else " (this is the default; name your data with --train-data)"
            raise LoraFastError(f"{unreadable(name, error)}{given}") from None
        if not os.access(name, os.R_OK):
            raise unreadable(name, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _folder(folder: str) -> Files:
    """The files of a folder, told apart by their names, or by those of the splits of a data set."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise LoraFastError(f"cannot read folder {folder}: {error.strerror}") from None
    files: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    splits = [f"{name}.arrow" for name in dataset_splits(folder)]
    for name in splits or names:
        if match := _ROLE.fullmatch(name):
            role = match[1].lower()
            files["valid" if role in _VALID_NAMES else role].append(os.path.join(folder, name.removesuffix(".arrow")
                                                                                 if splits else name))
    if not files["train"]:
        raise LoraFastError(f"{folder} has no train.jsonl, train.json, train.csv, train.parquet or train.txt")
    return files["train"], files["valid"], files["test"]
