"""Writes preferences that can be checked: to simple questions, a short answer over a long one.

    python examples/make_preferences.py short      # short/train.jsonl, valid.jsonl, test.jsonl, ...

    prompt    What is the capital of Norway?
    chosen    Oslo.
    rejected  The capital of Norway is Oslo. It is one of the things that many people learn about Norway at school ...

Whoever has learnt the preference answers in at most FEW words, whatever is asked. Questions of valid and test do not
occur in train.
"""
from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

FEW = 4
PATTERN = rf"^\W*\S+( \S+){{0,{FEW - 1}}}$"
"""What a short answer looks like: at most FEW words, on one line."""

FEW_TEXTS = 12
"""Records of the student: so few that a teacher has something to add."""

SPLITS = {"train": slice(0, 16), "valid": slice(16, 24), "test": slice(24, 34)}
"""Of each kind of question: those to train on, those that settings were chosen by, those that results are told of."""

CAPITALS = """Norway:Oslo France:Paris Germany:Berlin Spain:Madrid Italy:Rome Austria:Vienna Ireland:Dublin
    Poland:Warsaw Finland:Helsinki Sweden:Stockholm Belgium:Brussels Japan:Tokyo China:Beijing Egypt:Cairo Kenya:Nairobi
    Peru:Lima Colombia:Bogota Cuba:Havana Portugal:Lisbon Greece:Athens Hungary:Budapest Tunisia:Tunis Chile:Santiago
    Canada:Ottawa Denmark:Copenhagen Iceland:Reykjavik Russia:Moscow Turkey:Ankara Thailand:Bangkok Vietnam:Hanoi
    Ukraine:Kyiv Romania:Bucharest Bulgaria:Sofia Serbia:Belgrade Croatia:Zagreb Ecuador:Quito Uruguay:Montevideo
    Iran:Tehran Iraq:Baghdad Lebanon:Beirut"""
OPPOSITES = """hot:Cold big:Small fast:Slow light:Dark old:Young high:Low wet:Dry early:Late full:Empty hard:Soft
    rich:Poor strong:Weak thick:Thin clean:Dirty open:Closed happy:Sad heavy:Light long:Short near:Far right:Wrong
    safe:Dangerous loud:Quiet sharp:Blunt sweet:Sour tall:Short true:False wide:Narrow wild:Tame brave:Cowardly
    cheap:Expensive good:Bad first:Last inside:Outside love:Hate day:Night win:Lose push:Pull buy:Sell black:White
    alive:Dead"""

LONG = (
    "{whole} It is one of the things that many people learn about {topic} at school.",
    "That is a good question about {topic}! {whole} I hope that this helps you.",
    "{whole} To explain this, we would first have to look at {topic}.",
)


def questions(split: str) -> list[tuple[str, str, str, str]]:
    """(question, short answer, sentence, topic) of one of SPLITS."""
    rng = random.Random("questions")
    sums = [(rng.randrange(2, 50), rng.randrange(2, 50)) for _ in range(40)]
    kinds = [
        [(f"What is the capital of {c}?", f"{a}.", f"The capital of {c} is {a}.", c) for c, a in pairs(CAPITALS)],
        [(f"What is the opposite of {w}?", f"{a}.", f"The opposite of {w} is {a.lower()}.", f"the word {w}")
         for w, a in pairs(OPPOSITES)],
        [(f"How much is {n} plus {m}?", f"{n + m}.", f"{n} plus {m} is {n + m}.", "numbers") for n, m in sums],
    ]
    for kind in kinds:
        rng.shuffle(kind)
    return [question for kind in kinds for question in kind[SPLITS[split]]]


def pairs(words: str) -> list[tuple[str, str]]:
    """What stands on both sides of the colons."""
    return [(before, after) for before, _, after in (pair.partition(":") for pair in words.split())]


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
    """Preferences of each split, and the better answers alone, as texts: all and a few of those to train on."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        records = preferences(split)
        write_lines(folder / f"{split}.jsonl", records)
        texts = [{"prompt": record["prompt"], "completion": record["chosen"]} for record in records]
        write_lines(folder / f"{split}-texts.jsonl", texts)
        if split == "train":
            write_lines(folder / "few-texts.jsonl", texts[:FEW_TEXTS])


def write_lines(path: Path, records: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("short"))
    write(parser.parse_args().folder)
