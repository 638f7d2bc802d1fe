"""Ranks against one process, and a plan against injected delays: python bench/bench_ranks.py [--models 160m 1b]

Needs mpirun. Each row is the median step of a run of its own: one rank with one thread, two ranks with one thread each
(the same --batch a rank), one process with two threads and two passes, and two ranks with 1 Gbit/s and 1 ms between
them. The last is compared with what `plan` says the exchange adds.
"""
from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from models import make_model

from lorafast.distributed.launch import find_launcher
from lorafast.planning.sharing import link_of
from lorafast.reporting.metrics import read_metrics

WORKER = Path(__file__).parent / "rank_worker.py"
LINK = "1G,1ms"


def median_step(model: Path, folder: Path, ranks: int, threads: int, passes: int, steps: int, ctx: int, batch: int,
                link: str = "") -> tuple[float, float, float]:
    """Seconds and tokens a second of the median step, and MB that each rank sent a step."""
    (folder / "text.txt").write_text("the love of thy sweet all and not to thou that in my love with is " * 400)
    command = [sys.executable, str(WORKER)]
    if ranks > 1:
        command = [find_launcher(), "-n", str(ranks), *command]
    said = subprocess.run(
        [*command, "finetune", "--model-base", str(model), "--train-data", "text.txt", "--ctx", str(ctx), "--batch",
         str(batch), "--threads", str(threads), "--grad-acc", str(passes), "--adam-iter", str(steps), "--checkpoint-in",
         "", "--checkpoint-out", "", "--lora-out", "a.gguf", "--lora-r", "16", "--metrics", "m.jsonl", "-s", "1"],
        cwd=folder, env={**os.environ, "BENCH_LINK": link, "PYTHONPATH": str(WORKER.parents[1])}, check=True,
        capture_output=True, text=True).stdout
    rows = [event for event in read_metrics(folder / "m.jsonl") if event["event"] == "step"][1:]
    sent = said.partition("waiting included; ")[2].partition(" MB")[0] or "0"
    return (statistics.median(event["seconds"] for event in rows),
            statistics.median(event["tokens"] / event["seconds"] for event in rows), float(sent))


def measured(name: str, steps: int, ctx: int, batch: int) -> dict[str, float | str]:
    """A row."""
    model = make_model(name)
    with tempfile.TemporaryDirectory() as folder:
        def run(ranks: int, threads: int, passes: int, link: str = "") -> tuple[float, float, float]:
            return median_step(model, Path(folder), ranks, threads, passes, steps, ctx, batch, link)

        _, alone, _ = run(1, 1, 1)
        seconds, together, sent = run(2, 1, 2)
        _, threads, _ = run(1, 2, 2)
        slowed, *_ = run(2, 1, 2, LINK)
    planned = link_of(LINK).seconds(int(sent * 1e6), 2)
    return {"model": name, "1 rank x 1 thread, tokens/s": alone, "2 ranks x 1 thread": together,
            "1 rank x 2 threads": threads, "efficiency": together / (2 * alone), "MB sent a step": sent,
            "a step": seconds, f"with {LINK}": slowed, "added": slowed - seconds, "added as planned": planned,
            "step as planned, of measured": (seconds + planned) / slowed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["160m", "1b"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--ctx", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    rows = [measured(name, options.steps, options.ctx, options.batch) for name in options.models]
    for row in rows:
        for name, value in row.items():
            print(f"{name:<32}{value if isinstance(value, str) else f'{value:.3f}'}")
        print()


if __name__ == "__main__":
    main()
