"""What the beginning of A makes of a short run: at random, by EVA, and by EVA with its ranks redistributed.

    python bench/bench_eva.py MODEL.gguf [--steps 12] [--threads 1] [--only eva]

The data are the short answers of examples/make_preferences.py. For each beginning the rate with the lowest loss on 24
answers, which are neither trained on nor reported, is chosen with one seed; then the loss on 30 others is told for
three other seeds.
"""
from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

from machine import describe
from results import RESULTS, read_results, write_results

from lorafast import cli
from lorafast.reporting.metrics import read_metrics

sys.path.append(str(Path(__file__).parents[1] / "examples"))
import make_preferences

BEGINNINGS: dict[str, list[str]] = {
    "normal": [], "eva": ["--init-method", "eva"], "eva, rho 2": ["--init-method", "eva", "--eva-rho", "2"]}
RATES = ("5e-4", "1e-3", "2e-3", "4e-3")
SEEDS = (1, 2, 3)


def loss(args: argparse.Namespace, beginning: str, rate: str, seed: int, held_out: str) -> float:
    """On these answers, a token, at the end of a run."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        metrics = Path(folder, "metrics.jsonl")
        command = ["finetune", "--preset", "modern", "--model-base", args.model, "--train-data", "train-texts.jsonl",
                   "--valid-data", held_out, "--eval-every", 0, "--seed", seed, "--ctx", 128, "--batch", 4, "--lora-r",
                   4, "--adam-alpha", rate, "--adam-iter", args.steps, "--threads", args.threads, "--checkpoint-in", "",
                   "--checkpoint-out", "", "--lora-out", "", "--metrics", metrics, *BEGINNINGS[beginning]]
        if cli.main([str(word) for word in command]):
            sys.exit(f"{beginning}: the run failed")
        return [event["loss"] for event in read_metrics(metrics) if event["event"] == "evaluation"][-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=os.path.abspath)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=BEGINNINGS, help="one of the beginnings; the other rows are kept")
    parser.add_argument("--out", type=Path, default=RESULTS / "eva.json")
    args = parser.parse_args()
    args.out = args.out.resolve()
    kept = read_results(args.out)["rows"] if args.only and args.out.exists() else []
    rows = [row for row in kept if (row["beginning"], row["steps"]) != (args.only, args.steps)]
    with tempfile.TemporaryDirectory() as folder:
        make_preferences.write(Path(folder))
        os.chdir(folder)
        for beginning in [args.only] if args.only else BEGINNINGS:
            by_rate = {rate: loss(args, beginning, rate, 0, "valid-texts.jsonl") for rate in RATES}
            rate = min(by_rate, key=by_rate.__getitem__)
            losses = [loss(args, beginning, rate, seed, "test-texts.jsonl") for seed in SEEDS]
            rows.append({"beginning": beginning, "steps": args.steps, "rate": rate, "losses": losses,
                         "losses_by_rate": by_rate})
            print(f"{beginning:<12} rate {rate:<8} {' '.join(f'{value:.3f}' for value in losses)}   by rate "
                  f"{' '.join(f'{value:.3f}' for value in by_rate.values())}", flush=True)
        os.chdir("/")
    write_results(args.out, "eva", describe(args.threads), {}, rows)


if __name__ == "__main__":
    main()
