"""Runs a script once more with a library preloaded that makes calls of the system fail (faults.c)."""
from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

PATH = "LORAFAST_FAULTS"


def library() -> ctypes.CDLL | None:
    """The library, where this process was started with it. Processes started from here are without."""
    if PATH not in os.environ:
        return None
    os.environ.pop("LD_PRELOAD", None)
    faults = ctypes.CDLL(os.environ[PATH])
    faults.faults_arm.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_int, ctypes.c_char_p]
    faults.faults_count.restype = ctypes.c_long
    return faults


def preloaded(folder: str, **environment: str) -> int:
    """Builds the library in a folder and runs this script once more with it; the exit status."""
    built = str(Path(folder, "faults.so"))
    compiler = (os.environ.get("CC") or "cc").split()
    subprocess.run([*compiler, "-O1", "-shared", "-fPIC", "-o", built, str(Path(__file__).with_name("faults.c")),
                    "-ldl"], check=True)
    return subprocess.run([sys.executable, "-W", "ignore", *sys.argv],
                          env={**os.environ, "LD_PRELOAD": built, PATH: built, **environment}).returncode
