"""What a run that was killed left half done, put right by the next one: temporary files, and adapters that were not
written.

A save writes the checkpoint, then the adapters. Killed between the two, a run leaves adapters that are older than their
checkpoint, or none of that iteration; they are written from it.
"""
from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from ..options.finetune import FinetuneConfig
from ..options.outputs import Output
from .lock import locked
from .saving import Saver


def claim(config: FinetuneConfig, stack: ExitStack) -> list[str]:
    """Locks the outputs of a run until `stack` is closed, then deletes what one that was killed had left. Returns a
    line if there was anything. LoraFastError if another run has them.
    """
    locked(config.outputs, stack)
    return remove_leftovers(config.outputs, [str(config.options_path)] if config.options_path else [])


def remove_leftovers(outputs: Iterable[Output], files: Iterable[str]) -> list[str]:
    """Deletes the temporary files and folders of saves of these outputs, and of writing these files, that were cut
    short. Nobody may be writing them: lock.py. Returns a line if there were any.
    """
    names = [(output.folder, *Path(output.name.rstrip("/")).name.partition(output.placeholder)) for output in outputs]
    names += [(Path(file).parent, Path(file).name, "", "") for file in files]
    removed = []
    for folder, before, placeholder, after in names:
        filled = "[^/]*" if placeholder else ""
        pattern = re.compile(rf"\.{re.escape(before)}{filled}{re.escape(after)}\.[0-9a-f]{{8}}\.tmp")
        for path in _entries(folder):
            if pattern.fullmatch(path.name):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
                removed.append(path.name)
    return [f"removed what a run that was cut short had left: {', '.join(sorted(removed))}"] if removed else []


def _entries(folder: Path) -> Iterator[Path]:
    yield from folder.iterdir() if folder.is_dir() else ()


def write_missing_adapters(saver: Saver, checkpoint: Path, iteration: int) -> list[str]:
    """Writes the adapters that belong to this checkpoint and are missing, or older than it, if it is one of this run's
    own outputs. Returns a line for each.
    """
    output = saver.config.checkpoint_output
    own = output.paths(iteration) if output else ()
    if not any(os.path.exists(path) and os.path.samefile(path, checkpoint) for path in own):
        return []
    written = checkpoint.stat().st_mtime_ns
    # A name without a placeholder may belong to the best adapter, which need not be this one.
    outputs = [adapter for adapter in saver.config.adapter_outputs if adapter.best_path]
    late = [(adapter, path) for adapter in outputs for path in adapter.paths(iteration)
            if not os.path.exists(path) or _written(path) < written]
    for _, path in late:
        saver.save_adapter(path)
    return [f"wrote {path} from {checkpoint}: the run that left it was cut short" for _, path in late]


def _written(path: str) -> int:
    """When the newest file there was written."""
    files = list(Path(path).iterdir()) if os.path.isdir(path) else [Path(path)]
    return max((file.stat().st_mtime_ns for file in files), default=0)
