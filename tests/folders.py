"""The working folder, for set-ups of whole modules, in which pytest's `monkeypatch` is not to be had; and by what
processes that tests start find lorafast."""
from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lorafast


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Inside, relative paths are those of `folder`."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def environment() -> dict[str, str]:
    """That of a process which is to import the lorafast that is tested: the one in place, or one built elsewhere for
    sanitizers."""
    return {**os.environ, "PYTHONPATH": str(Path(lorafast.__file__).parents[1])}
