"""Training in less memory than the model: under a limit, is it kept, what does it cost, and are the losses the same?

    python bench/bench_memory.py [--full] [--model NAME=FILE ...] [--steps N] [--no-cgroup] [--out FILE]

Runs `lorafast finetune` on each model without a limit, then under budgets, with the model's pages taken out of the system's
cache first (pages that somebody else has read are not charged to a cgroup). A budget holds in two ways: by --mem-limit alone,
and by --mem-limit inside a memory cgroup of that size without swap, where this process may make one (root, version 1 or 2).

    160m    batch 4, ctx 64: budgets from the least on up
    1b      the same at 350 MB; batch 1, ctx 2048 at 1.5 GB (--full)
    7b      batch 4, ctx 64 at 1.5 GB (--full; needs 8 GB of disk, and of memory for the run without a limit)

Writes the rows, and a page of plots beside them if matplotlib is installed: memory through the last run of each model, and the
time of a step against the budget.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from machine import describe
from models import make_model
from results import RESULTS, write_results

from lorafast.threads import physical_cores

ROOT = Path(__file__).parent.parent
TEXT = "the love of my sweet love with all thy love is not for " * 400
MB = 2**20
OPTIONS = ["--train-data", "text.txt", "--seed", "1", "--lora-out", "a.bin", "--checkpoint-in", "none", "--checkpoint-out", "",
           "--metrics", "metrics.jsonl", "--warmup", "1", "--head-tokens", "128"]
"""The last one so that sums are taken in the same order with and without a limit, and losses can be compared bit by bit."""
PLANNED = re.compile(r"memory ([\d.]+) MB \(planned ([\d.]+) MB\), a step .*? \(planned ([^)]*)\)(?:, read ([\d.]+) GB)?")


@dataclass(frozen=True)
class Case:
    """A run of `model`; limit: its budget in MB, None for none."""

    model: str
    batch: int
    ctx: int
    limit: int | None


QUICK = [Case("160m", 4, 64, limit) for limit in (None, 170, 190, 220, 260, 300)]
FULL = [*(Case("1b", 4, 64, limit) for limit in (None, 350, 500, 800)), Case("1b", 1, 2048, 1536),
        *(Case("7b", 4, 64, limit) for limit in (None, 1536))]


class Cgroup:
    """A memory cgroup below this process's own. Raises OSError where none can be made."""

    def __init__(self, limit: int) -> None:
        """limit: bytes."""
        memberships = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        paths = {controllers: path.lstrip("/") for _, controllers, path in memberships}
        top = Path("/sys/fs/cgroup")
        v1 = next((path for controllers, path in paths.items() if "memory" in controllers.split(",")), None)
        self.files = (("memory.limit_in_bytes", "memory.max_usage_in_bytes", "memory.usage_in_bytes") if v1 is not None
                      else ("memory.max", "memory.peak", "memory.current"))
        self.folder = (top / "memory" / v1 if v1 is not None else top / paths.get("", "")) / f"lorafast-bench-{os.getpid()}"
        self.folder.mkdir()
        try:
            self._write(self.files[0], limit)
            if v1 is None:
                self._write("memory.swap.max", 0)
        except OSError:
            self.folder.rmdir()
            raise

    def _write(self, name: str, value: int) -> None:
        (self.folder / name).write_text(str(value))

    def enter(self) -> None:
        """Puts the calling process in; for a child before it becomes another program."""
        self._write("cgroup.procs", os.getpid())

    @property
    def usage(self) -> int:
        return int((self.folder / self.files[2]).read_text())

    @property
    def peak(self) -> int:
        try:
            return int((self.folder / self.files[1]).read_text())
        except OSError:                     # memory.peak is of Linux 5.19
            return 0

    def remove(self) -> None:
        self.folder.rmdir()


@contextmanager
def cgroup_of(limit: int | None) -> Iterator[Cgroup | None]:
    """A cgroup of that many bytes; None where there is no limit or no cgroup can be made."""
    cgroup = None
    if limit:
        try:
            cgroup = Cgroup(limit)
        except OSError as error:
            print(f"no memory cgroup ({error.strerror}): measured by --mem-limit alone", file=sys.stderr)
    try:
        yield cgroup
    finally:
        if cgroup:
            cgroup.remove()


def evict(path: Path) -> None:
    """Takes a file out of the system's cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sample(pid: int, cgroup: Cgroup | None) -> dict[str, int]:
    """Bytes of a process: anonymous, mapped files, the peak of their sum; and what its cgroup counts."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = {key: re.search(rf"{key}:\s*(\d+) kB", status) for key in ("RssAnon", "RssFile", "VmHWM")}
    values = {key: int(match[1]) * 1024 for key, match in found.items() if match}
    return {**values, "cgroup": cgroup.usage if cgroup else 0}


