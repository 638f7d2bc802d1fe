"""What is mounted where: of file systems and control groups, by Linux's /proc/self/mountinfo."""
from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mount:
    """device: major:minor of the files in it; root: the folder of the file system that is shown; point: where."""

    device: str
    root: str
    point: str
    type: str
    options: tuple[str, ...]

    def upwards(self, path: str, root: Path = Path("/")) -> list[Path]:
        """Where a folder of the file system is found, and the folders above it, up to where the system is mounted.

        In a container the path may be one of the host's that is not shown; then that is the only one.
        """
        top = root / self.point.lstrip("/")
        shown = os.path.normpath(self.root)
        inside = os.path.relpath(path, shown) if os.path.commonpath([path, shown]) == shown else "."
        folder = top / inside
        return [folder, *(above for above in folder.parents if above == top or top in above.parents)]


def read_mounts(root: Path = Path("/")) -> list[Mount]:
    """All mounts that this process sees; none where the system does not tell. root: the folder that holds proc."""
    try:
        lines = os.fsdecode((root / "proc/self/mountinfo").read_bytes()).splitlines()
    except OSError:
        return []
    mounts = []
    # A line: number, parent, device, root, point, options..., "-", type, source, the file system's options
    for line in lines:
        front, _, back = line.partition(" - ")
        _, _, device, shown, point, *_ = front.split(" ")
        type, _, options = back.split(" ", 2)
        mounts.append(Mount(device, _plain(shown), _plain(point), type, tuple(options.split(","))))
    return mounts


def file_system(path: str | os.PathLike, root: Path = Path("/")) -> str:
    """The type of the file system in which a file lies (ext4, tmpfs, nfs4, fuse.sshfs); empty where that is not
    known."""
    number = os.stat(path).st_dev
    device = f"{os.major(number)}:{os.minor(number)}"
    return next((mount.type for mount in read_mounts(root) if mount.device == device), "")


def _plain(path: str) -> str:
    r"""A path of mountinfo, in which a space is \040."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)
