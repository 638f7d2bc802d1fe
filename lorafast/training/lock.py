"""One run at a time writes to an output: a lock file beside it, held from the start of a run to its end.

The file `.NAME.lock` names the process and the host, for people; what counts is the system's lock on it, which goes
with the process however that ends. So a file that a killed run left behind is recognised, and taken over.
"""
from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

try:
    import fcntl
except ImportError:                 # no such locks here: what the file says is all there is
    fcntl = None                    # type: ignore[assignment]

from ..errors import LoraFastError
from ..options.outputs import Output


def locked(outputs: Iterable[Output], stack: ExitStack) -> None:
    """Locks each output until `stack` is closed. LoraFastError, naming the process, where another run has it."""
    for path in sorted({lock_path(output) for output in outputs}):
        stack.enter_context(_lock(path))


def lock_path(output: Output) -> str:
    """The lock file of an output, in its folder."""
    return str(output.folder / f".{os.path.basename(output.name.rstrip('/'))}.lock")


@contextmanager
def _lock(path: str) -> Iterator[None]:
    descriptor = _opened(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
        yield
    finally:
        with suppress(OSError):
            os.unlink(path)             # before it is let go, so that nobody else has it by then
        os.close(descriptor)


def _opened(path: str) -> int:
    """The lock file, ours. A run that ends may remove it just after we have opened it: then another is made."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        except OSError as error:
            raise LoraFastError(f"cannot write {path}: {error.strerror}") from None
        try:
            _take(path, descriptor)
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _take(path: str, descriptor: int) -> None:
    process, _, host = os.pread(descriptor, 300, 0).decode("utf-8", "replace").strip().partition(" ")
    try:
        if fcntl is None:
            raise NotImplementedError
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = bool(host) and host != socket.gethostname()      # locks may not reach from host to host
    except BlockingIOError:
        held = True
    except (OSError, NotImplementedError):                      # a file system without locks
        held = bool(host) and (host != socket.gethostname() or _lives(process))
    if held:
        where = f" on {host}" if host and host != socket.gethostname() else ""
        advice = f"; if that run is gone, delete {path}" if where else ""
        raise LoraFastError(f"another run, process {process or 'unknown'}{where}, is writing the same files ({path}): "
                            f"give this one other names{advice}")


def _lives(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        pass
    return True