def run(case: Case, model: Path, steps: int, with_cgroup: bool) -> dict[str, Any]:
    """Trains, and watches the process meanwhile. The row of the result file, with `samples` of memory over time."""
    evict(model)
    limit = case.limit and case.limit * MB
    with tempfile.TemporaryDirectory() as folder, cgroup_of(limit if with_cgroup else None) as cgroup:
        Path(folder, "text.txt").write_text(TEXT)
        command = [sys.executable, "-m", "lorafast", "finetune", "--model-base", str(model.resolve()), *OPTIONS,
                   "--batch", str(case.batch), "--micro-batch", str(case.batch), "--ctx", str(case.ctx), "--adam-iter", str(steps)]
        if limit:
            command += ["--mem-limit", f"{case.limit}M"]
        began, samples = time.perf_counter(), []
        with open(Path(folder, "log"), "w+") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT,
                                       preexec_fn=cgroup and cgroup.enter, env={**os.environ, "PYTHONPATH": str(ROOT)})
            while process.poll() is None:
                try:
                    samples.append({"seconds": time.perf_counter() - began, **sample(process.pid, cgroup)})
                except (OSError, KeyError):
                    pass
                time.sleep(0.02)
            log.seek(0)
            text = log.read()
        if process.returncode:
            raise SystemExit(f"{case}: status {process.returncode}\n{text[-300:]}")
        events = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
        done = [event for event in events if event["event"] == "step"]
        peak, planned, planned_step, read = PLANNED.search(text).groups()
        return {
            **asdict(case), "cgroup": bool(cgroup), "steps": steps, "losses": [event["loss"].hex() for event in done],
            "seconds": median(event["seconds"] for event in done[1:] or done), "planned_step": planned_step,
            "peak_rss": max(float(peak) * MB, *(each.get("VmHWM", 0) for each in samples)), "planned_bytes": float(planned) * MB,
            "peak_anonymous": max(each.get("RssAnon", 0) for each in samples), "peak_cgroup": cgroup.peak if cgroup else 0,
            "read_gb": float(read or 0), "samples": samples,
        }


def show(row: dict[str, Any], unlimited: dict[str, Any] | None) -> None:
    how = f"{row['limit']} MB{' (cgroup)' if row['cgroup'] else ''}" if row["limit"] else "no limit"
    text = (f"{row['model']:>5} {row['batch']} x {row['ctx']:<5}{how:>18}: peak {row['peak_rss'] / MB:7.1f} MB "
            f"(planned {row['planned_bytes'] / MB:.1f}, anonymous {row['peak_anonymous'] / MB:.1f}"
            + (f", cgroup {row['peak_cgroup'] / MB:.1f}" if row["cgroup"] else "")
            + f"), {row['seconds']:.2f} s a step (planned {row['planned_step']}), {row['read_gb']:.2f} GB read a step")
    if unlimited and row["limit"]:
        same = row["losses"] == unlimited["losses"]
        text += f"; {row['seconds'] / unlimited['seconds']:.2f} times the time, losses {'bit-equal' if same else 'DIFFER'}"
    print(text, flush=True)
    if row["limit"] and max(row["peak_rss"], row["peak_cgroup"]) > row["limit"] * MB:
        raise SystemExit("the limit was not kept")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Memory over time, stacked by kind, of the tightest run of each model; time of a step against the budget."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "lorafast", "font.size": 8, "figure.constrained_layout.use": True})
    from matplotlib import pyplot

    limited = [row for row in rows if row["limit"]]
    tightest = [min((row for row in limited if row["model"] == model), key=lambda row: row["limit"])
                for model in dict.fromkeys(row["model"] for row in limited)]
    figure, grid = pyplot.subplots(1, len(tightest) + 1, figsize=(4.5 * (len(tightest) + 1), 3.2), squeeze=False)
    for axes, row in zip(grid[0], tightest):
        seconds = [each["seconds"] for each in row["samples"]]
        kinds = [[each.get(key, 0) / MB for each in row["samples"]] for key in ("RssAnon", "RssFile")]
        axes.stackplot(seconds, kinds, labels=["adapter, activations, Python", "weights and libraries (mapped)"],
                       colors=["#2166ac", "#92c5de"])
        axes.axhline(row["limit"], color="black", linewidth=0.8, label=f"the limit, {row['limit']} MB")
        axes.set(title=f"{row['model']}, batch {row['batch']}, ctx {row['ctx']}: {row['steps']} steps", xlabel="seconds",
                 ylabel="MB resident")
        axes.set_ylim(0, 1.35 * row["limit"])
        axes.legend(fontsize=6, loc="upper left")
    axes = grid[0][-1]
    for key in dict.fromkeys((row["model"], row["batch"], row["ctx"]) for row in limited):
        case = [row for row in rows if (row["model"], row["batch"], row["ctx"]) == key]
        base = next((row["seconds"] for row in case if not row["limit"]), None)
        full = next((row["peak_rss"] for row in case if not row["limit"]), None)
        if base:
            points = sorted((row["limit"] * MB / full, row["seconds"] / base) for row in case if row["limit"])
            axes.plot(*zip(*points, (1, 1)), marker="o", label=f"{key[0]}, {key[1]} × {key[2]}")
    axes.set(title="The price of less memory", xlabel="budget, as a share of the memory of a run without one",
             ylabel="time of a step, as a multiple")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=6)
    figure.savefig(path, metadata={"Date": None})
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--only", default="", metavar="NAME,...", help="these models only")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=FILE", help="a file to use for that model")
    parser.add_argument("--steps", type=int, default=3, metavar="N")
    parser.add_argument("--no-cgroup", action="store_true", help="--mem-limit alone")
    parser.add_argument("--out", type=Path, default=RESULTS / "memory.json", metavar="FILE")
    args = parser.parse_args()
    files = {name: Path(path) for name, path in (item.split("=", 1) for item in args.model)}
    rows: list[dict[str, Any]] = []
    unlimited: dict[tuple, dict[str, Any]] = {}
    for case in QUICK + (FULL if args.full or args.only else []):
        if args.only and case.model not in args.only.split(","):
            continue
        model = files.get(case.model) or make_model(case.model)
        row = run(case, model, args.steps, with_cgroup=not args.no_cgroup)
        key = case.model, case.batch, case.ctx
        show(row, unlimited.get(key))
        if not case.limit:
            unlimited[key] = row
        rows.append(row)
    try:
        plot(rows, args.out.with_suffix(".svg"))
    except ImportError:
        print("no plot: matplotlib is not installed", file=sys.stderr)
    for row in rows:
        del row["samples"]
    write_results(args.out, "memory", describe(physical_cores()), {}, rows)


if __name__ == "__main__":
    main()
