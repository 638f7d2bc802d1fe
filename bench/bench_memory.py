"""Training in less memory than the model: under a limit, is it kept, what does it cost, and are the losses the same?

    python bench/bench_memory.py [--full] [--only NAME,...] [--case MODEL,BATCH,CTX,MB ...] [--steps N] [--no-cgroup]

Runs `lorafast finetune` on each model without a limit, then under budgets, with the model's pages taken out of the
system's cache first (pages that somebody else has read are not charged to a cgroup). A budget holds in two ways: by
--mem-limit alone, and by --mem-limit inside a memory cgroup of that size without swap, where this process may make one
(root, version 1 or 2).

    160m    batch 4, ctx 64, under budgets from the least on up
    1b      the same at 350 MB and more; batch 1, ctx 2048 at 1.5 GB (--full)
    7b      batch 4, ctx 64 at 1.5 GB (--full; needs 8 GB of disk, and of memory for the run without a limit)
    30b-a3b   128 experts in each of 48 blocks, batch 1, ctx 32 at 4 GB (--only 30b-a3b; needs 17 GB of disk, and 20 of
            memory for the run without a limit). 30b-a3b-4, its lowest four blocks, at 700 MB

The rows of the tightest runs keep what the process held through two steps; plots.py draws them. Status 1 if a limit was
not kept or losses or adapters differ.
"""
from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cgroup import Cgroup, cgroup_of
from machine import describe
from memory_use import resident, resident_libraries
from models import MODELS, make_model
from results import RESULTS, write_results

from lorafast.system.threads import physical_cores

ROOT = Path(__file__).parent.parent
TEXT = "the love of my sweet love with all thy love is not for " * 400
MB = 2**20
SECONDS_BETWEEN_SAMPLES = 0.02
SAMPLES_BETWEEN_LOOKS = 50
"""At what is mapped: that takes longer."""
MOST_SAMPLES = 300
OPTIONS = ["--train-data", "text.txt", "--seed", "1", "--lora-out", "a.bin", "--checkpoint-in", "none",
           "--checkpoint-out", "", "--metrics", "metrics.jsonl", "--warmup", "1", "--head-tokens", "128"]
"""The last one so that sums are taken in the same order with and without a limit, and losses can be compared bit by
bit."""
PLANNED = re.compile(r"memory ([\d.]+) MB \(planned ([\d.]+) MB\), a step .*? \(planned ([^)]*)\)"
                     r"(?:, read ([\d.]+) GB a step \(planned ([\d.]+)\))?")
UNITS = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0}

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A run of `model`; limit: its budget in MB, None for none."""

    model: str
    batch: int
    ctx: int
    limit: int | None


QUICK = [Case("160m", 4, 64, limit) for limit in (None, 160, 180, 210, 250)]
FULL = [*(Case("1b", 4, 64, limit) for limit in (None, 350, 500, 800)), Case("1b", 1, 2048, 1536),
        *(Case("7b", 4, 64, limit) for limit in (None, 1536, 2560))]
EXPERTS = [Case("30b-a3b", 1, 32, limit) for limit in (None, 4096)]
EXPERTS += [Case("30b-a3b-4", 1, 32, limit) for limit in (None, 700)]


def evict(path: Path) -> None:
    """Takes a file out of the system's cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def disk_rate(path: Path, most: int = 512 << 20) -> float:
    """Bytes a second at which a file is read that the system's cache does not have."""
    evict(path)
    began, n_read = time.perf_counter(), 0
    with open(path, "rb", buffering=0) as file:
        while n_read < most and (piece := file.read(4 << 20)):
            n_read += len(piece)
    return n_read / (time.perf_counter() - began)


def run(case: Case, model: Path, steps: int, with_cgroup: bool) -> Row:
    """Trains, and watches the process meanwhile. The row of the result file, with `through_two_steps`."""
    rate = disk_rate(model)
    evict(model)
    limit = case.limit and case.limit * MB
    with tempfile.TemporaryDirectory() as folder, cgroup_of(limit if with_cgroup else None) as cgroup:
        Path(folder, "text.txt").write_text(TEXT)
        command = [sys.executable, "-m", "lorafast", "finetune", "--model-base", str(model.resolve()), *OPTIONS,
                   "--batch", str(case.batch), "--micro-batch", str(case.batch), "--ctx", str(case.ctx),
                   "--adam-iter", str(steps)]
        if limit:
            command += ["--mem-limit", f"{case.limit}M"]
        with open(Path(folder, "log"), "w+") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT,
                                       preexec_fn=cgroup and cgroup.enter, env={**os.environ, "PYTHONPATH": str(ROOT)})
            try:
                samples = watch(process, model.resolve(), cgroup)
            finally:
                process.kill()
                process.wait()
            log.seek(0)
            text = log.read()
        if process.returncode:
            raise SystemExit(f"{case}: status {process.returncode}\n{text[-300:]}")
        events = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
        done = [event for event in events if event["event"] == "step"]
        peak, planned, planned_step, read, planned_read = PLANNED.search(text).groups()
        return {
            **asdict(case), "cgroup": bool(cgroup), "steps": steps,
            "losses": [event["loss"].hex() for event in done],
            "adapter": hashlib.md5(Path(folder, "a.bin").read_bytes()).hexdigest(),
            "seconds": median(event["seconds"] for event in done[1:] or done),
            "planned_seconds": seconds_of(planned_step),
            "peak_rss": max(float(peak) * MB, *(each["peak_rss"] for each in samples)),
            "planned_bytes": float(planned) * MB,
            "peak_anonymous": max(each["anonymous"] for each in samples), "peak_cgroup": cgroup.peak if cgroup else 0,
            "swap": max(each["swap"] for each in samples), "read_gb": float(read or 0),
            "planned_read_gb": float(planned_read or 0), "disk_gb_per_s": rate / 1e9,
            "through_two_steps": through_two_steps(samples, events),
        }


