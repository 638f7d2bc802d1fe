"""Training speed: tokens a second of whole steps with rank 4 on every matrix; peers, threads, context, batch, types.

    python bench/bench_train.py [--full] [--only NAME,...] [--peer-python PYTHON] [--repeats N] [--out FILE]

Every contestant has a process of its own; those of one comparison take turns, step by step. A comparison runs as

    peers     160m at batch 4 ctx 64 and at batch 1 ctx 512 (2048 with --full), 1b at batch 4 ctx 64: lorafast in each
              precision, and PyTorch + PEFT in float32 and, where the processor multiplies that, bfloat16; on processors
              that are not Intel's also with MKL held to the code it keeps for those (peers/mkl_anywhere.c)
    precisions  the same at 160m, batch 4 ctx 64 in weights of 4 bits, which int8 has a core for with AVX2; and PyTorch
              with the 4 bits of bitsandbytes, where --peer-python has it
    isas      the same at 160m with both sides held to AVX-512, and to AVX2 (--full)
    threads   1 to all on 160m; on 1b too with --full
    context   160m at batch 1, ctx 256 and 2048; 64 to 4096 with --full
    batch     160m at ctx 64, batch 1 and 16; 1 to 64 with --full
    types     160m at batch 4 ctx 64 in every kind of weight (--full)
    7b        batch 4 ctx 64 with checkpointing (--full; needs 8 GB of disk and memory)

PyTorch takes part where --peer-python (default: this Python) has torch, peft and transformers.
"""
from __future__ import annotations

import argparse
import atexit
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from compiling import compiled
from geometry import GEOMETRIES
from machine import F32_PEAK, Peaks, cpu_info, describe, linear_peak, peaks_for
from models import MODELS, make_model
from results import RESULTS, write_results
from timing import alternate, ratio, summary
from worker import PAUSE, Worker

from lorafast.gguf.types import GGMLType
from lorafast.kernels import build_info
from lorafast.system.threads import physical_cores

HERE = Path(__file__).parent
ISAS = build_info.available_isas()
LOWEST_PEER = 45
"""Percent of the float32 peak that the best peer must reach at 160m; a slower one is not at its best, the comparison
void."""
PROFILES, LONG_STEP = 5, 1.0
"""Profiled steps, and the seconds from which on one is enough."""
FIND = "import sys, importlib.util; sys.exit(not all(map(importlib.util.find_spec, sys.argv[1:])))"

KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(1 << 34), "MALLOC_MMAP_THRESHOLD_": str(1 << 34)}
"""glibc's variables with which a peer keeps what it frees: to give it back in each step and take it again cost PyTorch
in bfloat16 a fifth more time on a virtual machine (394 and 329 ms in turns, Zen 5)."""

TORCH_ISA = {       # variables that hold PyTorch and its libraries to an instruction set; unset for the best
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": None, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "MKL_ENABLE_INSTRUCTIONS": None},
    "amx": {"ATEN_CPU_CAPABILITY": None, "ONEDNN_MAX_CPU_ISA": None, "MKL_ENABLE_INSTRUCTIONS": None},
}


def machine_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16; where it does not, PyTorch takes a hundred times as long in it."""
    return bool(set(cpu_info().split()) & {"avx512_bf16", "amx_bf16", "bf16"})


@cache
def mkl_anywhere() -> str:
    """peers/mkl_anywhere.c as a library to preload, in a folder that stays as long as this process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return str(compiled("peers/mkl_anywhere.c", Path(folder.name), "-shared", "-fPIC"))


