"""What training makes of each --precision: validation loss by iteration, and what the adapter gains.

    python bench/bench_precision.py MODEL.gguf ... [--data examples/sonnets.txt --data orders/] [--seeds 1,2,3]
                                    [--iterations 150] [--precisions float32,int16,int8] [--out FILE]

Each model is trained with each seed in each precision, with `--preset modern`: on the first nine tenths of a text, and
on the training part of a folder of chats (examples/make_skill.py writes one). The gain is the base model's loss on the
rest of the text, or on the folder's validation part, minus the adapted one's, both computed in float32, whatever
training computed in. A precision passes where its gain is within 1 % of float32's on average over the seeds. Matrices
for which a precision gains no speed on this processor are computed in int16; a row says how many. The file is written
after each row, all runs of the first seed first: one that was cut short can be read.
"""
from __future__ import annotations

import argparse
import tempfile
from functools import cache
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from machine import describe
from results import RESULTS, write_results

import lorafast
from lorafast.data.chat_template import KEY as TEMPLATE_KEY
from lorafast.gguf.reader import open_model
from lorafast.reporting.events import Evaluation, Event
from lorafast.system.threads import physical_cores

PASSES = 0.01
"""Share of float32's gain that a precision may lose."""

CTX, EVALUATIONS = 64, 2

CHATML = ("{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def finetune(model: Path, data: Path, **options: Any) -> list[list[float]]:
    """A run of the preset; (iteration, validation loss) of each evaluation. A base model's chats are in ChatML."""
    losses: list[list[float]] = []

    def observe(event: Event) -> None:
        if isinstance(event, Evaluation):
            losses.append([event.iteration, event.loss])

    split: dict[str, Any] = {} if data.is_dir() else {"valid_split": 0.1, "stride": CTX}
    with tempfile.NamedTemporaryFile("w", suffix=".jinja") as template:
        if data.is_dir() and TEMPLATE_KEY not in open_model(model).metadata:
            template.write(CHATML)
            template.flush()
            split["chat_template"] = template.name
        lorafast.finetune({
            "model_base": str(model), "train_data": (str(data),), "preset": "modern", "ctx": CTX, "checkpoint_in": "",
            "checkpoint_out": "", "keep_best": False, "save_every": 0, **split, **options}, callback=observe)
    return losses


@cache
def loss_in_float32(model: Path, data: Path, adapter: str, **options: Any) -> float:
    """Mean validation loss in nats: that of a run which begins with the adapter, or a new one, and makes no step."""
    with tempfile.TemporaryDirectory() as name:
        [(_, loss)] = finetune(model, data, precision="float32", adam_iter=0, eval_every=1, init_lora=adapter,
                               lora_out=(str(Path(name, "same.gguf")),), **options)
    return loss


def measure(model: Path, data: Path, precision: str, seed: int, iterations: int, **options: Any) -> dict[str, Any]:
    """A row: one model, text or chats, precision and seed."""
    with tempfile.TemporaryDirectory() as name:
        adapter = str(Path(name, "adapter.gguf"))
        losses = finetune(model, data, precision=precision, seed=seed, adam_iter=iterations, lora_out=(adapter,),
                          eval_every=max(1, iterations // EVALUATIONS), **options)
        gain = loss_in_float32(model, data, "", **options) - loss_in_float32(model, data, adapter, **options)
    course = ", ".join(f"{loss:.4f}" for _, loss in losses)
    print(f"{model.stem} {data.stem} {precision} seed {seed}: losses {course}; gain in float32 {gain:.4f}", flush=True)
    return {"model": model.stem, "data": data.stem, "precision": precision, "seed": seed, "losses": losses,
            "gain": gain}


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each model, data and precision: the mean gain beside float32's with the same seeds, and whether it
    passes."""
    gains = {(row["model"], row["data"], row["precision"], row["seed"]): row["gain"] for row in rows}
    lines = []
    for model, data, precision in dict.fromkeys(key[:3] for key in gains):
        pairs = [(gain, gains[model, data, "float32", key[3]]) for key, gain in gains.items()
                 if key[:3] == (model, data, precision) and (model, data, "float32", key[3]) in gains]
        if precision != "float32" and pairs:
            gain, exact = mean(pair[0] for pair in pairs), mean(pair[1] for pair in pairs)
            lost = 1 - gain / exact
            lines.append(f"{model}, {data}: {precision} gains {gain:.4f}, float32 {exact:.4f}: {100 * lost:+.2f} % "
                         f"lost, {'passes' if lost <= PASSES else 'FAILS'}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--data", action="append", type=Path, help="a text, or a folder of chats; may be given again")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--precisions", default="float32,int16,int8")
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--adam-alpha", type=float, default=2e-4)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--out", type=Path, default=RESULTS / "precision.json")
    args = parser.parse_args()
    texts = args.data or [Path(__file__).parent.parent / "examples/sonnets.txt"]
    options = {"batch": args.batch, "adam_alpha": args.adam_alpha, "threads": args.threads}
    machine, rows = describe(args.threads), []
    for seed, model, data, precision in product(args.seeds.split(","), args.models, texts, args.precisions.split(",")):
        rows.append(measure(model, data, precision, int(seed), args.iterations, **options))
        write_results(args.out, "precision", machine | options, {}, rows)
    for line in verdicts(rows):
        print(line)


if __name__ == "__main__":
    main()
