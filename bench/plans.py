"""What `lorafast plan` says of released models on machines of several sizes: the tables in docs/models.md.

The files have the geometry of the real ones, a vocabulary of as many words, and holes for weights: they take no disk.

    python bench/plans.py FOLDER [--models NAME,...] [--machines GB,...]
"""
from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from released import RELEASES, Release

from lorafast.gguf.writer import header

LIMITS = {8: "6G", 16: "13G", 32: "28G"}
"""Of a machine of so many GB, what it leaves to a run."""

OPTIONS = ("--preset", "modern", "--ctx", "1024", "--batch", "2", "--grad-acc", "1")
ROW = {"memory": r"in all +(.* MB)", "weights": r"weights in memory +(.*? MB)",
       "kept": r"activations kept for backward .* of (\d+ blocks of \d+)", "step": r"^  (.*) a step,",
       "speed": r"a step, (.*) tokens/s", "read": r"^  (.*) read from disk a step"}


def write_with_holes(path: Path, release: Release) -> None:
    tensors = release.tensors()
    before = header(release.metadata(), tensors)
    path.write_bytes(before)
    os.truncate(path, sum(-(-nbytes // 32) * 32 for nbytes in (len(before), *(tensor.nbytes for tensor in tensors))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", default=",".join(RELEASES), metavar="NAME,...", help=", ".join(RELEASES))
    parser.add_argument("--machines", default="16,32", metavar="GB,...", help="of 8, 16, 32")
    args = parser.parse_args()
    text = args.folder / "book.txt"
    text.write_text("It is a truth universally acknowledged, that a text is as good as another. " * 2000)
    print("| model | file | machine | memory | of it weights | blocks kept | read a step | a step | tokens/s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.models.split(","):
        path = args.folder / f"{name}.gguf"
        write_with_holes(path, RELEASES[name])
        for machine in map(int, args.machines.split(",")):
            plan = subprocess.run([sys.executable, "-m", "lorafast", "plan", "--model-base", path, "--train-data", text,
                                   *OPTIONS, "--mem-limit", LIMITS[machine]], capture_output=True, text=True)
            if plan.returncode:
                print(f"| {name} | {path.stat().st_size / 1e9:.2f} GB | {machine} GB | {plan.stderr.strip()} |")
                continue
            found = {key: re.search(pattern, plan.stdout, re.MULTILINE) for key, pattern in ROW.items()}
            memory, weights, kept, step, speed, read = (match[1] if match else "0" for match in found.values())
            print(f"| {name} | {path.stat().st_size / 1e9:.2f} GB | {machine} GB | {memory} | {weights} | "
                  f"{kept.replace(' blocks', '')} | {read} | {step} | {speed} |", flush=True)
            print(plan.stdout, file=sys.stderr)
        path.unlink()


if __name__ == "__main__":
    main()