@dataclass(frozen=True)
class Contestant:
    """What runs, on what. program: lorafast, torch, or torch+mkl (torch with `mkl_anywhere`). type: the weights' in
    lorafast, PyTorch's dtype."""

    program: str
    model: str
    batch: int
    ctx: int
    threads: int
    isa: str
    type: str = "Q8_0"
    checkpointing: bool = False
    precision: str = "int16"

    @property
    def name(self) -> str:
        checkpointing = ", checkpointing" if self.checkpointing else ""
        precision = f" in {self.precision}" if self.program == "lorafast" else ""
        return (f"{self.program} {self.type}{precision}, {self.model}, batch {self.batch} ctx {self.ctx}, "
                f"{self.threads} thread(s), {self.isa}{checkpointing}")

    def worker(self, peer_python: str, models: Path) -> Worker:
        sizes = self.batch, self.ctx, self.threads
        if self.program != "lorafast":
            environment = {"OMP_NUM_THREADS": str(self.threads), **KEEP_MEMORY, **TORCH_ISA.get(self.isa, {})}
            if self.program == "torch+mkl":
                environment["LD_PRELOAD"] = mkl_anywhere()
            return Worker(HERE / "peers/torch_peft.py", self.model, *sizes, self.type, python=peer_python,
                          environment=environment)
        model = make_model(self.model, self.type, models)
        return Worker(HERE / "train_worker.py", model, *sizes, int(self.checkpointing), self.precision,
                      environment={"LORAFAST_ISA": self.isa})

    def speed(self, seconds: float, peaks: Peaks) -> dict[str, Any]:
        """Tokens a second, operations of the frozen products, and their share of the peak of what multiplies them."""
        tokens = self.batch * self.ctx
        gflops = 4 * GEOMETRIES[self.model].n_weights * tokens / seconds / 1e9
        if self.program == "lorafast":
            peak, share = linear_peak(peaks, self.isa, GGMLType[self.type], self.precision)
        else:
            tiles = self.isa == "amx" and self.type == "bfloat16"
            peak, share = "bf16 amx" if tiles else F32_PEAK[self.isa], 1.0
        return {"tokens_per_s": tokens / seconds, "gflops": gflops, "peak": peak, "share_of_peak": share,
                "percent_of_peak": 100 * gflops / (share * peaks[peak][str(self.threads)])}


def peer_types(peer_python: str) -> list[str]:
    """What PyTorch can keep a model in, with these packages and on this processor; nothing without PyTorch."""
    def has(*packages: str) -> bool:
        return not subprocess.run([peer_python, "-c", FIND, *packages]).returncode

    if not has("torch", "peft", "transformers"):
        return []
    return ["float32", *["bfloat16"] * machine_has_bfloat16(), *["nf4"] * has("bitsandbytes")]


def comparisons(full: bool, threads: int, peer_types: Sequence[str],
                model: str) -> Iterator[tuple[str, list[Contestant]]]:
    """Name and contestants of each comparison; `model` is the one that stands for the small (160m)."""
    isa = build_info.isa()
    base = Contestant("lorafast", model, 4, 64, threads, isa)

    def with_torch(ours: Sequence[Contestant]) -> list[Contestant]:
        if not peer_types:
            return [*ours]
        torch = replace(ours[0], program="torch", type="float32")
        useless = {"bfloat16"} if torch.isa == "avx2" else set()        # held to that, a hundred times as slow
        types = [type for type in peer_types
                 if type not in useless and (type != "nf4" or ours[0].type.startswith("Q4"))]
        peers = [replace(torch, type=type) for type in types]
        if platform.machine() == "x86_64" and "GenuineIntel" not in cpu_info():
            peers += [replace(torch, type=type, program="torch+mkl") for type in types]
        return [*ours, *peers]

    def precisions(contestant: Contestant) -> list[Contestant]:
        return [replace(contestant, precision=precision) for precision in ("int16", "int8", "float32")]

    yield "peers", with_torch(precisions(base))
    yield "peers", with_torch(precisions(replace(base, batch=1, ctx=512)))
    if full:
        yield "peers", with_torch(precisions(replace(base, batch=1, ctx=2048)))
    if model == "160m":
        yield "peers", with_torch(precisions(replace(base, model="1b")))
    for type in ("Q4_0", "Q4_K"):
        yield "precisions", with_torch(precisions(replace(base, type=type)))
    if full:
        for lower in ("avx512", "avx2"):
            if lower in ISAS and lower != isa:
                yield "isas", with_torch([replace(base, isa=lower)])
    counts = range(1, threads + 1) if full else sorted({1, threads})
    yield "threads", [replace(base, threads=n) for n in counts]
    if full:
        yield "threads", [replace(base, model="1b", threads=n) for n in sorted({1, threads})]
    contexts = (64, 128, 256, 512, 1024, 2048, 4096) if full else (256, 2048)
    yield "context", [replace(base, batch=1, ctx=ctx) for ctx in contexts]
    batches = (1, 2, 4, 8, 16, 32, 64) if full else (1, 16)
    yield "batch", [replace(base, batch=batch) for batch in batches]
    if full:
        yield "types", [replace(base, type=type) for type in ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "IQ4_XS", "F16")]
        yield "7b", [replace(base, model="7b", checkpointing=True)]


