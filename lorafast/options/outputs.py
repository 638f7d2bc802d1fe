"""The names of the files a run writes, and what can be known before it starts: may they be written, do they fit.

An output is given as a name with a placeholder (`shakespeare-ITERATION.gguf`). Each save writes it twice: with the
number of the iteration, and with LATEST; a new lowest evaluation loss a third time, with BEST. Only the first
placeholder counts; a name without one is a single file, written again at each save. An adapter's is the best one where
the run evaluates, and the newest stands beside it, with -LATEST at the end of its name.
"""
from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import LoraFastError, UsageError
from ..gguf.file_form import ADAPTER_FORMS, FileForm

BEST = "BEST"


@dataclass(frozen=True)
class Output:
    """A file, or a folder if `name` ends in `/`, that each save writes anew.

    option: the option that named it, for messages. form: what it holds. keep: how many numbered copies `prune` leaves;
    0 means all.
    """

    option: str
    name: str
    form: FileForm
    placeholder: str = "ITERATION"
    latest: str = "LATEST"
    keep: int = 0

    def paths(self, iteration: int) -> tuple[str, ...]:
        """Where a save writes: the numbered copy and the latest; just `name` if it has no placeholder."""
        if self.placeholder not in self.name:
            return (self.name,)
        return self._filled(str(iteration)), self.latest_path

    @property
    def latest_path(self) -> str:
        """The copy that is always the newest."""
        return self._filled(self.latest)

    @property
    def best_path(self) -> str | None:
        """The copy of the lowest evaluation loss; None if the name has no placeholder."""
        return self._filled(BEST) if self.placeholder in self.name else None

    def existing(self) -> Iterator[str]:
        """The paths under which saves write that exist already."""
        beside = self.beside_best if self.form in ADAPTER_FORMS else self.name
        paths = {self.latest_path, self.best_path or beside, *map(str, self.numbered().values())}
        yield from (path for path in sorted(paths) if os.path.lexists(path.rstrip("/")))

    def _filled(self, text: str) -> str:
        return self.name.replace(self.placeholder, text, 1)

    @property
    def beside_best(self) -> str:
        """Where the newest goes if `name` has no placeholder and holds the best: `a.gguf` has `a-LATEST.gguf`."""
        name = self.name.rstrip("/")
        stem, end = os.path.splitext(name) if self.form is not FileForm.PEFT else (name, "/")
        return f"{stem}-{self.latest}{end}"

    @property
    def folder(self) -> Path:
        """The folder in which the file, or the PEFT folder, appears."""
        return Path(self.name.rstrip("/")).parent

    def numbered(self) -> dict[int, Path]:
        """The numbered copies that exist, by iteration, the oldest first (by the time of writing)."""
        before, placeholder, after = Path(self.name.rstrip("/")).name.partition(self.placeholder)
        if not placeholder or not self.folder.is_dir():
            return {}
        pattern = re.compile(re.escape(before) + "(0|[1-9][0-9]*)" + re.escape(after))
        found = [(path.stat().st_mtime_ns, int(match[1]), path) for path in self.folder.iterdir()
                 if (match := pattern.fullmatch(path.name))]
        return {iteration: path for _, iteration, path in sorted(found)}

    def prune(self) -> list[Path]:
        """Deletes all numbered copies but the newest `keep`; returns those deleted. Other files are never touched."""
        if not self.keep:
            return []
        old = list(self.numbered().values())[:-self.keep]
        for path in old:
            path.unlink()
        return old


def refuse_nameless(option: str, name: str) -> None:
    """UsageError for an output that is the root, the folder one is in, or one above: `/`, `./`, `..`."""
    if name and os.path.basename(name.rstrip("/")) in ("", ".", ".."):
        raise UsageError(f"{option} {name}: add a name to this folder")


def check_outputs(outputs: Sequence[Output]) -> None:
    """Raises an error for an output that could not be written."""
    owner: dict[str, Output] = {}
    for output in outputs:
        if output.placeholder in str(output.folder):
            raise UsageError(f"{output.option} {output.name}: {output.placeholder} may stand in the last part of the "
                             "name only")
        if not output.folder.is_dir():
            raise LoraFastError(f"{output.option} {output.name}: the folder {output.folder} does not exist")
        if not os.access(output.folder, os.W_OK | os.X_OK):
            raise LoraFastError(f"{output.option} {output.name}: the folder {output.folder} is not writable")
        for path in output.paths(0):
            other = owner.setdefault(os.path.abspath(path), output)
            if other is not output:
                raise UsageError(f"{other.option} and {output.option} both write {path}: give them different names")
        for path in (output.latest_path.rstrip("/"), *map(str, output.numbered().values())):
            if os.path.exists(path) and os.path.isdir(path) != output.name.endswith("/"):
                kind = "a folder" if os.path.isdir(path) else "a file"
                raise LoraFastError(f"{output.option} {output.name}: {path} is {kind}")


def check_disk(outputs: Sequence[tuple[Output, int]], *, iteration: int, n_iter: int, save_every: int,
               keep_best: bool = False) -> None:
    """LoraFastError if the files of a run do not fit on their disks.

    outputs: each with its size in bytes; iteration: where the run starts; n_iter: iterations of the run; keep_best: is
    there a copy of the best, too.
    """
    needed: dict[int, int] = {}
    folders: dict[int, Path] = {}
    for output, size in outputs:
        disk = os.stat(output.folder).st_dev
        folders.setdefault(disk, output.folder)
        needed[disk] = needed.get(disk, 0) + _growth(output, size, iteration, n_iter, save_every)
        if keep_best:
            needed[disk] += size - _size(output.best_path or output.beside_best)
    for disk, folder in folders.items():
        # A file is complete under a temporary name before it replaces the one of the last save.
        in_flight = max(size for output, size in outputs if os.stat(output.folder).st_dev == disk)
        free = shutil.disk_usage(folder).free
        if needed[disk] + in_flight > free:
            raise LoraFastError(f"the files of this run need {megabytes(needed[disk] + in_flight)} in {folder}, where "
                                f"{megabytes(free)} are free: keep fewer (--keep 2), save less often (--save-every), "
                                "or write elsewhere")


def _growth(output: Output, size: int, iteration: int, n_iter: int, save_every: int) -> int:
    """Bytes by which an output's files will have grown when the run ends, those that they replace taken off."""
    last = iteration + n_iter
    periodic = range(iteration + save_every, last + 1, save_every) if save_every > 0 else range(0)
    if output.placeholder not in output.name:
        return size - _size(output.name)
    saves = len(periodic) + (last not in periodic)
    replaced = sum(_size(path) for number, path in output.numbered().items() if number in periodic or number == last)
    copies = min(saves, output.keep or saves)
    return max(0, copies * size - replaced) + size - _size(output.latest_path)


def _size(path: str | Path) -> int:
    return os.path.getsize(path) if os.path.isfile(path) else 0


def megabytes(n: int) -> str:
    """`n` bytes in MB of 2^20, as llama-finetune prints sizes."""
    return f"{n / 2**20:.1f} MB"
