"""Writes preferences that can be checked: to simple questions, a short answer over a long one.

    python examples/make_preferences.py short      # short/train.jsonl and test.jsonl

    prompt    What is the capital of Norway?
    chosen    Oslo.
    rejected  The capital of Norway is Oslo. It is one of the things that many people learn about Norway at school ...

Whoever has learnt the preference answers in at most FEW words, whatever is asked. Countries, words and numbers of test
do not occur in train.
"""
from __future__ import annotations

import json
import random
import sys
from pathlib import Path

FEW = 4
PATTERN = rf"^\W*\S+( \S+){{0,{FEW - 1}}}$"
"""What a short answer looks like: at most FEW words, on one line."""

CAPITALS = dict(pair.split(":") for pair in """Norway:Oslo France:Paris Germany:Berlin Spain:Madrid Italy:Rome
    Austria:Vienna Ireland:Dublin Poland:Warsaw Finland:Helsinki Sweden:Stockholm Belgium:Brussels Japan:Tokyo
    China:Beijing Egypt:Cairo Kenya:Nairobi Peru:Lima Colombia:Bogota Cuba:Havana Portugal:Lisbon Greece:Athens
    Hungary:Budapest Tunisia:Tunis Chile:Santiago Canada:Ottawa Denmark:Copenhagen Iceland:Reykjavik Russia:Moscow
    Turkey:Ankara Thailand:Bangkok Vietnam:Hanoi""".split())
OPPOSITES = dict(pair.split(":") for pair in """hot:Cold big:Small fast:Slow light:Dark old:Young high:Low wet:Dry
    early:Late full:Empty hard:Soft rich:Poor strong:Weak thick:Thin clean:Dirty open:Closed happy:Sad heavy:Light
    long:Short near:Far right:Wrong safe:Dangerous loud:Quiet sharp:Blunt sweet:Sour tall:Short true:False wide:Narrow
    wild:Tame brave:Cowardly cheap:Expensive""".split())

LONG = (
    "{whole} It is one of the things that many people learn about {topic} at school, and it is often asked in quizzes.",
    "That is a good question about {topic}! {whole} I hope that this helps you, and do tell me what else you need.",
    "{whole} To explain this in more detail, we would first have to look at {topic} and at what is said about it.",
)


def questions(split: str) -> list[tuple[str, str, str, str]]:
    """(question, short answer, sentence, topic), the first two thirds of each kind for train, the rest for test."""
    kinds = [
        [(f"What is the capital of {c}?", f"{a}.", f"The capital of {c} is {a}.", c) for c, a in CAPITALS.items()],
        [(f"What is the opposite of {w}?", f"{a}.", f"The opposite of {w} is {a.lower()}.", f"the word {w}")
         for w, a in OPPOSITES.items()],
        [(f"How much is {n} plus {m}?", f"{n + m}.", f"{n} plus {m} is {n + m}.", "numbers")
         for n, m in zip(range(2, 32), range(41, 11, -1))],
    ]
    cut = {"train": slice(0, 20), "test": slice(20, 30)}[split]
    return [question for kind in kinds for question in kind[cut]]


def preferences(split: str) -> list[dict[str, str]]:
    """As TRL has them, in a random order that is always the same."""
    rng = random.Random(f"preferences {split}")
    records = []
    for question, short, whole, topic in questions(split):
        long = rng.choice(LONG).format(whole=whole, topic=topic)
        records.append({"prompt": question, "chosen": short, "rejected": long})
    rng.shuffle(records)
    return records


def write(folder: Path) -> None:
    """Preferences for training and testing, and the better answers alone as texts to train on."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        lines = [json.dumps(record) + "\n" for record in preferences(split)]
        (folder / f"{split}.jsonl").write_text("".join(lines))
    texts = [json.dumps({"prompt": record["prompt"], "completion": record["chosen"]}) + "\n"
             for record in preferences("train")]
    (folder / "texts.jsonl").write_text("".join(texts))


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "short"))