def run(name: str, contestants: Sequence[Contestant], peaks: Peaks, repeats: int, peer_python: str,
        models: Path) -> list[dict]:
    """Lets the contestants take turns; a row for each."""
    with ExitStack() as stack:
        workers = {each: stack.enter_context(each.worker(peer_python, models)) for each in contestants}
        seconds = alternate({each: lambda worker=worker: worker.ask("step")["seconds"]
                             for each, worker in workers.items()}, repeats=repeats, pause=PAUSE)
        rows = []
        for each, worker in workers.items():
            speed = each.speed(median(seconds[each]), peaks)
            row = {"comparison": name, **asdict(each), **summary(seconds[each]), **speed,
                   "memory": worker.ask("memory")}
            if each.program == "lorafast":
                row |= split([worker.ask("profile") for _ in range(PROFILES if row["seconds"] < LONG_STEP else 1)])
                row["speedup"] = {f"{other.program} {other.type}": ratio(seconds[other], seconds[each])
                                  for other in contestants if other.program != "lorafast"}
            rows.append(row)
        judge_peers(rows)
        for each, row in zip(contestants, rows, strict=True):
            report(each, row)
    return rows


def judge_peers(rows: list[dict[str, Any]]) -> None:
    """Marks the peers in float32 on 160m as void where none of them reached LOWEST_PEER."""
    peers = [row for row in rows if row["program"] != "lorafast" and (row["type"], row["model"]) == ("float32", "160m")]
    for row in peers:
        row["void"] = max(peer["percent_of_peak"] for peer in peers) < LOWEST_PEER


def split(profiles: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the fastest profiled step: percent in each phase, in each op, and outside of all kernels."""
    fastest = min(profiles, key=lambda profile: profile["seconds"])

    def percent(part: dict[str, float]) -> dict[str, float]:
        return {name: 100 * seconds / fastest["seconds"]
                for name, seconds in sorted(part.items(), key=lambda item: -item[1])}

    return {"phases": percent(fastest["phases"]), "ops": percent(fastest["ops"]), "kernel_calls": fastest["calls"],
            "percent_outside_kernels": 100 * fastest["python"] / fastest["seconds"]}


def report(contestant: Contestant, row: dict[str, Any]) -> None:
    memory, share = row["memory"], row["share_of_peak"]
    peak = row["peak"] if share == 1 else f"{share:.3g} times {row['peak']}"
    print(f"{contestant.name}:\n    {row['tokens_per_s']:.0f} tokens/s, {row['seconds'] * 1000:.0f} ms a step, "
          f"{row['gflops']:.0f} GFLOP/s, {row['percent_of_peak']:.0f} % of {peak}, "
          f"{memory['anonymous'] / 1e6:.0f} MB its own + {memory['mapped'] / 1e6:.0f} MB mapped")
    for program, speedup in row.get("speedup", {}).items():
        print(f"    {speedup:.2f} times {program}")
    if row.get("void"):
        print(f"    VOID: a peer below {LOWEST_PEER} % of the float32 peak says nothing; is the machine busy?")
    if "ops" in row:
        for title in ("phases", "ops"):
            shares = [f"{of} {share:.1f} %" for of, share in row[title].items() if share >= 0.5]
            print(f"    {title}: {', '.join(shares)}")
        print(f"    outside of {row['kernel_calls']} kernel calls: {row['percent_outside_kernels']:.1f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="NAME,...", help="comparisons to run")
    parser.add_argument("--model", choices=GEOMETRIES, default="160m", help="stands for the 160m")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help="a Python with torch and peft")
    parser.add_argument("--models-folder", type=Path, default=MODELS, metavar="FOLDER", help="where models are kept")
    parser.add_argument("--peaks", type=Path, metavar="FILE", help="of machine.py, instead of measuring them again")
    parser.add_argument("--out", type=Path, default=RESULTS / "train.json")
    args = parser.parse_args()

    types = peer_types(args.peer_python)
    if not types:
        print("without PyTorch: --peer-python has no torch, peft and transformers")
    machine, peaks = describe(args.threads), peaks_for(range(1, args.threads + 1), args.peaks)
    rows: list[dict[str, Any]] = []
    for name, contestants in comparisons(args.full, args.threads, types, args.model):
        if args.only is None or name in args.only:
            rows += run(name, contestants, peaks, args.repeats, args.peer_python, args.models_folder)
            write_results(args.out, "train", machine, peaks, rows)      # a run that is cut short leaves what it has


if __name__ == "__main__":
    main()
