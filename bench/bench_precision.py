"""What training makes of each --precision: validation loss by iteration, and what the adapter gains.

    python bench/bench_precision.py MODEL.gguf ... [--data examples/sonnets.txt] [--seeds 1,2,3] [--iterations 150]
                                    [--precisions float32,int16,int8] [--out FILE]

Each model is trained with each seed in each precision, with `--preset modern` on the first nine tenths of a text. The
gain is the base model's loss on the last tenth minus the adapted one's, both computed in float32, whatever training
computed in. A precision passes where its gain is within 1 % of float32's on average over the seeds. Matrices for which
a precision gains no speed on this processor are computed in int16; the log of a run says how many.
"""
from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from machine import describe
from results import RESULTS, write_results

import lorafast
from lorafast.commands.perplexity import perplexity
from lorafast.reporting.events import Evaluation, Event
from lorafast.system.threads import physical_cores

PASSES = 0.01
"""Share of float32's gain that a precision may lose."""

CTX = 64


def train(model: Path, data: Path, precision: str, seed: int, iterations: int, folder: Path) -> list[list[float]]:
    """Trains an adapter into `folder`; (iteration, validation loss) of each evaluation, in that precision."""
    losses: list[list[float]] = []

    def observe(event: Event) -> None:
        if isinstance(event, Evaluation):
            losses.append([event.iteration, event.loss])

    lorafast.finetune({
        "model_base": str(model), "train_data": (str(data),), "preset": "modern", "precision": precision, "seed": seed,
        "ctx": CTX, "stride": CTX, "batch": 4, "adam_iter": iterations, "valid_split": 0.1,
        "eval_every": max(1, iterations // 3), "checkpoint_in": "", "checkpoint_out": "", "keep_best": False,
        "lora_out": (str(folder / "adapter.gguf"),), "save_every": 0}, callback=observe)
    return losses


def loss_in_float32(model: Path, text: bytes, adapters: list[str]) -> float:
    """Mean loss in nats on a text."""
    opened = lorafast.Model.open(model, adapters, n_ctx=CTX, precision="float32")
    tokens = np.ascontiguousarray(opened.tokenizer.encode(text, add_special=True), np.int32)
    return float(perplexity(opened, tokens, CTX, stride=CTX // 2).losses.mean())


def measure(model: Path, data: Path, precision: str, seed: int, iterations: int) -> dict[str, Any]:
    """A row: one model, precision and seed."""
    text = data.read_bytes()
    held_out = text[len(text) * 9 // 10:]
    with tempfile.TemporaryDirectory() as name:
        losses = train(model, data, precision, seed, iterations, Path(name))
        [adapter] = Path(name).glob("adapter*.gguf")
        gain = loss_in_float32(model, held_out, []) - loss_in_float32(model, held_out, [str(adapter)])
    course = ", ".join(f"{loss:.4f}" for _, loss in losses)
    print(f"{model.name} {precision} seed {seed}: losses {course}; gain in float32 {gain:.4f}", flush=True)
    return {"model": model.name, "precision": precision, "seed": seed, "losses": losses, "gain": gain}


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each model and precision: its mean gain beside float32's, and whether it passes."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        gains = {precision: mean(row["gain"] for row in rows if (row["model"], row["precision"]) == (model, precision))
                 for precision in dict.fromkeys(row["precision"] for row in rows)}
        exact = gains.get("float32")
        for precision, gain in gains.items():
            if precision != "float32" and exact:
                lost = 1 - gain / exact
                lines.append(f"{model}: {precision} gains {gain:.4f}, float32 {exact:.4f}: {100 * lost:+.2f} % lost, "
                             f"{'passes' if lost <= PASSES else 'FAILS'}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent / "examples/sonnets.txt")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--precisions", default="float32,int16,int8")
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--out", type=Path, default=RESULTS / "precision.json")
    args = parser.parse_args()
    rows = [measure(model, args.data, precision, int(seed), args.iterations)
            for model in args.models for seed in args.seeds.split(",") for precision in args.precisions.split(",")]
    for line in verdicts(rows):
        print(line)
    write_results(args.out, "precision", describe(physical_cores()), {}, rows)


if __name__ == "__main__":
    main()
