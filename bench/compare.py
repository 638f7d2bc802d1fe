"""Two result files of the same bench side by side: which rows became faster, which slower.

    python bench/compare.py BEFORE.json AFTER.json [--threshold PERCENT]

Rows match where everything that says what was measured is equal. Files from different machines, or from a busy one,
compare badly; what differs about the machines is shown first. Exit status 1 when something became slower.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from results import read_results

SUBJECT = ("comparison", "program", "op", "label", "model", "type", "precision", "batch", "ctx", "checkpointing", "T",
           "N", "K", "rows", "threads", "isa")
"""Keys that say what a row measured."""


def key(row: dict[str, Any]) -> tuple:
    return tuple((name, row[name]) for name in SUBJECT if name in row)


def describe(subject: tuple) -> str:
    return " ".join(f"{name}={value}" for name, value in subject if value not in ("", False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--threshold", type=float, default=5, metavar="PERCENT", help="of change that is noise")
    args = parser.parse_args()
    before, after = read_results(args.before), read_results(args.after)
    if before["bench"] != after["bench"]:
        sys.exit(f"{args.before} is of the bench '{before['bench']}', {args.after} of '{after['bench']}'")
    for name, value in before["machine"].items():
        if value != after["machine"].get(name):
            print(f"{name}: {value} -> {after['machine'].get(name)}")

    old, new = ({key(row): row["seconds"] for row in results["rows"]} for results in (before, after))
    slower = 0
    for subject in sorted(old.keys() & new.keys(), key=describe):
        change = 100 * (new[subject] / old[subject] - 1)
        if abs(change) >= args.threshold:
            slower += change > 0
            times = f"{1000 * old[subject]:10.3f} -> {1000 * new[subject]:10.3f} ms"
            print(f"{change:+6.0f} % time  {times}  {describe(subject)}")
    print(f"{len(old.keys() & new.keys())} rows in both, {slower} slower by {args.threshold:g} % or more; "
          f"{len(old.keys() - new.keys())} only before, {len(new.keys() - old.keys())} only after")
    sys.exit(slower > 0)


if __name__ == "__main__":
    main()
