"""C sources of the benches, compiled where they are used."""
from __future__ import annotations

import os
import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def compiled(source: str, folder: Path, *options: str) -> Path:
    """A file of this folder as a program, or with -shared a library, in `folder`. $CC: another compiler than cc."""
    path = folder / Path(source).stem
    subprocess.run([*(os.environ.get("CC") or "cc").split(), *options, HERE / source, "-o", path], check=True)
    return path
