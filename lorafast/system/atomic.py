"""Files and folders that appear complete or not at all, whatever interrupts the writing.

The contents go to a temporary name in the same folder (so on the same file system), reach the disk, and then take the
real name in one step. Nobody ever sees half a checkpoint, and the previous one stays until then.
"""
from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import LoraFastError


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file object whose contents replace `path` when the block ends, and vanish when it raises.

    A symbolic link is followed. A device or pipe, which nothing can replace, is written directly.
    Raises LoraFastError naming `path` for any failure of the file system, a full disk included.
    """
    target = os.path.realpath(path)
    with _errors_name(path, target):
        if os.path.exists(target) and not stat.S_ISREG(os.stat(target).st_mode):
            with open(target, "wb") as file:
                yield file
            return
        temporary = _temporary_name(target)
        try:
            with open(temporary, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            _sync_folder(os.path.dirname(target))
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


@contextmanager
def atomic_dir(path: str | os.PathLike) -> Iterator[Path]:
    """An empty folder to put files in, which becomes `path` when the block ends, and vanishes when it raises.

    Where `path` is a folder already, its files of the same names are replaced one by one and all others stay:
    a user may well point to a folder with other things in it. Raises LoraFastError naming `path`.
    """
    target = os.path.realpath(path)
    with _errors_name(path, target):
        temporary = _temporary_name(target)
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.mkdir(temporary)
            yield Path(temporary)
            for file in Path(temporary).iterdir():
                with open(file, "rb+") as contents:
                    os.fsync(contents.fileno())
            _sync_folder(temporary)
            if os.path.isdir(target):
                for file in sorted(Path(temporary).iterdir()):
                    os.replace(file, os.path.join(target, file.name))
                os.rmdir(temporary)
                _sync_folder(target)
            else:
                os.rename(temporary, target)
            _sync_folder(os.path.dirname(target))
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _temporary_name(target: str) -> str:
    folder, name = os.path.split(target)
    return os.path.join(folder, f".{name}.{secrets.token_hex(4)}.tmp")


@contextmanager
def _errors_name(path: str | os.PathLike, target: str) -> Iterator[None]:
    """Turns OSError into LoraFastError, except those that the block met with files elsewhere."""
    try:
        yield
    except OSError as error:
        ours = error.filename is None or os.path.dirname(os.path.realpath(error.filename)) in (
            target, os.path.dirname(target))
        if not ours:
            raise
        raise LoraFastError(f"cannot write {os.fspath(path)}: {error.strerror or error}") from error


def _sync_folder(folder: str) -> None:
    """Makes a rename durable. Not every system lets a folder be opened; the rename is then merely not yet on disk."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
