"""Ranks against one process, and a plan against a slow network: python bench/bench_ranks.py [--model 160m,4,128]

Needs mpirun and two idle cores. Compared are one rank with one thread, two ranks with one thread each (the same --batch
a rank), two processes that know nothing of each other (what the machine gives to two busy cores), and one process with
two threads and two passes. They take turns for some rounds, each in runs of its own; speeds, of a run's fastest step,
and efficiencies are medians over the rounds. With --network two ranks have a slow network between them (cable.py, as
root), and their step is compared with what `plan` makes of one without.
"""
from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from cable import two_hosts
from machine import describe
from models import make_model
from results import RESULTS, read_results, write_results

from lorafast.distributed.launch import find_launcher
from lorafast.planning.sharing import IN_MEMORY, link_of
from lorafast.reporting.metrics import read_metrics

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Case:
    """What is trained, in so many steps of `batch` samples of `ctx` tokens in a pass."""

    model: str
    batch: int
    ctx: int
    steps: int


@dataclass(frozen=True)
class Measured:
    """Of the fastest step: seconds, tokens a second. communicating: share of the time; sent: MB a step, by each."""

    seconds: float
    speed: float
    communicating: float
    sent: float


def measured(case: Case, ranks: int, threads: int, passes: int, launcher: Sequence[str] = ()) -> Measured:
    """A run of its own."""
    command = [sys.executable, "-m", "lorafast"]
    if ranks > 1:
        command = [*(launcher or [find_launcher()]), "-n", str(ranks), *command]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text("the love of thy sweet all and not to thou that in my love with is " * 400)
        said = subprocess.run(
            [*command, "finetune", "--model-base", str(make_model(case.model)), "--train-data", "text.txt", "--ctx",
             str(case.ctx), "--batch", str(case.batch), "--threads", str(threads), "--grad-acc", str(passes),
             "--adam-iter", str(case.steps + 1), "--checkpoint-in", "", "--checkpoint-out", "", "--lora-out", "a.gguf",
             "--lora-r", "16", "--metrics", "m.jsonl", "-s", "1"], cwd=folder, check=True, capture_output=True,
            text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}).stdout
        rows = [event for event in read_metrics(folder / "m.jsonl") if event["event"] == "step"][1:]
    share, sent = 0.0, 0.0
    if ranks > 1:
        (found,) = re.findall(r"([\d.]+)% of the time .* exchanges.*; ([\d.]+) MB sent", said)
        share, sent = map(float, found)
    return Measured(min(event["seconds"] for event in rows),
                    max(event["tokens"] / event["seconds"] for event in rows), share / 100, sent)


def apart(case: Case) -> float:
    """Tokens a second of two processes together that know nothing of each other."""
    with ThreadPoolExecutor() as pool:
        return sum(run.speed for run in pool.map(lambda _: measured(case, 1, 1, 1), range(2)))


def of_ranks(case: Case, rounds: int) -> dict[str, Any]:
    """A row: ranks against threads."""
    turns = [(measured(case, 1, 1, 1), measured(case, 2, 1, 2), measured(case, 1, 2, 2), apart(case))
             for _ in range(rounds)]
    alone, ranks, threads, both = zip(*turns)
    by_round = [two.speed / (2 * one.speed) for one, two in zip(alone, ranks)]
    return {"model": case.model, "batch": case.batch, "ctx": case.ctx, "rounds": rounds,
            "tokens_per_second_1_rank_1_thread": median(run.speed for run in alone),
            "tokens_per_second_2_ranks_1_thread": median(run.speed for run in ranks),
            "tokens_per_second_1_rank_2_threads": median(run.speed for run in threads),
            "tokens_per_second_2_processes_apart": median(both),
            "efficiency": median(by_round), "efficiency_by_round": by_round,
            "efficiency_of_processes_apart": median(speed / (2 * one.speed) for one, speed in zip(alone, both)),
            "seconds": median(run.seconds for run in ranks),
            "communicating": median(run.communicating for run in ranks), "mb_sent": ranks[0].sent}


def over(case: Case, network: str) -> dict[str, Any]:
    """A row: two ranks with that network between them, and as it was planned from what they take without."""
    near = measured(case, 2, 1, 2)
    with two_hosts(network) as launcher:
        far = measured(case, 2, 1, 2, launcher)
    nbytes = int(1e6 * near.sent)
    exchange = link_of(network).seconds(nbytes, 2)
    planned = near.seconds - IN_MEMORY.seconds(nbytes, 2) + exchange
    return {"model": case.model, "batch": case.batch, "ctx": case.ctx, "network": network, "mb_sent": near.sent,
            "seconds_in_memory": near.seconds, "seconds": far.seconds, "planned_seconds": planned,
            "planned_exchange": exchange, "planned_to_measured": planned / far.seconds,
            "communicating": far.communicating}


def shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(shown, value))
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="name,batch,ctx (160m,4,128 and 1b,1,128)")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--network", help="such as 1G,1ms, between two ranks")
    parser.add_argument("--out", type=Path, default=RESULTS / "ranks.json")
    options = parser.parse_args()
    rows = []
    for text in options.model or ["160m,4,128", "1b,1,128"]:
        model, batch, ctx = text.split(",")
        case = Case(model, int(batch), int(ctx), options.steps)
        rows.append(over(case, options.network) if options.network else of_ranks(case, options.rounds))
        print("\n".join(f"{name:<36}{shown(value)}"
                        for name, value in rows[-1].items()) + "\n", flush=True)
    def case_of(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in ("model", "batch", "ctx", "network"))

    measured_now = {case_of(row) for row in rows}
    kept = [row for row in (read_results(options.out)["rows"] if options.out.exists() else [])
            if case_of(row) not in measured_now]
    write_results(options.out, "ranks", describe(2), {}, [*kept, *rows])


if __name__ == "__main__":
    main()
