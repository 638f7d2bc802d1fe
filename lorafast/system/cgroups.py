"""The control groups around this process, in both versions of Linux's cgroups and where both are mounted."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .mounts import read_mounts


def groups_around(controller: str, root: Path = Path("/")) -> Iterator[tuple[str, list[Path]]]:
    """Version ("cgroup" or "cgroup2") and folders of the groups that may limit this process, the innermost first.

    Of version 2 without regard to the controller: where both versions are mounted, it belongs to one of them, and in
    the other there are no such files. root: the folder under which sys and proc are found. Nothing where the system
    does not tell.
    """
    try:
        memberships = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounts = read_mounts(root)
    for line in memberships:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        type = "cgroup" if controllers else "cgroup2"
        for mount in mounts:
            if mount.type == type and (not controllers or controller in mount.options):
                yield type, mount.upwards(path, root)
