"""Parquet files, Arrow files, and the folders that `datasets` writes by save_to_disk. pyarrow reads them (an extra)."""
from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from ...errors import FormatError, LoraFastError
from ..source import Source
from . import Advance

PARQUET, ARROW_FILE = b"PAR1", b"ARROW1"
ROWS = 256
"""Rows of a batch, which is in memory as a whole."""


def import_pyarrow(what: str) -> Any:
    """The package. LoraFastError where it is missing."""
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise LoraFastError(f"{what} needs pyarrow: pip install 'lorafast[parquet]'") from None
    return pyarrow


class Parquet:
    name = "Parquet"

    def values(self, source: Source, advance: Advance) -> Iterator[tuple[int, Any]]:
        pyarrow = import_pyarrow(f"'{source.name}' is Parquet, which")
        try:
            file = pyarrow.parquet.ParquetFile(source.path)
            n_rows = max(1, file.metadata.num_rows)
            batches = file.iter_batches(ROWS)
            yield from numbered(batches, advance, source.size / n_rows)
        except (pyarrow.ArrowException, OSError) as error:
            raise broken(source.name, "Parquet", error) from None


class ArrowFiles:
    """One Arrow file, or a folder with those of a data set."""

    name = "Arrow"

    def values(self, source: Source, advance: Advance) -> Iterator[tuple[int, Any]]:
        pyarrow = import_pyarrow(f"'{source.name}' is Arrow data, which")
        paths = dataset_files(source) if source.is_folder else [source.path]
        try:
            yield from numbered((batch for path in paths for batch in _batches(pyarrow, path)), advance, 0)
        except (pyarrow.ArrowException, OSError) as error:
            raise broken(source.name, "Arrow data", error) from None


def _batches(pyarrow: Any, path: str) -> Iterator[Any]:
    """The batches of a file in Arrow's stream format (save_to_disk's) or its file format."""
    with pyarrow.memory_map(path) as file:
        is_file = file.read(len(ARROW_FILE)) == ARROW_FILE
        file.seek(0)
        if is_file:
            reader = pyarrow.ipc.open_file(file)
            batches = map(reader.get_batch, range(reader.num_record_batches))
        else:
            batches = iter(pyarrow.ipc.open_stream(file))
        for batch in batches:
            for begin in range(0, batch.num_rows, ROWS):
                yield batch.slice(begin, ROWS)


def numbered(batches: Iterator[Any], advance: Advance, row_bytes: float) -> Iterator[tuple[int, Any]]:
    number = 0
    for batch in batches:
        advance(round(batch.num_rows * row_bytes) or batch.nbytes)
        for value in batch.to_pylist():
            number += 1
            yield number, value


def broken(name: str, what: str, error: Exception) -> FormatError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return FormatError(f"'{name}' is broken {what}: {reason}")


def is_dataset(folder: str) -> bool:
    """Whether save_to_disk of a `datasets.Dataset` wrote this folder."""
    return all(os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_info.json"))


def dataset_splits(folder: str) -> list[str]:
    """The names of the splits that save_to_disk of a `datasets.DatasetDict` wrote; empty where it wrote none."""
    splits = _read_json(folder, "dataset_dict.json", "splits") if os.path.isfile(
        os.path.join(folder, "dataset_dict.json")) else []
    return [name for name in splits if isinstance(name, str) and is_dataset(os.path.join(folder, name))]


def dataset_files(source: Source) -> list[str]:
    """The Arrow files of a data set's folder. FormatError when they are not there."""
    files = _read_json(source.path, "state.json", "_data_files")
    named = [file.get("filename") for file in files if isinstance(file, dict)]
    names = [name for name in named if isinstance(name, str) and os.path.basename(name) == name]
    if not names or len(names) < len(named):
        raise FormatError(f"{source.name}/state.json names no data files")
    return [os.path.join(source.path, name) for name in names]


def _read_json(folder: str, name: str, key: str) -> list[Any]:
    path = os.path.join(folder, name)
    try:
        with open(path, "rb") as file:
            value = json.load(file)
        found = value[key]
    except OSError as error:
        raise LoraFastError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(f"{path} is not what save_to_disk writes: '{key}' is missing") from None
    if not isinstance(found, list):
        raise FormatError(f"{path}: '{key}' is not a list")
    return found
