"""This machine: what it is, and the peaks that all other benches are measured against.

    python bench/machine.py [--threads N] [--seconds S] [--out FILE]

Peaks are measured, not read from a data sheet: streams of instructions in registers and passes over memory (peak.c,
compiled here with the system's compiler), on one thread and on all. Each is the best of several tries.
"""
from __future__ import annotations

import argparse
import ctypes
import os
import platform
import re
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from compiling import compiled
from results import read_results, write_results

from lorafast.gguf.types import TRAINABLE, GGMLType
from lorafast.kernels import build_info
from lorafast.kernels.linear import Weight
from lorafast.system.threads import physical_cores

HERE = Path(__file__).parent
BYTES_OF_MEMORY = 1 << 30       # far beyond any cache that a virtual machine's share of the last level may hold
STREAM_TRIES, MEMORY_TRIES = 20, 5


# ---- what it is -----------------------------------------------------------------------------------------------------

def describe(n_threads: int) -> dict:
    return {
        "cpu": _cpu_name(),
        "architecture": platform.machine(),
        "isa": build_info.isa(),
        "best_isa": build_info.best_isa(),
        "cores": physical_cores(),
        "threads": n_threads,
        "caches": _caches(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "compiler": build_info.compiler(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "load_average": round(os.getloadavg()[0], 2),
    }


def cpu_info() -> str:
    """What Linux tells of the processors: name, vendor, features; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def _cpu_name() -> str:
    """With family and model where Linux tells them: virtual machines call processors of many years by one name."""
    said = dict(re.findall(r"(?m)^(model name|cpu family|model)\t+: (.*)$", cpu_info()))
    if "model name" not in said:
        return platform.processor()
    numbers = f" (family {said['cpu family']}, model {said['model']})" if {"cpu family", "model"} <= said.keys() else ""
    return said["model name"] + numbers


def _caches() -> dict[str, str]:
    """Size of each cache that the first CPU reaches, as Linux states it: {"L1d": "48K", ...}."""
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind = {"Data": "d", "Instruction": "i"}.get((index / "type").read_text().strip(), "")
        caches[f"L{(index / 'level').read_text().strip()}{kind}"] = (index / "size").read_text().strip()
    return caches


def _commit() -> str:
    """Commit of the sources, with a + where they were changed since."""
    def git(*command: str) -> str:
        return subprocess.run(["git", "-C", HERE, *command], capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", ":/kernels", ":/lorafast", ":/bench/*.py")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ---- what it can do -------------------------------------------------------------------------------------------------

Peaks = dict[str, dict[str, float]]
"""By name, and then by number of threads as text: GOP/s of the streams, GB/s of memory."""


def measure_peaks(threads: Sequence[int], seconds: float = 0.02, memory: int = BYTES_OF_MEMORY) -> Peaks:
    """Every peak with each of the numbers of threads.

    seconds   that each try of a stream takes
    memory    bytes that the passes over memory walk through

    `memory read` counts bytes read; `memory scale` (b = 1.5 a) and `memory update` (a = -a) those read and written.
    """
    peaks: Peaks = {}
    for name, operations, run in _streams():
        iterations = _calibrate(run, seconds)
        peaks[name] = {}
        for n in threads:
            peaks[name][str(n)] = n * operations * iterations / _best([lambda: run(iterations)] * n, STREAM_TRIES) / 1e9
    lib = _library()
    data = np.ones(memory // 4, np.float32)
    begin, half = data.ctypes.data, memory // 2
    for name, moved, touch in (             # bytes moved for each byte of a part, and what a thread does with its part
            ("memory read", 1, lambda at, n: lib.memory_read(begin + at, n)),
            ("memory scale", 1, lambda at, n: lib.memory_scale(begin + at // 2, begin + half + at // 2, n // 2)),
            ("memory update", 2, lambda at, n: lib.memory_update(begin + at, n))):
        peaks[name] = {}
        for n in threads:
            part = memory // n // 128 * 128
            works = [lambda i=i: touch(i * part, part) for i in range(n)]
            peaks[name][str(n)] = moved * n * part / _best(works, MEMORY_TRIES) / 1e9
    return peaks


@cache
def _library() -> ctypes.CDLL:
    """peak.c, compiled into a folder that is gone as soon as it is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        lib = ctypes.CDLL(str(compiled("peak.c", Path(folder), "-O3", "-shared", "-fPIC")))
    lib.stream_name.restype = ctypes.c_char_p
    lib.stream_operations.restype = ctypes.c_double
    lib.stream_run.argtypes = ctypes.c_int, ctypes.c_long
    lib.memory_read.argtypes = ctypes.c_void_p, ctypes.c_size_t
    lib.memory_scale.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t
    lib.memory_update.argtypes = ctypes.c_void_p, ctypes.c_size_t
    return lib


def _streams() -> list[tuple[str, float, Callable[[int], None]]]:
    """Name, operations an iteration and the function that does so many iterations, of each stream that runs here."""
    lib = _library()
    return [(lib.stream_name(i).decode(), lib.stream_operations(i), lambda n, i=i: lib.stream_run(i, n))
            for i in range(lib.n_streams()) if lib.stream_runs_here(i)]


def _calibrate(run: Callable[[int], None], seconds: float) -> int:
    iterations, taken = 1000, 0.0
    while taken < seconds / 4:
        iterations *= 4
        taken = _best([lambda: run(iterations)])
    return max(1, int(iterations * seconds / taken))


def _best(works: list[Callable[[], object]], tries: int = 1) -> float:
    """Least seconds, over the tries, from the first start to the last end of works that run at the same time.

    Each has a thread of its own; ctypes lets go of the GIL while they run.
    """
    best = float("inf")
    for _ in range(tries):
        barrier = threading.Barrier(len(works))
        spans: list[tuple[float, float]] = []

        def timed(work: Callable[[], object]) -> None:
            barrier.wait()
            began = time.perf_counter()
            work()
            spans.append((began, time.perf_counter()))

        threads = [threading.Thread(target=timed, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        begins, ends = zip(*spans)
        best = min(best, max(ends) - min(begins))
    return best


def peaks_for(threads: Sequence[int], file: Path | None) -> Peaks:
    """Measured now, or those that machine.py wrote to `file` a moment ago."""
    return read_results(file)["peaks"] if file else measure_peaks(threads)


# ---- which peak is whose --------------------------------------------------------------------------------------------

F32_PEAK = {"scalar": "f32 sse2", "avx2": "f32 avx2", "avxvnni": "f32 avx2", "avx512": "f32 avx512",
            "amx": "f32 avx512", "neon": "f32 neon", "dotprod": "f32 neon", "i8mm": "f32 neon"}
INT16_PEAK = {"avx2": ("int16 avx2",), "avxvnni": ("int16 avx2",), "avx512": ("int16 vnni", "int16 avx512"),
              "neon": ("int16 neon",), "dotprod": ("int16 neon",), "i8mm": ("int16 neon",)}
INT8_TIMES = {"avx2": 2.0, "avxvnni": 2.2, "avx512": 2.0, "dotprod": 4.0, "i8mm": 8.0}
"""Products of bytes in the time of one of int16; with AVX-VNNI as a Zen 5 has it."""
FLOAT_TYPES = tuple(type for type in TRAINABLE if type.weights.q_max == 0)


def linear_peak(peaks: Peaks, isa: str, type: GGMLType, precision: str = "int16") -> tuple[str, float]:
    """The peak of the core that multiplies by weights of `type` on `isa`: its name, and the share of it that counts.

    On AMX, int8 is one product of bfloat16; for int16 each float32 is split into pieces, of which three products make
    one: a third of the peak.
    """
    if type in FLOAT_TYPES or precision == "float32":
        return F32_PEAK[isa], 1.0
    if isa == "amx":
        return "bf16 amx", 1.0 if precision == "int8" else 1 / 3
    by_bytes = precision == "int8" and has_int8(isa, type)
    for name in INT16_PEAK.get(isa, ()):
        if name in peaks:
            return name, INT8_TIMES.get(isa, 1.0) if by_bytes else 1.0
    return F32_PEAK[isa], 1.0


def has_int8(isa: str, type: GGMLType) -> bool:
    """Whether int8 has a core for weights of `type` on `isa`; the others run in int16."""
    before = os.environ.get("LORAFAST_ISA")
    os.environ["LORAFAST_ISA"] = isa                # the kernels look at each call
    try:
        return Weight(np.zeros((1, type.type_size), np.uint8), type, type.block_size, "int8").arithmetic == "int8"
    finally:
        if before is None:
            del os.environ["LORAFAST_ISA"]
        else:
            os.environ["LORAFAST_ISA"] = before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--seconds", type=float, default=0.02, help="that each try of a stream takes")
    parser.add_argument("--memory", type=int, default=BYTES_OF_MEMORY >> 20, metavar="MIB", help="size of the arrays")
    parser.add_argument("--out", type=Path, help="results file to write")
    args = parser.parse_args()
    machine = describe(args.threads)
    peaks = measure_peaks(sorted({1, args.threads}), args.seconds, args.memory << 20)
    for key, value in machine.items():
        print(f"{key:14} {value}")
    for name, values in peaks.items():
        unit = "GB/s" if name.startswith("memory") else "GOP/s"
        print(f"{name:14} " + "   ".join(f"{value:8.1f} {unit} on {n} thread(s)" for n, value in values.items()))
    if args.out:
        write_results(args.out, "machine", machine, peaks, [])


if __name__ == "__main__":
    main()