def watch(process: subprocess.Popen, model: Path, cgroup: Cgroup | None) -> list[dict[str, float]]:
    """What a process holds until it ends, every few milliseconds, with the time."""
    samples, libraries = [], 0
    while process.poll() is None:
        try:
            if len(samples) % SAMPLES_BETWEEN_LOOKS == 0:
                libraries = resident_libraries(process.pid, model)
            samples.append({"time": time.time(), "cgroup": cgroup.usage if cgroup else 0, "libraries": libraries,
                            **resident(process.pid)})
        except (OSError, TypeError):                # it has just ended
            pass
        time.sleep(SECONDS_BETWEEN_SAMPLES)
    return samples


def seconds_of(duration: str) -> float:
    """`340 ms`, `3.1 s` or `1 h 02 min` in seconds."""
    words = duration.split()
    return sum(float(number) * UNITS[unit] for number, unit in zip(words[::2], words[1::2]))


def through_two_steps(samples: list[dict[str, float]], events: list[Row]) -> dict[str, Any]:
    """Of the last two steps: seconds, MB of each kind at these, and where the steps end."""
    ends = [event["time"] for event in events if event["event"] in ("started", "step")]
    began, end = ends[-3 if len(ends) > 3 else 0], ends[-1]
    window = [each for each in samples if began <= each["time"] <= end]
    window = window[::-(-len(window) // MOST_SAMPLES) or 1]
    return {"seconds": [each["time"] - began for each in window],
            "ends": [each - began for each in ends if each > began],
            "anonymous": [each["anonymous"] / MB for each in window],
            "libraries": [each["libraries"] / MB for each in window],
            "weights": [max(0, each["mapped"] - each["libraries"]) / MB for each in window]}


def show(row: Row, unlimited: Row | None) -> list[str]:
    """Prints a row; returns what is wrong with it."""
    how = f"{row['limit']} MB{' (cgroup)' if row['cgroup'] else ''}" if row["limit"] else "no limit"
    text = (f"{row['model']:>5} {row['batch']} x {row['ctx']:<5}{how:>18}: peak {row['peak_rss'] / MB:7.1f} MB "
            f"(planned {row['planned_bytes'] / MB:.1f}, anonymous {row['peak_anonymous'] / MB:.1f}"
            + (f", cgroup {row['peak_cgroup'] / MB:.1f}" if row["cgroup"] else "")
            + f"), {row['seconds']:.2f} s a step (planned {row['planned_seconds']:.2f}), "
            f"{row['read_gb']:.2f} GB read a step (planned {row['planned_read_gb']:.2f})")
    wrong = []
    if unlimited and row["limit"]:
        same = all(row[result] == unlimited[result] for result in ("losses", "adapter"))
        text += (f"; {row['seconds'] / unlimited['seconds']:.2f} times the time, losses "
                 f"and adapter {'bit-equal' if same else 'DIFFER'}")
        wrong += [] if same else ["losses or adapters differ"]
    print(text, flush=True)
    if row["limit"] and max(row["peak_rss"], row["peak_cgroup"]) > row["limit"] * MB:
        wrong.append("the limit was not kept")
    if row["swap"]:
        wrong.append("it swapped")
    return [f"{row['model']} {row['batch']} x {row['ctx']}, {how}: {each}" for each in wrong]


def case_of(text: str) -> Case:
    """MODEL,BATCH,CTX,MB; 0 MB for no limit."""
    model, *numbers = text.split(",")
    batch, ctx, limit = map(int, numbers)
    return Case(model, batch, ctx, limit or None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default="", metavar="NAME,...", help="these models only")
    parser.add_argument("--case", type=case_of, action="append", metavar="MODEL,BATCH,CTX,MB", help="these runs only")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE",
                        help="a file to use for that model")
    parser.add_argument("--models-folder", type=Path, default=MODELS, metavar="FOLDER")
    parser.add_argument("--steps", type=int, default=4, metavar="N")
    parser.add_argument("--no-cgroup", action="store_true", help="--mem-limit alone")
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json", metavar="FILE")
    args = parser.parse_args()
    files = {name: Path(path) for name, path in (item.split("=", 1) for item in args.model)}
    rows: list[Row] = []
    wrong: list[str] = []
    unlimited: dict[tuple, Row] = {}
    for case in args.case or QUICK + (FULL if args.full or args.only else []) + (EXPERTS if args.only else []):
        if args.only and case.model not in args.only.split(","):
            continue
        model = files.get(case.model) or make_model(case.model, folder=args.models_folder)
        row = run(case, model, args.steps, with_cgroup=not args.no_cgroup)
        key = case.model, case.batch, case.ctx
        wrong += show(row, unlimited.get(key))
        if not case.limit:
            unlimited[key] = row
        rows.append(row)
    for row in rows:
        if row["limit"] != min((other["limit"] for other in rows if other["model"] == row["model"] and other["limit"]),
                               default=0):
            del row["through_two_steps"]
    write_results(args.out, "memory", describe(physical_cores()), {}, rows)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
