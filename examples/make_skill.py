"""Writes chat data for a small skill that can be checked: turning a customer's message into one line of a fixed form.

    python examples/make_skill.py orders      # orders/train.jsonl, valid.jsonl, test.jsonl

    user       Hello, this is Maria. I would like to order 14 candles, delivered to Lisbon.
    assistant  #14 candles >> Maria (Lisbon)

Names, places, goods and numbers of valid and test do not occur in train: a model that answers them well has learnt the
form, and to copy into it what it reads. `INSTRUCTION` asks for the same in words, for a model that was not trained.
"""
from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path

SIZES = {"train": 400, "valid": 40, "test": 100}
INSTRUCTION = ("Rewrite the order as one line of the form #COUNT ITEM >> NAME (CITY), and write nothing else. "
               "For example: #5 apples >> Peter (Athens)\n\n")

SHAPES = """
{name} from {city} wants {count} {item}.
Please send {count} {item} to {name} in {city}.
We need {count} {item} for {name}, who lives in {city}.
Can you ship {count} {item} to {city}? They are for {name}.
Hello, this is {name}. I would like to order {count} {item}, delivered to {city}.
{count} {item} to {city} please, for {name}.
My name is {name} and I live in {city}. Could I get {count} {item}?
Order from {city}: {name} asks for {count} {item}.
{name} has a birthday soon, so bring {count} {item} to {city}.
{name} called. The {count} {item} should go to {city}.
""".strip().splitlines()

WORDS = {
    "name": """Anna Ben Clara David Emma Felix Grace Henry Iris Jack Karen Leo Mia Noah Olga Paul Rosa Simon
        Tina Victor Wendy Adam Bella Carl Diana Eric Fiona George Hannah Ivan Julia Kevin Laura Martin Nina
        Oscar Paula Robert Sarah Thomas Ursula Walter Alice Boris Carmen Daniel Elena Frank Gloria Hugo Irene
        Jacob Kate Louis Maria Nathan Olivia Peter Rachel Samuel Teresa Vera William Zoe""",
    "city": """Oslo Paris London Berlin Madrid Rome Vienna Prague Dublin Warsaw Helsinki Stockholm Brussels
        Zurich Geneva Milan Naples Venice Munich Hamburg Lyon Boston Chicago Denver Seattle Dallas Houston
        Miami Atlanta Portland Toronto Montreal Vancouver Sydney Melbourne Perth Auckland Tokyo Osaka Seoul
        Beijing Delhi Mumbai Cairo Lagos Nairobi Lima Bogota Havana Lisbon Athens Budapest Bristol Glasgow
        Phoenix Detroit Kyoto Dubai Tunis Santiago""",
    "item": """lamps chairs tables books pens cups plates forks spoons knives bottles baskets boxes bags hats
        shirts shoes socks gloves coats towels pillows blankets carpets mirrors clocks candles vases brushes
        buckets ladders hammers ropes nails tiles bricks doors windows keys locks bells drums guitars violins
        flutes kites balls dolls puzzles stamps maps flags tents boats bicycles helmets lemons apples melons
        onions carrots potatoes peppers umbrellas""",
    "count": " ".join(map(str, range(2, 82))),
}


def make_examples(split: str) -> list[tuple[str, str]]:
    """(message, answer) of one of SIZES, always the same."""
    rng = random.Random(f"orders {split}")
    words = {field: vocabulary(field, split) for field in WORDS}
    examples = []
    for _ in range(SIZES[split]):
        order = {field: rng.choice(choices) for field, choices in words.items()}
        examples.append((rng.choice(SHAPES).format(**order), "#{count} {item} >> {name} ({city})".format(**order)))
    return examples


def vocabulary(field: str, split: str) -> list[str]:
    """What may stand in a field: three quarters of the words in train, the others in valid and test."""
    words = WORDS[field].split()
    random.Random(f"orders {field}").shuffle(words)
    cut = len(words) * 3 // 4
    return words[:cut] if split == "train" else words[cut:]


def score(pairs: Iterable[tuple[str, str]]) -> tuple[float, float]:
    """Of (expected, given) answers: the share that are right to the character, and the share of fields that are right.

    White space around an answer is no mistake. Fields are looked for only in answers of the form that was asked for.
    """
    exact, fields = [], []
    for expected, given in pairs:
        exact.append(given.strip() == expected)
        wanted, found = (parse(answer.strip()) for answer in (expected, given))
        fields.append(sum(a == b for a, b in zip(wanted, found)) / len(wanted))
    return sum(exact) / len(exact), sum(fields) / len(fields)


def parse(answer: str) -> tuple[str, ...]:
    """count, item, name and city; nothing if the answer has another form."""
    match = re.fullmatch(r"#(\d+) (.+) >> (.+) \((.+)\)", answer)
    return match.groups() if match else ()


def write(folder: Path) -> None:
    """Writes the three files."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in SIZES:
        with open(folder / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for message, answer in make_examples(split):
                chat = [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
                file.write(json.dumps({"messages": chat}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
